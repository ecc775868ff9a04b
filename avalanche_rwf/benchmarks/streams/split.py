"""`split`: every experience brings classes of its own, with all of their samples.

Also what the other streams with an order of classes share: that order, and how many classes each
experience brings. Every random choice has its own `RandomState` (numpy promises that its numbers
never change), seeded with the purpose of the choice, so that one choice does not move another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import add_option, register_stream
from avalanche_rwf.errors import UsageError

# First word of the seed of each choice.
_CLASSES, _SAMPLES = 1, 2


def _read_order(value: Any) -> str | list[str]:
    words = value.split(",") if isinstance(value, str) else [str(word) for word in value]
    words = [word.strip() for word in words]
    if not all(words):
        raise ValueError
    return "sorted" if words == ["sorted"] else words


def _read_counts(value: Any) -> list[int]:
    words = value.split(",") if isinstance(value, str) else list(value)
    counts = [int(word) for word in words]
    if not counts or any(count < 1 for count in counts) or counts != [float(w) for w in words]:
        raise ValueError
    return counts


add_option(
    "class_order",
    "sorted, or all classes in order: names or numbers from 0, with commas",
    _read_order,
    "order of the classes: sorted, or all of them by name or number (default: by seed)",
)
add_option(
    "classes_per_experience",
    "numbers of classes of at least 1 with commas, such as 6,2,2",
    _read_counts,
    "how many classes each experience brings, such as 6,2,2 (default: equal numbers)",
)


def class_order(
    num_classes: int, seed: int, given: str | Sequence[int] | None = None
) -> list[int]:
    """Permutation of the classes 0 to C - 1: entry i is the class that gets label i.

    :param given: "sorted", or the permutation itself; None draws it from the seed.
    """
    if given == "sorted":
        return list(range(num_classes))
    if given is not None:
        return [int(c) for c in given]
    return [int(c) for c in np.random.RandomState([_CLASSES, seed]).permutation(num_classes)]


def experience_sizes(num_classes: int, experiences: int) -> list[int]:
    """Spread the classes as evenly as possible; the first experiences take one more where it does
    not divide."""
    share, rest = divmod(num_classes, experiences)
    return [share + (number < rest) for number in range(experiences)]


def arrange(
    num_classes: int,
    seed: int,
    experiences: int,
    order: str | Sequence[int] | None,
    counts: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """The order of the classes and how many of them each experience brings.

    :param order: as :func:`class_order` takes it.
    :param counts: how many classes each experience brings; None is equal numbers.
    :raises UsageError: if `counts` are of another number of experiences or classes.
    """
    if counts is None:
        sizes = experience_sizes(num_classes, experiences)
    else:
        sizes = list(counts)
        if len(sizes) != experiences:
            raise UsageError(
                f"--classes-per-experience has {len(sizes)} numbers, and --experiences is "
                f"{experiences}."
            )
        if sum(sizes) != num_classes:
            raise UsageError(
                f"--classes-per-experience must add up to the {num_classes} classes of the "
                f"benchmark, not to {sum(sizes)}."
            )
    return class_order(num_classes, seed, order), sizes


def deal_by_class(
    labels: np.ndarray, seed: int, order: Sequence[int], sizes: Sequence[int]
) -> list[np.ndarray]:
    """Positions of each experience's samples, mixed by the seed.

    :param labels: int [N].
    :param order: classes in the order in which they come.
    :param sizes: how many of them each experience brings.
    """
    number_of = np.empty(len(order), dtype=np.int64)
    number_of[np.asarray(order)] = np.repeat(np.arange(len(sizes)), sizes)
    return mixed([np.flatnonzero(number_of[labels] == i) for i in range(len(sizes))], seed)


def positions_by_class(labels: np.ndarray) -> list[np.ndarray]:
    """Positions of the samples of each class 0 to C - 1, ascending."""
    ends = np.cumsum(np.bincount(labels))
    return np.split(np.argsort(labels, kind="stable"), ends[:-1])


def mixed(experiences: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """Each experience's positions in an order of their own."""
    return [
        np.random.RandomState([_SAMPLES, seed, number]).permutation(positions)
        for number, positions in enumerate(experiences)
    ]


@register_stream("split", summary="classes are split over the experiences", new_classes=True)
def split(
    labels: np.ndarray,
    seed: int,
    experiences: int,
    class_order: str | Sequence[int] | None = None,
    classes_per_experience: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Deal each class to one experience; positions [n_i] of `labels` [N] per experience.

    :raises UsageError: as :func:`arrange`.
    """
    num_classes = int(labels.max()) + 1
    order, sizes = arrange(num_classes, seed, experiences, class_order, classes_per_experience)
    return deal_by_class(labels, seed, order, sizes)
