"""The augmentation of image i at seed s is a function of (s, i), whoever asks and when."""

from __future__ import annotations

import hashlib
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

from avalanche_rwf.benchmarks.augmentation import PADDING, create_augmentation
from avalanche_rwf.benchmarks.images import ArrayPixels, AugmentedImages, FileImages, Geometry
from avalanche_rwf.benchmarks.registry import create_benchmark

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SHAPES = {"image_size": 8, "interpolation": "bilinear", "seed": 0, **HALF}


def pictures(n=12, side=16, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, side, side, 3), dtype=np.uint8)


def data(augment, seed=0, **kwargs):
    values = pictures()
    base = FileImages(
        ArrayPixels(values, Geometry(16), 10**9), list(range(12)), normalised=False, **HALF
    )
    return AugmentedImages(base, create_augmentation(augment, seed, **kwargs))


@pytest.mark.parametrize("augment", ["flip-crop", "autoaug"])
def test_each_image_has_its_own_whatever_the_order_or_the_process(augment):
    images = data(augment)
    first = [images[i][0] for i in range(12)]
    assert all(x.dtype == torch.uint8 and x.shape == (3, 16, 16) for x in first)
    order = list(range(12))
    random.Random(3).shuffle(order)
    torch.manual_seed(5)  # nor the state of any generator
    for i in order:
        assert torch.equal(images[i][0], first[i])
    assert torch.equal(pickle.loads(pickle.dumps(images))[3][0], first[3])
    loader = DataLoader(images, batch_size=5, num_workers=2)
    assert torch.equal(torch.cat([x for x, _ in loader]), torch.stack(first))
    again, other = data(augment), data(augment, seed=1)
    assert all(torch.equal(again[i][0], first[i]) for i in range(12))
    assert sum(torch.equal(other[i][0], first[i]) for i in range(12)) < 4


@pytest.mark.parametrize("augment", ["flip-crop", "autoaug"])
def test_nothing_is_drawn_from_anybody_elses_generator(augment):
    images = data(augment)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    for i in range(12):
        images[i]
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_flip_crop_is_a_window_of_the_padded_image_perhaps_mirrored():
    change = create_augmentation("flip-crop", 0)
    image = torch.from_numpy(pictures(1, 16)[0]).permute(2, 0, 1)
    size = 16 + 2 * PADDING
    padded = torch.zeros(3, size, size, dtype=torch.uint8)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = image
    windows = {}
    for flipped in (False, True):
        for top in range(2 * PADDING + 1):
            for left in range(2 * PADDING + 1):
                window = padded[:, top : top + 16, left : left + 16]
                window = window.flip(-1) if flipped else window
                windows[window.numpy().tobytes()] = top, left, flipped
    drawn = [windows[change(image, i).numpy().tobytes()] for i in range(400)]
    for axis in (0, 1):
        assert {window[axis] for window in drawn} == set(range(2 * PADDING + 1))
    assert 0.4 < sum(window[2] for window in drawn) / 400 < 0.6
    assert len(set(drawn)) > 120  # of 162: offsets and mirroring are independent


@pytest.mark.parametrize("policy", ["imagenet", "cifar10"])
def test_autoaug_is_torchvisions_on_the_flipped_and_cropped_image(policy):
    crop, change = create_augmentation("flip-crop", 2), create_augmentation("autoaug", 2, policy)
    image = torch.from_numpy(pictures(1, 16)[0]).permute(2, 0, 1)
    auto = AutoAugment(AutoAugmentPolicy[policy.upper()])
    for index in range(20):
        cropped = Image.fromarray(crop(image, index).permute(1, 2, 0).numpy())
        digest = hashlib.blake2b(f"augment 2 {index}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        expected = np.asarray(auto(cropped))
        assert np.array_equal(change(image, index).permute(1, 2, 0).numpy(), expected)
    assert len({change(image, i).numpy().tobytes() for i in range(30)}) > 20


def test_unknown_augmentations_and_policies_are_refused():
    with pytest.raises(ValueError, match="flip-crop or autoaug"):
        create_augmentation("flip", 0)
    with pytest.raises(ValueError, match="imagenet or cifar10"):
        create_augmentation("autoaug", 0, "svhn")


@pytest.mark.parametrize("augment", ["flip-crop", "autoaug"])
def test_a_stream_augments_its_training_images_alone(augment):
    plain = create_benchmark("split-digits", **SHAPES)
    changed = create_benchmark("split-digits", **SHAPES, augment=augment)
    before, after = plain.train_stream[0].dataset, changed.train_stream[0].dataset
    assert list(before.targets) == list(after.targets)  # the same samples in the same order
    equal = [torch.equal(before[i][0], after[i][0]) for i in range(40)]
    assert sum(equal) < 10
    assert all(x.dtype == torch.float32 for x, *_ in list(after)[:3])
    a, b = plain.test_stream[0].dataset, changed.test_stream[0].dataset
    assert all(torch.equal(a[i][0], b[i][0]) for i in range(20))
    # Held-out images are test images, and the others are changed as without a hold-out.
    held = create_benchmark("split-digits", **SHAPES, augment=augment, holdout=0.25)
    unchanged = {x.numpy().tobytes() for x, *_ in before}
    assert all(x.numpy().tobytes() in unchanged for x, *_ in held.test_stream[0].dataset)
    known = {x.numpy().tobytes() for x, *_ in after}
    assert all(x.numpy().tobytes() in known for x, *_ in held.train_stream[0].dataset)
