"""JSON objects from files that anybody may have written: read in full or refused in a few words."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

__all__ = ["MOST", "read_object"]

MOST = 2**62
"""Whole numbers from here on are refused as an option: no array and no other language has them."""

_BYTES = 100_000_000
# Ours have four; what writes and compares them goes a step deeper for each.
_DEPTH = 50


def _whole(text: str) -> int:
    if len(text) > 300:  # it is no float either
        raise ValueError(f"it has a whole number of {len(text)} digits")
    return int(text)


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    :raises OSError: if the file cannot be read or is none.
    :raises ValueError: if it holds no JSON object, or one that is nested too deeply or has numbers
        that are too large; the message says which.
    """
    # Not to wait for a pipe that nobody writes to.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise OSError("it is no file")
        if about.st_size > _BYTES:
            raise ValueError(f"it has more than {_BYTES:,} bytes")
        content = file.read()
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
