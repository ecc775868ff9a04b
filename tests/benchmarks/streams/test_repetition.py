"""Repetition: classes come back, samples do not."""

from __future__ import annotations

import numpy as np

from avalanche_rwf.benchmarks.streams.repetition import repetition
from avalanche_rwf.benchmarks.streams.split import split

LABELS = np.repeat(np.arange(12), 30)


def counts(dealt):
    return np.stack([np.bincount(LABELS[part], minlength=12) for part in dealt])


def test_without_repetition_the_classes_are_those_of_split():
    once, parts = repetition(LABELS, 2, 4, repeat=0.0), split(LABELS, 2, 4)
    assert (counts(once) == counts(parts)).all()


def test_a_class_comes_back_in_every_later_experience_or_in_some():
    first = counts(split(LABELS, 2, 4)).argmax(axis=0)
    always = counts(repetition(LABELS, 2, 4, repeat=1.0))
    for label, start in enumerate(first):
        assert (always[:start, label] == 0).all()
        there = always[start:, label]
        assert there.min() >= 1 and there.max() - there.min() <= 1  # as even as can be
    some = counts(repetition(LABELS, 2, 4, repeat=0.5)) > 0
    later = sum(3 - start for start in first)
    assert 0 < some.sum() - 12 < later
    assert (some.argmax(axis=0) == first).all()


def test_a_class_with_fewer_samples_than_appearances_comes_first_where_split_has_it():
    labels = np.arange(3)
    dealt = repetition(labels, 0, 3, repeat=1.0, class_order=[2, 0, 1])
    assert [part.tolist() for part in dealt] == [[2], [0], [1]]
