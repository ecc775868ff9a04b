"""Images in memory or in files, as light torch datasets: item i is (normalised image [3, S, S],
label).

Avalanche asks for one sample at a time, therefore all that can be done once is done once. Where the
consumer normalises whole batches on its device (`normalised=False`), images stay uint8: a quarter
of the bytes between the processes that decode and the one that trains, and the same numbers, since
`Normalisation` does the same operations on either side.
"""

from __future__ import annotations

import functools
import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_rwf.benchmarks.kept_pixels import KEPT, list_name
from avalanche_rwf.utils.validation import INTERPOLATIONS

__all__ = [
    "CACHE_BYTES",
    "ArrayPixels",
    "AugmentedImages",
    "FileImages",
    "Geometry",
    "Normalisation",
    "Pixels",
    "RawImages",
    "Subset",
    "TensorImages",
    "are_readable",
    "decode_image",
    "load_pixels",
    "open_image",
    "read_image",
    "why_unreadable",
]


CACHE_BYTES = 2**30
"""Decoded pixels that are held in memory, of one folder or data set at a time."""
# The kinds of images that are read, by content and not by name. PIL reads more, but starts another
# program for some, such as PostScript.
_KINDS = (
    *("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"),
)
# A resized image of more pixels than this is not made whole, only the middle that is kept.
_MOST_PIXELS = 2**24


# Names without a crop mode; only with these can the longer side become very long.
_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS if "-" not in name}


class Preparation(Protocol):
    """How a backbone sees images, as `BackboneInfo` and `StreamOptions` say it."""

    @property
    def image_size(self) -> int: ...
    @property
    def crop_pct(self) -> float: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def mean(self) -> tuple[float, float, float]: ...


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square: by timm's own transform for evaluation.

    :param size: side in pixels.
    :param crop_pct: share of the resized side that is kept, in (0, 1].
    :param interpolation: one of `INTERPOLATIONS`. By its name alone, the shorter side becomes
        floor(size / crop_pct) and the middle is cut out; "-squash": both sides do; "-border": the
        longer one does, and `fill` is around the rest.
    :param fill: a colour in [0, 1], only for "-border".
    """

    size: int
    crop_pct: float = 1.0
    interpolation: str = "bicubic"
    fill: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def of(cls, seen: Preparation, crop_pct: float | None = None) -> Geometry:
        """As a backbone sees images; `crop_pct` in the place of its own."""
        border = seen.interpolation.endswith("-border")
        return cls(
            seen.image_size,
            seen.crop_pct if crop_pct is None else crop_pct,
            seen.interpolation,
            seen.mean if border else (0.0, 0.0, 0.0),
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An image to uint8 [3, S, S] (grey: [1, S, S])."""
        if self.interpolation in _FILTERS and min(image.size) < self.size:
            short = math.floor(self.size / self.crop_pct)
            long = int(short * max(image.size) / min(image.size))
            if short * long > _MOST_PIXELS:
                return self._middle(image, short, long)
        return np.asarray(_transform(self)(image))

    def _middle(self, image: Image.Image, short: int, long: int) -> np.ndarray:
        """The result of timm's transform to within a grey level ("nearest": or the next pixel).

        Only what is kept is enlarged: timm would make gigabytes of an image of 1 by 60,000 pixels.
        """
        wide = image.width > image.height
        kept, crop = [], []
        for given, length in zip(image.size, (long, short) if wide else (short, long), strict=True):
            start, scale = round((length - self.size) / 2), given / length
            low, high = scale * start, scale * (start + self.size)
            # A filter looks at 3 pixels to either side.
            crop.append((max(0, int(low) - 4), min(given, int(high) + 5)))
            kept.append((low - crop[-1][0], high - crop[-1][0]))
        part = image.crop((crop[0][0], crop[1][0], crop[0][1], crop[1][1]))
        # Along the rows first, as PIL does it with the whole.
        (left, right), (top, bottom), how = *kept, _FILTERS[self.interpolation]
        rows = part.resize((self.size, part.height), how, (left, 0, right, part.height))
        middle = rows.resize((self.size, self.size), how, (0, top, self.size, bottom))
        return np.atleast_3d(np.asarray(middle)).transpose(2, 0, 1)


@functools.lru_cache(maxsize=8)
def _transform(geometry: Geometry) -> Callable[[Image.Image], Any]:
    from timm.data import create_transform  # takes a second, and listings need no image

    name, _, mode = geometry.interpolation.partition("-")
    return cast(
        Callable[[Image.Image], Any],
        create_transform(
            input_size=(3, geometry.size, geometry.size),
            interpolation=name,
            crop_pct=geometry.crop_pct,
            crop_mode=mode or "center",
            mean=geometry.fill,
            use_prefetcher=True,  # leaves the pixels uint8
        ),
    )


