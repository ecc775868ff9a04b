"""`folder:PATH`: images of one's own, PATH/train/<class>/* and PATH/test/<class>/*.

What torchvision's `ImageFolder` reads is read, in its order of classes and images: files with the
endings `IMAGE_SUFFIXES`, in upper or lower case, also in folders inside a class's. Hidden files and
folders (of desktops and notebooks) are not, and links must stay inside PATH; what is left out is
counted in the notes. PATH/val is taken where PATH/test is missing; without a split, `test_share`
makes one.

All images are read before training starts: broken ones are found then, and their resized pixels
stay in memory (up to a limit) for every experience, evaluation and run of the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import unicodedata
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from avalanche_rwf.benchmarks.options import StreamOptions
from avalanche_rwf.benchmarks.registry import register_benchmark
from avalanche_rwf.benchmarks.sources import corrupt_error, pixels_source
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import at_home

if TYPE_CHECKING:
    from avalanche_rwf.benchmarks.images import Geometry, Pixels
    from avalanche_rwf.benchmarks.splits import ImageSource

_SHARE = 6  # first word of the seed of a split; the others are in splits.py
_EXPERIENCES = 5  # unless there are fewer classes
# torchvision's, and what else PIL decodes by itself, without starting another program.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".avif", ".avifs"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
)
_SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}


@dataclass
class _Folder:
    """What is known of a folder: files by split, with labels, and their pixels."""

    class_names: list[str]
    pixels: dict[str, Pixels] = field(default_factory=dict)
    targets: dict[str, list[int]] = field(default_factory=dict)
    corrupt: list[Path] = field(default_factory=list)
    twice: list[tuple[Path, Path]] = field(default_factory=list)
    notes: tuple[str, ...] = ()


@dataclass
class _Found:
    """What a scan found: image files by split and class, and what it skipped."""

    files: dict[str, dict[str, list[Path]]]
    other: list[Path]
    notes: list[str]


# One folder at a time, because its pixels can fill CACHE_BYTES.
_memory: dict[object, _Folder] = {}


def check_splits(path: str, test_share: float = 0.0) -> dict[str, Path]:
    """The folders of training and test images; with `test_share` the one of all, as "train".

    :raises UsageError: the folder, or one of the two, is missing.
    """
    root = at_home(path)
    try:
        exists = root.exists()
    except (OSError, ValueError):  # a name that the system does not take
        exists = False
    if not exists:
        raise UsageError(f"folder {str(root)!r} does not exist.")
    if not root.is_dir():
        raise UsageError(
            f"{str(root)!r} is not a folder; folder:PATH takes one with train and test in it."
        )
    tops = {
        split: root / name
        for split, names in _SPLITS.items()
        for name in reversed(names)
        if (root / name).is_dir()
    }
    names = {*_SPLITS["train"], *_SPLITS["test"]}
    if len(tops) < 2:  # else "Train" and "Test" would be two classes
        for entry in sorted(root.iterdir()) if os.access(root, os.R_OK) else ():
            small = entry.name.lower()
            if small in names and entry.name != small and entry.is_dir():
                raise UsageError(
                    f"folder {str(entry)!r} has to be named {small!r}, in small letters."
                )
    if test_share:
        if "test" in tops:
            raise UsageError(
                f"test_share (--test-share) is for folders without test images, and "
                f"{str(tops['test'])!r} has some; it takes 0 here, not {test_share}."
            )
        return {"train": tops.get("train", root)}
    for split in _SPLITS:
        if split not in tops:
            raise UsageError(
                f"folder {str(root)!r} has no folder {split!r}; it takes train/<class>/* and "
                "test/<class>/*, or --test-share 0.2 (test_share) to take a fifth of the images of "
                "each class as the test set."
            )
    return {split: tops[split] for split in _SPLITS}


@register_benchmark(
    "folder:",
    summary="images of one's own: PATH/train/<class>/* and PATH/test/<class>/*",
    check=check_splits,
)
def load_folder_source(options: StreamOptions, path: str) -> ImageSource:
    """Load a folder of images with the same classes under `train` and `test`.

    Every class needs images in both: a class without test images would silently drop out of every
    accuracy. With `test_share`, the classes are PATH/<class>/*, or PATH/train/<class>/* where there
    is no test folder, and that share of each class is the test set: those that `split_seed` draws.

    :raises UsageError: missing or empty folder, classes that differ, links that leave it,
        unreadable images (unless `skip_corrupt`).
    """
    from avalanche_rwf.benchmarks.images import Geometry, why_unreadable

    found = _scan(at_home(path), options.test_share, options.split_seed)
    folder = _load(found, Geometry.of(options), options.decode)
    if folder.corrupt and not options.skip_corrupt:
        why = why_unreadable(folder.corrupt[0])
        raise corrupt_error(folder.corrupt, f" ({why}); repair or remove it, or")
    for split, targets in folder.targets.items():
        lost = [name for label, name in enumerate(folder.class_names) if label not in set(targets)]
        if lost:
            raise UsageError(f"class {lost[0]!r} has no readable image in {Path(path) / split}.")
    return pixels_source(
        *(folder.pixels, folder.targets, options),
        class_names=folder.class_names,
        default_experiences=min(_EXPERIENCES, len(folder.class_names)),
        skipped=len(folder.corrupt),
        notes=folder.notes + (_leakage_note(folder.twice) if not options.holdout else ()),
    )


def _load(found: _Found, geometry: Geometry, decode: bool) -> _Folder:
    """Read the images, or return what an earlier call read if no file has changed.

    :param decode: False reads none.
    """
    from avalanche_rwf.benchmarks.images import CACHE_BYTES, Pixels, load_pixels

    files = found.files
    stamp = tuple(
        (split, path, stat.st_size, stat.st_mtime_ns)
        for split, classes in files.items()
        for paths in classes.values()
        for path in paths
        for stat in [path.stat() if path.exists() else os.stat_result([0] * 10)]
    )
    key = (geometry, stamp)
    if decode and key in _memory:
        return replace(_memory[key], notes=_passed_over(found))
    folder = _Folder(sorted(files["train"]))
    budget = CACHE_BYTES
    if decode:
        _memory.clear()
    for split in ("test", "train"):  # test images are read most often: they come first
        pairs = [(path, label) for label, name in enumerate(folder.class_names)
                 for path in files[split][name]]  # fmt: skip
        paths = [path for path, _ in pairs]
        read: tuple[Pixels, list[int], int] = Pixels(paths, geometry), [], 0
        if decode:
            read = load_pixels(paths, geometry, budget)
        pixels, bad, used = read
        budget -= used
        lost = set(bad)
        folder.pixels[split] = pixels
        folder.targets[split] = [label for i, (_, label) in enumerate(pairs) if i not in lost]
        folder.corrupt.extend(paths[i] for i in bad)
    if decode:
        folder.twice = _duplicates(files, set(folder.corrupt))
        _memory[key] = folder
    return replace(folder, notes=_passed_over(found))


def _passed_over(found: _Found) -> tuple[str, ...]:
    """Sentences on what is left out of the images."""
    notes = list(found.notes)
    if found.other:
        count = len(found.other)
        endings = sorted({path.suffix.lower() or path.name for path in found.other})
        kinds = ", ".join(endings[:5]) + (", ..." if len(endings) > 5 else "")
        what = "1 file is no image" if count == 1 else f"{count} files are no images"
        notes.append(
            f"{what} by name or place ({kinds}), or hidden, and left out, such as "
            f"{str(found.other[0])!r}."
        )
    return tuple(notes)


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def _duplicates(
    files: dict[str, dict[str, list[Path]]], corrupt: set[Path]
) -> list[tuple[Path, Path]]:
    """Training and test images with the same content, whatever their names and classes.

    :param corrupt: files that are no images and may be anything.
    """
    by_size: dict[str, dict[int, list[Path]]] = {"train": {}, "test": {}}
    for split, classes in files.items():
        for path in (path for paths in classes.values() for path in paths if path not in corrupt):
            with contextlib.suppress(OSError):  # unreadable ones are reported elsewhere
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


def _leakage_note(twice: list[tuple[Path, Path]]) -> tuple[str, ...]:
    if not twice:
        return ()
    train, test = twice[0]
    n = len(twice)
    what = "1 test image is" if n == 1 else f"{n} test images are"
    return (
        f"{what} among the training images too, such as {str(test)!r} ({str(train)!r}): "
        "accuracies will be too high.",
    )


def _scan(root: Path, test_share: float = 0.0, split_seed: int = 0) -> _Found:
    """Image files by split and class, in ImageFolder's order, after every check that needs no
    decoding."""
    home = root.resolve()
    found = _Found({}, [], [])
    tops = check_splits(str(root), test_share)
    for split, top in tops.items():
        _check_link(top, home)
        found.files[split] = _classes(top, home, found)
        if not test_share and top.name != split:
            found.notes.append(f"the test images are those of {str(top)!r}: there is no 'test'.")
    if root not in tops.values():
        used = " and ".join(repr(top.name) for top in tops.values())
        with contextlib.suppress(OSError):
            found.notes += [
                f"folder {str(path)!r} beside {used} is not used."
                for path in sorted(root.iterdir())
                if path.is_dir() and path not in tops.values() and path.name[0] != "."
            ]
    if test_share:
        found.files = _hold_out(found.files["train"], test_share, split_seed)
        return found
    train, test = set(found.files["train"]), set(found.files["test"])
    for here, there, name in (("test", "train", test - train), ("train", "test", train - test)):
        if name:
            one, forms = min(name), {unicodedata.normalize("NFC", c) for c in found.files[there]}
            twin = unicodedata.normalize("NFC", one) in forms
            raise UsageError(
                f"class {one!r} is in {here} but not in {there} of folder {str(root)!r}; both need "
                "the same classes"
                + ", and the name that looks the same is of other Unicode characters." * twin
                + "." * (not twin)
            )
    return found


def _classes(top: Path, home: Path, found: _Found) -> dict[str, list[Path]]:
    """The images of each class folder in `top`; what is skipped is noted in `found`."""
    classes = {}
    for entry in _entries(top, home, found):
        if not entry.is_dir():
            found.other.append(entry)
            continue
        images = sorted(
            _images(entry, home, found, (home, top.resolve())),
            key=lambda path: (str(path.parent), path.name),
        )
        if not images:
            raise UsageError(
                f"class folder {str(entry)!r} has no images ({', '.join(IMAGE_SUFFIXES)})."
            )
        classes[entry.name] = images
    if not classes:
        what = "has no folders in it" if any(top.glob("[!.]*")) else "is empty"
        raise UsageError(f"folder {str(top)!r} {what}; it takes one folder of images per class.")
    return classes


def _images(folder: Path, home: Path, found: _Found, above: tuple[Path, ...]) -> list[Path]:
    """Image files of a class, also in its inner folders."""
    real = folder.resolve()
    if real in above:  # a link to one of its parents
        found.other.append(folder)
        return []
    images: list[Path] = []
    inner: list[Path] = []
    for path in _entries(folder, home, found):
        if path.is_dir():
            inner.append(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.append(path)
        else:
            found.other.append(path)
    for path in inner:
        images += _images(path, home, found, (*above, real))
    return images


def _hold_out(
    classes: dict[str, list[Path]], share: float, seed: int
) -> dict[str, dict[str, list[Path]]]:
    """A part of each class as test images; the names of classes and their numbers of images decide,
    with the seed."""
    import numpy as np

    from avalanche_rwf.benchmarks.splits import stratified_part

    few = next((name for name, paths in classes.items() if len(paths) < 2), None)
    if few is not None:
        raise UsageError(
            f"test_share (--test-share) takes classes of at least 2 images, and {few!r} has 1."
        )
    names = sorted(classes)
    paths = [path for name in names for path in classes[name]]
    labels = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
    parts = zip(("train", "test"), stratified_part(labels, share, [_SHARE, seed]), strict=True)
    return {
        split: {
            name: [paths[i] for i in positions if labels[i] == label]
            for label, name in enumerate(names)
        }
        for split, positions in parts
    }


def _entries(folder: Path, home: Path, found: _Found) -> list[Path]:
    """Entries that are not hidden, sorted by name."""
    try:
        every = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"folder {str(folder)!r} cannot be read ({error.strerror}).") from error
    entries = [path for path in every if not path.name.startswith(".")]
    found.other += [path for path in every if path.name.startswith(".")]
    for path in entries:
        _check_link(path, home)
    return entries


def _check_link(path: Path, home: Path) -> None:
    try:
        leaves = path.is_symlink() and not path.resolve().is_relative_to(home)
    except RuntimeError:  # a loop of links, before Python 3.13
        return
    if leaves:
        raise UsageError(
            f"link {str(path)!r} leaves the folder {str(home)!r}; copy the images into it instead."
        )
