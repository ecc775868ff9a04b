"""The metrics against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from avalanche_rwf.evaluation.metrics import (
    EvaluationPoint,
    a_auc,
    a_avg,
    a_last,
    accuracy_exposed,
    accuracy_matrix,
    class_accuracy_matrix,
    forgetting_class,
    forgetting_experience,
    summarise,
)

# Ten test samples: classes 0 and 1 in test experience 0 (3 + 2), 2 in 1 (3), 3 in 2 (2).
TARGETS = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
TESTS = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2]


def point(samples_seen, experience, predictions, exposed):
    return EvaluationPoint(samples_seen, experience, TARGETS, predictions, exposed, TESTS)


@pytest.fixture
def run():
    """Three experiences of 40, 30 and 30 samples, with mid-stream points at 20, 60 and 80."""
    return [
        # class 0: 2/3, nothing else met yet
        point(20, None, [0, 0, 1, 0, 0, 0, 0, 0, 0, 0], (0,)),
        # class 0: 3/3, class 1: 1/2 -> 4/5
        point(40, 0, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0], (0, 1)),
        # 0: 2/3, 1: 1/2, 2: 1/3 -> 4/8
        point(60, None, [0, 0, 2, 1, 2, 2, 0, 0, 0, 0], (0, 1, 2)),
        # 0: 1/3, 1: 2/2, 2: 2/3 -> 5/8
        point(70, 1, [0, 2, 2, 1, 1, 2, 2, 0, 2, 2], (0, 1, 2)),
        # 0: 1/3, 1: 1/2, 2: 2/3, 3: 1/2 -> 5/10
        point(80, None, [0, 2, 2, 1, 3, 2, 2, 3, 3, 0], (0, 1, 2, 3)),
        # 0: 1/3, 1: 0/2, 2: 3/3, 3: 2/2 -> 6/10
        point(100, 2, [0, 3, 3, 3, 3, 2, 2, 2, 3, 3], (0, 1, 2, 3)),
    ]


def test_accuracies_are_those_by_hand(run):
    assert [accuracy_exposed(p) for p in run] == pytest.approx([2 / 3, 0.8, 0.5, 0.625, 0.5, 0.6])
    assert a_last(run) == pytest.approx(0.6)
    assert a_avg(run) == pytest.approx((0.8 + 0.625 + 0.6) / 3)
    assert a_auc(run) == pytest.approx((2 / 3 + 0.8 + 0.5 + 0.625 + 0.5 + 0.6) / 6)


def test_a_auc_on_an_even_grid_leaves_out_the_experience_ends_between(run):
    # at 20, 40, 60, 80 and 100: the experience end at 70 is no multiple of 20
    assert a_auc(run, every=20) == pytest.approx((2 / 3 + 0.8 + 0.5 + 0.5 + 0.6) / 5)
    # first places at or after 50 and 100: 60 and 100
    assert a_auc(run, every=50) == pytest.approx((0.5 + 0.6) / 2)
    # nothing reaches 200: the end counts always
    assert a_auc(run, every=200) == pytest.approx(0.6)
    # one place passes several multiples of 30 (30: 40; 60: 60; 90: 100)
    assert a_auc(run, every=30) == pytest.approx((0.8 + 0.5 + 0.6) / 3)


def test_duplicates_count_once_and_the_experience_end_wins(run):
    worse = point(40, None, [9] * 10, (0, 1))
    assert a_auc([*run, worse]) == pytest.approx(a_auc(run))
    assert a_auc([worse, *run]) == pytest.approx(a_auc(run))
    last = point(100, None, [9] * 10, (0, 1, 2, 3))
    assert a_last([*run, last]) == pytest.approx(0.6)
    again = point(40, 0, [0, 0, 0, 1, 1, 0, 0, 0, 0, 0], (0, 1))  # 5/5, evaluated later
    assert a_avg([*run, again]) == pytest.approx((1.0 + 0.625 + 0.6) / 3)


def test_order_of_the_points_does_not_matter(run):
    assert summarise(run[::-1], 3) == summarise(run, 3)


def test_before_training_counts_nowhere(run):
    start = point(0, None, [0] * 10, ())
    assert math.isnan(accuracy_exposed(start))
    assert summarise([start, *run], 3) == summarise(run, 3)


def test_the_accuracy_matrix_is_the_one_by_hand(run):
    expected = [[0.8, np.nan, np.nan], [3 / 5, 2 / 3, np.nan], [1 / 5, 1.0, 1.0]]
    np.testing.assert_allclose(accuracy_matrix(run, 3), expected)


def test_accuracy_matrix_of_tests_left_out_is_nan():
    only_first = EvaluationPoint(10, 1, [0, 0], [0, 1], (0, 1), [0, 0])
    np.testing.assert_allclose(accuracy_matrix([only_first], 2), [[np.nan, np.nan], [0.5, np.nan]])


def test_the_class_accuracy_matrix_is_the_one_by_hand(run):
    expected = [
        [1.0, 0.5, np.nan, np.nan],
        [1 / 3, 1.0, 2 / 3, np.nan],
        [1 / 3, 0.0, 1.0, 1.0],
    ]
    np.testing.assert_allclose(class_accuracy_matrix(run, 3), expected)
    wider = class_accuracy_matrix(run, 3, n_classes=6)
    assert wider.shape == (3, 6)
    assert np.isnan(wider[:, 4:]).all()


def test_forgetting_of_the_run(run):
    # experience 0: best 0.8 of rows 0 and 1, now 0.2; experience 1: 2/3, now 1
    assert forgetting_experience(accuracy_matrix(run, 3)) == pytest.approx((0.6 - 1 / 3) / 2)
    # classes 0: 1 - 1/3; 1: 1 - 0; 2: 2/3 - 1; 3 was not met before the end
    assert forgetting_class(class_accuracy_matrix(run, 3)) == pytest.approx((2 / 3 + 1 - 1 / 3) / 3)


def test_forgetting_experience_by_hand():
    # Best of column 0 is row 1; row 0 of column 1 lies before its training and must not count.
    matrix = np.array(
        [[0.5, 0.9, 0.0, 0.0], [0.9, 0.4, 0.0, 0.0], [0.2, 0.6, 0.8, 0.0], [0.1, 0.5, 0.3, 0.7]]
    )
    assert forgetting_experience(matrix) == pytest.approx((0.8 + 0.1 + 0.5) / 3)


def test_forgetting_class_and_classes_never_learned():
    matrix = np.array([[0.8, 0.0, np.nan], [0.6, 0.0, 0.5], [0.2, 0.0, 0.1]])
    # all three were met before the end: 0.6, 0 and 0.4
    assert forgetting_class(matrix) == pytest.approx(1.0 / 3)
    assert forgetting_class(matrix, only_learned=True) == pytest.approx(0.5)


def test_one_experience_has_no_forgetting():
    single = [EvaluationPoint(40, 0, [0, 1], [0, 0], (0, 1), [0, 0])]
    assert math.isnan(forgetting_experience(accuracy_matrix(single, 1)))
    assert math.isnan(forgetting_class(class_accuracy_matrix(single, 1)))
    assert summarise(single, 1) == {
        "a_last": 0.5,
        "a_avg": 0.5,
        "a_auc": 0.5,
        "forgetting_experience": None,
        "forgetting_class": None,
    }


def test_summarise_holds_plain_floats(run):
    summary = summarise(run, 3)
    assert all(type(value) is float for value in summary.values())
    assert summarise(run, 3, every=50)["a_auc"] == pytest.approx(0.55)


def test_predictions_outside_the_exposed_classes_are_wrong():
    p = EvaluationPoint(10, 0, [0, 0, 1], [0, 7, 1], (0, 1), [0, 0, 0])
    assert accuracy_exposed(p) == pytest.approx(2 / 3)


def test_point_normalises_what_it_is_given():
    p = EvaluationPoint(np.int64(3), np.int64(0), [1], [1], (2, 1, 1), [0])
    assert p.exposed == (1, 2)
    assert type(p.samples_seen) is int
    assert p.targets.dtype == np.int64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples_seen": -1}, "samples_seen must be a whole number of at least 0, not -1."),
        ({"experience": -2}, "experience must be a whole number of at least 0 or None, not -2."),
        ({"targets": []}, "targets must hold at least one sample, got an empty array."),
        ({"targets": [[0, 1]]}, r"targets must have one dimension, got shape \(1, 2\)."),
        ({"targets": [0.5, 1.0]}, "targets must hold integers, got float64."),
        ({"targets": [0, -1]}, "targets must not be negative, got -1."),
        ({"predictions": [0]}, r"predictions must be as long as targets \(2\), got 1."),
        ({"test_experience": [0, 0, 0]}, r"test_experience must be as long as targets \(2\)"),
    ],
)
def test_bad_points_are_refused(change, message):
    good = {
        "samples_seen": 1,
        "experience": 0,
        "targets": [0, 1],
        "predictions": [0, 1],
        "exposed": (0, 1),
        "test_experience": [0, 0],
    }
    with pytest.raises(ValueError, match=message):
        EvaluationPoint(**{**good, **change})


def test_bad_arguments_are_refused(run):
    for function in (a_last, a_avg, a_auc):
        with pytest.raises(ValueError, match="points must hold at least one EvaluationPoint"):
            function([])
    with pytest.raises(ValueError, match="got 2 and a point with experience 2"):
        accuracy_matrix(run, 2)
    with pytest.raises(ValueError, match="got 2 and a point with experience 2"):
        class_accuracy_matrix(run, 2)
    with pytest.raises(ValueError, match="n_classes must be above every target, got 3 for 3"):
        class_accuracy_matrix(run, 3, n_classes=3)
    with pytest.raises(ValueError, match=r"matrix must be square, \[T, T\], got shape \(2, 3\)"):
        forgetting_experience(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="class_matrix must be"):
        forgetting_class(np.zeros(3))


@pytest.mark.parametrize("name", ["exposed", "targets"])
def test_points_of_nonsense_are_refused(name):
    good = {
        "samples_seen": 1, "experience": 0, "targets": [0, 1], "predictions": [0, 1],
        "exposed": (0, 1), "test_experience": [0, 0],
    }  # fmt: skip
    for value in [None, 3, "x", [0.5, 1.0], [True, False], ["a", "b"]]:
        with pytest.raises(ValueError, match=f"^{name} must "):
            EvaluationPoint(**{**good, name: value})
