"""Cost and state of heads against classes and width, in forwards of a ViT-B of the same process.

``python profiling/heads.py`` prints a Markdown table; CPU seconds of one thread, so that other work
on the machine counts little. A row is a stream of `--samples` images in batches of 16: the mean and
the longest `observe`, a solution after it (the first, and one more after another batch), logits of
a batch, the bytes of the head's state, and by how much the row, in a process of its own, made the
process's memory grow at most. ``--read docs/speed.md --plot heads.svg`` draws a table that is there
already.
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


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def rows_of(text: str) -> list[list[str]]:
    """Rows of a table that was printed before, in a text: name, F, C, images and figures."""
    found = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return [row for row in found if len(row) == 11 and row[1].isdecimal()]


def plot(rows: list[list[str]], file: Path) -> None:
    """Draw what a batch, a solution and the state cost, against F and against C."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(10, 6), layout="constrained")
    titles = {4: "a batch of 16 (forwards)", 6: "a solution (forwards)", 9: "state (MB)"}
    sides = ((1, 2, "100", "width F, 100 classes"), (2, 1, "768", "classes C, width 768"))
    for line, (x, fixed, value, label) in zip(axes, sides, strict=True):
        for axis, (column, title) in zip(line, titles.items(), strict=True):
            for name in dict.fromkeys(row[0] for row in rows):
                points = sorted(
                    (int(row[x]), float(row[column]))
                    for row in rows
                    if row[0] == name and row[fixed] == value and float(row[column])
                )
                if points:
                    axis.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            axis.set(xlabel=label, title=title)
            axis.grid(alpha=0.3)
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", ncols=len(names))
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="white,ncm,slda,ridge,rp-ridge")
    parser.add_argument("--widths", default="384,1536,4608,12288")
    parser.add_argument("--classes", default="10,100,1000,10000")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--projections", type=int, help="of heads that have a random map")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the table, .svg or .png")
    parser.add_argument("--read", type=Path, metavar="FILE", help="draw this table of earlier")
    args = parser.parse_args()
    if args.read:
        if not args.plot:
            parser.error("--read needs --plot, the file to draw to.")
        plot(rows_of(args.read.read_text()), args.plot)
        return
    torch.set_num_threads(1)
    unit = frozen_forward()
    print(f"Unit: a frozen ViT-B/16's forward of {BATCH} images, {unit:.2f} s of CPU here.\n")
    columns = ["head", "F", "C", "images", "observe", "longest/mean", "solve", "again"]
    columns += ["logits", "MB", "peak"]
    print(f"| {' | '.join(columns)} |\n| :--- |{' ---: |' * (len(columns) - 1)}")
    lines = []
    for name in args.heads.split(","):
        sizes = [(int(f), 100) for f in args.widths.split(",") if f]
        sizes += [(768, int(c)) for c in args.classes.split(",") if c]
        for size in sizes:
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                done = process.submit(row, name, *size, args.samples, args.projections, unit)
                lines.append(done.result())
                print(lines[-1], flush=True)
    if args.plot:
        plot(rows_of("\n".join(lines)), args.plot)


if __name__ == "__main__":
    main()
