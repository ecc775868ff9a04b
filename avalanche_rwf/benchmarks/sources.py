"""From prepared data sets to image sources: what the files under `datasets/` share.

A data set is a class in torchvision's manner (`targets`, `classes`, items (PIL image, label)) on
top of :mod:`.download`, whose decorator `register_dataset` makes its stream known. Two kinds:

- `FileDataset`: a tree of image files. Preparation lists it in `index.csv` (path, class, split),
  which is the split for others to reuse, and decodes every file once, so that training can start
  without doing so;
- `ArrayDataset`: small images of one size in a few files, held in memory.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from avalanche_rwf.benchmarks.download import (
    MARKER,
    Archive,
    BadArchiveError,
    DataFacts,
    check_digest,
    data_root,
    is_inside,
    prepare,
    progress,
)
from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.benchmarks.registry import BENCHMARKS, BenchmarkSpec
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import read_file, read_object
from avalanche_rwf.utils.user_code import origin_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from avalanche_rwf.benchmarks.images import ArrayPixels, Geometry, Pixels
    from avalanche_rwf.benchmarks.splits import ImageSource

__all__ = [
    "IMAGE_ENDINGS",
    "INDEX",
    "Archive",
    "ArrayDataset",
    "DataFacts",
    "FileDataset",
    "Row",
    "corrupt_error",
    "hashed_rows",
    "hashed_test_part",
    "pixels_source",
    "register_dataset",
]

INDEX = "index.csv"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
Row = tuple[str, str, str]
"""Path below the data set's folder as POSIX writes it, class, "train" or "test"."""


def hashed_test_part(paths: Iterable[str], share: float = 0.2) -> set[str]:
    """The test images among one class's: those whose names have the smallest SHA-256.

    The names alone decide: neither the order of the files nor the platform, and no generator.

    :param paths: as `n01443537/art_0.jpg`, the class's folder and the file.
    :param share: of the images, rounded; at least one is test and one training.
    """
    ranked = sorted(paths, key=lambda path: (hashlib.sha256(path.encode()).digest(), path))
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    return set(ranked[:count])


