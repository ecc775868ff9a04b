"""A run of a fraction of a second: a ViT of 5 tokens and 24 images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avalanche_rwf.experiments.config import RunConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Images of 8x8 pixels, 6 classes, 4 for training and 2 for the test."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.RandomState(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in "abcdef":
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def configure(folder):
    """Make a RunConfig of a tiny random ViT on that folder; options are the method's own."""
    from avalanche_rwf.strategies.registry import resolve_options

    base = RunConfig(
        benchmark=f"folder:{folder}",
        method="",
        experiences=3,
        backbone="vit_tiny_patch16_224",
        backbone_args={
            "pretrained": False, "depth": 5, "embed_dim": 16, "num_heads": 2, "patch_size": 8,
        },
        image_size=16,
        batch_size=3,
        eval_every_samples=4,
    )  # fmt: skip

    def make(method: str = "linear-probe", **changes) -> RunConfig:
        options = resolve_options(method, changes.pop("options", {}))
        return replace(base, method=method, options=options, **changes)

    return make
