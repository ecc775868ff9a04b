"""A small command line and what it writes, for the tests of all verbs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from avalanche_rwf import cli

VIT = (
    "--backbone", "vit_tiny_patch16_224", "--image-size", "16",
    "--backbone-arg", "depth=5", "--backbone-arg", "embed_dim=16",
    "--backbone-arg", "num_heads=2", "--backbone-arg", "patch_size=8",
)  # fmt: skip
SIZES = {"depth": 5, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
METHODS = ("ncm", "rwf", "linear-probe")


def draw(root: Path, classes: str = "abcd", train: int = 5, test: int = 3) -> Path:
    """A folder of 8x8 images whose colour tells the class."""
    rng = np.random.RandomState(0)
    for split, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.randint(0, 120, (8, 8, 3))
                pixels[..., number % 3] += 40 * (1 + number // 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def call(capsys, *arguments) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command line."""
    capsys.readouterr()
    status = cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def runs(out: Path) -> dict[tuple[str, str], Path]:
    """(method, seed) -> run directory."""
    return {(p.parts[-3], p.name): p for p in sorted(out.glob("runs/*/*/*/seed*"))}


def copy(compared: tuple[Path, str], to: Path) -> Path:
    return shutil.copytree(compared[0], to / "results")
