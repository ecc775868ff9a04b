"""Decoded images that runs of a machine share: the same bits, whatever happens to the file."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_rwf.benchmarks import images, kept_pixels
from avalanche_rwf.benchmarks.images import Geometry, Pixels
from avalanche_rwf.benchmarks.kept_pixels import KEPT, KeptPixels

SIDE = 8


@pytest.fixture
def files(tmp_path):
    drawn = np.random.RandomState(0)
    paths = [tmp_path / f"{index}.jpg" for index in range(3)]
    for path in paths:
        Image.fromarray(drawn.randint(0, 256, (20, 30, 3)).astype(np.uint8)).save(path)
    return paths


@pytest.fixture
def shared(tmp_path):
    """The folder of the files with pixels."""
    (tmp_path / "shared").mkdir()
    KEPT.share(tmp_path / "shared")
    yield tmp_path / "shared" / "pixels"
    KEPT.share(None)


@pytest.fixture
def decoded(monkeypatch):
    """The files that were decoded."""
    seen, read = [], images.read_image
    monkeypatch.setattr(images, "read_image", lambda p, g: seen.append(p.name) or read(p, g))
    return seen


def all_of(files, **geometry):
    """As another process reads them."""
    KEPT.share(KEPT.folder)
    pixels = Pixels(files, Geometry(SIDE, **geometry))
    return torch.stack([pixels[index] for index in range(len(files))])


def test_each_file_is_decoded_once_to_the_same_bits(files, shared, decoded):
    plain = torch.stack([torch.from_numpy(images.read_image(f, Geometry(SIDE))) for f in files])
    decoded.clear()
    for _ in range(3):
        assert torch.equal(all_of(files), plain)
    assert decoded == ["0.jpg", "1.jpg", "2.jpg"]
    all_of(files)[0].zero_()  # what is given out is nobody else's
    assert torch.equal(all_of(files), plain)


def test_another_list_or_another_geometry_has_pixels_of_its_own(files, shared, decoded):
    all_of(files)
    other = all_of(files, crop_pct=0.5)
    KEPT.share(None)
    assert torch.equal(other, all_of(files, crop_pct=0.5))
    KEPT.share(shared.parent)
    assert torch.equal(all_of(files[::-1]).flip(0), all_of(files))
    assert len(list(shared.iterdir())) == 3


def test_a_file_that_has_changed_is_decoded_again(files, shared, decoded):
    before = all_of(files)
    Image.new("RGB", (20, 30), "red").save(files[1])
    after = all_of(files)
    assert torch.equal(after[::2], before[::2])
    assert int(after[1, 0].min()) > 200
    assert decoded[3:] == ["1.jpg"]


@pytest.mark.parametrize("damage", ["a byte", "cut", "empty"])
def test_pixels_that_are_damaged_are_decoded_again(damage, files, shared, decoded):
    before = all_of(files)
    (file,) = shared.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "a byte":
        content[5] ^= 1
    file.write_bytes({"cut": content[:-20], "empty": b""}.get(damage, content))
    assert torch.equal(all_of(files), before)
    assert len(decoded) == 3 + {"a byte": 1, "cut": 1, "empty": 3}[damage]


@pytest.mark.parametrize("short", ["budget", "disk", "folder"])
def test_without_room_images_are_decoded_each_time(short, files, shared, decoded, monkeypatch):
    if short == "budget":
        monkeypatch.setattr(kept_pixels, "KEPT_BYTES", 3 * (3 * SIDE**2 + 8) - 1)
    elif short == "disk":
        full = SimpleNamespace(free=2 * 3 * (3 * SIDE**2 + 8) - 1)
        monkeypatch.setattr(kept_pixels.shutil, "disk_usage", lambda folder: full)
    else:
        KEPT.share(shared.parent / "gone" / "away")
    assert torch.equal(all_of(files), all_of(files))
    assert len(decoded) == 6


def test_two_processes_may_write_at_a_time(files, shared):
    """Two of them, one after the other's first image."""
    pixels, other = Pixels(files, Geometry(SIDE)), KeptPixels()
    other.share(shared.parent)
    first = pixels[0].numpy()

    def nobody():
        raise AssertionError("it is there")

    name = pixels._name
    assert np.array_equal(other.read(name, 3, 0, files[0], SIDE, nobody), first)
    found = other.read(name, 3, 1, files[1], SIDE, lambda: first)
    assert np.array_equal(pixels[1].numpy(), found)
    other.share(None)
