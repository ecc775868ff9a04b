"""Images in memory or in files, as light torch datasets: item i is (normalised image [3, S, S],
label).

Avalanche asks for one sample at a time, therefore all that can be done once is done once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

__all__ = [
    "FileImages",
    "Geometry",
    "Pixels",
    "Subset",
    "TensorImages",
    "load_pixels",
    "read_image",
]


@dataclass(frozen=True)
class Geometry:
    """How an image becomes a square: shorter side to round(size / crop_pct), then the centre size x
    size.

    :param size: side in pixels.
    :param crop_pct: share of the resized side that is kept, in (0, 1].
    :param interpolation: a name of `PIL.Image.Resampling` in lower case.
    """

    size: int
    crop_pct: float = 1.0
    interpolation: str = "bicubic"

    @property
    def resample(self) -> Image.Resampling:
        """The interpolation as PIL's constant."""
        return Image.Resampling[self.interpolation.upper()]


def read_image(path: str | os.PathLike[str], geometry: Geometry) -> np.ndarray:
    """Decode an image file to RGB, upright by its EXIF tag, as uint8 [3, S, S].

    :raises OSError: and others of PIL's, when the file is no readable image.
    """
    with Image.open(path) as file:
        image = _to_rgb(ImageOps.exif_transpose(file))
    width, height = image.size
    side = max(geometry.size, round(geometry.size / geometry.crop_pct))
    if min(width, height) != side:
        # As torchvision's Resize: the longer side is cut down to a whole pixel.
        short, long = (width, height) if width <= height else (height, width)
        longer = int(side * long / short)
        target = (side, longer) if width <= height else (longer, side)
        image = image.resize(target, geometry.resample)
    left = round((image.width - geometry.size) / 2)
    top = round((image.height - geometry.size) / 2)
    if image.size != (geometry.size, geometry.size):
        image = image.crop((left, top, left + geometry.size, top + geometry.size))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel: PIL's own conversion would clip to white
        values = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns on the direct way
    return image.convert("RGB")


class Pixels:
    """The pixels of a list of image files, decoded once and kept as uint8 as far as `budget`
    reaches.

    :param paths: the files.
    :param geometry: how they are resized.
    :param cache: uint8 [K, 3, S, S], the first K of them.
    """

    def __init__(self, paths: Sequence[Path], geometry: Geometry, cache: np.ndarray) -> None:
        self.paths = list(paths)
        self.geometry = geometry
        self.cache = torch.from_numpy(cache)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Image `index` as uint8 [3, S, S]; do not change it in place."""
        if index < len(self.cache):
            return self.cache[index]
        return torch.from_numpy(read_image(self.paths[index], self.geometry))


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

    def read(index: int) -> bool:
        try:
            if index < room:
                cache[index] = read_image(paths[index], geometry)
            else:
                _probe(paths[index])
        except MemoryError:
            raise
        except Exception:  # PIL and its plugins raise half a dozen kinds
            return False
        return True

    # PIL lets go of the interpreter lock while it decodes.
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        good = list(pool.map(read, range(len(paths)), chunksize=16))
    bad = [index for index, ok in enumerate(good) if not ok]
    if bad:
        cache = cache[np.asarray(good[:room], dtype=bool)]
    kept = [path for path, ok in zip(paths, good, strict=True) if ok]
    return Pixels(kept, geometry, cache), bad, cache.nbytes


def _probe(path: Path) -> None:
    """Decode a file as cheaply as finds every damage: JPEG at an eighth of its size."""
    with Image.open(path) as image:
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()


class FileImages(Dataset[tuple[Tensor, int]]):
    """Images of `pixels`, normalised when they are asked for.

    :param pixels: uint8 images.
    :param targets: their labels.
    :param mean: per channel, of values in [0, 1].
    :param std: per channel, of values in [0, 1].
    """

    def __init__(
        self,
        pixels: Pixels,
        targets: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.pixels = pixels
        self.targets = list(targets)
        self._scale = 1.0 / (255.0 * torch.tensor(std).view(3, 1, 1))
        self._shift = -(torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image float32 [3, S, S] and label."""
        image = self.pixels[index].float().mul_(self._scale).add_(self._shift)
        return image, self.targets[index]


class TensorImages(Dataset[tuple[Tensor, int]]):
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

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image float32 [3, S, S] and label."""
        image = self._images[index]
        if not self._ready:
            image = (image - self._mean) / self._std
        return image, self.targets[index]


class Subset(Dataset[tuple[Tensor, int]]):
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

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image float32 [3, S, S] and label."""
        image = self.base[self.indices[index]][0]
        if self.mirrored is not None and self.mirrored[index]:
            image = image.flip(-1)
        return image, self.targets[index]
