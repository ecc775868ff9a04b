"""`k-shot` and `fscil`: streams with few images a class.

RwF's few-shot protocol is not public. `k-shot` is the nearest to its wording: each training split
with k images a class. `fscil` is the classical protocol: a base session with all images, then
sessions of few classes with few images (Tao et al., CVPR 2020, arXiv 2004.10956).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import add_option, one_of, register_stream, whole
from avalanche_rwf.benchmarks.streams.split import (
    arrange,
    deal_by_class,
    experience_sizes,
    positions_by_class,
)
from avalanche_rwf.errors import UsageError

_SHOTS = 6  # first word of the seed; see split.py

FSCIL: Mapping[str, tuple[int, int, int]] = {
    "cifar100": (100, 60, 5),
    "cub200": (200, 100, 10),
    "miniimagenet": (100, 60, 5),
}
"""The usual sizes: classes, base classes, way; all with 5 shots."""


add_option(
    "shots",
    "a whole number of at least 1",
    whole(1),
    "training images a class (fscil: in the sessions after the first; default: k-shot 4, fscil 5)",
)
add_option(
    "base",
    "a whole number of classes of at least 1",
    whole(1),
    "classes of the base session (default: 60 per cent)",
)
add_option(
    "way",
    "a whole number of classes of at least 1",
    whole(1),
    "classes of each later session (default: 5 per cent, or as --experiences says)",
)
add_option(
    "preset",
    f"one of {', '.join(FSCIL)}",
    one_of(*FSCIL),
    f"the usual sizes of {', '.join(FSCIL)} (default: those of a benchmark of that name)",
)


def few_of_each(labels: np.ndarray, seed: int, shots: int) -> np.ndarray:
    """Positions of at most `shots` samples of each class, ascending.

    Each class is drawn on its own, and fewer shots are a part of more.
    """
    chosen = [
        np.random.RandomState([_SHOTS, seed, label]).permutation(positions)[:shots]
        for label, positions in enumerate(positions_by_class(labels))
    ]
    return np.sort(np.concatenate(chosen))


@register_stream(
    "k-shot", summary="as split, with k images a class", whole=False, new_classes=True
)
def k_shot(
    labels: np.ndarray,
    seed: int,
    experiences: int,
    shots: int = 4,
    class_order: str | Sequence[int] | None = None,
    classes_per_experience: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Deal `shots` samples of each class, or all where it has fewer, to one experience.

    :returns: positions of `labels` [N] per experience.
    :raises UsageError: as :func:`arrange`.
    """
    num_classes = int(labels.max()) + 1
    order, sizes = arrange(num_classes, seed, experiences, class_order, classes_per_experience)
    few = few_of_each(labels, seed, shots)
    return [few[positions] for positions in deal_by_class(labels[few], seed, order, sizes)]


def fscil_sizes(
    num_classes: int, experiences: int | None, base: int | None, way: int | None
) -> list[int]:
    """How many classes the base session and each later one has.

    None given: 60 per cent of the classes are the base and each later session has 5 per cent of
    all (the usual sizes of CIFAR-100 and miniImageNet); the last may have fewer. With `experiences`
    the other classes are spread evenly over them, unless `way` says how many each has.

    :raises UsageError: if the numbers do not fit the classes.
    """
    if experiences is not None and way is not None:
        rest = way * (experiences - 1)
        if base is None:
            base = num_classes - rest
        if base < 1 or base + rest != num_classes:
            raise UsageError(
                f"--base and {experiences - 1} later experiences of --way {way} must add up to the "
                f"{num_classes} classes of the benchmark, not to {max(base, 0) + rest}."
            )
        return [base, *[way] * (experiences - 1)]
    if base is None:
        base = max(1, round(0.6 * num_classes))
        if experiences is not None:  # every later one has a class
            base = num_classes if experiences == 1 else min(base, num_classes - experiences + 1)
    later = num_classes - base
    if later < 0:
        raise UsageError(
            f"--base is at most the {num_classes} classes of the benchmark, not {base}."
        )
    if experiences is None:
        way = way or max(1, round(0.05 * num_classes))
        sessions = math.ceil(later / way)
        return [base, *[min(way, later - way * i) for i in range(sessions)]]
    if base < 1 or later < experiences - 1 or (experiences == 1 and later):
        raise UsageError(
            f"--experiences {experiences} with {max(base, 0)} base classes does not fit the "
            f"{num_classes} classes of the benchmark: every experience brings at least one."
        )
    return [base, *(experience_sizes(later, experiences - 1) if experiences > 1 else [])]


def _fscil_of(benchmark: str) -> Mapping[str, Any]:
    name = benchmark.removeprefix("split-")
    return {"preset": name} if name in FSCIL else {}


@register_stream(
    "fscil",
    summary="few-shot class-incremental: a base session with all images, then n-way k-shot ones",
    whole=False,
    counts_itself=True,
    defaults=_fscil_of,
)
def fscil(
    labels: np.ndarray,
    seed: int,
    experiences: int | None,
    base: int | None = None,
    way: int | None = None,
    shots: int = 5,
    preset: str | None = None,
    class_order: str | Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Deal a base session with all samples of its classes, and few-shot sessions after it.

    :param labels: int [N] of 0 to C - 1.
    :param experiences: sessions with the base one; None as :func:`fscil_sizes` says.
    :param base: classes of the base session.
    :param way: classes of each later session.
    :param shots: samples a class there; a class with fewer has them all.
    :param preset: sizes by name, of :data:`FSCIL`; base, way and experiences given go first.
    :returns: positions of `labels` per session.
    :raises UsageError: numbers that do not fit the classes or the preset.
    """
    num_classes = int(labels.max()) + 1
    if preset is not None:
        expected, usual_base, usual_way = FSCIL[preset]
        if num_classes != expected:
            raise UsageError(
                f"--preset {preset} is for {expected} classes, and the benchmark has {num_classes}."
            )
        base = base or usual_base
        way = way or (usual_way if experiences is None else None)
    sizes = fscil_sizes(num_classes, experiences, base, way)
    order, _ = arrange(num_classes, seed, len(sizes), class_order, sizes)
    dealt = deal_by_class(labels, seed, order, sizes)
    few = few_of_each(labels, seed, shots)
    return [dealt[0], *(positions[np.isin(positions, few)] for positions in dealt[1:])]
