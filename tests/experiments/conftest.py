"""A run of a fraction of a second: a ViT of 5 tokens and 24 images."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..runs import configurer, make_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """4 images of each class for training."""
    return make_folder(tmp_path_factory.mktemp("images"), 4)


@pytest.fixture(scope="session")
def configure(folder):
    return configurer(folder, experiences=3, batch_size=3, eval_every_samples=4)