@functools.cache
def _kinds() -> tuple[str, ...]:
    """Those of `_KINDS` that this PIL has."""
    Image.init()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Open an image file, but no pipe or device, which may have no end.

    :raises OSError: and others of PIL's, when the file is no readable image.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError("it is no file")
    return Image.open(path, formats=_kinds())


def read_image(path: str | os.PathLike[str], geometry: Geometry) -> np.ndarray:
    """Decode an image file as :func:`decode_image`, as uint8 [3, S, S]."""
    return np.ascontiguousarray(geometry(decode_image(path)))


def decode_image(path: str | os.PathLike[str]) -> Image.Image:
    """An image file in RGB, upright by its EXIF tag: as a person sees it, and unlike torchvision's
    and timm's loaders, which leave it as the camera was held.

    :raises OSError: and others of PIL's, when the file is no readable image, or its values have no
        known white; see :func:`_to_rgb`.
    """
    with open_image(path) as file:
        return _to_rgb(ImageOps.exif_transpose(file), file)


def _to_rgb(image: Image.Image, file: Image.Image) -> Image.Image:
    """Pixels of any type as RGB of 8 bits; the type decides what is black and what is white.

    16 bits (or 12, by the file) are divided by their range; floats are from 0 to 1. Transparency is
    dropped, as torchvision and timm do it.

    :param image: perhaps turned; `file` has what the file says of it.
    :raises ValueError: for whole numbers of 32 bits or with a sign, whose white nobody knows,
        floats outside of 0 to 1, and a picture that is in the transparency alone.
    """
    if image.mode == "RGB":
        return image
    tags = getattr(file, "tag_v2", {})  # of TIFF
    if image.mode.startswith("I"):
        bits = max(tags.get(258, (16,)))
        if bits > 16 or max(tags.get(339, (1,))) == 2:
            raise ValueError(
                "its whole numbers have 32 bits or a sign, so that nobody knows what white is: "
                "save it with 8 or 16 bits"
            )
        return _grey(np.asarray(image) / ((2.0**bits - 1) / 255), tags)
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.min(values) >= 0 and np.max(values) <= 1):  # NaN fails both
            raise ValueError(
                "its floating-point numbers are not from 0 (black) to 1 (white): scale them, or "
                "save it with 8 or 16 bits"
            )
        return _grey(values * 255.0, tags)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns on the direct way
    rgb = image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") and _flat(rgb) and not _flat(image.getchannel("A")):
        raise ValueError(
            "its picture is in its transparency alone, which is dropped: put it on a background"
        )
    return rgb


def _grey(values: np.ndarray, tags: Mapping[int, Any]) -> Image.Image:
    """Values rounded to 0 to 255, inverted where a TIFF says that 0 is white (PIL: 8 bits only)."""
    levels = 255 - values if tags.get(262) == 0 else values
    return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")


def _flat(image: Image.Image) -> bool:
    """Whether all pixels are the same."""
    return all(low == high for low, high in np.reshape(image.getextrema(), (-1, 2)))


class Pixels:
    """The pixels of a list of image files, some of them held in memory.

    :param paths: the files.
    :param geometry: how they are resized.
    :param cache: uint8 [K, 3, S, S], the first K of them; None for none.
    """

    def __init__(
        self, paths: Sequence[Path], geometry: Geometry, cache: np.ndarray | None = None
    ) -> None:
        self.paths = list(paths)
        self.geometry = geometry
        self.cache = torch.empty(0) if cache is None else torch.from_numpy(cache)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as uint8 [3, S, S]; do not change it in place."""
        if index < len(self.cache):
            return self.cache[index]
        path = self.paths[index]
        decode = functools.partial(read_image, path, self.geometry)
        try:
            if KEPT.folder is None:
                return torch.from_numpy(decode())
            size = self.geometry.size
            return torch.from_numpy(KEPT.read(self._name, len(self), index, path, size, decode))
        except MemoryError:
            raise
        except Exception as error:  # PIL and its plugins raise half a dozen kinds
            why = " ".join(str(error).split()) or type(error).__name__
            raise OSError(f"image {str(path)!r} cannot be read ({why}).") from error

    @functools.cached_property
    def _name(self) -> str:
        return list_name([path.absolute() for path in self.paths], self.geometry)

    @property
    def in_memory(self) -> bool:
        """Whether no file is read any more."""
        return len(self.cache) == len(self.paths)


class ArrayPixels:
    """Small images of one size that are held as they are and resized when they are asked for.

    Data sets such as CIFAR-100 fill their frames: the whole image is resized, nothing cropped.

    :param images: uint8 [N, H, W] (grey) or [N, H, W, 3].
    :param geometry: `size` and `interpolation` of the images given out.
    :param budget: all are resized once if that takes at most so many bytes.
    """

    def __init__(self, images: np.ndarray, geometry: Geometry, budget: int) -> None:
        self.images = images
        self.geometry = Geometry(geometry.size, 1.0, geometry.interpolation)
        channels = images[0, 0, 0].size if len(images) else 1
        self.in_memory = len(images) * channels * geometry.size**2 <= budget
        if self.in_memory and images.shape[1:3] != (geometry.size, geometry.size):
            starts = range(0, len(images), 512)
            with _pool() as pool:  # grey ones stay grey until they are given out
                self.images = np.concatenate(list(pool.map(self._block, starts)))

    def __len__(self) -> int:
        return len(self.images)

    def _resized(self, index: int) -> np.ndarray:
        pixels = self.geometry(Image.fromarray(self.images[index]))
        return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)

    def _block(self, start: int) -> np.ndarray:
        stop = min(start + 512, len(self.images))
        return np.stack([self._resized(index) for index in range(start, stop)])

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as uint8 [3, S, S]; do not change it in place."""
        image = torch.from_numpy(
            np.array(self.images[index] if self.in_memory else self._resized(index))
        )
        return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1).contiguous()


