"""`folder:PATH`: images of one's own, PATH/train/<class>/* and PATH/test/<class>/*.

All images are read before training starts: broken ones are found then, and their resized pixels
stay in memory (up to a limit) for every experience, evaluation and run of the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from avalanche_rwf.benchmarks.registry import StreamOptions, register_benchmark
from avalanche_rwf.errors import UsageError
from avalanche_rwf.plain import at_home

if TYPE_CHECKING:
    from avalanche_rwf.benchmarks.images import Geometry, Pixels
    from avalanche_rwf.benchmarks.splits import ImageSource

__all__ = ["CACHE_BYTES", "DEFAULT_EXPERIENCES", "IMAGE_SUFFIXES", "load_folder_source"]

CACHE_BYTES = 2**30
DEFAULT_EXPERIENCES = 5
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip


@dataclass
class _Folder:
    """What is known of a folder: files by split, with labels, and their pixels."""

    class_names: list[str]
    pixels: dict[str, Pixels]
    targets: dict[str, list[int]]
    corrupt: list[Path]
    twice: list[tuple[Path, Path]]


# One folder at a time, because its pixels can fill CACHE_BYTES.
_memory: dict[object, _Folder] = {}


@register_benchmark(
    "folder:", summary="images of one's own: PATH/train/<class>/* and PATH/test/<class>/*"
)
def load_folder_source(options: StreamOptions, path: str) -> ImageSource:
    """Load a folder of images with the same classes under `train` and `test`.

    Every class needs images in both: a class without test images would silently drop out of every
    accuracy. Files with other endings and hidden ones are ignored; links must stay inside the
    folder.

    :raises UsageError: missing or empty folder, classes that differ, links that leave it,
        unreadable images (unless `skip_corrupt`).
    """
    from avalanche_rwf.benchmarks.images import FileImages, Geometry, why_unreadable
    from avalanche_rwf.benchmarks.splits import ImageSource

    geometry = Geometry(options.image_size, options.crop_pct, options.interpolation)
    folder = (_load if options.decode else _list)(at_home(path), geometry)
    if folder.corrupt and not options.skip_corrupt:
        more = f" (and {len(folder.corrupt) - 1} more)" if len(folder.corrupt) > 1 else ""
        raise UsageError(
            f"image {str(folder.corrupt[0])!r}{more} cannot be read "
            f"({why_unreadable(folder.corrupt[0])}); repair or remove it, or "
            "give --skip-corrupt to "
            "leave such images out."
        )
    for split, targets in folder.targets.items():
        lost = [name for label, name in enumerate(folder.class_names) if label not in set(targets)]
        if lost:
            raise UsageError(f"class {lost[0]!r} has no readable image in {Path(path) / split}.")
    data = {
        split: FileImages(
            folder.pixels[split],
            folder.targets[split],
            options.mean,
            options.std,
            options.normalised,
        )
        for split in ("train", "test")
    }
    return ImageSource(
        train=data["train"],
        train_targets=folder.targets["train"],
        test=data["test"],
        test_targets=folder.targets["test"],
        class_names=folder.class_names,
        default_experiences=min(DEFAULT_EXPERIENCES, len(folder.class_names)),
        skipped=len(folder.corrupt),
        notes=_leakage(folder.twice) if not options.holdout else (),
        in_memory=all(pixels.in_memory for pixels in folder.pixels.values()),
    )


def _load(root: Path, geometry: Geometry) -> _Folder:
    """Scan the folder and read its images, or return what an earlier call read if no file has
    changed."""
    from avalanche_rwf.benchmarks.images import load_pixels

    files = _scan(root)
    stamp = tuple(
        (split, path, stat.st_size, stat.st_mtime_ns)
        for split, classes in files.items()
        for paths in classes.values()
        for path in paths
        for stat in [path.stat() if path.exists() else os.stat_result([0] * 10)]
    )
    key = (geometry, stamp)
    if key in _memory:
        return _memory[key]
    _memory.clear()
    names = sorted(files["train"])
    folder = _Folder(class_names=names, pixels={}, targets={}, corrupt=[], twice=[])
    budget = CACHE_BYTES
    for split in ("test", "train"):  # test images are asked for again and again: they come first
        pairs = [(path, label) for label, name in enumerate(names) for path in files[split][name]]
        pixels, bad, used = load_pixels([path for path, _ in pairs], geometry, budget)
        budget -= used
        lost = set(bad)
        folder.pixels[split] = pixels
        folder.targets[split] = [label for i, (_, label) in enumerate(pairs) if i not in lost]
        folder.corrupt.extend(pairs[i][0] for i in bad)
    folder.twice = _twice(files, set(folder.corrupt))
    _memory[key] = folder
    return folder


def _list(root: Path, geometry: Geometry) -> _Folder:
    """Scan the folder and read no image."""
    import numpy as np

    from avalanche_rwf.benchmarks.images import Pixels

    nothing = np.empty((0, 3, geometry.size, geometry.size), dtype=np.uint8)
    files = _scan(root)
    folder = _Folder(
        class_names=sorted(files["train"]), pixels={}, targets={}, corrupt=[], twice=[]
    )
    for split, classes in files.items():
        paths = [path for name in folder.class_names for path in classes[name]]
        folder.pixels[split] = Pixels(paths, geometry, nothing)
        folder.targets[split] = [
            label for label, name in enumerate(folder.class_names) for _ in classes[name]
        ]
    return folder


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def _twice(
    files: dict[str, dict[str, list[Path]]], corrupt: set[Path]
) -> list[tuple[Path, Path]]:
    """Training and test images with the same content, whatever their names and classes.

    :param corrupt: files that are no images and may be anything.
    """
    by_size: dict[str, dict[int, list[Path]]] = {"train": {}, "test": {}}
    for split, classes in files.items():
        for path in (path for paths in classes.values() for path in paths if path not in corrupt):
            with contextlib.suppress(OSError):  # unreadable ones are named elsewhere
                size = path.stat().st_size
                if size:
                    by_size[split].setdefault(size, []).append(path)
    found = []
    for size in by_size["train"].keys() & by_size["test"].keys():
        digests: dict[bytes, Path] = {}
        for split in ("train", "test"):
            for path in by_size[split][size]:
                with contextlib.suppress(OSError):
                    digest = _digest(path)
                    if split == "train":
                        digests.setdefault(digest, path)
                    elif digest in digests:
                        found.append((digests[digest], path))
    return sorted(found)


def _leakage(twice: list[tuple[Path, Path]]) -> tuple[str, ...]:
    if not twice:
        return ()
    train, test = twice[0]
    n = len(twice)
    what = "1 test image is" if n == 1 else f"{n} test images are"
    return (
        f"{what} among the training images too, such as {str(test)!r} ({str(train)!r}): "
        "accuracies will be too high.",
    )


def _scan(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Image files by split and class, sorted by name, after every check that needs no decoding."""
    try:
        exists = root.exists()
    except OSError:  # a name that the system does not take
        exists = False
    if not exists:
        raise UsageError(f"folder {str(root)!r} does not exist.")
    if not root.is_dir():
        raise UsageError(
            f"{str(root)!r} is not a folder; folder:PATH takes one with train and test in it."
        )
    home = root.resolve()
    files: dict[str, dict[str, list[Path]]] = {}
    for split in ("train", "test"):
        top = root / split
        if not top.is_dir():
            raise UsageError(
                f"folder {str(root)!r} has no folder {split!r}; it takes train/<class>/* and "
                "test/<class>/*."
            )
        _check_link(top, home)
        files[split] = {}
        for entry in _entries(top, home):
            if not entry.is_dir():
                continue
            images = [
                path
                for path in _entries(entry, home)
                if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
            ]
            if not images:
                raise UsageError(
                    f"class folder {str(entry)!r} has no images ({', '.join(IMAGE_SUFFIXES)})."
                )
            files[split][entry.name] = images
        if not files[split]:
            raise UsageError(
                f"folder {str(top)!r} is empty; it takes one folder of images per class."
            )
    train, test = set(files["train"]), set(files["test"])
    for here, there, name in (("test", "train", test - train), ("train", "test", train - test)):
        if name:
            raise UsageError(
                f"class {min(name)!r} is in {here} but not in {there} of folder {str(root)!r}; "
                "both need the same "
                "classes."
            )
    return files


def _entries(folder: Path, home: Path) -> list[Path]:
    """Entries that are not hidden, sorted by name."""
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UsageError(f"folder {str(folder)!r} cannot be read ({error.strerror}).") from error
    for path in entries:
        _check_link(path, home)
    return entries


def _check_link(path: Path, home: Path) -> None:
    try:
        leaves = path.is_symlink() and not path.resolve().is_relative_to(home)
    except RuntimeError:  # a circle of links, before Python 3.13: it leads to nothing
        return
    if leaves:
        raise UsageError(
            f"link {str(path)!r} leaves the folder {str(home)!r}; copy the images into it instead."
        )
