"""The data set of the rehearsal is one that the package takes for ImageNet-R."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from avalanche_rwf.benchmarks.datasets.imagenet_r import ImageNetR

FILE = Path(__file__).parents[2] / "profiling" / "rehearsal.py"


def test_its_images_are_read_as_imagenet_r(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("rehearsal", FILE)
    rehearsal = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rehearsal)
    monkeypatch.setattr(rehearsal, "CLASSES", 3)
    monkeypatch.setattr(rehearsal, "EACH", 10)
    rehearsal.write_data(tmp_path)
    train, test = (ImageNetR(tmp_path, train=part, download=False) for part in (True, False))
    assert (len(train), len(test)) == (24, 6)
    assert train[0][0].size == (500, 375)
    assert len({path.read_bytes() for path in train.paths + test.paths}) == 30
