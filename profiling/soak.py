"""Whether memory, open files, threads and temporary files stay flat over thousands of runs.

    python profiling/soak.py                          # about 2,000 runs, then one long stream
    python profiling/soak.py --runs 10000 --json soak.json
    python profiling/soak.py --part stream --images 200000

Three parts, each in a process of its own. `runs`: runs of all registered methods in turn, one after
another in one process, as `compare --jobs 1` does them. `pool`: the same through `compare`'s worker
processes, a comparison of 23 runs at a time, as a script that calls it in a loop would. `stream`:
one method over one long stream with checkpoints and evaluations in mid-stream. The runs are real
and tiny: a ViT of 5 blocks and 5 tokens, 30 images of 8x8 pixels.

Resident memory (of the process and its children) is read after each run, or every 100 steps. Growth
is the slope of a line through the second half of the readings (the first half fills caches), per
run or per 1,000 images. Open files, threads, children and files left in the temporary folder must
at the end be what they were in the middle. Exit status 1 if anything grows.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LIMITS = {"bytes per run": 4096.0, "bytes per 1,000 images": 65536.0}
"""A 30-hour comparison of 1,000 runs would hold 4 MB more; a stream of a million images 64 MB."""

PARTS = ("runs", "pool", "stream")


def write_folder(root: Path, per_class: int, classes: int = 6) -> Path:
    """Noise, of a colour for each class."""
    rng = np.random.RandomState(0)
    for split, count in (("train", per_class), ("test", 2)):
        for label in range(classes):
            place = root / split / f"c{label}"
            place.mkdir(parents=True)
            for index in range(count):
                pixels = rng.randint(0, 128, (8, 8, 3)) + 127 * np.array([label & 1, label & 2, 0])
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index}.png")
    return root


def config(folder: Path, method: str, seed: int, **changes: Any) -> Any:
    """A tiny run."""
    from avalanche_rwf.experiments.config import RunConfig
    from avalanche_rwf.strategies.registry import resolve_options

    settings: dict[str, Any] = {
        "experiences": 2, "batch_size": 4, "eval_every_samples": 10, **changes,
    }  # fmt: skip
    return RunConfig(
        benchmark=f"folder:{folder}", method=method, seed=seed,
        options=resolve_options(method, {}), backbone="vit_tiny_patch16_224",
        backbone_args={
            "pretrained": False, "depth": 5, "embed_dim": 16, "num_heads": 2, "patch_size": 8,
        },
        image_size=16, **settings,
    )  # fmt: skip


class Watch:
    """Readings of this process and its children."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self.readings: list[dict[str, float]] = []

    def read(self, count: float) -> None:
        """Note where things stand after so many runs or images."""
        import psutil

        gc.collect()
        memory = files = threads = 0
        family = [self._process, *self._process.children(recursive=True)]
        for process in family:
            try:
                memory += process.memory_info().rss
                files += process.num_fds()
                threads += process.num_threads()
            except psutil.Error:  # it has ended
                continue
        self.readings.append({
            "count": count, "memory": memory, "files": files, "threads": threads,
            "processes": len(family), "temporary": len(list(Path(tempfile.gettempdir()).iterdir())),
        })  # fmt: skip


def in_one_process(folder: Path, out: Path, amount: int) -> Iterator[int]:
    """Runs one after another; yields how many there have been."""
    from avalanche_rwf.experiments.run import run
    from avalanche_rwf.strategies.registry import list_methods

    methods = list_methods()
    for done in range(1, amount + 1):
        seed, which = divmod(done - 1, len(methods))
        method = methods[which]
        summary = run(config(folder, method, seed), out)
        assert summary["status"] == "done", summary
        yield done


