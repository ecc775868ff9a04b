"""What the executors themselves cost: runs that do nothing, so that all time is theirs.

    python profiling/executors.py                      # cost per run, with a bare process beside it
    python profiling/executors.py --list 10000         # memory of the driver during a long list
    python profiling/executors.py --workers            # 64 small real runs by 1 worker and by 2

Other work on the machine is in every number but the ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute, get_executor
from avalanche_rwf.experiments.executors.base import Context, variables
from avalanche_rwf.experiments.executors.process import process_context, start_server
from avalanche_rwf.strategies.registry import resolve_options

RUNS = 50


def nothing(config: RunConfig, out: Path, device: str, progress: Any = None) -> dict[str, Any]:
    """A run of no work."""
    return {"status": "done"}


def bare() -> None:
    """A process of no work."""


def configs(n: int) -> list[RunConfig]:
    return [RunConfig("split-digits", "ncm", seed=seed) for seed in range(n)]


def rss() -> float:
    """Memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def results(name: str, out: Path, n: int, jobs: int) -> Iterator[Any]:
    executor = get_executor(name)
    context = Context(out, Execution(jobs=jobs), work=nothing, variables=variables())
    return executor(context).map(configs(n))


def cost(name: str, out: Path) -> float:
    """Seconds per run, without the first, which starts what is to be started."""
    found = results(name, out, RUNS + 1, 1)
    next(found)
    start = time.perf_counter()
    assert len(list(found)) == RUNS
    return (time.perf_counter() - start) / RUNS


def bare_cost() -> float:
    """Seconds of a process of the same fork server."""
    taken = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        process = process_context().Process(target=bare)  # type: ignore[attr-defined]
        process.start()
        process.join()
        taken.append(time.perf_counter() - start)
    return statistics.fmean(taken[1:])


def small(out: Path, jobs: int) -> float:
    """Seconds for 64 runs of a fraction of a second."""
    runs = [
        RunConfig("split-digits", method, options=resolve_options(method, {}), seed=seed,
                  backbone="vit_tiny_patch16_224", image_size=16,
                  backbone_args={"pretrained": False, "depth": 1, "embed_dim": 16, "num_heads": 2,
                                 "patch_size": 8})
        for seed in range(32) for method in ("ncm", "slda")
    ]  # fmt: skip
    start = time.perf_counter()
    done = list(execute(runs, out, Execution(jobs=jobs, quiet=True)))
    assert all(summary["status"] == "done" for _, summary in done), done
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--list", type=int, metavar="N", help="runs of the long list")
    parser.add_argument("--executor", default="process", help="of the long list")
    parser.add_argument("--workers", action="store_true")
    args = parser.parse_args()
    start_server()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if args.list:
            start, begin = time.perf_counter(), 0.0
            for index, _ in enumerate(results(args.executor, out, args.list, 2), 1):
                begin = begin or rss()
                if index % (args.list // 10) == 0:
                    seconds = time.perf_counter() - start
                    print(f"{index:6} runs, {seconds:6.1f} s, driver {rss():6.1f} MB "
                          f"(first run {begin:.1f} MB)", flush=True)  # fmt: skip
        elif args.workers:
            small(out / "warm", 2)
            one, two = small(out / "one", 1), small(out / "two", 2)
            print(f"64 small runs: 1 worker {one:.1f} s, 2 workers {two:.1f} s, {one / two:.2f} x")
        else:
            process = bare_cost()
            print(f"a bare process {1000 * process:6.1f} ms", flush=True)
            for name in ("serial", "process", "ray"):
                if name == "ray" and importlib.util.find_spec("ray") is None:
                    continue
                each = cost(name, out / name)
                said = f"{name:14} {1000 * each:6.1f} ms per run, {each / process:.2f} x"
                print(said, flush=True)


if __name__ == "__main__":
    main()
