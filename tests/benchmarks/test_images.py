"""From files to pixels, against torchvision as the independent reference."""

from __future__ import annotations

import re
import struct
import warnings

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from torchvision import datasets, transforms
from torchvision.transforms import functional as reference

from avalanche_rwf.benchmarks.images import (
    FileImages,
    Geometry,
    TensorImages,
    load_pixels,
    read_image,
    why_unreadable,
)


def picture(width, height, seed=0):
    values = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(40, 30), (30, 41), (24, 24), (9, 50)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_resize_and_crop_as_torchvision(tmp_path, size, interpolation, crop_pct):
    image = picture(*size)
    image.save(tmp_path / "a.png")
    expected = transforms.Compose(
        [
            transforms.Resize(
                int(24 / crop_pct), getattr(transforms.InterpolationMode, interpolation.upper())
            ),
            transforms.CenterCrop(24),
            transforms.PILToTensor(),
        ]
    )(image)
    ours = read_image(tmp_path / "a.png", Geometry(24, crop_pct, interpolation))
    assert ours.dtype == np.uint8
    assert np.array_equal(ours, expected.numpy())


def test_every_mode_becomes_rgb_without_a_warning(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 100, dtype=np.uint8))
    palette = picture(8, 8).convert("P")
    palette.info["transparency"] = bytes([0] * 256)
    deep = Image.fromarray(np.full((8, 8), 100 * 257, dtype=np.uint16))
    cases = {
        "grey.png": grey,
        "alpha.png": picture(8, 8).convert("RGBA"),
        "bits.png": grey.convert("1"),
        "palette.png": palette,
        "deep.png": deep,
        "cmyk.jpg": picture(8, 8).convert("CMYK"),
        "a.bmp": picture(8, 8),
        "a.webp": picture(8, 8),
        "a.gif": picture(8, 8),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, image in cases.items():
            image.save(tmp_path / name)
            assert read_image(tmp_path / name, Geometry(8)).shape == (3, 8, 8)
    for name in ("grey.png", "deep.png"):
        assert (read_image(tmp_path / name, Geometry(8)) == 100).all()


def test_exif_rotation_is_honoured(tmp_path):
    """Unlike by torchvision and timm, whose loaders leave a photograph on its side."""
    image = picture(16, 8)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    turned = image.transpose(Image.Transpose.ROTATE_270)
    expected = reference.pil_to_tensor(reference.center_crop(turned, [8, 8])).numpy()
    assert np.array_equal(read_image(tmp_path / "a.png", Geometry(8)), expected)


def test_images_are_normalised_by_mean_and_std(tmp_path):
    picture(8, 8).save(tmp_path / "a.png")
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    pixels, bad, used = load_pixels([tmp_path / "a.png"], Geometry(8), 10**6)
    assert (bad, used) == ([], 3 * 64)
    image, label = FileImages(pixels, [4], mean, std)[0]
    expected = reference.normalize(torch.from_numpy(np.asarray(pixels[0])) / 255.0, mean, std)
    assert label == 4 and image.dtype == torch.float32
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_pixels_are_read_once_as_far_as_the_budget_reaches(tmp_path, monkeypatch):
    paths = []
    for number in range(5):
        paths.append(tmp_path / f"{number}.png")
        picture(8, 8, number).save(paths[-1])
    every = [read_image(path, Geometry(8)) for path in paths]
    pixels, bad, used = load_pixels(paths, Geometry(8), budget=3 * 3 * 64 + 1)
    assert (bad, used, len(pixels), len(pixels.cache)) == ([], 3 * 3 * 64, 5, 3)
    assert all(np.array_equal(pixels[i], every[i]) for i in range(5))
    for path in paths[:3]:
        path.unlink()
    assert all(np.array_equal(pixels[i], every[i]) for i in range(5))
    none, _, _ = load_pixels(paths[3:], Geometry(8), budget=0)
    assert len(none.cache) == 0 and np.array_equal(none[1], every[4])


@pytest.mark.parametrize("budget", [0, 2 * 3 * 64, 10**6])
def test_broken_files_are_found_inside_and_outside_the_cache(tmp_path, budget):
    rng = np.random.RandomState(0)
    big = Image.fromarray(rng.randint(0, 256, (64, 64, 3), dtype=np.uint8))
    big.save(tmp_path / "0.jpg")
    whole = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(whole[: len(whole) // 2])  # opens, but is cut off
    (tmp_path / "2.png").write_bytes(b"no image")
    big.save(tmp_path / "3.png")
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "4.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.jpg").write_bytes(b"")
    paths = [*sorted(tmp_path.iterdir()), tmp_path / "missing.png"]
    pixels, bad, _ = load_pixels(paths, Geometry(8), budget)
    assert bad == [1, 2, 4, 5, 6]
    assert [path.name for path in pixels.paths] == ["0.jpg", "3.png"]
    for number in range(2):
        expected = read_image(pixels.paths[number], Geometry(8))
        assert np.array_equal(pixels[number], expected)


def test_grey_tensors_are_the_same_ready_made_or_not():
    images = torch.rand(4, 1, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    fast = TensorImages(images, [0, 1, 2, 3], mean, std)
    slow = TensorImages(images, [0, 1, 2, 3], mean, std, budget=0)
    assert fast._ready and not slow._ready
    expected = reference.normalize(images[2].expand(3, 8, 8), mean, std)
    for data in (fast, slow):
        image, label = data[2]
        assert label == 2 and len(data) == 4
        torch.testing.assert_close(image, expected)


def tiff(folder, values, **tags):
    image = Image.fromarray(values)
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for key, value in tags.items():
        info[int(key[1:])] = value
    image.save(folder / "a.tif", tiffinfo=info)
    return folder / "a.tif"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((8, 8), 100 * 257, np.uint16), 100),
        (np.full((8, 8), 0.5, np.float32), 128),
        (np.full((8, 8), 1.0, np.float32), 255),
        (np.full((8, 8), True), 255),
    ],
)
def test_white_is_what_the_type_says(values, expected, tmp_path):
    assert (read_image(tiff(tmp_path, values), Geometry(8)) == expected).all()


