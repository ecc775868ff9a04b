"""A fixed part of the test samples, for evaluations in mid-stream that cost less."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avalanche_rwf.utils.validation import Whole, takes

__all__ = ["stratified_subset", "subset_experiences"]

_SEED = 1993  # the choice depends on no other seed and no global generator


@takes(size=Whole())
def stratified_subset(targets: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Choose `size` positions whose classes have the shares that they have in `targets`.

    Every class has one sample at least; the others are given out in proportion to what is left of
    each class, by largest remainder. The same targets give the same choice.

    :param targets: classes, [n].
    :param size: samples to choose; with n or more of them, all.
    :returns: ascending positions, [min(size, n)].
    :raises ValueError: if `size` is smaller than the number of classes.

    >>> stratified_subset(np.array([0, 0, 0, 0, 1, 1]), 3).tolist()  # both classes
    [0, 2, 4]
    """
    classes, counts = np.unique(targets, return_counts=True)
    if size >= len(targets):
        return np.arange(len(targets))
    if size < len(classes):
        raise ValueError(
            f"A subset of the test samples takes at least one of each of the {len(classes)} "
            f"classes, not {size} samples."
        )
    wanted = (size - len(classes)) * (counts - 1) / (len(targets) - len(classes))
    quotas = np.floor(wanted).astype(np.int64)
    left = size - len(classes) - int(quotas.sum())
    quotas[np.argsort(quotas - wanted, kind="stable")[:left]] += 1
    generator = np.random.RandomState(_SEED)
    chosen = [
        generator.permutation(np.flatnonzero(targets == label))[: quota + 1]
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def subset_experiences(test_stream: Iterable[Any], size: int) -> list[Any]:
    """Copies of test experiences with a stratified subset of all their samples between them.

    :param test_stream: Avalanche experiences whose datasets have `targets`; they are left as they
        are.
    :param size: test samples of all copies together.
    :returns: the copies, in the same order; one can be empty.
    :raises ValueError: as :func:`stratified_subset`.
    """
    experiences = list(test_stream)
    targets = [np.asarray(list(e.dataset.targets), dtype=np.int64) for e in experiences]
    chosen = stratified_subset(np.concatenate(targets), size)
    ends = np.cumsum([len(part) for part in targets])
    copies = []
    for experience, end, part in zip(experiences, ends.tolist(), targets, strict=True):
        start = end - len(part)
        here = chosen[(chosen >= start) & (chosen < end)] - start
        smaller = copy.copy(experience)
        # `dataset` is read-only in some of Avalanche's experiences; all keep it here.
        smaller._dataset = experience.dataset.subset(here.tolist())
        copies.append(smaller)
    return copies
