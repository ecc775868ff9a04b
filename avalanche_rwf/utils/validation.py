"""Checks of arguments: each raises one sentence that names the argument, what it got and takes.

They are for constructors and entry points, before work starts, and not for what runs at each step.
A truth value is no number here, although it is an ``int`` to Python; NumPy's numbers are numbers.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Collection, Mapping
from typing import Any

from avalanche_rwf.errors import UsageError

__all__ = [
    "FAR",
    "INTERPOLATIONS",
    "LARGEST_IMAGE",
    "LEAST_CROP",
    "PREPARATION",
    "check_choice",
    "check_flag",
    "check_flags",
    "check_mapping",
    "check_number",
    "check_path",
    "check_text",
    "check_whole",
    "checked_preparation",
    "is_finite",
    "is_number",
    "is_whole",
    "shown",
]

LARGEST_IMAGE = 2**14
"""The largest side of images in pixels: position embeddings of more would fill any memory."""

FAR = 1000.0
"""The largest mean and deviation of images, whose values are from 0 to 1; its inverse is the least
deviation. Beyond these, images become infinite numbers."""

LEAST_CROP = 0.05
"""The least share of an image that is cropped: what is resized for less would fill any memory."""

INTERPOLATIONS = tuple(
    f"{name}{crop}"
    for crop in ("", "-squash", "-border")
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
)
"""How images are resized: PIL's name, and timm's crop mode if it is not "center"."""

PREPARATION = ("mean", "std", "interpolation", "crop_pct")
"""What is configured of how a backbone's images are prepared, besides their size."""


def is_whole(value: Any) -> bool:
    """Whether it is a whole number by its type: 1 is, 1.0 and True are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number by its type, perhaps infinite or NaN."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it is a real number by its type that a float holds: not infinite, NaN or 10**400."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value for the end of an error sentence: on one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of 5000 digits has none, and anybody's class may raise
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _refuse(name: str, takes: str, optional: bool, value: Any) -> UsageError:
    return UsageError(f"{name} must be {takes}{' or None' * optional}, not {shown(value)}.")


def check_whole(
    name: str, value: Any, least: int = 1, most: int | None = None, optional: bool = False
) -> None:
    """Refuse what is no whole number from `least` to `most`.

    :param optional: whether None is taken too.
    :raises UsageError: "{name} must be a whole number of at least {least}, not {value}."
    """
    if optional and value is None:
        return
    if not is_whole(value) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise _refuse(name, f"a whole number {bounds}", optional, value)


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    optional: bool = False,
) -> None:
    """Refuse what is no finite number, or is out of bounds.

    :param least: the smallest that is taken.
    :param above: the largest that is too small.
    :param most: the largest that is taken.
    :param optional: whether None is taken too.
    :raises UsageError: such as "{name} must be a finite number above 0, not {value}."
    """
    if optional and value is None:
        return
    if (
        is_finite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    ):
        return
    bounds = [
        *([f"of at least {least}"] if least is not None else []),
        *([f"above {above}"] if above is not None else []),
        *([f"at most {most}"] if most is not None else []),
    ]
    takes = " ".join(("a finite number", " and ".join(bounds))).rstrip()
    raise _refuse(name, takes, optional, value)


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Refuse what is none of some names.

    :raises UsageError: "{name} must be one of {choices}, not {value}.", or "'a' or 'b'" of two.
    """
    if not isinstance(value, str) or value not in choices:
        two = len(choices) == 2
        takes = " or ".join(map(repr, choices)) if two else f"one of {', '.join(choices)}"
        raise _refuse(name, takes, False, value)


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False.

    :raises UsageError: "{name} must be True or False, not {value}."
    """
    if not isinstance(value, bool):
        raise _refuse(name, "True or False", False, value)


def check_flags(**flags: Any) -> None:
    """:func:`check_flag` of several."""
    for name, value in flags.items():
        check_flag(name, value)


def check_text(name: str, value: Any) -> None:
    """Refuse what is no text.

    :raises UsageError: "{name} must be a text, not {value}."
    """
    if not isinstance(value, str):
        raise _refuse(name, "a text", False, value)


def check_path(name: str, value: Any) -> None:
    """:raises UsageError: if the value is no path, text or of pathlib's kind."""
    if not isinstance(value, (str, os.PathLike)):
        raise _refuse(name, "a path", False, value)


def check_mapping(name: str, value: Any, optional: bool = True) -> None:
    """Refuse what is no mapping of names to values.

    :raises UsageError: "{name} must be a dictionary of options or None, not {value}."
    """
    if optional and value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _refuse(name, "a dictionary of options", optional, value)


def checked_preparation(values: Mapping[str, Any], label: str = "data_config") -> dict[str, Any]:
    """How images are prepared, some of `PREPARATION`, as plain numbers and text.

    :param label: begins the sentence of an error.
    :raises UsageError: another key, or a value out of range.
    """
    unknown = sorted(set(values) - set(PREPARATION))
    if unknown:
        raise UsageError(f"{label} takes {', '.join(PREPARATION)} or a tag, not {unknown[0]!r}.")
    checked: dict[str, Any] = {}
    # Pictures have values from 0 to 1.
    for key, low in (("mean", -FAR), ("std", 1 / FAR)):
        if key not in values:
            continue
        given = values[key]
        three = list(given) if isinstance(given, (list, tuple)) else []
        if len(three) != 3 or not all(is_finite(v) and low <= v <= FAR for v in three):
            raise UsageError(
                f"{label}: {key} has to be three numbers from {low:g} to {FAR:g}, not "
                f"{shown(given)}."
            )
        checked[key] = tuple(map(float, three))
    if "interpolation" in values:
        if values["interpolation"] not in INTERPOLATIONS:
            raise UsageError(
                f"{label}: interpolation has to be one of {', '.join(INTERPOLATIONS)}, not "
                f"{shown(values['interpolation'])}."
            )
        checked["interpolation"] = values["interpolation"]
    if "crop_pct" in values:
        crop = values["crop_pct"]
        if not is_number(crop) or not LEAST_CROP <= crop <= 1:
            raise UsageError(
                f"{label}: crop_pct has to be a number from {LEAST_CROP} to 1, not {shown(crop)}."
            )
        checked["crop_pct"] = float(crop)
    return checked
