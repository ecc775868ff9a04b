"""Runs of a fraction of a second, and what their tests compare: a ViT of 5 tokens, 6 classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avalanche_rwf.experiments import execution
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import Execution


def make_folder(root: Path, train: int) -> Path:
    """Images of 8x8 pixels, 6 classes, `train` of each for training and 2 for the test."""
    rng = np.random.RandomState(0)
    for split, count in (("train", train), ("test", 2)):
        for name in "abcdef":
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.randint(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def configurer(folder: Path, **settings) -> Callable[..., RunConfig]:
    """A maker of RunConfigs of a tiny random ViT on that folder; options are the method's own."""
    from avalanche_rwf.strategies.registry import resolve_options

    base = RunConfig(
        benchmark=f"folder:{folder}",
        method="",
        backbone="vit_tiny_patch16_224",
        backbone_args={
            "pretrained": False, "depth": 5, "embed_dim": 16, "num_heads": 2, "patch_size": 8,
        },
        image_size=16,
        **settings,
    )  # fmt: skip

    def make(method: str = "linear-probe", **changes) -> RunConfig:
        options = resolve_options(method, changes.pop("options", {}))
        return replace(base, method=method, options=options, **changes)

    return make


def execute_with(monkeypatch, **how) -> None:
    """Let this process do runs in another way; see :class:`Execution`."""
    monkeypatch.setattr(execution, "_current", Execution(**how))


class Killed(BaseException):
    """What a power cut would be: nothing in the package catches it."""


def assert_equal(a, b, where: str = "state") -> None:
    """Nested dictionaries and lists of tensors, equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where
