"""What can be said of a backbone before PyTorch is imported, which takes seconds."""

from __future__ import annotations

from pathlib import Path

from avalanche_rwf.errors import UsageError

PACKAGED = "rwf_vit_mini_patch8_32"
"""The backbone whose weights are in this package."""

_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")


def checked_path(weights: str | Path) -> Path:
    """The path of a weights file.

    :raises UsageError: no path, another ending than `_SUFFIXES`, or no such file.
    """
    if not isinstance(weights, (str, Path)):
        raise UsageError(f"weights must be the path of a file or None, not {weights!r}.")
    path = Path(weights)
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"weights file {str(path)!r} is none of {', '.join(_SUFFIXES)}.")
    try:
        there = path.is_file()
    except OSError:  # a name that the system does not take
        there = False
    if not there:
        raise UsageError(f"weights file {str(path)!r} does not exist or is not a file.")
    return path