def test_white_of_12_bits_is_4095(tmp_path):
    """PIL writes no such file: two pixels in three bytes, rows of a microscope's camera."""
    width = height = 8
    rows = bytes([0xFF, 0xFF, 0xFF] * (width // 4) + [0x80, 0x08, 0x00] * (width // 4)) * height
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: height,
            279: len(rows)}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    assert len(head) == 122
    (tmp_path / "a.tif").write_bytes(head + rows)
    image = read_image(tmp_path / "a.tif", Geometry(8))
    assert (image[:, :, :4] == 255).all()
    # 0x800 and 0x800, of 0xfff.
    assert (image[:, :, 4::2] == round(0x800 / 0xFFF * 255)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_no_negative(dtype, tmp_path):
    top = np.iinfo(dtype).max
    path = tiff(tmp_path, np.full((8, 8), top, dtype), t262=0)
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
    stored = 0 if dtype is np.uint16 else 255  # PIL inverts 8 bits when it saves
    assert (read_image(path, Geometry(8)) == stored).all()


def alpha_only():
    values = np.zeros((8, 8, 4), np.uint8)
    values[2:5, :, 3] = 255
    return values


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.arange(64, dtype=np.int32).reshape(8, 8), "32 bits or a sign"),
        (np.full((8, 8), 200, np.float32), r"not from 0 \(black\) to 1"),
        (np.full((8, 8), np.nan, np.float32), "not from 0"),
        (np.full((8, 8), -0.5, np.float32), "not from 0"),
        (alpha_only(), "in its transparency alone"),
    ],
)
def test_an_image_that_would_turn_black_is_refused(values, why, tmp_path):
    path = tiff(tmp_path, values)
    with pytest.raises(ValueError, match=why):
        read_image(path, Geometry(8))
    for budget in (0, 10**6):  # also where it is only looked at
        assert load_pixels([path], Geometry(8), budget)[1] == [0]
    assert re.search(why, why_unreadable(path))


def test_transparency_is_dropped_as_torchvision_drops_it(tmp_path):
    image = picture(8, 8).convert("RGBA")
    image.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    image.save(tmp_path / "a.png")
    expected = np.asarray(datasets.folder.default_loader(tmp_path / "a.png")).transpose(2, 0, 1)
    assert np.array_equal(read_image(tmp_path / "a.png", Geometry(8)), expected)