def in_a_pool(folder: Path, out: Path, amount: int) -> Iterator[int]:
    """Comparisons one after another, each in two worker processes of its own."""
    from avalanche_rwf.experiments.execution import Execution
    from avalanche_rwf.experiments.executors import execute, start_server
    from avalanche_rwf.strategies.registry import list_methods

    start_server()
    done = 0
    for seed in itertools.count():
        configs = [config(folder, method, seed) for method in list_methods()]
        for _, summary in execute(configs, out, Execution(jobs=2, quiet=True)):
            assert summary["status"] == "done", summary
            done += 1
        yield done
        if done >= amount:
            return


def long_stream(folder: Path, out: Path, amount: int, watch: Watch) -> None:
    """One run over so many images (of 6 classes), a reading every 100 steps."""
    from avalanche_rwf.experiments.execution import Execution, use_execution
    from avalanche_rwf.experiments.run import run

    use_execution(Execution(checkpoint_every=200))
    seen = steps = 0

    def step(samples: int) -> None:
        nonlocal seen, steps
        seen, steps = seen + samples, steps + 1
        if steps % 100 == 0:
            watch.read(seen)

    changes = {"batch_size": 10, "eval_every_samples": 2000, "boundary_free": True}
    summary = run(config(folder, "er", 0, **changes), out, progress=step)
    assert summary["status"] == "done", summary


def soak(part: str, amount: int) -> dict[str, Any]:
    """Do one part; the figures."""
    import torch

    from avalanche_rwf.models.feature_cache import MEMORY

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Features of test images are kept up to this many bytes, by design; here it is soon full.
    MEMORY.limit = 2**20
    watch, start = Watch(), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_folder(Path(temporary) / "im", amount // 6 if part == "stream" else 5)
        out = Path(temporary) / "out"
        if part == "stream":
            long_stream(folder, out, amount, watch)
        else:
            work: Callable[..., Iterator[int]] = in_one_process if part == "runs" else in_a_pool
            for done in work(folder, out, amount):
                watch.read(done)
        seconds = time.perf_counter() - start
    return {"part": part, "seconds": seconds, **judge(part, watch.readings)}


def judge(part: str, readings: list[dict[str, float]]) -> dict[str, Any]:
    """Growth over the second half of the readings, and whether it is below the limit."""
    half = readings[len(readings) // 2 :]
    counts = np.array([r["count"] for r in half])
    slope = float(np.polyfit(counts, np.array([r["memory"] for r in half]), 1)[0])
    name = "bytes per 1,000 images" if part == "stream" else "bytes per run"
    growth = slope * (1000 if part == "stream" else 1)
    # The smallest of each half: what leaks is always there, workers and their pipes come and go.
    middle, end = half[: len(half) // 2], half[len(half) // 2 :]
    others = {
        key: [min(r[key] for r in middle), min(r[key] for r in end)]
        for key in ("files", "threads", "processes", "temporary")
    }
    grew = [key for key, (before, after) in others.items() if after > before]
    grew += [name] if growth > LIMITS[name] else []
    return {
        "done": readings[-1]["count"], name: growth,
        "memory": [half[0]["memory"], half[-1]["memory"]], **others, "grew": grew,
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Do the parts, each in a new process, and print what grew."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=PARTS, help="this one alone")
    parser.add_argument("--runs", type=int, default=2000, help="of `runs` and of `pool`")
    parser.add_argument("--images", type=int, default=60000, help="of `stream`")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(soak(args.part, args.images if args.part == "stream" else args.runs)))
        return 0
    results = []
    for part in [args.part] if args.part else PARTS:
        command = [sys.executable, __file__, "--child", "--part", part]
        command += ["--runs", str(args.runs), "--images", str(args.images)]
        # A temporary folder of its own: other programs' files are none of this.
        with tempfile.TemporaryDirectory() as temporary:
            text = subprocess.run(
                command, check=True, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "TMPDIR": temporary},
            ).stdout  # fmt: skip
        results.append(json.loads(text.splitlines()[-1]))
        for key, value in results[-1].items():
            print(f"{key:24} {f'{value:,.0f}' if isinstance(value, float) else value}")
        print(flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps({"parts": results, "cores": os.cpu_count()}))
    return 1 if any(result["grew"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
