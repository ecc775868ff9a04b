"""Images per second of the loader over those of a training step, in one process.

    python profiling/loading.py                      # ViT-S/16 at 224 px, JPEG files of 500 x 375
    python profiling/loading.py --threads 2 --workers 2 --json loading.json

A folder of JPEG files is written to a temporary place and made into a stream whose images are
decoded when they are asked for, as those of the large data sets are. Each repetition times, in
turn, one pass of training steps (on a batch in memory) and one pass of the loader (without
training), and a ratio is the median over repetitions of (images per second of the loader / those of
the step in the same repetition). Above 1 the loader keeps up; the limit asks for more, because on a
machine without a GPU loader and step share the cores. Loading processes are started before the
clock runs, as they are once per experience; a pass begins with nothing loaded in advance.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm import create_model
from torch.utils.data import DataLoader

from avalanche_rwf.benchmarks import images
from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.experiments.data_loading import NormaliseOnDevice
from avalanche_rwf.strategies.registry import create_strategy

CLASSES = 10
HALF = (0.5, 0.5, 0.5)
LIMITS = {"loader over rwf step": 1.5}


def write_folder(root: Path, images: int, size: tuple[int, int]) -> None:
    """JPEG files with edges and texture: about as many bytes a pixel as photographs have."""
    rng = np.random.RandomState(0)
    width, height = size
    for split, count in (("train", images), ("test", CLASSES)):
        for index in range(count):
            coarse = rng.randint(0, 256, (height // 24 + 1, width // 24 + 1, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
            noisy = np.asarray(picture, dtype=np.int16) + rng.randint(-12, 13, (height, width, 1))
            place = root / split / f"c{index % CLASSES}"
            place.mkdir(parents=True, exist_ok=True)
            path = place / f"{index}.jpg"
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_stream(root: Path, args: argparse.Namespace, normalised: bool) -> Any:
    """The training images as one experience, decoded when they are asked for."""
    images.CACHE_BYTES = 0
    benchmark = create_benchmark(
        f"folder:{root}", seed=0, experiences=1, image_size=args.image_size, mean=HALF, std=HALF,
        interpolation="bicubic", crop_pct=0.9, augment=args.augment, normalised=normalised,
    )  # fmt: skip
    return benchmark.train_stream[0].dataset


def make_step(method: str, backbone: Any, args: argparse.Namespace) -> Callable[[Any], None]:
    """One whole training step of a method on a mini-batch of uint8 images."""
    torch.manual_seed(1)
    loop = {
        "train_mb_size": args.batch_size, "device": args.device, "evaluator": None,
        "precision": args.precision,
    }  # fmt: skip
    strategy = create_strategy(
        method, backbone=copy.deepcopy(backbone), num_classes=CLASSES, loop=loop
    )
    strategy.is_training = True
    strategy.model.train()
    plugin = NormaliseOnDevice(HALF, HALF)

    def step(batch: Any) -> None:
        strategy.mbatch = list(batch)
        strategy._unpack_minibatch()
        plugin.before_training_iteration(strategy)
        strategy._observed = False
        strategy._training_step()

    return step


def batches(data: Any, workers: int, args: argparse.Namespace) -> Generator[Any]:
    """The stream's mini-batches, again and again, from processes that stay."""
    loader = DataLoader(
        data, batch_size=args.batch_size, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )  # fmt: skip
    while True:
        yield from loader


def seconds(run: Callable[[], object], device: str) -> float:
    """Wall time, on a GPU until it is idle: loading processes are other processes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(args: argparse.Namespace) -> dict[str, float]:
    """The ratios of `LIMITS` and some for information."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = create_model(
            args.model, pretrained=False, num_classes=0, img_size=args.image_size
        )
    backbone.eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_folder(root, args.images, (args.width, args.height))
        raw, floats = (make_stream(root, args, normalised) for normalised in (False, True))
        loaders = {
            "loader": batches(raw, args.workers, args),
            "loader of normalised images": batches(floats, args.workers, args),
            "loader without processes": batches(raw, 0, args),
        }
        loader_of_training = batches(raw, args.workers, args)
        number = args.images // args.batch_size
        batch = next(iter(DataLoader(raw, batch_size=args.batch_size)))
        steps = {name: make_step(name, backbone, args) for name in ("rwf", "linear-probe")}

        def steps_of(name: str) -> object:
            return [steps[name](batch) for _ in range(number)]

        def pass_of(loader: Generator[Any]) -> object:
            return [next(loader) for _ in range(number)]

        cases: dict[str, Callable[[], object]] = {
            f"{name} step": partial(steps_of, name)
            for name in steps
        }
        # Whole passes: a loader starts on the next one only when it is asked for it.
        cases |= {
            name: partial(pass_of, loader)
            for name, loader in loaders.items()
        }
        cases["rwf training from the loader"] = lambda: [
            steps["rwf"](next(loader_of_training)) for _ in range(number)
        ]
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for repeat in range(args.repeats + 1):
            print(f"\rloading: {repeat}/{args.repeats} ", end="", file=sys.stderr, flush=True)
            for name in list(cases) if repeat % 2 == 0 else list(reversed(cases)):
                took = seconds(cases[name], args.device)
                if repeat:
                    rates[name].append(number * args.batch_size / took)
        print(file=sys.stderr)
        for loader in (*loaders.values(), loader_of_training):
            loader.close()

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))

    results = {
        f"{loader} over {step}": ratio(loader, step)
        for loader in loaders
        for step in ("rwf step", "linear-probe step")
    }
    results["training from the loader over steps in memory, rwf"] = ratio(
        "rwf training from the loader", "rwf step"
    )
    return results | {f"{k}, images a second": statistics.median(v) for k, v in rates.items()}


def table(results: dict[str, float]) -> str:
    """The results as text: first what has a limit, then the rest."""
    width = max(map(len, results))
    lines = [f"{'ratio':<{width}}  {'measured':>8}  {'target':>8}  verdict", "-" * (width + 30)]
    for name, limit in LIMITS.items():
        verdict = "met" if results[name] >= limit else "MISSED"
        lines.append(f"{name:<{width}}  {results[name]:8.2f}  >= {limit:5.2f}  {verdict}")
    lines += ["", "for information"]
    lines += [f"{k:<{width}}  {v:8.2f}" for k, v in results.items() if k not in LIMITS]
    return "\n".join(lines)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="vit_small_patch16_224", help="a timm ViT")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of the training step")
    parser.add_argument("--workers", type=int, default=2, help="processes that load")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument(
        "--augment", choices=("none", "flip", "flip-crop", "autoaug"), default="none"
    )
    parser.add_argument("--images", type=int, default=64, help="files in the stream")
    parser.add_argument("--width", type=int, default=500, help="of the files in pixels")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="also write the results there")
    args = parser.parse_args(argv)
    names = ("batch_size", "threads", "images", "width", "height", "repeats", "workers")
    for name in names:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1.")
    if args.images < max(args.batch_size, CLASSES):
        parser.error(f"--images must be at least {max(args.batch_size, CLASSES)}.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table, return 1 if a limit is missed."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    results = measure(args)
    print(
        f"{args.model}, {args.image_size} px, batch {args.batch_size}, {args.device}, "
        f"{args.precision}, files of {args.width} x {args.height}, augment {args.augment}, "
        f"{args.threads} thread(s), {args.workers} loading processes, {args.repeats} repetitions"
    )
    print(table(results))
    if args.json:
        report = {"arguments": vars(args), "results": results, "limits": LIMITS}
        Path(args.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return int(any(results[name] < limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
