"""`repetition`: classes come back, samples do not.

Class-incremental learning with repetition after Hemati et al. (CoLLAs 2023, arXiv 2301.11396):
their first-occurrence and repetition probabilities, but without replacement, so that each sample is
seen once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import add_option, number, register_stream
from avalanche_rwf.benchmarks.streams.split import arrange, mixed, positions_by_class

_RETURNS, _DEAL = 7, 8  # first words of the seeds; see split.py

add_option(
    "repeat",
    "a probability from 0 to 1",
    number(0, 1),
    "probability with which a class comes back in each later experience (default: 0.5)",
)


@register_stream("repetition", summary="classes come back in later experiences, samples do not")
def repetition(
    labels: np.ndarray,
    seed: int,
    experiences: int,
    repeat: float = 0.5,
    class_order: str | Sequence[int] | None = None,
    classes_per_experience: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Deal each class to the experience where `split` has it and to later ones.

    In each later experience a class comes back with probability `repeat`, on its own. Its samples,
    mixed, are dealt over its appearances as evenly as possible, the first ones one more where it
    does not divide; a class with fewer samples than appearances has the first of these only.
    ``repeat=0`` has the classes of `split`; ``repeat=1`` brings every class in all experiences
    from its first on.

    :returns: positions of `labels` [N] per experience; every sample comes once.
    :raises UsageError: as :func:`arrange`.
    """
    num_classes = int(labels.max()) + 1
    order, sizes = arrange(num_classes, seed, experiences, class_order, classes_per_experience)
    first = np.empty(num_classes, dtype=np.int64)
    first[np.asarray(order)] = np.repeat(np.arange(experiences), sizes)
    comes = np.random.RandomState([_RETURNS, seed]).rand(num_classes, experiences) < repeat
    dealer = np.random.RandomState([_DEAL, seed])
    parts: list[list[np.ndarray]] = [[] for _ in range(experiences)]
    for label, positions in enumerate(positions_by_class(labels)):
        later = np.flatnonzero(comes[label, first[label] + 1 :]) + first[label] + 1
        appearances = [first[label], *later]
        shares = np.array_split(dealer.permutation(positions), len(appearances))
        for experience, share in zip(appearances, shares, strict=True):
            parts[experience].append(share)
    empty = np.empty(0, dtype=np.int64)
    return mixed([np.sort(np.concatenate([empty, *part])) for part in parts], seed)
