"""What a stream is made with, and what each option may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import (
    FAR,
    INTERPOLATIONS,
    LARGEST_IMAGE,
    LEAST_CROP,
    check_choice,
    check_flags,
    check_number,
    check_whole,
    is_finite,
    is_number,
    is_whole,
    shown,
)

__all__ = ["AUGMENTATIONS", "StreamOptions", "check_options", "three_numbers"]

AUGMENTATIONS = ("none", "flip", "flip-crop", "autoaug")


@dataclass(frozen=True)
class StreamOptions:
    """What a stream is made with; checked by `create_benchmark`, see there for the meaning of each
    field.

    :param decode: False where nobody will look at pixels (`plan_benchmark`): a source then reads no
        image, unless it is to find out which ones to leave out.
    """

    seed: int
    experiences: int | None
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float = 1.0
    skip_corrupt: bool = False
    augment: str = "none"
    holdout: float = 0.0
    stream: str = "split"
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    normalised: bool = True
    decode: bool = True
    test_share: float = 0.0
    split_seed: int = 0


def check_options(options: StreamOptions) -> StreamOptions:
    """The options themselves.

    :raises UsageError: naming the first that is out of range, what it got and takes.
    """
    o = options
    if not is_whole(o.seed) or not 0 <= o.seed < 2**32:
        raise UsageError(f"seed is a whole number from 0 to 2**32 - 1, not {shown(o.seed)}.")
    if not is_whole(o.split_seed) or not 0 <= o.split_seed < 2**32:
        raise UsageError(
            f"split_seed is a whole number from 0 to 2**32 - 1, not {shown(o.split_seed)}."
        )
    if not is_number(o.test_share) or not 0 <= o.test_share < 1:
        raise UsageError(
            f"test_share (--test-share) is a share of at least 0 and below 1, not "
            f"{shown(o.test_share)}."
        )
    if o.split_seed and not o.test_share:
        raise UsageError("split_seed (--split-seed) goes with test_share, which is 0.")
    check_whole("experiences", o.experiences, optional=True)
    check_whole("image_size", o.image_size, most=LARGEST_IMAGE)
    check_flags(skip_corrupt=o.skip_corrupt, normalised=o.normalised)
    if any(value < 1 / FAR for value in o.std):
        least = f"of at least {1 / FAR}"
        raise UsageError(f"std is three positive numbers, {least}, not {shown(o.std)}.")
    check_choice("interpolation", o.interpolation, INTERPOLATIONS)
    check_number("crop_pct", o.crop_pct, least=LEAST_CROP, most=1)
    check_choice("augment", o.augment, AUGMENTATIONS)
    if not is_number(o.holdout) or not 0 <= o.holdout < 1:
        raise UsageError(f"holdout is a share of at least 0 and below 1, not {shown(o.holdout)}.")
    return options


def three_numbers(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    """Means or deviations of the three channels, also of an array or a tensor.

    :raises UsageError: naming what it got.
    """
    # Arrays and tensors are no sequences to Python.
    given = values.tolist() if hasattr(values, "tolist") else values
    plain = isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray))
    numbers = list(given) if plain else []
    if len(numbers) != 3 or not all(is_finite(v) and abs(v) <= FAR for v in numbers):
        raise UsageError(
            f"{name} is three numbers, one per channel, of images from 0 to 1, not {shown(values)}."
        )
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
