"""A run of a fraction of a second: a ViT of 5 tokens and 24 images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from avalanche_rwf.experiments.executors import start_server

from ..runs import configurer, make_folder

# Processes of the fork server find `executor_children` there: their modules have no package of
# tests.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """4 images of each class for training."""
    return make_folder(tmp_path_factory.mktemp("images"), 4)


@pytest.fixture(scope="session")
def configure(folder):
    return configurer(folder, experiences=3, batch_size=3, eval_every_samples=4)


@pytest.fixture(scope="session")
def server() -> None:
    """The fork server with everything imported: without it each worker does that again."""
    start_server()
