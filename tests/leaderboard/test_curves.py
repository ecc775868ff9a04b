"""Curves and matrices of several seeds, by hand; damaged files have no part in them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from avalanche_rwf.cli import main
from avalanche_rwf.evaluation.metrics import EvaluationPoint, a_auc
from avalanche_rwf.leaderboard import curves, plots, read_runs
from avalanche_rwf.leaderboard.curves import read_metrics
from avalanche_rwf.leaderboard.metrics_file import Metrics
from avalanche_rwf.leaderboard.report.data import points

NONE = math.nan


def metrics(shift: float = 0.0) -> str:
    return f"""samples_seen,experience,metric,value
5,,accuracy_exposed,{0.9 - shift}
10,,accuracy_exposed,{1.0 - shift}
10,0,accuracy,{1.0 - shift}
10,,accuracy_class_0,{1.0 - shift}
20,,accuracy_exposed,{0.7 - shift}
20,0,accuracy,{0.6 - shift}
20,1,accuracy,{0.8 - shift}
20,,accuracy_class_0,{0.6 - shift}
20,,accuracy_class_1,{0.8 - shift}
"""


@pytest.fixture
def read(make_run, tmp_path):
    """A function: texts of `metrics.csv`, one a seed -> what is read of them."""

    def write(*texts, experiences=2):
        for seed, text in enumerate(texts):
            path = make_run("rwf", seed, experiences=experiences)
            (path / "metrics.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_metrics(read_runs(tmp_path).frame)

    return write


def test_two_seeds_by_hand(read):
    runs = read(metrics(), metrics(0.1))
    x, values = curves.accuracy_curve(runs)
    assert x.tolist() == [5, 10, 20]
    np.testing.assert_allclose(values, [[0.9, 1.0, 0.7], [0.8, 0.9, 0.6]])
    assert curves.boundaries(runs).tolist() == [10, 20]
    mean, deviation = curves.matrix(runs)
    np.testing.assert_allclose(mean, [[0.95, NONE], [0.55, 0.75]])
    np.testing.assert_allclose(deviation, math.sqrt(0.005) + np.where(np.isnan(mean), NONE, 0))
    np.testing.assert_allclose(curves.class_forgetting(runs), [0.4, NONE])
    assert curves.matrix([])[0].shape == curves.matrix([Metrics()])[0].shape == (0, 0)


def test_seeds_evaluated_elsewhere_are_read_between_their_points(read):
    runs = read(metrics(), metrics(0.1).replace("5,,accuracy_exposed,0.8\n", ""))
    x, values = curves.accuracy_curve(runs)
    assert x.tolist() == [10, 20]  # where both seeds have begun
    np.testing.assert_allclose(values, [[1.0, 0.7], [0.9, 0.6]])


def test_the_same_places_of_seeds_are_put_together():
    one = Metrics(0, {80: 0.5, 100: 0.8, 160: 0.6, 200: 0.7}, {0: 100, 1: 200})
    two = Metrics(1, {82: 0.7, 104: 0.6, 162: 0.8, 200: 0.5}, {0: 104, 1: 200})
    std = round(math.sqrt(0.02), 5)
    assert points(curves.end_curve([one, two])) == [[102, 0.7, std, 2], [200, 0.6, std, 2]]
    # The first place at or after each multiple of 80, and the end.
    assert points(curves.anytime_curve([one, two], 80)) == [
        [81, 0.6, std, 2], [161, 0.7, std, 2], [200, 0.6, std, 2]
    ]  # fmt: skip
    assert points(curves.anytime_curve([one], 100)) == [[100, 0.8, None, 1], [200, 0.7, None, 1]]
    assert points(curves.anytime_curve([one], 0)) == [] == points(curves.end_curve([]))


@pytest.mark.parametrize("every", [1, 7, 30, 200])
def test_the_anytime_points_are_those_that_a_auc_averages(every):
    rng = np.random.default_rng(every)
    evaluated = [
        EvaluationPoint(int(place), None, np.zeros(9, int), rng.integers(0, 2, 9), (0,),
                        np.zeros(9, int))
        for place in sorted(rng.choice(100, 12, replace=False) + 1)
    ]  # fmt: skip
    run = Metrics(0, {p.samples_seen: float(p.correct.mean()) for p in evaluated})
    mean = curves.anytime_curve([run], every).values.mean()
    assert mean == pytest.approx(a_auc(evaluated, every), abs=1e-4)


def test_routing_stands_beside_the_accuracy_on_the_same_classes():
    matrix = np.array([[0.9, NONE], [0.8, 1.0]])
    ends, drift = {0: 100, 1: 200}, {"prompt_drift": {100: 0.0, 200: 0.2}}
    found = curves.routing_curves([Metrics(0, {}, ends, matrix, routing=drift)])
    assert {name: points(curve) for name, curve in found.items()} == {
        "prompt_drift": [[100, 0.0, None, 1], [200, 0.2, None, 1]],
        "accuracy_first": [[100, 0.9, None, 1], [200, 0.8, None, 1]],
    }
    assert curves.routing_curves([Metrics(0, {}, ends, matrix)]) == {}


def test_a_routing_metric_that_one_prompt_does_not_have_has_no_point(read):
    (run,) = read(metrics() + "20,0,routing_overlap,\n")
    assert run.routing == {}


@pytest.mark.parametrize(
    ("less", "front"), [(True, [True, True, False, False]), (False, [False, True, True, False])]
)
def test_pareto_front_by_hand(less, front):
    cost, score = [1, 2, 3, NONE], [0.5, 0.9, 0.7, 1.0]
    assert curves.pareto_front(cost, score, less).tolist() == front
    assert curves.pareto_front([1, 1], [0.5, 0.5]).all()  # equals do not beat each other


# ---- experiences without samples, as Si-Blurry streams have


def test_an_experience_without_samples_is_one_all_the_same(read, tmp_path):
    head, five, *end, second = metrics().partition("20,")[0].splitlines()
    again = "\n".join([head, *end, second] * 2).replace(f"\n{head}\n", "\n")
    later = "20," + metrics().partition("20,")[2].replace("20,1,", "20,2,")
    (run,) = runs = read(f"{again}\n{later}20,0,prompt_drift,0.1\n", experiences=3)
    assert five.startswith("5,") and run.ends == {0: 10, 1: 10, 2: 20}
    assert curves.boundaries(runs).tolist() == curves.end_curve(runs).samples.tolist()
    expected = [[1.0, NONE, NONE], [1.0, NONE, NONE], [0.6, NONE, 0.8]]
    np.testing.assert_allclose(curves.matrix(runs)[0], expected)
    np.testing.assert_allclose(curves.class_forgetting(runs), [0.4, NONE])
    assert curves.routing_curves(runs)["accuracy_first"].values.tolist() == [[1.0, 1.0, 0.6]]
    assert plots.write_plots(read_runs(tmp_path).frame, tmp_path / "plots").notes == []


def test_a_stream_that_begins_without_samples_is_numbered_as_the_others(read):
    """Nothing can be evaluated there: the first evaluation is at the end of experience 1."""
    late = metrics().replace(",1,accuracy,", ",2,accuracy,").replace(",0,accuracy,", ",1,accuracy,")
    early, late = runs = read(metrics(), late, experiences=3)
    assert (early.ends, late.ends) == ({0: 10, 1: 20}, {1: 10, 2: 20})
    np.testing.assert_allclose(late.matrix, [[NONE] * 3, [NONE, 1.0, NONE], [NONE, 0.6, 0.8]])
    np.testing.assert_allclose(
        curves.matrix(runs)[0], [[1.0, NONE, NONE], [0.6, 0.9, NONE], [NONE, 0.6, 0.8]]
    )


def test_end_curves_begin_where_every_seed_has_been_evaluated():
    """The second run's first experience has no samples: its ends are of experiences 1 and 2."""
    early = Metrics(
        0, {30: 0.9, 60: 0.8, 90: 0.4}, {0: 30, 1: 60, 2: 90},
        np.array([[0.9, NONE, NONE], [0.7, 0.9, NONE], [0.3, 0.5, NONE]]),
        routing={"prompt_drift": {30: 0.0, 60: 0.2, 90: 0.6}},
    )  # fmt: skip
    late = Metrics(
        1, {50: 1.0, 90: 0.6}, {1: 50, 2: 90},
        np.array([[NONE] * 3, [NONE, 1.0, NONE], [NONE, 0.5, 0.7]]),
        routing={"prompt_drift": {50: 0.0, 90: 0.4}},
    )  # fmt: skip
    assert curves.first_end([early, late]) == 1
    assert curves.first_end([early]) == 0 == curves.first_end([])
    assert [p[:2] for p in points(curves.end_curve([early, late]))] == [[55, 0.9], [90, 0.5]]
    found = curves.routing_curves([early, late])
    assert [p[:2] for p in points(found["prompt_drift"])] == [[55, 0.1], [90, 0.5]]
    # Of the classes whose images the probe has: those of experience 0 and of experience 1.
    assert [p[:2] for p in points(found["accuracy_first"])] == [[55, 0.85], [90, 0.4]]


