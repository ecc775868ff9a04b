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
    By,
    Choice,
    Flag,
    Number,
    Options,
    Whole,
    is_finite,
    shown,
    takes,
)

AUGMENTATIONS = ("none", "flip", "flip-crop", "autoaug")


_SEED = Whole(0, 2**32 - 1)
_SHARE = Number(least=0, below=1)


def _check_test_share(name: str, value: Any) -> None:
    _SHARE.check(f"{name} (--test-share)", value)


@takes(
    seed=_SEED,
    experiences=Whole(optional=True),
    image_size=Whole(most=LARGEST_IMAGE),
    interpolation=Choice(INTERPOLATIONS),
    crop_pct=Number(least=LEAST_CROP, most=1),
    skip_corrupt=Flag(),
    augment=Choice(AUGMENTATIONS),
    holdout=_SHARE,
    stream_options=Options(),
    normalised=Flag(),
    decode=Flag(),
    test_share=By(_check_test_share),
    split_seed=_SEED,
)
@dataclass(frozen=True)
class StreamOptions:
    """What a stream is made with; see `create_benchmark` for the meaning of each field.

    :param decode: False where nobody will look at pixels (`plan_benchmark`): a source then reads no
        image, unless it is to find out which ones to leave out.
    :raises UsageError: naming the first that is out of range, what it got and takes.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream_options", dict(self.stream_options))
        if self.split_seed and not self.test_share:
            raise UsageError("split_seed (--split-seed) goes with test_share, which is 0.")
        if any(value < 1 / FAR for value in self.std):
            least = f"of at least {1 / FAR}"
            raise UsageError(f"std is three positive numbers, {least}, not {shown(self.std)}.")


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
