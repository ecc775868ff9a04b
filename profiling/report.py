"""How long the report takes to make and to open, and how large it is, with many runs.

``python profiling/report.py`` makes run directories up (2,000 by default, ``--runs``), writes their
report and opens it in Chromium from a file, several times with a fresh profile each. Exit status 1
if the median time to the first table is 2 s or more, or the folder is 15 MB or larger.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS, MEGABYTES = 2.0, 15.0
# After `load`, when two frames with the table in them have been drawn.
_OPENED = """
const done = arguments[0];
const frame = requestAnimationFrame;
const drawn = () => frame(() => frame(() => done(performance.now())));
const wait = () => document.querySelector('#rows tr') ? drawn() : setTimeout(wait, 5);
wait();
"""


def fake_run() -> Any:
    """The tests' maker of run directories."""
    path = Path(__file__).parents[1] / "tests" / "leaderboard" / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_conftest", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fake_run


def opened(page: Path) -> tuple[float, int]:
    """Seconds from the start of navigation to the drawn table, and the number of its rows."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("chromium-browser") or ""
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        try:
            driver.get(page.as_uri())
            milliseconds = driver.execute_async_script(_OPENED)
            rows = driver.execute_script("return document.querySelectorAll('#rows tr').length")
        finally:
            driver.quit()
    return milliseconds / 1000, rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2, help="runs of a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", help="keep the runs and the report here")
    args = parser.parse_args(argv)
    from avalanche_rwf.leaderboard.report import write_report

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(args.out or scratch)
        make = fake_run()
        for index in range(args.runs):
            row, seed = divmod(index, args.seeds)
            make(out, f"rwf-{row}", seed, f"{row:06}", 0.5 + 0.4 * row / args.runs, log="x" * 600)
        start = time.perf_counter()
        page = write_report(out)
        print(f"written in {time.perf_counter() - start:.1f} s: {args.runs} runs")
        size = sum(p.stat().st_size for p in page.parent.rglob("*") if p.is_file()) / 1e6
        print(f"size {size:.1f} MB (limit {MEGABYTES:g})")
        times = []
        for _ in range(args.repeats):
            seconds, rows = opened(page)
            times.append(seconds)
        median = statistics.median(times)
        print(
            f"opened in {median:.2f} s (median of {args.repeats}, worst {max(times):.2f}, "
            f"limit {SECONDS:g}); {rows} rows drawn at first"
        )
    return int(size >= MEGABYTES or median >= SECONDS)


if __name__ == "__main__":
    sys.exit(main())
