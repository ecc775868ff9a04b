"""CIFAR-100, MNIST and Fashion-MNIST from tiny files of the published layouts."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_rwf.benchmarks import download, sources
from avalanche_rwf.benchmarks import images as loading
from avalanche_rwf.benchmarks.datasets import mnist
from avalanche_rwf.benchmarks.datasets.cifar100 import CIFAR100
from avalanche_rwf.benchmarks.datasets.mnist import MNIST, FashionMNIST
from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.errors import UsageError

LOCAL = mnist.LOCAL  # as it is without the fixture
SHAPES = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "seed": 0}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv(download.DATA_ROOT, str(tmp_path / "root"))
    monkeypatch.setattr(mnist, "LOCAL", {})
    sources._memory.clear()
    yield
    sources._memory.clear()


def cifar(n, seed):
    rng = np.random.RandomState(seed)
    labels = rng.permutation(np.arange(n) % 100).tolist()
    return {
        "filenames": [f"{i}.png" for i in range(n)], "batch_label": "b", "fine_labels": labels,
        "coarse_labels": [label // 5 for label in labels],
        "data": rng.randint(0, 256, (n, 3072), dtype=np.uint8),
    }  # fmt: skip


@pytest.fixture
def small_cifar(server, make, monkeypatch):
    """200 training and 100 test images; gives the three files and the facts."""
    names = [f"class_{i:03}" for i in range(100)]
    contents = {"train": cifar(200, 0), "test": cifar(100, 1), "meta": {"fine_label_names": names}}
    files = {f"cifar-100-python/{k}": pickle.dumps(v) for k, v in contents.items()}
    data = make.tar(files, "w:gz")
    facts = make.facts(server, {"cifar-100-python.tar.gz": data}, 300, 100, 100, unpacked=10**7)
    sums = {k: f"md5:{hashlib.md5(v).hexdigest()}" for k, v in files.items()}
    facts = replace(facts, name="cifar-100", files=sums)
    monkeypatch.setattr(CIFAR100, "FACTS", facts)
    return contents, facts


def test_a_cifar_archive_becomes_images_and_labels(small_cifar):
    contents, _ = small_cifar
    train, test = CIFAR100(), CIFAR100(train=False)
    assert (len(train), len(test)) == (200, 100)
    assert train.classes[7] == "class_007" and train.targets == contents["train"]["fine_labels"]
    image, target = test[3]
    assert target == contents["test"]["fine_labels"][3]
    pixels = contents["test"]["data"][3].reshape(3, 32, 32).transpose(1, 2, 0)
    assert np.array_equal(np.asarray(image), pixels)


def test_a_cifar_archive_that_is_cut_interrupted_or_truncated(
    small_cifar, server, tmp_path, monkeypatch, capsys
):
    _, facts = small_cifar
    archive, root = facts.archives[0].name, tmp_path / "root"
    server.cuts = [900, 800]
    with monkeypatch.context() as patch:
        patch.setattr(CIFAR100, "_check", lambda self, folder: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            CIFAR100()
    assert server.ranges == [None, "bytes=900-", "bytes=1700-"]
    assert not (root / "cifar-100").exists()
    assert len(CIFAR100()) == 200 and len(server.ranges) == 3
    place = root / "downloads" / "again"
    place.mkdir(parents=True)
    (place / archive).write_bytes(server.files[archive][:-1000])
    assert len(CIFAR100(facts=replace(facts, name="again"))) == 200
    assert f"{archive} is bad" in capsys.readouterr().err


def test_a_cifar_archive_with_another_hash_or_a_member_outside(small_cifar, server, make, tmp_path):
    contents, facts = small_cifar
    (archive,) = facts.archives
    wrong = replace(archive, digest="md5:" + "0" * 32)
    with pytest.raises(UsageError, match=r"its md5 is [0-9a-f]{32} instead of 0{32}"):
        CIFAR100(facts=replace(facts, archives=(wrong,)))
    files = {f"cifar-100-python/{k}": pickle.dumps(v) for k, v in contents.items()}
    data = make.tar({**files, "../evil": b"evil"}, "w:gz")
    evil = make.facts(server, {archive.name: data}, 300, 100, 100, unpacked=10**7)
    with pytest.raises(UsageError, match=r"evil"):
        CIFAR100(facts=evil)
    assert [path.name for path in (tmp_path / "root").iterdir() if path.is_dir()] == ["downloads"]
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("budget", [10**9, 0])
def test_a_stream_of_cifar_at_its_own_size_and_another(small_cifar, monkeypatch, budget):
    monkeypatch.setattr(loading, "CACHE_BYTES", budget)
    contents, _ = small_cifar
    for size in (32, 20):
        # Images that fill their frame are not cropped.
        benchmark = create_benchmark("split-cifar100", image_size=size, crop_pct=0.8, **SHAPES)
        assert [len(c) for c in benchmark.classes_per_experience] == [10] * 10
        assert benchmark.in_memory == (budget > 0)
        images = {x.numpy().tobytes() for e in benchmark.test_stream for x, *_ in e.dataset}
        pixels = contents["test"]["data"][5].reshape(3, 32, 32).transpose(1, 2, 0)
        resized = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        scaled = pixels.float() * (1 / torch.tensor(127.5)) + -torch.tensor(1.0)
        assert scaled.contiguous().numpy().tobytes() in images


def test_a_cifar_file_that_was_changed_is_not_opened(small_cifar, tmp_path):
    CIFAR100()
    path = tmp_path / "root" / "cifar-100" / "cifar-100-python" / "train"
    path.write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    with pytest.raises(UsageError, match="files cannot be read"):
        CIFAR100()


def test_a_cifar_archive_with_other_files(small_cifar, tmp_path):
    _, facts = small_cifar
    other = replace(facts, name="other", files={**facts.files, "cifar-100-python/train": "md5:0"})
    with pytest.raises(UsageError, match="of its file 'cifar-100-python/train': its md5 is"):
        CIFAR100(facts=other)
    assert not (tmp_path / "root" / "other").exists()


# ------------------------------------------------------------------------------------------- MNIST


def idx(values):
    header = bytes([0, 0, 8, values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    return header + values.astype(np.uint8).tobytes()


def grey(n, seed):
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (n, 28, 28)), rng.permutation(np.arange(n) % 10)


def four_files():
    files = {}
    for start, n, seed in (("train", 40, 0), ("t10k", 20, 1)):
        images, labels = grey(n, seed)
        files[f"{start}-images-idx3-ubyte"] = idx(images)
        files[f"{start}-labels-idx1-ubyte"] = idx(labels)
    return files


@pytest.fixture(params=[MNIST, FashionMNIST])
def small_mnist(request, server, make, monkeypatch):
    data = {f"{name}.gz": gzip.compress(value) for name, value in four_files().items()}
    name = request.param.FACTS.name
    monkeypatch.setattr(request.param, "FACTS", make.facts(server, data, 60, 20, 10, name=name))
    return request.param


def test_mnist_is_fetched_and_read(small_mnist, tmp_path, server):
    train, test = small_mnist(), small_mnist(train=False)
    assert (len(train), len(test)) == (40, 20) and len(server.ranges) == 4
    images, labels = grey(40, 0)
    assert np.array_equal(train.data, images) and train.targets == labels.tolist()
    assert train[3][0].mode == "L"
    assert train.classes[0] == ("0 - zero" if small_mnist is MNIST else "T-shirt/top")
    assert (tmp_path / "root" / small_mnist.FACTS.name / "t10k-labels-idx1-ubyte").is_file()
    benchmark = create_benchmark(f"split-{small_mnist.FACTS.name}", image_size=32, **SHAPES)
    assert [len(c) for c in benchmark.classes_per_experience] == [2] * 5
    x, _, _ = benchmark.test_stream[0].dataset[0]
    assert x.shape == (3, 32, 32) and torch.equal(x[0], x[2]) and x.std() > 0.1


def test_mnist_files_that_are_cut_truncated_or_others(small_mnist, tmp_path, server, capsys):
    facts = small_mnist.FACTS
    server.cuts = [300]
    place = tmp_path / "root" / "downloads" / facts.name
    place.mkdir(parents=True)
    last = facts.archives[-1].name
    (place / last).write_bytes(server.files[last][:-5])
    assert len(small_mnist()) == 40
    assert server.ranges == [None, "bytes=300-", None, None, None]
    assert f"{last} is bad" in capsys.readouterr().err
    bad = replace(facts.archives[1], digest="md5:" + "0" * 32)
    others = replace(facts, name="others", archives=(facts.archives[0], bad, *facts.archives[2:]))
    with pytest.raises(UsageError, match=f"{bad.name}.* its md5 is [0-9a-f]{{32}} instead of 0"):
        small_mnist(facts=others)
    assert not (tmp_path / "root" / "others").exists()


def test_a_prepared_data_set_that_has_lost_a_file_says_which(small_mnist, tmp_path):
    small_mnist()
    name = "train-labels-idx1-ubyte"
    (tmp_path / "root" / small_mnist.FACTS.name / name).unlink()
    assert len(small_mnist(train=False)) == 20
    with pytest.raises(UsageError, match=rf"cannot be used: its files .* \(no {name} in "):
        small_mnist()


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_copy_on_the_machine_is_read_where_it_is(
    small_mnist, tmp_path, server, monkeypatch, ending
):
    place = tmp_path / "share"
    place.mkdir()
    for name, value in four_files().items():
        # Compressed anew: other bytes than the published file's.
        data = gzip.compress(value, 1) if ending else value
        (place / f"{name}{ending}").write_bytes(data)
    monkeypatch.setattr(mnist, "LOCAL", {small_mnist.FACTS.name: (tmp_path / "no", place)})
    assert len(small_mnist()) == 40 and len(small_mnist(train=False)) == 20
    assert server.ranges == [] and not (tmp_path / "root").exists()
    images = place / f"train-images-idx3-ubyte{ending}"
    images.write_bytes(images.read_bytes()[:-100])
    with pytest.raises(UsageError, match=r"cannot be used: its files cannot be read \(.*train-im"):
        small_mnist()


def test_debians_package_is_looked_at():
    assert [str(path) for path in LOCAL["fashion-mnist"]] == ["/usr/share/datasets/fashion-mnist"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train-images-idx3-ubyte": idx(grey(39, 0)[0])}, "39 training images instead of 40"),
        ({"t10k-labels-idx1-ubyte": idx(grey(19, 1)[1])}, "19 labels instead of 20"),
        ({"train-labels-idx1-ubyte": idx(np.zeros(40))}, "its labels are not 0 to 9"),
        ({"train-images-idx3-ubyte": idx(np.zeros((40, 27, 28)))}, r"images are \(27, 28\)"),
        ({"train-images-idx3-ubyte": b"\0\0\x0d\3" + b"\0" * 12}, "is no IDX file of bytes in 3"),
        ({"t10k-images-idx3-ubyte": idx(grey(20, 1)[0])[:-1]}, "not what its header says"),
    ],
)
def test_mnist_files_that_are_not_as_published(server, make, changes, message):
    data = {k: gzip.compress(v) for k, v in {**four_files(), **changes}.items()}
    data = {f"{name}.gz": value for name, value in data.items()}
    with pytest.raises(UsageError, match=message):
        MNIST(facts=make.facts(server, data, 60, 20, 10))


def test_archives_of_one_name_do_not_meet(server, make, tmp_path):
    """MNIST's and Fashion-MNIST's files have the same names; a half-fetched one is its own."""
    data = {f"{name}.gz": gzip.compress(value) for name, value in four_files().items()}
    for kind in (MNIST, FashionMNIST):
        facts = make.facts(server, data, 60, 20, 10, name=kind.FACTS.name)
        kind(facts=facts)
    assert server.ranges == [None] * 8
    places = sorted(path.name for path in (tmp_path / "root" / "downloads").iterdir())
    assert places == ["fashion-mnist", "mnist"]
