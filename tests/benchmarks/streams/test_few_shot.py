"""k-shot and FSCIL: shots, nesting, and the sizes of sessions."""

from __future__ import annotations

import numpy as np
import pytest

from avalanche_rwf.benchmarks.streams.few_shot import few_of_each, fscil, fscil_sizes, k_shot
from avalanche_rwf.benchmarks.streams.split import split
from avalanche_rwf.errors import UsageError

LABELS = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 20))


def test_k_shot_is_split_with_k_of_each():
    few, all_ = k_shot(LABELS, 3, 5, shots=2), split(LABELS, 3, 5)
    for part, whole in zip(few, all_, strict=True):
        classes, counts = np.unique(LABELS[part], return_counts=True)
        assert set(classes) == set(LABELS[whole])
        assert set(counts) == {2}


def test_fewer_shots_are_a_part_of_more():
    one, four = few_of_each(LABELS, 1, 1), few_of_each(LABELS, 1, 4)
    assert set(one) < set(four)
    assert set(one) != set(few_of_each(LABELS, 2, 1))
    assert len(few_of_each(LABELS, 1, 99)) == len(LABELS)


@pytest.mark.parametrize(
    ("preset", "classes", "sizes"),
    [
        ("cifar100", 100, [60, *[5] * 8]),
        ("miniimagenet", 100, [60, *[5] * 8]),
        ("cub200", 200, [100, *[10] * 10]),
    ],
)
def test_presets_give_the_published_session_sizes(preset, classes, sizes):
    labels = np.repeat(np.arange(classes), 7)
    dealt = fscil(labels, 0, None, preset=preset)
    assert [len(set(labels[part])) for part in dealt] == sizes
    assert [len(part) for part in dealt] == [7 * sizes[0], *[5 * n for n in sizes[1:]]]
    assert len(fscil(labels, 0, 5, preset=preset)) == 5
    with pytest.raises(UsageError, match=f"--preset {preset} is for {classes} classes"):
        fscil(LABELS, 0, None, preset=preset)


@pytest.mark.parametrize(
    ("classes", "experiences", "base", "way", "sizes"),
    [
        (100, None, None, None, [60, *[5] * 8]),  # CIFAR-100's, without being told
        (41, None, None, None, [25, *[2] * 8]),
        (41, 8, None, None, [25, 3, 3, 2, 2, 2, 2, 2]),
        (10, None, 4, 4, [4, 4, 2]),
        (10, 4, 4, None, [4, 2, 2, 2]),
        (10, 4, None, 2, [4, 2, 2, 2]),
        (10, 4, 4, 2, [4, 2, 2, 2]),
        (10, 1, None, None, [10]),
        (10, 10, None, None, [1] * 10),
        (10, None, 10, None, [10]),
        (1, None, None, None, [1]),
    ],
)
def test_sessions_have_the_sizes_that_were_asked_for(classes, experiences, base, way, sizes):
    assert fscil_sizes(classes, experiences, base, way) == sizes


@pytest.mark.parametrize(
    ("experiences", "base", "way", "message"),
    [
        (None, 11, None, "--base is at most the 10 classes"),
        (3, 4, 2, "--base and 2 later experiences of --way 2 must add up to the 10"),
        (7, None, 2, "must add up to the 10"),
        (5, 8, None, "--experiences 5 with 8 base classes does not fit the 10"),
        (1, 8, None, "--experiences 1 with 8 base classes does not fit"),
        (11, None, None, "--experiences 11 with 0 base classes does not fit"),
    ],
)
def test_impossible_session_sizes_are_refused(experiences, base, way, message):
    with pytest.raises(UsageError, match=message):
        fscil_sizes(10, experiences, base, way)


def test_the_base_session_has_all_images():
    dealt = fscil(LABELS, 0, 3, base=6, shots=3, class_order="sorted")
    assert sorted(dealt[0]) == np.flatnonzero(LABELS < 6).tolist()
    assert [len(part) for part in dealt] == [120, 6, 6]
    assert set(LABELS[dealt[1]]) == {6, 7}
