"""Runs of a fraction of a second that are cut: a ViT of 5 tokens and 30 images."""

from __future__ import annotations

import random
import sys
import zlib
from pathlib import Path

import pytest
from safetensors.torch import load_file

from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.checkpoint import strategy_state
from avalanche_rwf.experiments.config import RunConfig, run_directory

from ..runs import Killed, assert_equal, configurer, make_folder

# Processes of the fork server find `fault_children` there: their modules have no package of tests.
sys.path.insert(0, str(Path(__file__).parent))

TIMES = (
    *("train_seconds", "eval_seconds", "eval_share"),
    *("train_samples_per_second", "peak_memory_bytes"),
)


def draw(*words) -> random.Random:
    """The same numbers for the same test in every process."""
    return random.Random(zlib.crc32(" ".join(map(str, words)).encode()))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """5 images of each class for training."""
    return make_folder(tmp_path_factory.mktemp("images"), 5)


@pytest.fixture(scope="session")
def configure(folder):
    # Experiences of 15: batches of 4, 4, 4 and 3.
    return configurer(folder, experiences=2, batch_size=4, eval_every_samples=7)


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
        assert_equal(self.weights, other.weights, "weights")
        if self.state is not None and other.state is not None:
            assert_equal(self.state, other.state)
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
