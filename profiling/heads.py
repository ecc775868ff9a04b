"""Cost and state of heads against classes and width, in forwards of a ViT-B of the same process.

``python profiling/heads.py`` prints a Markdown table; CPU seconds of one thread, so that other work
on the machine counts little. A row is a stream of `--samples` images in batches of 16: the mean and
the longest `observe`, a solution after it (the first, and one more after another batch), logits of
a batch, the bytes of the head's state, and by how much the row, in a process of its own, made the
process's memory grow at most.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import timm
import torch

from avalanche_rwf.models.heads import create_head

BATCH = 16


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def memory(field: str) -> int:
    """Kilobytes of this process: now ("VmRSS") or at most until now ("VmHWM"), on Linux."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(field))


def frozen_forward() -> float:
    """CPU seconds of a ViT-B/16's forward of a batch, from four images."""
    vit, images = timm.create_model("vit_base_patch16_224").eval(), torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        vit(images)
        return statistics.median(seconds(lambda: vit(images)) for _ in range(3)) * BATCH / 4


def row(
    name: str, width: int, classes: int, samples: int, projections: int | None, unit: float
) -> str:
    """One line of the table."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(samples, width) + 1
    gc.disable()  # a collection of all of Python's objects would be the longest step
    before = memory("VmRSS")
    options = {} if projections is None else {"projections": projections}
    head = create_head(name, width, classes, **options)
    y = torch.randint(0, classes, (samples,))
    with torch.no_grad():
        steps = [
            seconds(lambda a=a, b=b: head.observe(a, b))  # type: ignore[misc]
            for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)
        ]
        first = seconds(lambda: head(x[:1]))
        head.observe(x[:BATCH], y[:BATCH])
        again = seconds(lambda: head(x[:1]))
        logits = seconds(lambda: head(x[:BATCH]))
    peak = memory("VmHWM") - before
    state = sum(t.numel() * t.element_size() for t in head.state_dict().values())
    mean = statistics.mean(steps)
    figures = [mean / unit, max(steps) / mean, first / unit, again / unit, logits / unit]
    shown = " | ".join(f"{figure:.3g}" for figure in figures)
    sizes = f"{state / 1e6:.0f} | {peak / 1e3:.0f}"
    return f"| {name} | {width} | {classes} | {samples} | {shown} | {sizes} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="white,ncm,slda,ridge,rp-ridge")
    parser.add_argument("--widths", default="384,1536,4608,12288")
    parser.add_argument("--classes", default="10,100,1000,10000")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--projections", type=int, help="of heads that have a random map")
    args = parser.parse_args()
    torch.set_num_threads(1)
    unit = frozen_forward()
    print(f"Unit: a frozen ViT-B/16's forward of {BATCH} images, {unit:.2f} s of CPU here.\n")
    columns = ["head", "F", "C", "images", "observe", "longest/mean", "solve", "again"]
    columns += ["logits", "MB", "peak"]
    print(f"| {' | '.join(columns)} |\n| :--- |{' ---: |' * (len(columns) - 1)}")
    for name in args.heads.split(","):
        sizes = [(int(f), 100) for f in args.widths.split(",") if f]
        sizes += [(768, int(c)) for c in args.classes.split(",") if c]
        for size in sizes:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                done = process.submit(row, name, *size, args.samples, args.projections, unit)
                print(done.result(), flush=True)


if __name__ == "__main__":
    main()
