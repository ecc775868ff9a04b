"""`split-mnist` and `split-fashion-mnist`: 70,000 grey images of 28 x 28 pixels in 10 classes.

MNIST: Y. LeCun, C. Cortes, C. J. C. Burges, 1998; the page states no licence (CC BY-SA 3.0 is
usually given). Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747;
https://github.com/zalandoresearch/fashion-mnist, MIT licence.

The MD5 of the files are torchvision's (for Fashion-MNIST also the authors'), the sizes TensorFlow
Datasets'. MNIST comes from torchvision's first mirror, Fashion-MNIST from the authors' repository.

A copy that is on the machine already is read where it is: the folders of `LOCAL`, with the four
files as published (`train-images-idx3-ubyte`, ...), plain or with `.gz`. Debian's package
`dataset-fashion-mnist` has one. Such files may be compressed anew, so their contents are verified:
format, size, and the numbers of images and labels.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from avalanche_rwf.benchmarks.download import MARKER
from avalanche_rwf.benchmarks.sources import Archive, ArrayDataset, DataFacts, register_dataset

if TYPE_CHECKING:
    import numpy as np

LOCAL = {
    "fashion-mnist": (Path("/usr/share/datasets/fashion-mnist"),),
    "mnist": (Path("/usr/share/datasets/mnist"),),
}
"""Where copies are looked for after the data root, by data set."""

_SIDE = 28
_NAMES = (
    "train-images-idx3-ubyte", "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte",
)  # fmt: skip


def _facts(
    name: str, page: str, address: str, sizes: tuple[int, ...], digests: tuple[str, ...]
) -> DataFacts:
    archives = (
        Archive(f"{file}.gz", (f"{address}{file}.gz",), size, f"md5:{digest}", 50_000_000)
        for file, size, digest in zip(_NAMES, sizes, digests, strict=True)
    )
    return DataFacts(name, tuple(archives), images=70_000, test=10_000, classes=10, page=page)


FACTS = {
    facts.name: facts
    for facts in (
        _facts(
            "mnist",
            "http://yann.lecun.com/exdb/mnist/",
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            (9_912_422, 28_881, 1_648_877, 4_542),
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        _facts(
            "fashion-mnist",
            "https://github.com/zalandoresearch/fashion-mnist",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            (26_421_880, 29_515, 4_422_102, 5_148),
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    )
}


@register_dataset("split-mnist", "MNIST digits", experiences=5)
class MNIST(ArrayDataset):
    """MNIST; `data` is uint8 [N, 28, 28]."""

    FACTS = FACTS["mnist"]
    READER: ClassVar[str] = "MNIST"  # torchvision's class, for the names of the classes

    def find(self, root: Path, download: bool) -> Path:
        """The data root's copy, or one of the machine's, or else a fetched one."""
        if not (root / self.facts.name / MARKER).is_file():
            for place in LOCAL.get(self.facts.name, ()):
                if all(_file(place, name) is not None for name in _NAMES):
                    return place
        return super().find(root, download)

    def read(self, folder: Path, train: bool) -> tuple[np.ndarray, list[int], list[str]]:
        """Both files of a part, plain or compressed."""
        from torchvision import datasets

        start = "train" if train else "t10k"
        images = _idx(folder, f"{start}-images-idx3-ubyte", 3)
        labels = _idx(folder, f"{start}-labels-idx1-ubyte", 1)
        if images.shape[1:] != (_SIDE, _SIDE):
            raise ValueError(f"images are {images.shape[1:]} instead of {(_SIDE, _SIDE)}")
        return images, labels.tolist(), list(getattr(datasets, self.READER).classes)


@register_dataset("split-fashion-mnist", "Fashion-MNIST", experiences=5)
class FashionMNIST(MNIST):
    """Fashion-MNIST; `data` is uint8 [N, 28, 28]."""

    FACTS = FACTS["fashion-mnist"]
    READER = "FashionMNIST"


def _file(folder: Path, name: str) -> Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def _idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes.

    torchvision's reader takes no compressed file and reads past a wrong header; this one says what
    is wrong.

    :raises ValueError: another format, or cut off.
    """
    import numpy as np

    path = _file(folder, name)
    if path is None:
        raise FileNotFoundError(f"no {name} in {folder}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (zlib.error, EOFError) as error:
        raise ValueError(f"{path} is cut off or damaged") from error
    if data[:4] != bytes([0, 0, 8, dimensions]):
        raise ValueError(f"{path} is no IDX file of bytes in {dimensions} dimensions")
    start = 4 + 4 * dimensions
    shape = [int(n) for n in np.frombuffer(data, ">u4", dimensions, offset=4)]
    if len(data) != start + int(np.prod(shape)):
        raise ValueError(f"{path} has {len(data)} bytes, which is not what its header says")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
