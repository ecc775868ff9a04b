"""Cost and state of heads against classes and width, in forwards of a ViT-B of the same process.

``python profiling/heads.py`` prints a Markdown table; CPU seconds of one thread, so that other work
on the machine counts little. A row is a stream of `--samples` images in batches of 16: the mean and
the longest `observe`, a solution after it (the first, and one more after another batch), logits of
a batch, and the bytes of the head's state.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch

from avalanche_rwf.models.heads import create_head

BATCH = 16


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def frozen_forward() -> float:
    """CPU seconds of a ViT-B/16's forward of a batch, from four images."""
    vit, images = timm.create_model("vit_base_patch16_224").eval(), torch.randn(4, 3, 224, 224)
    with torch.no_grad():
        vit(images)
        return statistics.median(seconds(lambda: vit(images)) for _ in range(3)) * BATCH / 4


def row(name: str, width: int, classes: int, samples: int, unit: float) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    head = create_head(name, width, classes)
    x = torch.randn(samples, width) + 1
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
    state = sum(t.numel() * t.element_size() for t in head.state_dict().values())
    mean = statistics.mean(steps)
    figures = [mean / unit, max(steps) / mean, first / unit, again / unit, logits / unit]
    shown = " | ".join(f"{figure:.3g}" for figure in figures)
    return f"| {name} | {width} | {classes} | {samples} | {shown} | {state / 1e6:.0f} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--heads", default="white,ncm,slda,ridge,rp-ridge")
    parser.add_argument("--widths", default="384,1536,4608,12288")
    parser.add_argument("--classes", default="10,100,1000,10000")
    parser.add_argument("--samples", type=int, default=2000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    unit = frozen_forward()
    print(f"Unit: a frozen ViT-B/16's forward of {BATCH} images, {unit:.2f} s of CPU here.\n")
    print("| head | F | C | images | observe | longest / mean | solve | again | logits | MB |")
    print("| :--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.heads.split(","):
        sizes = [(int(f), 100) for f in args.widths.split(",")]
        sizes += [(768, int(c)) for c in args.classes.split(",")]
        for width, classes in sizes:
            print(row(name, width, classes, args.samples, unit), flush=True)


if __name__ == "__main__":
    main()
