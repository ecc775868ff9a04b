"""Folders of images: what is read, what is refused, and that nothing is decoded twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from avalanche_rwf.benchmarks import images
from avalanche_rwf.benchmarks.datasets import folder as folders
from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.errors import UsageError

HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear"}


def make(root, classes=("ant", "bee", "cat"), train=4, test=2, suffix=".png"):
    number = 0
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                number += 1
                values = np.full((12, 10, 3), number, dtype=np.uint8)
                Image.fromarray(values).save(root / split / name / f"{index}{suffix}")
    return root


def load(root, seed=0, **kwargs):
    return create_benchmark(f"folder:{root}", seed=seed, image_size=8, **{**HALF, **kwargs})


def grey(x):
    """The grey value that `make` painted."""
    return round(float((x[0, 0, 0] * 0.5 + 0.5) * 255))


@pytest.fixture(autouse=True)
def forget():
    folders._memory.clear()


def test_reads_both_splits(tmp_path):
    benchmark = load(make(tmp_path))
    assert benchmark.name == f"folder:{tmp_path}"
    assert (benchmark.num_classes, benchmark.train_size, benchmark.test_size) == (3, 12, 6)
    assert sorted(benchmark.class_names) == ["ant", "bee", "cat"]
    assert benchmark.classes_per_experience == [[0], [1], [2]]  # fewer classes than five
    first = {"ant": 1, "bee": 5, "cat": 9}
    for stream, offset, count in (
        (benchmark.train_stream, 0, 4),
        (benchmark.test_stream, 12, 2),
    ):
        for number, experience in enumerate(stream):
            start = first[benchmark.class_names[number]]
            start = start if not offset else 13 + (start - 1) // 2
            values = sorted(grey(x) for x, _, _ in experience.dataset)
            assert values == list(range(start, start + count))
    x, y, t = benchmark.train_stream[0].dataset[0]
    assert x.shape == (3, 8, 8) and (y, t) == (0, 0)


def test_five_experiences_by_default_and_uneven_ones_on_request(tmp_path):
    root = make(tmp_path, [f"c{n}" for n in range(7)], train=1, test=1)
    assert [len(c) for c in load(root).classes_per_experience] == [2, 2, 1, 1, 1]
    assert [len(c) for c in load(root, experiences=3).classes_per_experience] == [3, 2, 2]
    with pytest.raises(UsageError, match="experiences is at most the number of classes, 7"):
        load(root, experiences=8)
    with pytest.raises(UsageError, match="a single training image"):
        load(root, holdout=0.5)


def test_other_endings_hidden_and_nested_things_are_ignored(tmp_path):
    root = make(tmp_path)
    (root / "train" / "ant" / "notes.txt").write_text("x")
    (root / "train" / "ant" / ".hidden.png").write_text("x")
    (root / "train" / "ant" / "deep.png").mkdir()
    (root / "train" / ".checkpoints").mkdir()
    (root / "train" / "README.md").write_text("x")
    shutil.copy(root / "train" / "ant" / "0.png", root / "train" / "ant" / "UPPER.PNG")
    assert load(root).train_size == 13


def test_every_image_is_decoded_once_for_all_runs(tmp_path, monkeypatch):
    root = make(tmp_path)
    read = images.read_image
    seen = []
    monkeypatch.setattr(images, "read_image", lambda *a: (seen.append(a[0]), read(*a))[1])
    for seed in (0, 1):
        for kwargs in ({}, {"holdout": 0.5}, {"mean": (0, 0, 0)}):
            benchmark = load(root, seed, **kwargs)
            for stream in (benchmark.train_stream, benchmark.test_stream, benchmark.test_stream):
                assert all(len(e.dataset) == len(list(e.dataset)) for e in stream)
    assert len(seen) == len(set(seen)) == 18
    Image.fromarray(np.full((12, 10, 3), 250, dtype=np.uint8)).save(seen[0])
    (root / "test" / "ant" / "new.png").write_bytes(seen[1].read_bytes())
    assert load(root).test_size == 7  # a changed folder is read again
    assert len(seen) == 18 + 19


def test_a_folder_beyond_the_cache_gives_the_same_images(tmp_path, monkeypatch):
    root = make(tmp_path)
    whole = load(root)
    folders._memory.clear()
    monkeypatch.setattr(images, "CACHE_BYTES", 4 * 3 * 64)
    part = load(root)
    for ours, theirs in (
        (whole.train_stream, part.train_stream),
        (whole.test_stream, part.test_stream),
    ):
        for a, b in zip(ours, theirs, strict=True):
            pairs = zip(a.dataset, b.dataset, strict=True)
            assert all(torch.equal(x[0], y[0]) and x[1] == y[1] for x, y in pairs)


def test_corrupt_images_are_named_before_training_or_skipped_and_counted(tmp_path):
    root = make(tmp_path)
    broken = root / "train" / "bee" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(UsageError, match=re.escape(f"image {str(broken)!r} cannot be read")):
        load(root)
    (root / "test" / "ant" / "x.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"\(and 1 more\)"):
        load(root)
    benchmark = load(root, skip_corrupt=True)
    assert (benchmark.skipped, benchmark.train_size, benchmark.test_size) == (2, 11, 6)
    label = benchmark.class_names.index("bee")
    values = sorted(grey(x) for x, _, _ in benchmark.train_stream[label].dataset)
    assert values == [5, 7, 8]
    for number in (0, 1):
        (root / "test" / "cat" / f"{number}.png").write_bytes(b"")
    with pytest.raises(UsageError, match="class 'cat' has no readable image"):
        load(root, skip_corrupt=True)


def broken_folder(root, kind):
    if kind == "missing":
        return root / "nowhere", "does not exist"
    if kind == "a file":
        (root / "f").write_text("x")
        return root / "f", "is not a folder"
    if kind == "empty":
        return root, "has no folder 'train'"
    make(root)
    if kind == "no test":
        shutil.rmtree(root / "test")
        return root, "has no folder 'test'"
    if kind == "empty train":
        shutil.rmtree(root / "train")
        (root / "train").mkdir()
        return root, "is empty; it takes one folder of images per class"
    if kind == "no class folders":
        for name in ("ant", "bee", "cat"):
            shutil.rmtree(root / "train" / name)
        (root / "train" / "0.png").write_text("x")
        return root, "has no folders in it; it takes one folder of images per class"
    if kind == "capital letters":
        (root / "test").rename(root / "Test")
        return root, "has to be named 'test', in small letters"
    if kind == "another form of a name":
        for split, name in (("train", "\u00e9"), ("test", "e\u0301")):
            (root / split / "ant").rename(root / split / name)
        return root, "looks the same is of other Unicode characters"
    if kind == "only in test":
        shutil.copytree(root / "test" / "ant", root / "test" / "zebra")
        return root, "class 'zebra' is in test but not in train"
    if kind == "only in train":
        shutil.rmtree(root / "test" / "bee")
        return root, "class 'bee' is in train but not in test"
    if kind == "class without images":
        (root / "train" / "dog").mkdir()
        return root, "has no images (.jpg,"
    for split in ("train", "test"):
        for name in ("bee", "cat"):
            shutil.rmtree(root / split / name)
    return root, "has 1 class; a stream needs at least 2"


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "a file",
        "empty",
        "no test",
        "empty train",
        "no class folders",
        "capital letters",
        "another form of a name",
        "only in test",
        "only in train",
        "class without images",
        "one class",
    ],
)
def test_folders_that_are_refused_in_one_sentence(tmp_path, kind):
    root, message = broken_folder(tmp_path, kind)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        load(root)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("what", ["train", "test/bee"])
def test_a_folder_that_may_not_be_listed_is_named(tmp_path, monkeypatch, what):
    root = make(tmp_path)
    entries = Path.iterdir

    def iterdir(self):
        if self == root / what:
            raise PermissionError(13, "Permission denied", str(self))
        return entries(self)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(UsageError) as said:
        load(root)
    assert str(said.value) == f"folder {str(root / what)!r} cannot be read (Permission denied)."


@pytest.mark.parametrize("what", ["image", "class", "split"])
def test_links_must_stay_inside(tmp_path, what):
    outside, root = make(tmp_path / "out"), make(tmp_path / "in")
    path = {"image": "train/ant/0.png", "class": "train/ant", "split": "train"}[what]
    if what == "image":
        (root / path).unlink()
    else:
        shutil.rmtree(root / path)
    try:
        (root / path).symlink_to(outside / path)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(UsageError, match="leaves the folder"):
        load(root)


def test_links_inside_and_to_the_folder_itself_are_fine(tmp_path):
    root = make(tmp_path / "in")
    try:
        (tmp_path / "link").symlink_to(root)
        (root / "train" / "ant" / "again.png").symlink_to(root / "train" / "ant" / "0.png")
    except OSError:
        pytest.skip("this system makes no links")
    assert load(tmp_path / "link").train_size == 13


def test_a_link_to_nothing_is_a_corrupt_image(tmp_path):
    root = make(tmp_path)
    try:
        (root / "train" / "ant" / "gone.png").symlink_to(root / "train" / "ant" / "no.png")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(UsageError, match=r"gone\.png' cannot be read"):
        load(root)
    assert load(root, skip_corrupt=True).skipped == 1


def test_what_imagefolder_reads_is_read_in_its_order(tmp_path):
    root = make(tmp_path, classes=("Zoo", "ant", "été", "c10", "c2"), train=1, test=1)
    extra = ["more/1.PNG", "more/in/2.jpeg", "more-b/3.Tif", "A.JPG", "z.webp"]
    for number, name in enumerate(extra):
        for split in ("train", "test"):
            path = root / split / "ant" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), number, dtype=np.uint8)).save(path)
    reference = datasets.ImageFolder(root / "train")
    found = folders._scan(root).files["train"]
    assert list(found) == reference.classes
    assert [str(path) for paths in found.values() for path in paths] == [
        path for path, _ in reference.samples
    ]
    assert set(datasets.folder.IMG_EXTENSIONS) <= set(folders.IMAGE_SUFFIXES)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".jp2", ".mpo", ".pfm", ".dib"])
def test_other_endings_that_pil_opens_are_read(suffix, tmp_path):
    root = make(tmp_path)
    kinds = {".pfm": "PPM", ".avif": "AVIF", ".dib": "DIB", ".jp2": "JPEG2000"}
    image = Image.new("RGB", (9, 9), (7, 7, 7))
    if suffix == ".pfm":
        image = Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32))
    image.save(root / "train" / "ant" / f"new{suffix}", kinds.get(suffix, "JPEG"))
    assert load(root).train_size == 13


def test_what_is_left_out_is_counted_and_named(tmp_path):
    root = make(tmp_path)
    assert load(root).notes == ()
    (root / "train" / "ant" / "notes.txt").write_text("x")
    (root / "train" / "ant" / ".hidden.png").write_text("x")
    (root / "train" / "0.png").write_text("x")
    (root / "train" / "ant" / "in").mkdir()
    (root / "train" / "ant" / "in" / "x.npy").write_text("x")
    (root / "train" / "ant" / "in" / "again").symlink_to(root / "train" / "ant")
    benchmark = load(root)
    assert benchmark.train_size == 12 and len(benchmark.notes) == 1
    assert benchmark.notes[0].startswith("5 files are no images by name or place (")
    assert ".npy" in benchmark.notes[0] and ".txt" in benchmark.notes[0]
    assert load(root).notes == benchmark.notes  # also from memory


def test_val_stands_in_for_test_and_says_so(tmp_path):
    root = make(tmp_path)
    (root / "test").rename(root / "val")
    benchmark = load(root)
    assert benchmark.test_size == 6
    assert "val" in benchmark.notes[0] and "no 'test'" in benchmark.notes[0]


def test_a_link_to_a_folder_that_it_is_in_brings_no_images_of_other_classes(tmp_path):
    root = make(tmp_path)
    for number, target in enumerate((root, root / "train", root / "train" / "ant")):
        (root / "train" / "ant" / f"loop{number}").symlink_to(target)
    benchmark = load(root)
    assert benchmark.train_size == 12
    assert benchmark.notes[0].startswith("3 files are no images by name or place")


def test_capital_names_of_splits_are_no_classes(tmp_path):
    root = make(tmp_path)
    for split in ("train", "test"):
        (root / split).rename(root / split.title())
    with pytest.raises(UsageError, match="Test' has to be named 'test'"):
        load(root, test_share=0.5)


def test_a_folder_that_is_not_used_is_named(tmp_path):
    root = make(tmp_path)
    shutil.copytree(root / "test", root / "val")
    (root / ".cache").mkdir()
    (root / "labels.csv").write_text("x")
    benchmark = load(root)
    assert benchmark.test_size == 6
    (note,) = benchmark.notes
    assert note == f"folder {str(root / 'val')!r} beside 'train' and 'test' is not used."


@pytest.mark.parametrize("top", ["", "train"])
def test_a_folder_without_a_split_is_divided_by_a_share(top, tmp_path):
    make(tmp_path / "made", train=10)
    (tmp_path / "made" / "train").rename(tmp_path / "all")
    root = tmp_path / "all"
    if top:
        (tmp_path / "root").mkdir()
        root.rename(tmp_path / "root" / top)
        root = tmp_path / "root"
    with pytest.raises(UsageError, match=r"--test-share 0\.2"):
        load(root)
    parts = {}
    for seed in (0, 1, 0):
        divided = load(root, test_share=0.2, split_seed=seed)
        assert (divided.train_size, divided.test_size) == (24, 6)
        assert all(len(experience.dataset) == 2 for experience in divided.test_stream)
        values = [
            sorted(grey(x) for e in stream for x, *_ in e.dataset)
            for stream in (divided.train_stream, divided.test_stream)
        ]
        assert sorted(values[0] + values[1]) == list(range(1, 31))  # each image once
        assert parts.setdefault(seed, values) == values
    assert parts[0] != parts[1]
    with pytest.raises(UsageError, match=r"test_share .* for folders without test images"):
        load(make(tmp_path / "split"), test_share=0.2)
    with pytest.raises(UsageError, match=r"split_seed .* goes with test_share"):
        load(tmp_path / "split", split_seed=1)
    with pytest.raises(UsageError, match=r"test_share .*is for folder:PATH"):
        create_benchmark("split-digits", test_share=0.2)