def _pool() -> ThreadPoolExecutor:
    # PIL lets go of the interpreter lock while it decodes and resizes.
    return ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))


def load_pixels(
    paths: Sequence[Path], geometry: Geometry, budget: int
) -> tuple[Pixels, list[int], int]:
    """Read every file once: decode into memory while `budget` bytes last, decode and forget after
    that.

    So each broken file is found before any training, also a truncated one, which opening alone does
    not notice.

    :returns: the pixels of the readable files, the positions in `paths` of the others, and the
        bytes that are used.
    """
    size = 3 * geometry.size**2
    room = min(len(paths), max(0, budget) // size)
    cache = np.empty((room, 3, geometry.size, geometry.size), dtype=np.uint8)

    def read(index: int) -> None:
        if index < room:
            cache[index] = read_image(paths[index], geometry)
        else:
            _probe(paths[index])

    with _pool() as pool:
        good = list(pool.map(functools.partial(_can_read, read), range(len(paths)), chunksize=16))
    bad = [index for index, ok in enumerate(good) if not ok]
    if bad:
        cache = cache[np.asarray(good[:room], dtype=bool)]
    kept = [path for path, ok in zip(paths, good, strict=True) if ok]
    return Pixels(kept, geometry, cache), bad, cache.nbytes


def are_readable(paths: Sequence[Path]) -> Iterator[bool]:
    """Whether each file can be decoded, one after the other; nothing is kept."""
    with _pool() as pool:
        yield from pool.map(functools.partial(_can_read, _probe), paths, chunksize=16)


def _can_read(read: Callable[[Any], object], file: Any) -> bool:
    try:
        read(file)
    except MemoryError:
        raise
    except Exception:  # PIL and its plugins raise half a dozen kinds
        return False
    return True


def _probe(path: Path) -> None:
    """Decode a file in the cheapest way that finds all damage: JPEG at an eighth of its size."""
    with open_image(path) as image:
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        if image.mode not in ("RGB", "L"):
            _to_rgb(image, image)


def why_unreadable(path: Path) -> str:
    """What PIL or the system says of a file that it cannot decode, in a few words."""
    try:
        if not path.exists():
            return "a link to nothing" if path.is_symlink() else "it is gone"
        if path.is_file() and not path.stat().st_size:
            return "it is empty"
        with open_image(path) as image:
            _to_rgb(image, image).load()
    except Image.DecompressionBombError:
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
    except UnidentifiedImageError:
        return "it is no image that is known here"
    except OSError as error:
        return error.strerror or str(error)
    except Exception as error:  # PIL and its plugins raise half a dozen kinds
        return " ".join(str(error).split()) or type(error).__name__
    return "it could not be read before"


class Normalisation:
    """uint8 images to float32: x / (255 std) - mean / std, of one image or a batch, on any device.

    :param mean: per channel, of values in [0, 1].
    :param std: per channel, of values in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._scale = 1.0 / (255.0 * torch.tensor(std).view(3, 1, 1))
        self._shift = -(torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """[..., 3, S, S] of uint8 to float32 of the same shape, on the images' device."""
        if self._scale.device != images.device:
            self._scale = self._scale.to(images.device)
            self._shift = self._shift.to(images.device)
        return images.float().mul_(self._scale).add_(self._shift)


class RawImages(Dataset[tuple[Tensor, int]], ABC):
    """Images and labels in two steps, between which an augmentation changes the pixels."""

    targets: list[int]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image float32 (or uint8) [3, S, S] and label."""
        return self.finish(self.raw(index)), self.targets[index]

    @abstractmethod
    def raw(self, index: int) -> Tensor:
        """Image `index` as uint8 [3, S, S]; do not change it in place."""

    @abstractmethod
    def finish(self, image: Tensor) -> Tensor:
        """What `__getitem__` gives for the pixels uint8 [3, S, S] of an image."""


class FileImages(RawImages):
    """Images of `pixels`, normalised when they are asked for.

    :param pixels: uint8 images.
    :param targets: their labels.
    :param mean: per channel, of values in [0, 1].
    :param std: per channel, of values in [0, 1].
    :param normalised: False leaves them uint8, for who normalises batches.
    """

    def __init__(
        self,
        pixels: Pixels | ArrayPixels,
        targets: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        normalised: bool = True,
    ) -> None:
        self.pixels = pixels
        self.targets = list(targets)
        self._normalise = Normalisation(mean, std) if normalised else None

    def raw(self, index: int) -> Tensor:
        """The image as `pixels` has it."""
        return self.pixels[index]

    def finish(self, image: Tensor) -> Tensor:
        """Normalised, if that is asked for."""
        return image if self._normalise is None else self._normalise(image)


class TensorImages(RawImages):
    """Grey images that fit in memory.

    :param images: float32 [N, 1, S, S] with values in [0, 1].
    :param targets: N labels.
    :param mean: per channel, of values in [0, 1].
    :param std: per channel, of values in [0, 1].
    :param budget: the three normalised channels are computed once if they take at most so many
        bytes.
    """

    def __init__(
        self,
        images: Tensor,
        targets: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        budget: int = 2**28,
    ) -> None:
        self.targets = list(targets)
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)
        self._ready = 3 * images.numel() * images.element_size() <= budget
        self._images = (images - self._mean) / self._std if self._ready else images

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image float32 [3, S, S], not rounded to 256 levels, and label."""
        image = self._images[index]
        if not self._ready:
            image = (image - self._mean) / self._std
        return image, self.targets[index]

    def raw(self, index: int) -> Tensor:
        """Image `index` in 256 levels: uint8 [3, S, S]."""
        image = self._images[index]
        if self._ready:
            image = image * self._std + self._mean
        return (image * 255.0).round().clamp(0, 255).to(torch.uint8).expand(3, -1, -1)

    def finish(self, image: Tensor) -> Tensor:
        """Normalised."""
        return (image / 255.0 - self._mean) / self._std


class AugmentedImages(RawImages):
    """The images of `base`, each changed in its own way; see :mod:`.augmentation`.

    :param base: its position i is what the augmentation of image i is drawn from.
    :param augment: pixels uint8 [3, S, S] and a position to pixels of the same shape.
    """

    def __init__(self, base: RawImages, augment: Callable[[Tensor, int], Tensor]) -> None:
        self.base = base
        self.augment = augment
        self.targets = base.targets

    def raw(self, index: int) -> Tensor:
        """The changed image."""
        return self.augment(self.base.raw(index), index)

    def finish(self, image: Tensor) -> Tensor:
        """As the base does it."""
        return self.base.finish(image)


class Subset(RawImages):
    """Chosen samples of a dataset, in the given order, with labels of their own and some of them
    mirrored.

    :param base: items are (image [3, S, S], label).
    :param indices: which of them, in order.
    :param targets: their labels here.
    :param mirrored: True where the image is flipped left to right; None for none.
    """

    def __init__(
        self,
        base: Dataset[tuple[Tensor, int]],
        indices: Sequence[int],
        targets: Sequence[int],
        mirrored: Sequence[bool] | None = None,
    ) -> None:
        self.base = base
        self.indices = [int(index) for index in indices]
        self.targets = [int(target) for target in targets]
        self.mirrored = None if mirrored is None else [bool(flag) for flag in mirrored]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image as the base has it, perhaps mirrored, and label."""
        image = self.base[self.indices[index]][0]
        if self.mirrored is not None and self.mirrored[index]:
            image = image.flip(-1)
        return image, self.targets[index]

    def raw(self, index: int) -> Tensor:
        """Image `index` of the base as uint8 [3, S, S], not mirrored."""
        return cast(RawImages, self.base).raw(self.indices[index])

    def finish(self, image: Tensor) -> Tensor:
        """As the base does it."""
        return cast(RawImages, self.base).finish(image)
