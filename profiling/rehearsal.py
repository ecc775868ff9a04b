"""The README's run on Split-ImageNet-R at full size, for a few steps on the CPU.

    python profiling/rehearsal.py --data DIR          # 30,000 generated JPEGs: 2.6 GB in DIR

JPEGs of ImageNet-R's layout (200 classes, 24,000 for training and 6,000 for the test, 500 x 375
pixels) and a ViT-B/16 of 224 pixels with random weights. `compare` is started as a user would,
asked to stop after some steps, and started again, which goes on from the checkpoint. Then, in this
process: how many images a second a core decodes, how many come from pixels that were decoded
before, and a forward, from which the evaluation of all 6,000 follows.

What a card of the H100's class would take: `--card-rate` of 989 Tflop/s in bf16 (dense), at
`--card-share` of it. Other work on the machine is in every number.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAME = "imagenet-r"
CLASSES, EACH = 200, 150
MODEL = "vit_base_patch16_224"


def pictures(count: int) -> Iterator[bytes]:
    """JPEG files with edges and texture: about as many bytes a pixel as photographs have."""
    drawn = np.random.RandomState(0)
    for _ in range(count):
        coarse = drawn.randint(0, 256, (16, 21, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(picture, dtype=np.int16) + drawn.randint(-12, 13, (375, 500, 1))
        file = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=90)
        yield file.getvalue()


def write_data(root: Path) -> None:
    """The prepared data set, if it is not there. Files differ by their number after the image."""
    from avalanche_rwf.benchmarks.download import MARKER
    from avalanche_rwf.benchmarks.sources import INDEX, hashed_rows

    folder = root / NAME
    if (folder / MARKER).is_file():
        return
    made = list(pictures(200))
    for label in range(CLASSES):
        place = folder / NAME / f"n{label:08}"
        place.mkdir(parents=True, exist_ok=True)
        for index in range(EACH):
            number = label * EACH + index
            (place / f"art_{index}.jpg").write_bytes(made[number % 200] + b"%d" % number)
    rows = sorted(hashed_rows(folder, NAME))
    with (folder / INDEX).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "class", "split"), *rows])
    marker = {"images": len(rows), "classes": CLASSES, "corrupt": []}
    (folder / MARKER).write_text(json.dumps(marker))


def write_weights(file: Path) -> None:
    """Random ones, as those of a person's own come."""
    import torch
    from timm import create_model

    if not file.exists():
        torch.manual_seed(0)
        torch.save(create_model(MODEL, pretrained=False).state_dict(), file)


def memory(pid: int) -> float:
    """Memory of a process and those that it started, what they share counted once, in MB."""
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            number = int(stat.parent.name)
            if number == pid:
                lines = (stat.parent / "smaps_rollup").read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line[:4] == "Pss:") / 1024
            elif parent == pid:
                total += memory(number)
        except (OSError, ValueError):
            continue
    return total


def sizes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def command(args: argparse.Namespace, seen: int) -> dict[str, float]:
    """`compare` until it has trained on so many images in all; seconds, memory and sizes."""
    out = Path(args.out)
    line = [
        *(sys.executable, "-m", "avalanche_rwf", "compare", "--benchmark", "split-imagenet-r"),
        *("--backbone", MODEL, "--weights", f"{args.data}/random.pt"),
        *("--methods", args.method, "--seeds", "0"),
        *("--data-root", args.data, "--out", args.out, "--quiet", "--jobs", "1"),
        *("--checkpoint-every", "2"),
    ]  # fmt: skip
    start, peak, first = time.perf_counter(), 0.0, 0.0
    process = subprocess.Popen(line)
    samples = 0
    while process.poll() is None and samples < seen:
        time.sleep(0.2)
        peak = max(peak, memory(process.pid))
        for path in out.glob("status/running/[!.]*.json"):
            try:
                samples = int(json.loads(path.read_text())["samples"])
            except (OSError, ValueError):
                continue
        if samples and not first:
            first = time.perf_counter() - start
    process.send_signal(signal.SIGINT)
    asked = time.perf_counter()
    process.wait()
    return {
        "seconds to the first step": first,
        "seconds to end the step and stop": time.perf_counter() - asked,
        "memory, MB": peak,
        "checkpoint, MB": sum(f.stat().st_size for f in out.rglob("checkpoint.pt")) / 1e6,
        "results, MB": sizes(out),
    }


def rate(call: Callable[[int], object], seconds: float) -> float:
    """Calls a second of processor time of this thread."""
    start, done = time.thread_time(), 0
    while time.thread_time() - start < seconds:
        call(done)
        done += 1
    return done / (time.thread_time() - start)


def loading(args: argparse.Namespace) -> dict[str, float]:
    """Images a second of one core: decoded, and from the pixels that were kept."""
    from avalanche_rwf.benchmarks.kept_pixels import KEPT
    from avalanche_rwf.benchmarks.registry import create_benchmark

    os.environ["AVALANCHE_RWF_DATA"] = args.data
    start = time.perf_counter()
    stream = create_benchmark(
        "split-imagenet-r", seed=0, image_size=224, mean=(0.5,) * 3, std=(0.5,) * 3,
        interpolation="bicubic", crop_pct=0.9, normalised=False,
    )  # fmt: skip
    opened = time.perf_counter() - start
    data = stream.train_stream[0].dataset
    number = int(rate(lambda i: data[i], args.seconds) * args.seconds)
    with tempfile.TemporaryDirectory() as folder:
        KEPT.share(Path(folder))
        first = rate(lambda i: data[i % number], args.seconds)
        kept = rate(lambda i: data[i % (number // 2)], args.seconds)
        KEPT.share(None)
    return {"seconds to open the stream": opened,
            "images a second and core, decoded": number / args.seconds,
            "decoded and kept": first, "kept": kept}  # fmt: skip


def evaluation(args: argparse.Namespace) -> dict[str, float]:
    """A forward of the backbone, and what 6,000 images take with it."""
    import torch
    from timm import create_model

    torch.set_num_threads(1)
    model = create_model(MODEL, pretrained=False, num_classes=0).eval()
    x = torch.zeros(16, 3, 224, 224)
    with torch.no_grad():
        each = rate(lambda _: model(x), 4 * args.seconds) * 16
    work = len(model.blocks) * 197 * (24 * 768**2 + 4 * 197 * 768)
    card = args.card_rate * 1e12 * args.card_share / work
    return {"forwards a second and core": each, "seconds for 6,000 test images here": 6000 / each,
            "forwards a second of the card": card}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder for the data set, kept")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--method", default="rwf")
    parser.add_argument("--images", type=int, default=64, help="trained on before it is stopped")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of a rate")
    parser.add_argument("--card-rate", type=float, default=989.0, help="Tflop/s")
    parser.add_argument("--card-share", type=float, default=0.4, help="of it that is used")
    args = parser.parse_args()
    write_data(Path(args.data))
    write_weights(Path(args.data) / "random.pt")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "first command": lambda: command(args, args.images),
        "the same again": lambda: command(args, 2 * args.images),
        "loading": lambda: loading(args),
        "evaluation": lambda: evaluation(args),
    }
    for name, measure in parts.items():
        print(name, flush=True)
        for what, value in measure().items():
            print(f"  {what:40} {value:10.4g}", flush=True)


if __name__ == "__main__":
    main()