# ---- files that are no run's


DAMAGED = {
    "a text as a value": metrics().replace("0.7", "abc"),
    "a truth as a value": re.sub(r"[0-9.]+\n", "True\n", metrics()),
    "no place": metrics().replace("\n20,", "\n,"),
    "an endless place": metrics().replace("\n20,", "\ninf,"),
    "no experience": metrics().replace("20,1,", "20,,"),
    "an experience with a name": metrics().replace("20,1,", "20,b,"),
    "an experience of 13 digits": metrics().replace("20,1,", "20,1000000000000,"),
    "a class of 12 digits": metrics().replace("class_1", "class_100000000000"),
    "a class with a name": metrics().replace("class_1", "class_b"),
    "no metric": metrics().replace("accuracy_exposed", ""),
    "an endless value": metrics().replace("0.7", "inf"),
    "per cent": metrics().replace("0.7", "70"),
    "a value whose sums overflow": metrics() + "20,0,prompt_drift,1e308\n",
    "cut in a row": metrics()[:-40],
    "cut in a number": metrics()[:-2],
    "other columns": metrics().replace("metric", "name"),
    "nothing": "",
    "no text": b"\xff\xfe\x00" * 9,
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_has_no_part_and_hides_no_other(case, read, tmp_path):
    runs = read(metrics(), DAMAGED[case])
    assert [run.seed for run in runs] == [0]
    np.testing.assert_allclose(curves.matrix(runs)[0], [[1.0, NONE], [0.6, 0.8]])


def test_a_run_that_cannot_be_read_is_named_on_the_page_and_beside_the_pictures(
    read, tmp_path, capsys
):
    read(metrics(), metrics()[:-2])
    (path,) = tmp_path.glob("runs/*/*/*/seed1")
    assert main(["report", str(tmp_path)]) == 0
    board = (tmp_path / "report/data/board.js").read_text()
    assert board.count("left out of the curves: its metrics.csv cannot be read") == 1
    assert main(["leaderboard", str(tmp_path), "--plots", str(tmp_path / "plots")]) == 0
    assert f"no curve of {Path(path)}: its metrics.csv cannot be read" in capsys.readouterr().err


def test_classes_at_no_experiences_end_are_no_classes(read):
    more = "15,,accuracy_class_0,0.5\n" * 2 + "17,,accuracy_class_0,0.1\n"
    (run,) = read(metrics() + more)
    assert run.forgetting == pytest.approx({0: 0.4, 1: NONE}, nan_ok=True)
