"""What the backbone wants of images: `strategy.transform`, and a warning where it was forgotten."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from avalanche_rwf import RwFStrategy, create_benchmark

from ..runs import make_folder


def test_transform_gives_the_pixels_of_a_benchmark(tools, tmp_path):
    strategy = RwFStrategy(num_classes=6, image_size=40, evaluator=tools.silent())
    root = make_folder(tmp_path, 2)
    pixels = np.random.RandomState(1).randint(0, 256, (50, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / "test" / "a" / "0.png")
    benchmark = create_benchmark(f"folder:{root}", experiences=2, backbone=strategy.model.backbone)
    images = [x for e in benchmark.test_stream for x, *_ in e.dataset]
    found = strategy.transform(Image.fromarray(pixels))
    assert found.shape == (3, 40, 40)
    assert min(float((found - x).abs().max()) for x in images) < 1e-6


def trained_on(images, tools, **kwargs):
    from avalanche.benchmarks import nc_benchmark

    targets = torch.arange(len(images)) % 2
    data = TensorDataset(images, targets)
    data.targets = targets.tolist()
    scenario = nc_benchmark(data, data, 1, task_labels=False, seed=0)
    strategy = RwFStrategy(num_classes=2, evaluator=tools.silent(), train_mb_size=2, **kwargs)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            strategy.train(scenario.train_stream[0])
    return [str(w.message) for w in caught if "first mini-batch" in str(w.message)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x, r"from 0\.\d+ to \d.*\[0.5, 0.5, 0.5\].*strategy.transform does that"),
        (lambda x: x * 255, r"values from .* to 2\d\d"),
        (lambda x: (x - 0.5) / 0.5, None),
        (lambda x: torch.zeros_like(x), None),
    ],
)
def test_images_that_are_not_normalised_are_said_once(change, said, tools):
    images = change(torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = trained_on(images, tools)
    if said is None:
        assert found == []
    else:
        (text,) = found
        assert re.search(said, text), text
