"""Images as users have them: odd files, odd names, what is refused and what is warned of."""

from __future__ import annotations

import os
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avalanche_rwf.benchmarks.datasets import folder as folders
from avalanche_rwf.benchmarks.images import Geometry, read_image
from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.errors import UsageError

SIZE = 8


@pytest.fixture
def root(tmp_path) -> Path:
    folders._memory.clear()
    rng = np.random.RandomState(0)
    for split in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = rng.randint(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def load(root: Path, **options):
    return create_benchmark(
        f"folder:{root}", seed=0, experiences=2, image_size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3,
        interpolation="bicubic", crop_pct=1.0,
        **options,
    )  # fmt: skip


def bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few kilobytes: one bit a pixel, all zero."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    # The content of a few rows is enough: it is refused before it is decoded.
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(side // 8 + 1))) + chunk(b"IEND", b"")
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("bomb.png", bomb(20000), "it has more than 178956970 pixels"),
        ("zero.jpg", b"", "it is empty"),
        ("text.png", b"this is no image", "it is no image that is known here"),
        ("cut.png", None, "truncated|broken|unrecognized|not enough"),
    ],
    ids=["bomb", "zero", "text", "cut"],
)
def test_what_cannot_be_read_is_named_with_the_reason(name, content, why, root):
    path = root / "train" / "ant" / name
    if content is None:
        content = (root / "train" / "ant" / "0.png").read_bytes()[:120]
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name}' cannot be read \(.*({why}).*\); repair"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(root):
    path = root / "train" / "ant" / "0.png"
    path.chmod(0)
    with pytest.raises(UsageError, match="Permission denied"):
        load(root)


def test_every_kind_of_image_is_read(root):
    to = root / "train" / "ant"
    grey = Image.fromarray(np.full((SIZE, SIZE), 90, np.uint8))
    grey.save(to / "grey.png")
    grey.convert("1").save(to / "bits.png")
    grey.convert("CMYK").save(to / "cmyk.jpg")
    Image.fromarray(np.full((SIZE, SIZE), 30000, np.uint16)).save(to / "deep.png")
    Image.new("RGB", (1, 1), (10, 20, 30)).save(to / "one.png")
    palette = grey.convert("P")
    palette.info["transparency"] = 3
    palette.save(to / "palette.png", transparency=3)
    Image.new("RGBA", (SIZE, SIZE), (1, 2, 3, 0)).save(to / "clear.webp")
    frames = [Image.new("P", (SIZE, SIZE), color) for color in (0, 1, 2)]
    frames[0].save(to / "moving.gif", save_all=True, append_images=frames[1:])
    (to / "wrong.png").write_bytes((to / "cmyk.jpg").read_bytes())  # a JPEG by another name
    benchmark = load(root)
    assert (benchmark.skipped, benchmark.train_size) == (0, 15)


def test_the_first_frame_of_a_moving_image_counts(tmp_path):
    frames = [Image.new("RGB", (SIZE, SIZE), color) for color in ((200, 0, 0), (0, 200, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif", Geometry(SIZE))[:, 0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("size", [(1, 50000), (50000, 1), (3, 9001)])
def test_a_very_long_image_does_not_fill_the_memory(size, tmp_path):
    image = Image.new("RGB", size, (9, 9, 9))
    middle = tuple(length // 2 for length in size)
    image.putpixel(middle, (250, 250, 250))
    image.save(tmp_path / "line.png")
    resized = []
    resize = Image.Image.resize

    def noted(self, target, *args, **kwargs):
        resized.append(target)
        return resize(self, target, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", noted)
        pixels = read_image(tmp_path / "line.png", Geometry(64))
    assert pixels.shape == (3, 64, 64)
    assert max(width * height for width, height in resized) <= 2**24
    assert pixels.max() > 100  # the middle is what is kept


def test_names_in_any_script_and_with_spaces(root):
    for index, name in enumerate(("蝴蝶", "пчела ", "a b\tc", "naïve‮txt", "%s{0}'\"")):
        for split in ("train", "test"):
            shutil.copytree(root / split / "ant", root / split / name)
            (root / split / name / "0.png").rename(root / split / name / f"{name} {index}.png")
    assert len(load(root).class_names) == 7


def test_images_in_both_parts_are_warned_of(root):
    assert load(root).notes == ()
    one = root / "train" / "ant" / "1.png"
    shutil.copy(one, root / "test" / "ant" / "copy.png")
    (note,) = load(root).notes
    copied = str(root / "test" / "ant" / "copy.png")
    assert note == (
        f"1 test image is among the training images too, such as {copied!r} ({str(one)!r}): "
        "accuracies will be too high."
    )
    # Under another class, too.
    shutil.copy(root / "train" / "bee" / "0.png", root / "test" / "ant" / "9.png")
    assert load(root).notes[0].startswith("2 test images are among")
    assert load(root, holdout=0.4).notes == ()  # the test images are not looked at


def test_damaged_files_of_every_kind_are_no_traceback(root):
    rng = random.Random(0)
    to = root / "train" / "ant"
    source = Image.fromarray(np.random.RandomState(1).randint(0, 256, (40, 40, 3), dtype=np.uint8))
    for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm"):
        source.save(to / f"whole.{kind}")
        content = bytearray((to / f"whole.{kind}").read_bytes())
        for number in range(25):
            damaged = bytearray(content)
            for _ in range(rng.randrange(1, 20)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            damaged = damaged[: rng.randrange(len(damaged) // 2, len(damaged) + 1)]
            (to / f"{number}.{kind}").write_bytes(damaged)
    benchmark = load(root, skip_corrupt=True)
    assert 0 < benchmark.skipped < 175


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_with_the_name_of_an_image_is_waited_for_by_nobody(root):
    path = root / "train" / "ant" / "pipe.png"
    os.mkfifo(path)
    with pytest.raises(UsageError, match=r"pipe.png' cannot be read \(it is no file\)"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == 1


def test_a_circle_of_links_is_a_link_to_nothing(root):
    circle = root / "train" / "ant" / "circle.png"
    try:
        circle.symlink_to(circle)
        (root / "train" / "round").symlink_to(root / "train" / "round")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(UsageError, match="a link to nothing"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == 1


def test_a_file_of_any_size_that_is_no_image_is_not_read_to_its_end(root, monkeypatch):
    for split in ("train", "test"):
        with (root / split / "ant" / "large.png").open("wb") as file:
            file.truncate(2**40)
    read = []
    monkeypatch.setattr(folders, "_digest", lambda path: read.append(path) or b"")
    assert load(root, skip_corrupt=True).skipped == 2
    assert read and not any(path.name == "large.png" for path in read)


def test_a_page_for_a_printer_starts_no_program_whatever_it_is_called(root, monkeypatch):
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (root / "train" / "ant" / "page.png").write_bytes(page)
    started = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: started.append(a))
    with pytest.raises(UsageError, match="it is no image that is known here"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == 1
    assert not started
