"""The fixed part of the test samples that evaluations in mid-stream take."""

from __future__ import annotations

import numpy as np
import pytest

from avalanche_rwf.evaluation.subset import stratified_subset, subset_experiences


def test_shares_are_those_of_the_classes():
    targets = np.repeat([0, 1, 2], [50, 30, 20])
    chosen = stratified_subset(targets, 10)
    # One of each first; of the other 7, 49/97, 29/97 and 19/97, by largest remainder.
    assert np.bincount(targets[chosen]).tolist() == [5, 3, 2]
    assert chosen.tolist() == sorted(set(chosen.tolist()))


@pytest.mark.parametrize("seed", range(20))
def test_any_targets_and_size(seed):
    rng = np.random.RandomState(seed)
    counts = rng.randint(1, 30, rng.randint(1, 9))
    targets = rng.permutation(np.repeat(rng.permutation(50)[: len(counts)], counts))
    for size in {len(counts), (len(counts) + len(targets)) // 2, len(targets), len(targets) + 3}:
        chosen = stratified_subset(targets, size)
        assert len(set(chosen.tolist())) == len(chosen) == min(size, len(targets))
        assert set(targets[chosen]) == set(targets)


def test_the_choice_is_fixed_and_draws_from_nobodys_generator():
    targets = np.arange(100) % 4
    state = np.random.get_state()[1].copy()
    first = stratified_subset(targets, 12)
    assert (np.random.get_state()[1] == state).all()
    np.random.rand(3)
    assert stratified_subset(targets, 12).tolist() == first.tolist()
    # Not the first samples of each class, which often come from one source.
    assert first.tolist() != list(range(12))


def test_fewer_than_one_of_each_class():
    with pytest.raises(ValueError, match="at least one of each of the 4 classes, not 3 samples"):
        stratified_subset(np.arange(8) % 4, 3)


@pytest.mark.parametrize("kind", ["nc", "xy"])
def test_experiences_are_copies_of_fewer_samples(kind, request):
    stream = request.getfixturevalue(kind).test_stream
    smaller = subset_experiences(stream, 9)
    assert [len(e.dataset) for e in stream] == [12] * 3
    assert sum(len(e.dataset) for e in smaller) == 9
    for whole, part in zip(stream, smaller, strict=True):
        assert part.current_experience == whole.current_experience
        assert set(part.classes_in_this_experience) == set(whole.classes_in_this_experience)
        images = {tuple(row[0].tolist()) for row in whole.dataset}
        assert {tuple(row[0].tolist()) for row in part.dataset} < images
        assert {int(y) for y in part.dataset.targets} == {int(y) for y in whole.dataset.targets}
