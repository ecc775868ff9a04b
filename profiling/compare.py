"""Is a change slower or larger? Paired ratios of two revisions of this repository.

    python profiling/compare.py HEAD~10 HEAD                       # "." is the working tree
    python profiling/compare.py main . --methods rwf,slda --repeats 20 --json ratios.json

The revisions are unpacked into a temporary folder, and each has a process of its own. Repetitions
go to and fro between the two, so that what else the machine does hits both alike. A row is the
median over repetitions of HEAD / BASE, with its quartiles:

- ``step METHOD``: CPU seconds of training on a few mini-batches, all of the strategy's loop;
- ``memory METHOD``: the process's peak after its steps, in a fresh process (one number, no
  quartiles);
- ``start VERB``: CPU seconds of a command that answers at once;
- ``job``: CPU seconds of a whole comparison, start-up and evaluations included.

Both revisions must have ``create_strategy`` and ``create_backbone`` and run on what is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
VERBS = ("--help", "list methods", "list streams")


def unpack(revision: str, folder: Path) -> Path:
    """The folder with a revision's files."""
    if revision == ".":
        return ROOT
    made = subprocess.run(["git", "-C", str(ROOT), "archive", revision], capture_output=True)
    if made.returncode:
        sys.exit(made.stderr.decode().strip())
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


# ------------------------------------------------------------------------ in a revision's process


def trainer(method: str, images: int, batch: int) -> Callable[[], None]:
    """Trains a method on `images` random images, the same in each revision and call."""
    import torch
    from avalanche.benchmarks import nc_benchmark
    from timm import create_model
    from torch.utils.data import TensorDataset

    from avalanche_rwf import create_strategy

    torch.manual_seed(0)
    backbone = create_model(
        "vit_small_patch16_224", pretrained=False, num_classes=0, img_size=96, depth=6
    )
    backbone.eval().requires_grad_(False)
    data = TensorDataset(torch.randn(images, 3, 96, 96), torch.arange(images) % 10)
    data.targets = data.tensors[1].tolist()  # type: ignore[attr-defined]
    benchmark = nc_benchmark(data, data, 1, task_labels=False, seed=0)
    loop = {"train_mb_size": batch, "evaluator": None}
    strategy = create_strategy(method, backbone=backbone, num_classes=10, loop=loop)
    experience = benchmark.train_stream[0]
    # New images each time, so that none is looked up.
    noise = torch.Generator().manual_seed(1)

    def train() -> None:
        data.tensors[0].add_(0.01 * torch.randn(1, generator=noise))
        strategy.train(experience, shuffle=False)

    return train


def answer() -> None:
    """Do what is asked for, line by line, and say the seconds and the peak of memory."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    say, sys.stdout = sys.stdout, sys.stderr
    made: dict[tuple[Any, ...], Callable[[], None]] = {}
    for line in sys.stdin:
        asked = tuple(json.loads(line))
        if asked not in made:
            made[asked] = trainer(*asked)
            made[asked]()
        start = time.process_time()
        made[asked]()
        used = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([used, peak]), file=say, flush=True)


# ------------------------------------------------------------------------------------ the parent


def environment(folder: Path) -> dict[str, str]:
    """A process's, with the revision in `folder` as its package and one thread."""
    return {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


@contextmanager
def process(folder: Path) -> Iterator[Callable[..., list[float]]]:
    """A revision's process, as a function of what it is asked."""
    words = [sys.executable, __file__, "--answer"]
    child = subprocess.Popen(
        words, env=environment(folder), cwd=folder, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert child.stdin is not None and child.stdout is not None
    ask, hear = child.stdin, child.stdout

    def call(*asked: Any) -> list[float]:
        print(json.dumps(asked), file=ask, flush=True)
        said = hear.readline()
        if not said:
            sys.exit(f"{folder.name} cannot do {asked}")
        found: list[float] = json.loads(said)
        return found

    try:
        yield call
    finally:
        ask.close()
        child.wait()


def command(folder: Path, words: list[str]) -> float:
    """CPU seconds of the command line."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "avalanche_rwf", *words], env=environment(folder), cwd=folder,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{folder.name}: {' '.join(words)}: {done.stderr.strip()[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def to_and_fro(cases: tuple[Callable[[], float], Callable[[], float]], n: int) -> np.ndarray:
    """Numbers [n, 2] of BASE and HEAD, which change places after each repetition."""
    found = np.zeros((n, 2))
    for repeat in range(n):
        for which in (0, 1) if repeat % 2 == 0 else (1, 0):
            found[repeat, which] = cases[which]()
    return found


def measure(
    folders: tuple[Path, Path], args: argparse.Namespace
) -> Iterator[tuple[str, np.ndarray]]:
    """Name and numbers [n, 2] of each row."""
    size = (args.images, args.batch_size)
    for method in args.methods.split(",") if args.methods else []:
        with ExitStack() as stack:
            base, head = (stack.enter_context(process(folder)) for folder in folders)
            pair = (lambda: base(method, *size)[0], lambda: head(method, *size)[0])  # noqa: B023
            yield f"step {method}", to_and_fro(pair, args.repeats)
            yield f"memory {method}", np.array([[ask(method, *size)[1] for ask in (base, head)]])
    for verb in VERBS:
        starts = tuple(lambda f=f: command(f, verb.split()) for f in folders)  # noqa: B023
        yield f"start {verb}", to_and_fro((starts[0], starts[1]), args.repeats)
    if args.job:
        with tempfile.TemporaryDirectory() as out:
            words = ["compare", "--methods", args.job, "--seeds", "0", "--jobs", "1", "--quiet"]
            turn = iter(range(1000))
            jobs = tuple(
                lambda f=f: command(f, [*words, "--out", f"{out}/{next(turn)}"]) for f in folders
            )
            yield f"job {args.job}", to_and_fro((jobs[0], jobs[1]), args.job_repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("head", nargs="?", default=".")
    parser.add_argument("--methods", default="linear-probe,rwf,l2p,er,slda", help="'' for none")
    parser.add_argument("--job", default="ncm,slda,rwf", help="its methods, '' for none")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--job-repeats", type=int, default=2)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--json", type=Path, help="write every number here")
    args = parser.parse_args()
    numbers: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as out:
        # Names of one length: memory and start-up may depend on it.
        base, head = (
            unpack(r, Path(out) / n) for r, n in ((args.base, "base"), (args.head, "head"))
        )
        print(f"{'':26} {args.base:>12} {args.head:>12}  ratio [quartiles]", flush=True)
        for name, found in measure((base, head), args):
            ratios = found[:, 1] / found[:, 0]
            low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
            spread = f" [{low:.3f}, {high:.3f}]" if len(found) > 1 else ""
            medians = np.median(found, 0) / (1024 if name.startswith("memory") else 1)
            unit = "MB" if name.startswith("memory") else "s "
            left, right = (f"{value:.4g} {unit}" for value in medians)
            print(f"{name:26} {left:>12} {right:>12}  {middle:.3f}{spread}", flush=True)
            numbers[name] = found.tolist()
    load = os.getloadavg()
    print(f"Load of the machine at the end: {load[0]:.1f} on {os.cpu_count()} cores.")
    if args.json:
        args.json.write_text(json.dumps({"base": args.base, "head": args.head, "numbers": numbers}))


if __name__ == "__main__":
    if sys.argv[1:] == ["--answer"]:
        answer()
    else:
        main()
