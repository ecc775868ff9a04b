"""RwF on images of one's own: PATH/train/<class>/* and PATH/test/<class>/*.

    python examples/custom_folder.py PATH --experiences 4
    python examples/custom_folder.py            # draws a small folder of images first
    python examples/custom_folder.py --smoke    # a smaller one, seconds

Runs ``rwf`` and ``rwf-lda`` on the same stream with the packaged backbone (32 pixels, so it works
offline; for photographs give ``--backbone`` a larger ViT) and prints the accuracy over the classes
seen after each experience. The command line does the same and more:
``avalanche-rwf compare --benchmark folder:PATH --methods rwf,rwf-lda``.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import pandas as pd
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin
from PIL import Image, ImageDraw

from avalanche_rwf import (
    PACKAGED,
    DataFrameLogger,
    create_backbone,
    create_benchmark,
    create_strategy,
)
from avalanche_rwf.models.backbone import backbone_info

# rwf-lda reads what it retrieves in several blocks; two of them keep its LDA small and fast here.
METHODS = {"rwf": {}, "rwf-lda": {"blocks": "last 2"}}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "bar")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", nargs="?", help="a folder of images; none draws one")
    parser.add_argument("--experiences", type=int, help="how many the classes are spread over")
    parser.add_argument("--backbone", default=PACKAGED, help="a timm ViT by its exact tag")
    parser.add_argument("--seed", type=int, default=0, help="of the stream and of the methods")
    parser.add_argument("--smoke", action="store_true", help="few images, seconds")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if args.path is None:
            draw_images(Path(folder), train=8 if args.smoke else 60, test=4 if args.smoke else 20)
        experiences = args.experiences or (None if args.path else 3)
        table = pd.DataFrame(
            {
                name: run(name, args.path or folder, experiences, args.backbone, args.seed)
                for name in METHODS
            }
        ).T
    table.columns = [f"after {number + 1}" for number in table.columns]
    print("accuracy in per cent over the classes seen")
    print((100 * table).to_string(float_format="%.1f"))


def run(name, path, experiences, backbone_name, seed):
    """Train one method on the stream once; its accuracy after each experience."""
    torch.manual_seed(seed)
    backbone = create_backbone(backbone_name)
    info = backbone_info(backbone)
    benchmark = create_benchmark(
        f"folder:{path}", seed=seed, experiences=experiences, image_size=info.image_size,
        mean=info.mean, std=info.std, interpolation=info.interpolation, crop_pct=info.crop_pct,
    )  # fmt: skip
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[DataFrameLogger()])
    strategy = create_strategy(
        name,
        backbone=backbone,
        num_classes=benchmark.num_classes,
        loop={"train_mb_size": 16, "evaluator": evaluator},
        **METHODS[name],
    )
    accuracies = []
    for number, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, shuffle=False)  # one pass; samples are mixed already
        results = strategy.eval(benchmark.test_stream[: number + 1])
        accuracies.append(results["Top1_Acc_Stream/eval_phase/test_stream/Task000"])
        classes = benchmark.classes_per_experience[number]
        names = ", ".join(benchmark.class_names[c] for c in classes)
        print(f"{name}: {names} learned, {100 * accuracies[-1]:.1f} % over all so far", flush=True)
    return accuracies


def draw_images(folder, train, test):
    """Draw a shape per class, at random sizes, places and colours, as 64 x 64 PNG files."""
    draws = random.Random(0)
    for split, count in (("train", train), ("test", test)):
        for shape in SHAPES:
            directory = folder / split / shape
            directory.mkdir(parents=True)
            for number in range(count):
                draw_shape(shape, draws).save(directory / f"{number:03}.png")


def draw_shape(shape, draws):
    """One image of a shape on a darker background."""
    image = Image.new("RGB", (64, 64), tuple(draws.randrange(90) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    ink = tuple(draws.randrange(150, 256) for _ in range(3))
    r = draws.randrange(14, 24)
    x, y = (draws.randrange(r + 2, 62 - r) for _ in range(2))
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=5)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=ink)
    else:
        pen.line((x - r, y, x + r, y), fill=ink, width=6)
        if shape == "cross":
            pen.line((x, y - r, x, y + r), fill=ink, width=6)
    return image


if __name__ == "__main__":
    main()
