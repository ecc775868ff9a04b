"""Golden facts of the embedded stream."""

from __future__ import annotations

import collections
import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.errors import UsageError

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}


def digits(seed=0, size=8, **kwargs):
    return create_benchmark("split-digits", seed=seed, image_size=size, **{**HALF, **kwargs})


def contents(stream, names):
    """Multiset of (digit, image bytes) over a stream."""
    return collections.Counter(
        (names[y], hashlib.sha256(x.numpy().tobytes()).hexdigest())
        for experience in stream
        for x, y, _ in experience.dataset
    )


@pytest.fixture(scope="module")
def zero():
    return digits()


def test_golden_sizes_and_classes(zero):
    assert zero.name == "split-digits" and zero.skipped == 0 and zero.seed == 0
    assert (zero.train_size, zero.test_size, zero.num_classes) == (1347, 450, 10)
    assert zero.classes_per_experience == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert zero.class_names == ["2", "9", "8", "3", "6", "7", "1", "4", "0", "5"]
    assert [len(e.dataset) for e in zero.train_stream] == [268, 267, 270, 272, 270]
    assert [len(e.dataset) for e in zero.test_stream] == [89, 90, 90, 91, 90]


def test_the_images_are_scikit_learns(zero):
    raw = load_digits()
    everything = contents(zero.train_stream, zero.class_names)
    everything += contents(zero.test_stream, zero.class_names)
    expected = collections.Counter()
    for image, target in zip(raw.images, raw.target, strict=True):
        x = (torch.tensor(image / 16.0, dtype=torch.float32).expand(3, 8, 8) - 0.5) / 0.5
        digest = hashlib.sha256(np.ascontiguousarray(x.numpy()).tobytes()).hexdigest()
        expected[str(target), digest] += 1
    assert everything == expected


def test_the_test_images_are_the_same_for_every_seed_and_stratified(zero):
    other = digits(seed=1)
    ours = contents(zero.test_stream, zero.class_names)
    assert ours == contents(other.test_stream, other.class_names)
    assert other.class_names != zero.class_names
    per_digit = collections.Counter()
    for (digit, _), count in ours.items():
        per_digit[digit] += count
    totals = collections.Counter(str(t) for t in load_digits().target)
    assert all(per_digit[d] == round(0.25 * totals[d]) for d in totals)


def test_the_same_seed_gives_the_same_stream(zero):
    for ours, theirs in zip(zero.train_stream, digits().train_stream, strict=True):
        assert list(ours.dataset.targets) == list(theirs.dataset.targets)
        pairs = zip(ours.dataset, theirs.dataset, strict=True)
        assert all(torch.equal(a[0], b[0]) for a, b in pairs)


def test_holdout_has_no_test_image(zero):
    held = digits(holdout=0.2)
    test = contents(zero.test_stream, zero.class_names)
    train = contents(held.train_stream, held.class_names)
    valid = contents(held.test_stream, held.class_names)
    assert train + valid == contents(zero.train_stream, zero.class_names)
    assert not (train + valid) & test
    assert (held.train_size, held.test_size) == (1078, 269)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_stays_in_range(interpolation):
    x = digits(size=20, interpolation=interpolation, crop_pct=0.5).train_stream[0].dataset[0][0]
    assert x.shape == (3, 20, 20) and x.dtype == torch.float32
    assert x.min() >= -1 and x.max() <= 1


def test_mean_and_std_are_by_channel():
    grey = digits(mean=(0, 0, 0), std=(1, 1, 1)).train_stream[0].dataset[0][0]
    other = digits(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).train_stream[0].dataset[0][0]
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    torch.testing.assert_close(other, (grey - mean.view(3, 1, 1)) / std.view(3, 1, 1))


@pytest.mark.parametrize(
    ("count", "ok"), [(1, True), (2, True), (10, True), (3, False), (11, False)]
)
def test_experiences_divide_the_ten_classes(count, ok):
    if ok:
        assert len(digits(experiences=count).classes_per_experience) == count
    else:
        with pytest.raises(UsageError, match="experiences"):
            digits(experiences=count)
