"""ImageNet-R, ImageNet-Sketch, CUB-200 and Tiny-ImageNet in the layouts of their archives, from the
server to the stream."""

from __future__ import annotations

import os

import pytest

from avalanche_rwf.benchmarks import download
from avalanche_rwf.benchmarks.datasets.cub200 import CUB200
from avalanche_rwf.benchmarks.datasets.imagenet_r import ImageNetR
from avalanche_rwf.benchmarks.datasets.imagenet_sketch import ImageNetSketch
from avalanche_rwf.benchmarks.datasets.tiny_imagenet import TinyImageNet
from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.errors import UsageError

WNIDS = ("n01443537", "n01484850", "n01494475")
SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross")
SHAPES = {
    "image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "seed": 0,
}  # fmt: skip


def imagenet_r(make):
    files = {"imagenet-r/README.txt": b"read me"}
    for c, name in enumerate(WNIDS):
        files |= {f"imagenet-r/{name}/art_{i}.jpg": make.picture(10 * c + i) for i in range(5)}
    return "imagenet-r.tar", make.tar(files), 15, None


def imagenet_sketch(make):
    files = {"sketch/": b""}
    for c, name in enumerate(WNIDS):
        files[f"sketch/{name}/"] = b""
        files |= {f"sketch/{name}/sketch_{i}.JPEG": make.picture(10 * c + i) for i in range(5)}
    return "ImageNet-Sketch.zip", make.zipped(files), 15, None


def cub200(make):
    top, number = "CUB_200_2011", 0
    tables = dict.fromkeys(("images", "classes", "image_class_labels", "train_test_split"), "")
    files = {"attributes.txt": b"1 has_bill_shape::curved"}
    for c, name in enumerate(SPECIES, start=1):
        tables["classes"] += f"{c} {name}\n"
        for i in range(5):
            number += 1
            path = f"{name}/{name[4:]}_{i}.jpg"
            tables["images"] += f"{number} {path}\n"
            tables["image_class_labels"] += f"{number} {c}\n"
            tables["train_test_split"] += f"{number} {int(i < 3)}\n"
            files[f"{top}/images/{path}"] = make.picture(number)
    files |= {f"{top}/{name}.txt": text.encode() for name, text in tables.items()}
    return "CUB_200_2011.tgz", make.tar(files, "w:gz"), 15, 6


def tiny_imagenet(make):
    top, notes = "tiny-imagenet-200", ""
    files = {f"{top}/wnids.txt": "\n".join(WNIDS).encode(), f"{top}/words.txt": b"n0\tentity"}
    for c, name in enumerate(WNIDS):
        files[f"{top}/train/{name}/{name}_boxes.txt"] = b"0\t0\t0\t1\t1"
        for i in range(4):
            files[f"{top}/train/{name}/images/{name}_{i}.JPEG"] = make.picture(10 * c + i)
        # Validation images of a class do not stand together.
        for i in range(2):
            number = 3 * i + c
            notes += f"val_{number}.JPEG\t{name}\t0\t32\t44\t62\n"
            files[f"{top}/val/images/val_{number}.JPEG"] = make.picture(100 + number)
    files[f"{top}/val/val_annotations.txt"] = notes.encode()
    files[f"{top}/test/images/test_0.JPEG"] = make.picture(200)  # without a label
    return "tiny-imagenet-200.zip", make.zipped(files), 18, 6


SETS = {
    "split-imagenet-r": (ImageNetR, imagenet_r),
    "split-imagenet-sketch": (ImageNetSketch, imagenet_sketch),
    "split-cub200": (CUB200, cub200),
    "split-tinyimagenet": (TinyImageNet, tiny_imagenet),
}


@pytest.fixture(params=SETS)
def name(request):
    return request.param


@pytest.fixture
def kind(name, server, make, tmp_path, monkeypatch):
    """The data set's class with the facts of a small archive."""
    kind, layout = SETS[name]
    archive, data, images, test = layout(make)
    facts = make.facts(server, {archive: data}, images, test, 3, name=kind.FACTS.name)
    monkeypatch.setattr(kind, "FACTS", facts)
    monkeypatch.setenv(download.DATA_ROOT, str(tmp_path))
    return kind


def test_an_archive_is_fetched_and_becomes_a_stream(name, kind):
    names = list(SPECIES if kind is CUB200 else WNIDS)
    train, test = kind(), kind(train=False)
    assert train.classes == test.classes == names
    sizes = {"split-cub200": (9, 6), "split-tinyimagenet": (12, 6)}.get(name, (12, 3))
    assert (len(train), len(test)) == sizes
    assert not set(train.paths) & set(test.paths)
    for part in (train, test):
        for path, target in zip(part.paths, part.targets, strict=True):
            if not (kind is TinyImageNet and part is test):  # no class in its paths
                assert names[target] in path.as_posix()
    benchmark = create_benchmark(name, experiences=3, **SHAPES)
    assert (benchmark.train_size, benchmark.test_size) == sizes
    assert sorted(benchmark.class_names) == names and not benchmark.in_memory
    x, y, _ = benchmark.train_stream[1].dataset[0]
    assert x.shape == (3, 8, 8) and y == 1


def test_the_test_images_are_the_published_ones(name, kind):
    if kind is CUB200:
        assert {path.stem[-1] for path in kind(train=False).paths} == {"3", "4"}
    elif kind is TinyImageNet:
        test = kind(train=False)
        labels = {path.stem: target for path, target in zip(test.paths, test.targets, strict=True)}
        assert labels == {f"val_{n}": n % 3 for n in range(6)}
    else:
        assert sorted(kind(train=False).targets) == [0, 1, 2]


