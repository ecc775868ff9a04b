"""Decoded images that the runs of a machine share: each file is decoded by one of them, once.

To decode a JPEG of usual size takes a core some 4 ms, and an H100 takes several thousand images a
second. Test images are read again at every evaluation, and all images by every run. So their
pixels, uint8 at the size that the backbone takes, are kept in a file, at the place of the image in
its list. Processes write and read without a lock: behind each image is a checksum of its pixels and
of its file's size and time, and what does not go with it is decoded again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

__all__ = ["KEPT", "KEPT_BYTES", "KeptPixels"]

KEPT_BYTES = 8 * 2**30
"""Of all files of a folder together: 57,000 images of 224 pixels."""
_CHECK = struct.Struct("<Q")


class KeptPixels:
    """Decoded images in a folder; without one, each is decoded whenever it is asked for."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._open: dict[str, int | None] = {}

    def share(self, folder: Path | None) -> None:
        """Use a folder together with other processes that trust it; None uses none."""
        for handle in self._open.values():
            if handle is not None:
                os.close(handle)
        self.folder, self._open = folder, {}

    def read(
        self, name: str, number: int, index: int, path: Path, side: int,
        decode: Callable[[], np.ndarray],
    ) -> np.ndarray:  # fmt: skip
        """Image `index` of `number`, uint8 [3, side, side].

        :param name: of the list and of how its images are decoded; see :func:`list_name`.
        :param decode: gives it where it is not there.
        """
        size = 3 * side**2
        record = size + _CHECK.size
        if name not in self._open:
            self._open[name] = self._file(name, number * record)
        handle = self._open[name]
        if handle is None:
            return decode()
        facts = path.stat()
        seed = zlib.crc32(f"{facts.st_size} {facts.st_mtime_ns}".encode())
        content = bytearray(record)
        with contextlib.suppress(OSError):
            whole = os.preadv(handle, [content], index * record) == record
            pixels = np.frombuffer(content, np.uint8, size)
            if whole and content[size:] == _check(pixels, seed):
                return pixels.reshape(3, side, side)
        image = decode()
        with contextlib.suppress(OSError):  # a full disk
            os.pwrite(handle, image.tobytes() + _check(image, seed), index * record)
        return image

    def _file(self, name: str, size: int) -> int | None:
        """Open the file of a list; None without a folder, or with too little room there."""
        if self.folder is None or not hasattr(os, "preadv"):
            return None
        folder = self.folder / "pixels"
        file = folder / name
        try:
            folder.mkdir(exist_ok=True)
            if not file.exists():
                used = sum(other.stat().st_size for other in folder.iterdir())
                if used + size > KEPT_BYTES or 2 * size > shutil.disk_usage(folder).free:
                    return None
            handle = os.open(file, os.O_CREAT | os.O_RDWR | getattr(os, "O_CLOEXEC", 0), 0o600)
            os.truncate(handle, size)  # without blocks: what is not written takes no room
        except OSError:
            return None
        return handle


KEPT = KeptPixels()
"""Of this process."""


def list_name(paths: Sequence[Path], how: object) -> str:
    """A name for the pixels of these files, decoded so, by these libraries and this code."""
    digest = hashlib.sha256(f"{how} {_code()}".encode())
    for path in paths:
        digest.update(os.fsencode(path) + b"\n")
    return digest.hexdigest()[:32]


def _check(pixels: np.ndarray, seed: int) -> bytes:
    # Never 0, which is what an image that was not written has.
    return _CHECK.pack(2**32 + zlib.crc32(pixels.data, seed))


@functools.cache
def _code() -> str:
    """What decides which pixels come of a file."""
    from importlib.metadata import version

    from PIL import features

    jpeg = [features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "zlib", "jpg_2000")]
    ours = hashlib.sha256(Path(__file__).with_name("images.py").read_bytes()).hexdigest()
    return f"{[version(name) for name in ('pillow', 'timm', 'torchvision')]} {jpeg} {ours}"
