"""Files that are whole or not there, and state files that carry their own checksum.

A state file is what ``torch.save`` writes, tensors and plain values only, with the SHA-256 of its
content in the zip archive's comment: ``torch.load(path, weights_only=True)`` reads it as it is, and
:func:`read_state` notices a single bit that is not as it was written. Nothing here unpickles code.
PyTorch is imported where it is needed: the leaderboard starts without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

_COMMENT = b"avalanche-rwf sha256:"
_DIGITS = 64  # hexadecimal, of a SHA-256


class StateFileError(ValueError):
    """A state file is absent, damaged, or is none; the sentence says which."""


def write_whole(
    path: Path,
    write: Callable[[BinaryIO], Any],
    previous: Path | None = None,
    make_folder: bool = True,
) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    The content and then the name are on the disk when this returns, so that a power cut does not
    take them back.

    :param write: writes the content to the file that it is given.
    :param previous: where the old file goes; None lets it be replaced.
    :param make_folder: False makes a folder that is not there an error.
    :raises OSError: if it cannot be written; the old file is then where it was.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that nobody else can read; results are as readable as any other file.
        Path(temporary).chmod(0o666 & ~_umask())
        if previous is not None and path.exists():
            path.replace(previous)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            Path(temporary).unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system can do that."""
    with contextlib.suppress(OSError, AttributeError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class _HashingFile:
    """A file for ``torch.save`` that hashes what is written and holds back the last two bytes.

    They are the length of the zip archive's comment, which is the last thing in the file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest, self.kept = file, hashlib.sha256(), b""

    def write(self, data: Any) -> int:
        """Take bytes in."""
        size = memoryview(data).nbytes
        if size < 2:
            data = self.kept + bytes(data)
            self.kept = b""
        if self.kept:
            self._pass_on(self.kept)
        view = memoryview(data).cast("B")
        self._pass_on(view[:-2])
        self.kept = bytes(view[-2:])
        return size

    def _pass_on(self, data: Any) -> None:
        self.digest.update(data)
        self.file.write(data)

    def flush(self) -> None:
        """Part of what PyTorch takes for a file."""

    def finish(self) -> None:
        """Put the digest in as the comment."""
        if self.kept != b"\0\0":
            raise RuntimeError("PyTorch has written a state that is no plain zip archive.")
        comment = _COMMENT + self.digest.hexdigest().encode()
        self.file.write(struct.pack("<H", len(comment)) + comment)


def save_state(path: Path, state: Mapping[str, Any], previous: Path | None = None) -> None:
    """Write tensors and plain values with a checksum, whole or not at all.

    :param previous: where an earlier file of this name goes, the generation before.
    :raises OSError: if it cannot be written.
    """
    import torch

    def write(file: BinaryIO) -> None:
        digesting = _HashingFile(file)
        try:
            torch.save(dict(state), cast(Any, digesting))
        except RuntimeError as error:
            # PyTorch turns what our `write` raised into an error of its zip writer.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            raise cause from None
        digesting.finish()

    write_whole(path, write, previous)


def read_state(path: Path) -> dict[str, Any]:
    """Read what :func:`save_state` wrote, without running any pickled code.

    :returns: the state, its tensors on the CPU.
    :raises StateFileError: in one sentence: there is no such file, or it is not as it was written.
    """
    import torch

    try:
        if not path.is_file():
            raise StateFileError(f"There is no file {path.name!r}.")
        with path.open("rb") as file:
            _check(file, path.name)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
    except StateFileError:
        raise
    except OSError as error:
        raise StateFileError(
            f"{path.name!r} cannot be read ({error.strerror or error})."
        ) from None
    except Exception as error:  # whole, but none of ours: PyTorch raises many kinds
        raise StateFileError(
            f"{path.name!r} holds more than tensors and plain values and was not loaded "
            f"({type(error).__name__})."
        ) from None
    if not isinstance(state, dict):
        raise StateFileError(f"{path.name!r} holds no state but a {type(state).__name__}.")
    return state


def _check(file: BinaryIO, name: str) -> None:
    size = file.seek(0, os.SEEK_END)
    tail = len(_COMMENT) + _DIGITS
    if size < tail + 22:  # a zip archive has at least 22 bytes
        raise StateFileError(f"{name!r} has been cut short ({size} bytes).")
    file.seek(size - tail)
    comment = file.read(tail)
    if not comment.startswith(_COMMENT):
        raise StateFileError(f"{name!r} has been cut short or is no state of avalanche_rwf.")
    digest, left = hashlib.sha256(), size - tail - 2
    file.seek(0)
    while left:
        part = file.read(min(left, 1 << 20))
        if not part:
            break
        digest.update(part)
        left -= len(part)
    if digest.hexdigest().encode() != comment[len(_COMMENT):]:
        raise StateFileError(f"{name!r} is damaged: its checksum does not match.")
