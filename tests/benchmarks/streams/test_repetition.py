"""Repetition: classes come back, samples do not."""

from __future__ import annotations

import numpy as np
import pytest

from avalanche_rwf.benchmarks.stream_registry import resolve_stream_options
from avalanche_rwf.benchmarks.streams.repetition import repetition
from avalanche_rwf.benchmarks.streams.split import split
from avalanche_rwf.errors import UsageError

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


@pytest.mark.parametrize("value", [True, b"1", 10**400, "nan", "1e999", -0.1, float("inf")])
def test_what_is_no_probability_is_refused(value):
    with pytest.raises(UsageError, match="--repeat takes a probability from 0 to 1"):
        resolve_stream_options("repetition", {"repeat": value})


@pytest.mark.parametrize("value", ["0.25", 0.25, np.float32(0.25)])
def test_a_probability_is_a_plain_number(value):
    options = resolve_stream_options("repetition", {"repeat": value})
    assert options["repeat"] == 0.25 and type(options["repeat"]) is float
