"""The pictures in README, from a fresh run of the embedded stream, by one command, offline.

    python examples/gallery.py                 # about three minutes on two cores
    python examples/gallery.py --results DIR   # from runs that are there (an --out of compare)
    python examples/gallery.py --smoke         # two methods, seconds

Needs ``pip install avalanche-rwf[test]`` and, for the two screenshots, Chromium with its driver
(``apt-get install chromium chromium-driver``); without it they are left out.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from PIL import Image

from avalanche_rwf.cli import main as avalanche_rwf
from avalanche_rwf.leaderboard import plots, read_runs
from avalanche_rwf.leaderboard.aggregate import protocols

METHODS = "rwf,rwf-mean,rwf-lda,layers-lda,slda,ncm,linear-probe,single-prompt,dualprompt,l2p"
COLOURS = 128  # of a palette: a page has few, and a picture in a repository must be small
SCREEN = 1280


def save_small(image: Image.Image, path: Path) -> None:
    """Write a picture with a palette of its own."""
    palette = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def draw(figure, path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch) / "figure.png"
        figure.savefig(drawn, dpi=150)
        with Image.open(drawn) as image:
            save_small(image, path)


def digit(folder: Path) -> Path:
    """One of scikit-learn's digits as an image file."""
    from sklearn.datasets import load_digits

    data = load_digits()
    index = [i for i, target in enumerate(data.target) if target == 3][5]
    pixels = Image.fromarray((data.images[index] / 16 * 255).astype("uint8"))
    path = folder / "digit-3.png"
    pixels.resize((32, 32), Image.Resampling.BICUBIC).save(path)
    return path


def photograph(page: Path, out: Path) -> None:
    """Screenshots of the report: the ranking with its curves, and the section on routing."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        print("No screenshots: Chromium and its driver are not installed.")
        return
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory() as scratch:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--hide-scrollbars", f"--user-data-dir={scratch}/profile",
        ):  # fmt: skip
            options.add_argument(flag)
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        try:
            for name, section, theme, height in (
                ("report", "main", "light", 1060),
                ("report-routing", "routing", "dark", 860),
            ):
                shot = Path(scratch) / "shot.png"
                chrome.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": SCREEN, "height": height, "deviceScaleFactor": 1, "mobile": False},
                )
                chrome.execute_cdp_cmd(
                    "Emulation.setEmulatedMedia",
                    {"features": [{"name": "prefers-color-scheme", "value": theme}]},
                )
                chrome.get("about:blank")
                chrome.get(page.as_uri())
                there = chrome.execute_script(
                    "const s = document.getElementById(arguments[0]);"
                    "document.documentElement.style.scrollBehavior = 'auto';"
                    "if (arguments[0] !== 'main') s.scrollIntoView();"
                    "return !s.hidden",
                    section,
                )
                if not there:
                    continue
                time.sleep(4)  # plots are drawn when they come into view
                chrome.save_screenshot(str(shot))
                with Image.open(shot) as image:
                    save_small(image, out / f"{name}.png")
        finally:
            chrome.quit()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two methods and one seed, seconds")
    parser.add_argument("--results", type=Path, help="runs that are there already")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images",
        help="folder for the pictures",
    )  # fmt: skip
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as scratch:
        results = args.results or Path(scratch) / "results"
        if args.results is None:
            small = ["--methods", "rwf-lda,ncm", "--seeds", "0", "--experiences", "2"]
            words = small if args.smoke else ["--methods", METHODS]
            if avalanche_rwf(["compare", *words, "--out", str(results), "--quiet"]):
                raise SystemExit("The comparison failed; see above.")
        report = Path(scratch) / "report"
        if avalanche_rwf(["report", str(results), "--out", str(report)]):
            raise SystemExit("The report failed; see above.")
        photograph(report / "index.html", args.out)

        runs = protocols(read_runs(results).frame)[0]
        draw(plots.anytime_accuracy(runs), args.out / "curves.png")
        draw(plots.accuracy_matrices(runs), args.out / "matrices.png")
        draw(plots.accuracy_against_cost(runs), args.out / "cost.png")

        image = digit(Path(scratch))
        for method in ("rwf", "rwf-lda"):
            found = runs[(runs["method"] == method) & (runs["status"] == "done")]
            if found.empty:
                continue
            run = results / found.sort_values("seed")["run_dir"].iloc[0]
            if avalanche_rwf(["explain", str(image), "--run", str(run), "--out", scratch]):
                raise SystemExit("The maps failed; see above.")
            with Image.open(Path(scratch) / f"{image.stem}-routes.png") as drawn:
                save_small(drawn, args.out / f"routes-{method}.png")


if __name__ == "__main__":
    main()