def test_experiences_are_by_default_as_many_as_published(name, kind):
    # The small sets have fewer classes than the default number of experiences.
    wanted = {"split-imagenet-sketch": 20}.get(name, 10)
    with pytest.raises(UsageError, match=f"experiences.*{wanted}"):
        create_benchmark(name, **SHAPES)


def test_a_connection_that_is_cut_is_resumed(name, kind, server):
    server.cuts = [500, 700]
    assert len(kind()) + len(kind(train=False)) == kind.FACTS.images
    assert server.ranges == [None, "bytes=500-", "bytes=1200-"]


def test_an_interrupted_preparation_is_taken_up(name, kind, server, tmp_path, monkeypatch):
    def interrupted(self, folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kind, "_check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kind()
    assert not (tmp_path / kind.FACTS.name).exists()
    assert len(kind()) + len(kind(train=False)) == kind.FACTS.images
    assert server.ranges == [None]  # what was fetched was whole and is used


def test_a_truncated_archive_is_fetched_again(name, kind, server, tmp_path, capsys):
    archive = kind.FACTS.archives[0].name
    place = tmp_path / "downloads" / kind.FACTS.name
    place.mkdir(parents=True)
    (place / archive).write_bytes(server.files[archive][:-400])
    assert len(kind()) + len(kind(train=False)) == kind.FACTS.images
    assert f"{archive} is bad" in capsys.readouterr().err


def test_an_archive_with_another_hash_is_refused(name, kind, server, tmp_path):
    archive = kind.FACTS.archives[0].name
    data = bytearray(server.files[archive])
    data[len(data) // 2] ^= 1
    server.files[archive] = bytes(data)
    with pytest.raises(UsageError, match=f"{archive}.* its sha256 is [0-9a-f]{{64}} instead of"):
        kind()
    assert not (tmp_path / kind.FACTS.name).exists()


@pytest.mark.parametrize("member", ["../evil.jpg", "/evil.jpg"])
def test_a_member_outside_the_target_is_refused(name, kind, server, make, tmp_path, member):
    archive = kind.FACTS.archives[0].name

    class Evil:
        picture = staticmethod(make.picture)

        @staticmethod
        def tar(files, *args):
            return make.tar({**files, member: b"evil"}, *args)

        @staticmethod
        def zipped(files):
            return make.zipped({**files, member: b"evil"})

    _, data, images, test = SETS[name][1](Evil)
    facts = make.facts(server, {archive: data}, images, test, 3, name="evil")
    with pytest.raises(UsageError, match=r"evil\.jpg"):
        kind(facts=facts)
    assert not list(tmp_path.parent.rglob("evil.jpg")) and not (tmp_path / "evil").exists()


def test_an_archive_without_an_image_is_refused(name, kind, server, make):
    archive = kind.FACTS.archives[0].name
    layout = SETS[name][1]
    short = make.tar if archive.endswith((".tar", ".tgz")) else make.zipped

    def without_one(files, *args):
        lost = next(path for path in files if path.endswith((".jpg", ".JPEG")))
        return short({path: data for path, data in files.items() if path != lost}, *args)

    class Short:
        picture = staticmethod(make.picture)
        tar = zipped = staticmethod(without_one)

    _, data, images, test = layout(Short)
    facts = make.facts(server, {archive: data}, images, test, 3, name="short")
    with pytest.raises(UsageError, match=r"it has no image|images instead of"):
        kind(facts=facts)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("index.csv", None), ("index.csv", b""), ("index.csv", b"path,class\na,b\n"),
        ("index.csv", b"path,class,split\na,b\n"), ("index.csv", b"\xff\xfe"),
        ("index.csv", b"path,class,split\n" + b"a" * 200_000),
        ("prepared.json", b"{"), ("prepared.json", b"[]"), ("prepared.json", b"{}"),
        ("prepared.json", b'{"corrupt": 5}'), ("prepared.json", b'{"corrupt": [5]}'),
        ("prepared.json", b'{"corrupt": "ab"}'), ("prepared.json", b'{"corrupt": ["../a"]}'),
        ("prepared.json", b"[" * 100_000), ("index.csv", "pipe"),
        ("index.csv", b"path,class,split\n/etc/passwd,a,train\n"),
        ("index.csv", b"path,class,split\na/../../b.png,a,train\n"),
        ("index.csv", b"path,class,split\na\0.png,a,train\n"),
        ("index.csv", b"path,class,split\na.png,a,elsewhere\n"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["split-cub200"], indirect=True)
def test_a_prepared_folder_that_was_damaged_says_so(name, kind, tmp_path, file, content):
    folder = kind().folder
    (folder / file).unlink()
    if content == "pipe":
        os.mkfifo(folder / file)  # reading it would wait for ever
    elif content is not None:
        (folder / file).write_bytes(content)
    with pytest.raises(UsageError) as said:
        create_benchmark(name, **SHAPES)
    assert f"in {str(folder)!r} cannot be used: its {file} cannot be read (" in str(said.value)
    assert str(said.value).endswith("move the folder away, and it is prepared again.")


def test_unreadable_tables_are_refused(server, make, tmp_path):
    files = {"CUB_200_2011/images.txt": b"1 a/b.jpg\n", "CUB_200_2011/classes.txt": b"1 a\n"}
    facts = make.facts(server, {"CUB_200_2011.tgz": make.tar(files, "w:gz")}, 1, 1, 1)
    with pytest.raises(UsageError, match=r"is not as published: its files cannot be read"):
        CUB200(tmp_path, facts=facts)
