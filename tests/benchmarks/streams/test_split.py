"""Split: the order of the classes and how many come at a time."""

from __future__ import annotations

import numpy as np
import pytest

from avalanche_rwf.benchmarks.streams.split import class_order, positions_by_class, split
from avalanche_rwf.errors import UsageError

LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(7), 4))


def test_classes_in_a_given_order_and_number():
    dealt = split(LABELS, 0, 3, [6, 5, 4, 3, 2, 1, 0], [1, 4, 2])
    assert [sorted(set(LABELS[part])) for part in dealt] == [[6], [2, 3, 4, 5], [0, 1]]
    assert [len(part) for part in dealt] == [4, 16, 8]
    assert class_order(4, 0, "sorted") == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("experiences", "sizes", "message"),
    [
        (3, [4, 3], "has 2 numbers, and --experiences is 3"),
        (2, [4, 4], "must add up to the 7 classes of the benchmark, not to 8"),
    ],
)
def test_numbers_of_classes_that_do_not_add_up_are_refused(experiences, sizes, message):
    with pytest.raises(UsageError, match=message):
        split(LABELS, 0, experiences, classes_per_experience=sizes)


def test_positions_are_grouped_by_class():
    parts = positions_by_class(LABELS)
    assert [part.tolist() for part in parts] == [
        np.flatnonzero(np.equal(LABELS, label)).tolist() for label in range(7)
    ]
