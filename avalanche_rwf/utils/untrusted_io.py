"""Files and names that anybody may have written: read in full or refused in a few words."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

MOST = 2**62
"""Whole numbers from here on are refused as an option: no array and no other language has them."""

_BYTES = 100_000_000
# Ours have four; what writes and compares them goes a step deeper for each.
_DEPTH = 50


def _whole(text: str) -> int:
    if len(text) > 300:  # longer than any float
        raise ValueError(f"it has a whole number of {len(text)} digits")
    return int(text)


def printable(text: str) -> str:
    """Return a text on one line, without what a terminal would obey: its files may be anybody's."""
    joined = " ".join(text.split()) if any(sign in text for sign in "\r\n\t") else text
    return joined if joined.isprintable() else "".join(
        sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in joined
    )  # fmt: skip


def drawable(text: str) -> str:
    """Return a text as matplotlib draws it: printable, and its dollars begin no mathematics."""
    return printable(text).replace("$", r"\$")


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path with ``~`` or ``~name`` at its beginning replaced where there is such a home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of that name: it is taken as it is written
        return Path(path)


def _open(path: str | os.PathLike[str], flags: int = 0) -> BinaryIO:
    """Open a file to be read; no pipe or device, which may have no end.

    :raises OSError: if it cannot be opened or is none.
    """
    # Not to wait for a pipe that nobody writes to.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | flags)
    file = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError("it is no file")
    return file


def read_file(path: str | os.PathLike[str], most: int = _BYTES) -> bytes:
    """The content of a file.

    :raises OSError: if it cannot be read or is none.
    :raises ValueError: if it has more than `most` bytes, by default more than any that we write.
    """
    with _open(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def read_end(path: str | os.PathLike[str], most: int) -> bytes:
    """The last `most` bytes of a file; a link is not followed.

    It could lead to a private file of the reader's, which would then be shown to others.

    :raises OSError: if it cannot be read, is a link or is none.
    """
    with _open(path, getattr(os, "O_NOFOLLOW", 0)) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - most))
        return file.read(most)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    :raises OSError: if the file cannot be read or is none.
    :raises ValueError: if it holds no JSON object, or one that is nested too deeply or has numbers
        that are too large; the message says which.
    """
    content = read_file(path)
    try:
        value = json.loads(content.decode(), parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        inner = (v for one in level for v in (one.values() if isinstance(one, dict) else one))
        level = [v for v in inner if isinstance(v, (dict, list))]
        if not level:
            return value
    raise ValueError("it is nested too deeply")
