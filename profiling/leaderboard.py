"""Time and memory of the leaderboard over thousands of run directories.

    python profiling/leaderboard.py                       # 5,000 runs in a temporary folder
    python profiling/leaderboard.py --runs 2000 --keep made --json leaderboard.json

The run directories are made up, with the files, fields and sizes of real ones: methods times
configurations times seeds. Then `avalanche-rwf leaderboard` runs in a process of its own, as a user
runs it, imports included; the steps are timed in this process, and memory is the growth of what
Python holds between a fifth of the runs and all of them, by run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs
from avalanche_rwf.leaderboard.render import render

_VERSIONS = {
    "python": "3.11.7", "avalanche-rwf": "0.1.0", "avalanche-lib": "0.6.0", "torch": "2.9.1",
    "timm": "1.0.22", "numpy": "2.3.5", "pandas": "3.0.0",
}  # fmt: skip


def make_run(
    out: Path, config: RunConfig, skill: float, experiences: int, classes: int
) -> None:
    """Write one run directory whose method reaches about `skill`, a share of 1."""
    rng = np.random.default_rng([config.seed, int(1e6 * skill)])
    folder = run_directory(out, config)
    folder.mkdir(parents=True)
    per_class, each = 100, classes // experiences
    rows, matrix = ["samples_seen,experience,metric,value"], np.full((experiences,) * 2, np.nan)
    for t in range(experiences):
        seen = (t + 1) * each * per_class
        by_class = skill - 0.02 * (t - np.arange((t + 1) * each) // each)
        by_class = np.clip(by_class + 0.05 * rng.standard_normal(len(by_class)), 0, 1)
        matrix[t, : t + 1] = by_class.reshape(t + 1, each).mean(axis=1)
        rows.append(f"{seen},,accuracy_exposed,{float(by_class.mean())!r}")
        rows += [f"{seen},{e},accuracy,{value!r}"
                 for e, value in enumerate(matrix[t, : t + 1].tolist())]  # fmt: skip
        rows += [f"{seen},,accuracy_class_{c},{value!r}"
                 for c, value in enumerate(by_class.tolist())]  # fmt: skip
    a = np.array([np.nanmean(line) for line in matrix])
    loss = float(np.mean(np.nanmax(matrix[:-1, :-1], axis=0) - matrix[-1, :-1]))
    summary = {
        "a_last": float(a[-1]), "a_avg": float(a.mean()), "a_auc": float(a.mean()),
        "forgetting_experience": loss, "forgetting_class": loss, "train_seconds": 40.0,
        "eval_seconds": 20.0, "train_samples_per_second": float(300 * (1.2 - skill)),
        "forward_passes_per_image": 1.0, "trainable_parameters": int(1e5 * skill),
        "peak_memory_bytes": 10**9, "gradient_steps": 625, "samples_seen": classes * per_class,
        "status": "done",
    }  # fmt: skip
    content = {
        "config": asdict(config),
        "config_hash": config.config_hash(),
        "backbone": {"name": config.backbone, "sha256": config.weights_sha256, "source": "packaged",
                     "image_size": 32},
        "ran": {"head": "white", "mask": "seen", "readout": "cls"},
        "data": {"classes_per_experience": np.arange(classes).reshape(experiences, -1).tolist(),
                 "train_size": classes * per_class, "test_size": classes * 20},
        "uses_boundaries": False,
        "source_sha256": "68f9b28468190007" * 4,
        "versions": _VERSIONS,
        "hardware": {"device": "cpu", "cpu": "made up", "cores": 2, "threads": 1},
        "git": "50a1108",
    }  # fmt: skip
    for name, text in (("config.json", json.dumps(content, indent=1)),
                       ("summary.json", json.dumps(summary, indent=1)),
                       ("metrics.csv", "\n".join(rows) + "\n"),
                       ("log.txt", "made up\n")):  # fmt: skip
        (folder / name).write_text(text)


def make_runs(
    out: Path, runs: int, methods: int = 25, seeds: int = 5, experiences: int = 10,
    classes: int = 100, settings: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write `runs` run directories of `methods` methods at `seeds` seeds, options filling up."""
    for index in range(runs):
        place, seed = divmod(index, seeds)
        variant, method = divmod(place, methods)
        config = RunConfig(
            benchmark="made-up", method=f"method-{method:02d}", seed=seed,
            options={"lr": 0.001 * (1 + variant), "head": "white", "mask": "seen"},
            experiences=experiences, backbone="rwf_vit_mini_patch8_32", weights_sha256="9544" * 16,
            eval_every_samples=2500, **(settings or {}),
        )  # fmt: skip
        skill = 0.9 - 0.02 * method - 0.002 * (variant % 40)
        make_run(out, config, skill, experiences, classes)


def _seconds(do: object, times: int = 3) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        do()  # type: ignore[operator]
        best = min(best, time.perf_counter() - start)
    return best


def _held(out: Path) -> int:
    """Bytes that Python holds for the runs of a folder and their leaderboard."""
    tracemalloc.start()
    frame = read_runs(out).frame
    board = aggregate(frame)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del frame, board
    return held


def measure(out: Path, part: Path) -> dict[str, float]:
    """Return the figures of the runs in `out`, of which `part` holds a fifth."""
    command = [sys.executable, "-m", "avalanche_rwf", "leaderboard", str(out)]
    frame = read_runs(out).frame
    board = aggregate(frame)
    fewer = len(read_runs(part).frame)
    return {
        "runs": len(frame),
        "rows": len(board),
        "command_seconds": _seconds(
            lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ),
        "import_seconds": _seconds(
            lambda: subprocess.run(
                [sys.executable, "-c", "import avalanche_rwf.leaderboard"], check=True
            )
        ),
        "read_seconds": _seconds(lambda: read_runs(out)),
        "aggregate_seconds": _seconds(lambda: aggregate(frame)),
        "render_seconds": _seconds(lambda: render(board)),
        "bytes_per_run": (_held(out) - _held(part)) / (len(frame) - fewer),
    }


def main(argv: list[str] | None = None) -> int:
    """Make the runs, measure, print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5000)
    parser.add_argument("--keep", metavar="FOLDER", help="make the runs here and leave them")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(args.keep or temporary) / "all"
        make_runs(out, args.runs)
        part = Path(temporary) / "part"
        make_runs(part, args.runs // 5)
        figures = measure(out, part)
    for name, value in figures.items():
        print(f"{name:18} {value:,.0f}" if value >= 100 else f"{name:18} {value:.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps({**figures, "cores": os.cpu_count()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
