"""Runs of a fraction of a second that are cut: a ViT of 5 tokens and 30 images."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.checkpoint import strategy_state
from avalanche_rwf.experiments.config import RunConfig, run_directory

# Processes of the fork server find `fault_children` there: their modules have no package of tests.
sys.path.insert(0, str(Path(__file__).parent))

TIMES = (
    *("train_seconds", "eval_seconds", "eval_share"),
    *("train_samples_per_second", "peak_memory_bytes"),
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Images of 8x8 pixels, 6 classes, 5 for training and 2 for the test."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.RandomState(0)
    for split, count in (("train", 5), ("test", 2)):
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
        experiences=2,
        backbone="vit_tiny_patch16_224",
        backbone_args={
            "pretrained": False, "depth": 5, "embed_dim": 16, "num_heads": 2, "patch_size": 8,
        },
        image_size=16,
        batch_size=4,  # experiences of 15: batches of 4, 4, 4 and 3
        eval_every_samples=7,
    )  # fmt: skip

    def make(method: str = "linear-probe", **changes) -> RunConfig:
        options = resolve_options(method, changes.pop("options", {}))
        return replace(base, method=method, options=options, **changes)

    return make


class Killed(BaseException):
    """What a power cut would be: nothing in the package catches it."""


def compare(a, b, where: str = "state") -> None:
    """Nested dictionaries and lists of tensors, equal to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            compare(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            compare(x, y, f"{where}.{i}")
    else:
        assert a == b, where


class Outcome:
    """What a run leaves that must be equal to the last bit: metrics, summary, final weights."""

    def __init__(self, out: Path, config: RunConfig, strategy=None) -> None:
        self.directory = run_directory(out, config)
        self.metrics = (self.directory / "metrics.csv").read_bytes()
        summary = module.read_json(self.directory / "summary.json")
        self.summary = {k: v for k, v in summary.items() if k not in TIMES}
        weights = self.directory / module.WEIGHTS
        # The order of what the file's header says about it is not fixed: tensors are compared.
        self.weights = load_file(weights) if weights.exists() else {}
        self.state = None if strategy is None else strategy_state(strategy)

    def assert_equal(self, other: Outcome) -> None:
        """Compare with the outcome of an uninterrupted run."""
        assert self.metrics == other.metrics
        assert self.summary == other.summary
        compare(self.weights, other.weights, "weights")
        if self.state is not None and other.state is not None:
            compare(self.state, other.state)
        names = {p.name for p in self.directory.iterdir()}
        assert names == {p.name for p in other.directory.iterdir()}


@pytest.fixture
def do(monkeypatch):
    """Do a run, or let it be killed at its n-th training step; gives its outcome."""
    built: list = []
    build = module.build_strategy

    def keep(*args, **kwargs):
        built.append(build(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(module, "build_strategy", keep)

    def go(config: RunConfig, out: Path, kill: int | None = None) -> Outcome:
        steps: list[int] = []

        def step(samples: int) -> None:
            steps.append(samples)
            if len(steps) - 1 == kill:  # the first call of a resumed run says what was done before
                raise Killed

        if kill is not None:
            with pytest.raises(Killed):
                module.run(config, out, progress=step)
            return None
        summary = module.run(config, out, progress=step)
        assert summary["status"] == "done", summary
        return Outcome(out, config, built[-1])

    return go