class _Dataset(ABC):
    """What both kinds are called with; `download=True` also prepares.

    :param root: folder for data sets; None is `--data-root`'s, see `data_root`.
    :param train: the training images, or the test images.
    :param transform: of the PIL image; None gives the image itself.
    :param target_transform: of the label.
    :param download: fetch what is not there.
    :param facts: in place of the published ones.
    :raises UsageError: the data set cannot be prepared; says which file to put where.
    """

    FACTS: ClassVar[DataFacts]
    classes: list[str]
    targets: list[int]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        download: bool = True,
        facts: DataFacts | None = None,
    ) -> None:
        self.train = train
        self.transform = transform
        self.target_transform = target_transform
        self.facts = facts or self.FACTS
        self.folder = self.find(data_root(root), download)
        self._load()

    @classmethod
    @abstractmethod
    def source(cls, options: StreamOptions, experiences: int) -> ImageSource:
        """The stream's images.

        :param experiences: their number when none is asked for.
        """

    def find(self, root: Path, download: bool) -> Path:
        """The folder that the images are read from, prepared."""
        return prepare(self.facts, root, self._check, download)

    @abstractmethod
    def _check(self, folder: Path) -> Mapping[str, Any]:
        """Compare an unpacked data set with its facts; returns what its marker notes."""

    @abstractmethod
    def _load(self) -> None:
        """Read what was prepared."""

    @abstractmethod
    def _image(self, index: int) -> Image.Image:
        """One image, as it is in its file."""

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Label of each class."""
        return {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """PIL image (or what `transform` makes of it) and label."""
        image, target = self._image(index), self.targets[index]
        return (
            image if self.transform is None else self.transform(image),
            target if self.target_transform is None else self.target_transform(target),
        )


D = TypeVar("D", bound=type[_Dataset])


def register_dataset(name: str, title: str, experiences: int = 10) -> Callable[[D], D]:
    """Register the stream of a data set (decorator).

    :param name: as `--benchmark` takes it.
    :param title: begins the line for listings, which goes on with the facts.
    :param experiences: their number when none is asked for.
    """

    def decorate(kind: D) -> D:
        facts = kind.FACTS
        summary = (
            f"{title}, {facts.classes:,} classes, {facts.images:,} images "
            f"({experiences} experiences)"
        )
        load = functools.partial(kind.source, experiences=experiences)
        BENCHMARKS.add(name, BenchmarkSpec(name, load, summary, origin_of(kind)), kind)
        return kind

    return decorate


def pixels_source(
    pixels: Mapping[str, Pixels | ArrayPixels],
    targets: Mapping[str, Sequence[int]],
    options: StreamOptions,
    **of_source: Any,
) -> ImageSource:
    """Pixels and labels of "train" and "test" as a stream's images.

    :param of_source: the other fields of :class:`.splits.ImageSource`.
    """
    from avalanche_rwf.benchmarks.images import FileImages
    from avalanche_rwf.benchmarks.splits import ImageSource

    train, test = (
        FileImages(pixels[part], targets[part], options.mean, options.std, options.normalised)
        for part in ("train", "test")
    )
    return ImageSource(
        *(train, train.targets, test, test.targets),
        in_memory=all(one.in_memory for one in pixels.values()),
        **of_source,
    )


def corrupt_error(corrupt: Sequence[Path], then: str = ";") -> UsageError:
    """What refuses images that cannot be read.

    :param then: what follows that; before "give --skip-corrupt".
    """
    more = f" (and {len(corrupt) - 1} more)" if len(corrupt) > 1 else ""
    return UsageError(
        f"image {str(corrupt[0])!r}{more} cannot be read{then} give --skip-corrupt to leave such "
        "images out."
    )


def _count(what: str, found: int, published: int | None) -> None:
    if published is not None and found != published:
        raise BadArchiveError(f"it has {found} {what} instead of {published}")


def _check_inside(path: str) -> str:
    """Return a path of a prepared folder's files, which may be anybody's.

    :raises ValueError: if it leaves the folder or can be none.
    """
    if not is_inside(path):
        raise ValueError(f"{path!r} is no file of the folder")
    return path


# ---------------------------------------------------------------------------------- trees of files


class FileDataset(_Dataset):
    """Image files under `folder`; `paths` and `targets` are in the order of the paths' names.

    A subclass says in :meth:`rows` which files there are, and in `fills_frame` whether the whole
    image is resized and nothing cropped (`crop_pct` does not apply).
    """

    paths: list[Path]
    fills_frame: ClassVar[bool] = False

    @abstractmethod
    def rows(self, folder: Path) -> list[Row]:
        """Every labelled image of an unpacked data set."""

    def _check(self, folder: Path) -> Mapping[str, Any]:
        from avalanche_rwf.benchmarks.images import are_readable

        try:
            rows = sorted(self.rows(folder))
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise BadArchiveError(f"its files cannot be read ({error})") from error
        paths = [folder / path for path, _, _ in rows]
        missing = next((path for path in paths if not path.is_file()), None)
        if missing is not None:
            raise BadArchiveError(f"it has no image {str(missing.relative_to(folder))!r}")
        test = sum(split == "test" for _, _, split in rows)
        _count("images", len(rows), self.facts.images)
        _count("test images", test, self.facts.test)
        for split in ("train", "test"):
            classes = {name for _, name, part in rows if part == split}
            _count(f"classes among its {split} images", len(classes), self.facts.classes)
        good = progress(are_readable(paths), f"checking {self.facts.name}", len(paths), unit="img")
        corrupt = [path for (path, _, _), ok in zip(rows, good, strict=True) if not ok]
        with (folder / INDEX).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("path", "class", "split"))
            writer.writerows(rows)
        return {
            "images": len(rows),
            "test": test,
            "classes": self.facts.classes,
            "corrupt": corrupt,
        }

    def _load(self) -> None:
        with self._readable(INDEX):
            text = io.StringIO(read_file(self.folder / INDEX).decode(), newline="")
            rows = [(row["path"], row["class"], row["split"]) for row in csv.DictReader(text)]
            if not rows or not all(map(all, rows)):
                raise ValueError("it is cut")
            for path, _, split in rows:
                _check_inside(path)
                if split not in ("train", "test"):
                    raise ValueError(f"it has images for {split!r}")
        self.classes = sorted({name for _, name, _ in rows})
        label = self.class_to_idx
        split = "train" if self.train else "test"
        kept = [(self.folder / path, label[name]) for path, name, part in rows if part == split]
        self.paths = [path for path, _ in kept]
        self.targets = [target for _, target in kept]

    def corrupt(self) -> list[Path]:
        """Images, of training and test, that could not be decoded when the set was prepared."""
        with self._readable(MARKER):
            listed = read_object(self.folder / MARKER)["corrupt"]
            if not isinstance(listed, list):
                raise ValueError(f"corrupt is a {type(listed).__name__}")
            return [self.folder / _check_inside(path) for path in listed]

    @contextlib.contextmanager
    def _readable(self, name: str) -> Iterator[None]:
        """Say what to do if one of the two files that the preparation wrote is damaged."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise UsageError(
                f"the data set {self.facts.name!r} in {str(self.folder)!r} cannot be used: its "
                f"{name} cannot be read ({error}); move the folder away, and it is prepared again."
            ) from error

    def _image(self, index: int) -> Image.Image:
        from avalanche_rwf.benchmarks.images import decode_image

        return decode_image(self.paths[index])

    @classmethod
    def source(cls, options: StreamOptions, experiences: int) -> ImageSource:
        """The stream's images, decoded when they are asked for."""
        from avalanche_rwf.benchmarks.images import Geometry, Pixels

        geometry = Geometry.of(options, 1.0 if cls.fills_frame else None)
        parts = {"train": cls(train=True), "test": cls(train=False)}
        corrupt = parts["train"].corrupt()
        if corrupt and not options.skip_corrupt:
            raise corrupt_error(corrupt)
        kept = {
            name: [pair for pair in zip(part.paths, part.targets, strict=True)
                   if pair[0] not in corrupt]
            for name, part in parts.items()
        }  # fmt: skip
        return pixels_source(
            {name: Pixels([path for path, _ in pairs], geometry) for name, pairs in kept.items()},
            {name: [target for _, target in pairs] for name, pairs in kept.items()},
            options,
            class_names=parts["train"].classes,
            default_experiences=experiences,
            skipped=len(corrupt),
        )


