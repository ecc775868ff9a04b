"""What data sets share: the hashed split, the index, the counts, and broken images."""

from __future__ import annotations

import csv
import hashlib
import random

import pytest
import torch
from PIL import Image

from avalanche_rwf.benchmarks import download
from avalanche_rwf.benchmarks.images import Geometry, read_image
from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.benchmarks.sources import (
    INDEX,
    FileDataset,
    hashed_rows,
    hashed_test_part,
)
from avalanche_rwf.benchmarks.splits import make_benchmark
from avalanche_rwf.benchmarks.stream_registry import list_streams
from avalanche_rwf.errors import UsageError

OPTIONS = StreamOptions(
    seed=0, experiences=None, image_size=8, mean=(0.5,) * 3, std=(0.5,) * 3,
    interpolation="bilinear",
)  # fmt: skip
CLASSES = ("ant", "bee")


class Toy(FileDataset):
    def rows(self, folder):
        return hashed_rows(folder, "toy")


def files(make, broken=()):
    return {
        f"toy/{name}/{i}.jpg": b"no image" if f"{name}/{i}" in broken else make.picture(10 * c + i)
        for c, name in enumerate(CLASSES)
        for i in range(5)
    }


@pytest.fixture
def toy(tmp_path, server, make, monkeypatch):
    """Prepare the toy set; `images` is the number that the facts say."""
    monkeypatch.setenv(download.DATA_ROOT, str(tmp_path))

    def build(images=10, test=None, classes=2, **kwargs):
        facts = make.facts(server, {"toy.tar": make.tar(files(make, **kwargs))}, images, test,
                           classes, name="toy")  # fmt: skip
        monkeypatch.setattr(Toy, "FACTS", facts, raising=False)
        return Toy

    return build


def test_the_hashed_part_depends_on_the_names_alone():
    names = [f"n01/art_{i}.jpg" for i in range(50)]
    part = hashed_test_part(names)
    assert len(part) == 10
    shuffled = names[:]
    random.Random(0).shuffle(shuffled)
    assert hashed_test_part(shuffled) == part
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert part == set(ranked[:10])
    # Fixed for good: another set here would be another benchmark.
    assert sorted(hashed_test_part(names[:10])) == ["n01/art_7.jpg", "n01/art_8.jpg"]
    assert len(hashed_test_part(names[:2])) == 1 and len(hashed_test_part(names[:3], 0.99)) == 2


def test_files_are_listed_split_and_read(toy, tmp_path):
    train, test = toy()(), Toy(train=False)
    assert (len(train), len(test)) == (8, 2) == (len(train.targets), len(test.targets))
    assert train.classes == ["ant", "bee"] and train.class_to_idx == {"ant": 0, "bee": 1}
    assert train.targets == [0] * 4 + [1] * 4 and test.targets == [0, 1]
    assert not set(train.paths) & set(test.paths)
    image, target = train[5]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and target == 1
    changed = Toy(transform=lambda x: x.size, target_transform=str)
    assert changed[0] == ((14, 12), "0")
    with (tmp_path / "toy" / INDEX).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(files_of(train) + files_of(test))
    listed = {row["path"] for row in rows if row["split"] == "test"}
    assert listed == set(files_of(test))


def files_of(part):
    return [path.relative_to(part.folder).as_posix() for path in part.paths]


def test_a_data_set_becomes_a_stream(toy):
    source = toy().source(OPTIONS, experiences=2)
    assert not source.in_memory and source.class_names == ["ant", "bee"]
    benchmark = make_benchmark("toy", source, OPTIONS)
    assert (benchmark.train_size, benchmark.test_size) == (8, 2)
    x, y, t = benchmark.train_stream[0].dataset[0]
    assert x.dtype == torch.float32 and (y, t) == (0, 0)
    path = source.train.pixels.paths[3]
    raw = torch.from_numpy(read_image(path, Geometry(8, 1.0, "bilinear")))
    torch.testing.assert_close(source.train[3][0], raw / 127.5 - 1.0, rtol=0, atol=1e-6)


@pytest.mark.parametrize("stream", list_streams())
def test_no_file_is_opened_to_build_a_stream(toy, monkeypatch, stream):
    kind = toy()
    kind()  # prepared, which decodes everything once
    opened, really = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, **how: opened.append(path) or really(path, **how)
    )
    options = StreamOptions(**{**vars(OPTIONS), "stream": stream})
    benchmark = make_benchmark("toy", kind.source(options, experiences=2), options)
    assert not opened
    assert len(benchmark.train_stream[0].dataset[0]) == 3 and len(opened) == 1


def test_corrupt_images_are_found_when_prepared_and_named_when_used(toy):
    source = toy(broken=("ant/2", "bee/0"))
    with pytest.raises(UsageError, match=r"ant/2\.jpg' \(and 1 more\) cannot be read; give --skip"):
        source.source(OPTIONS, experiences=2)
    options = StreamOptions(**{**vars(OPTIONS), "skip_corrupt": True})
    kept = source.source(options, experiences=2)
    assert kept.skipped == 2 and len(kept.train) + len(kept.test) == 8
    # One that breaks later is named when it is met.
    path = kept.train.pixels.paths[1]
    path.write_bytes(b"")
    with pytest.raises(OSError, match=f"image {str(path)!r} cannot be read"):
        kept.train[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 11}, "it has 10 images instead of 11"),
        ({"test": 3}, "it has 2 test images instead of 3"),
        ({"classes": 3}, "it has 2 classes among its train images instead of 3"),
    ],
)
def test_numbers_that_are_not_the_published_ones(toy, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        toy(**changes)()
    assert not (tmp_path / "toy").exists()