def hashed_rows(folder: Path, top: str) -> list[Row]:
    """Rows of `top/<class>/*`, without a test split of its own; see :func:`hashed_test_part`."""
    rows: list[Row] = []
    for entry in (folder / top).iterdir():
        if not entry.is_dir():
            continue
        paths = [
            f"{entry.name}/{path.name}"
            for path in entry.iterdir()
            if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
        ]
        if len(paths) < 2:
            raise ValueError(f"class {entry.name} has {len(paths)} images")
        test = hashed_test_part(paths)
        rows += [
            (f"{top}/{path}", entry.name, "test" if path in test else "train") for path in paths
        ]
    return rows



# -------------------------------------------------------------------------------- images in memory


class ArrayDataset(_Dataset):
    """Images `data`, uint8 [N, H, W] or [N, H, W, 3], as torchvision reads them.

    They fill their frame, so nothing is cropped: `crop_pct` does not apply. `autoaug_policy`: see
    :func:`.augmentation.create_augmentation`.
    """

    data: np.ndarray
    autoaug_policy: ClassVar[str] = "imagenet"

    def _check(self, folder: Path) -> Mapping[str, Any]:
        for name, digest in self.facts.files.items():
            try:
                check_digest(folder / name, digest)
            except OSError as error:
                raise BadArchiveError(f"it has no file {name!r}") from error
            except BadArchiveError as error:
                raise BadArchiveError(f"of its file {name!r}: {error}") from error
        test = len(self._part(folder, False)[0])
        images = test + len(self._part(folder, True)[0])
        return {"images": images, "test": test, "classes": self.facts.classes}

    def _part(self, folder: Path, train: bool) -> tuple[np.ndarray, list[int], list[str]]:
        """One part, as :meth:`read`, after its numbers were compared with the facts."""
        try:
            data, targets, classes = self.read(folder, train)
        except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
            raise BadArchiveError(f"its files cannot be read ({error})") from error
        assert self.facts.test is not None
        published = self.facts.images - self.facts.test if train else self.facts.test
        _count(f"{'training' if train else 'test'} images", len(data), published)
        _count("labels", len(targets), len(data))
        if set(targets) != set(range(self.facts.classes)) or len(classes) != self.facts.classes:
            raise BadArchiveError(f"its labels are not 0 to {self.facts.classes - 1}")
        return data, targets, classes

    @abstractmethod
    def read(self, folder: Path, train: bool) -> tuple[np.ndarray, list[int], list[str]]:
        """Images, labels and class names of one part."""

    def _load(self) -> None:
        try:
            self.data, self.targets, self.classes = self._part(self.folder, self.train)
        except BadArchiveError as error:
            raise UsageError(
                f"the data set {self.facts.name!r} in {str(self.folder)!r} cannot be used: {error}."
            ) from error

    def _image(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self.data[index])

    @classmethod
    def source(cls, options: StreamOptions, experiences: int) -> ImageSource:
        """The stream's images, resized once if they fit in memory."""
        from avalanche_rwf.benchmarks.images import Geometry

        pixels, targets, names = _arrays(
            cls, data_root(), Geometry.of(options, 1.0), options.decode
        )
        return pixels_source(
            *(pixels, targets, options),
            class_names=list(names),
            default_experiences=experiences,
            autoaug_policy=cls.autoaug_policy,
        )


_Arrays = tuple[dict[str, "ArrayPixels"], dict[str, list[int]], list[str]]
# One data set at a time, because its pixels can fill CACHE_BYTES.
_memory: dict[object, _Arrays] = {}


def _arrays(kind: type[ArrayDataset], root: Path, geometry: Geometry, resize: bool) -> _Arrays:
    """Pixels and labels by part, and class names; runs of one comparison share them."""
    from avalanche_rwf.benchmarks.images import CACHE_BYTES, ArrayPixels

    key = (kind.__qualname__, root, geometry, resize)
    if key not in _memory:
        _memory.clear()
        budget = CACHE_BYTES if resize else 0
        found: _Arrays = {}, {}, []
        for name in ("test", "train"):  # test images are read most often: they come first
            part = kind(root, train=name == "train")
            found[0][name] = ArrayPixels(part.data, geometry, budget)
            found[1][name] = part.targets
            found[2][:] = part.classes
            budget -= found[0][name].images.nbytes
        _memory[key] = found
    return _memory[key]
