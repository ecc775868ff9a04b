"""Pictures: their numbers by hand, and that every file is written, whatever a method is called."""

from __future__ import annotations

import math

import numpy as np
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import plots, read_runs

NASTY = "_$x<b>&amp;"


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
def runs(make_run, tmp_path):
    for seed in (0, 1):
        for index, method in enumerate(("rwf", "ncm")):
            path = make_run(method, seed, f"aaa{index}", options={"name": NASTY}, experiences=2,
                            summary={"trainable_parameters": 100 * index})  # fmt: skip
            (path / "metrics.csv").write_text(metrics(0.1 * seed))
    frame = read_runs(tmp_path).frame
    frame["method"] = frame["method"].replace("ncm", NASTY)
    return frame


def test_numbers_by_hand(runs):
    read = plots.read_metrics(runs[runs["method"] == "rwf"])
    x, lines = plots._curves(read)
    assert x.tolist() == [5, 10, 20]
    np.testing.assert_allclose(lines, [[0.9, 1.0, 0.7], [0.8, 0.9, 0.6]])
    assert plots._boundaries(read).tolist() == [10, 20]
    np.testing.assert_allclose(plots._matrix(read), [[0.95, math.nan], [0.55, 0.75]])
    np.testing.assert_allclose(plots._class_forgetting(read), [0.4, math.nan])


def test_seeds_evaluated_elsewhere_are_read_between_their_points(runs):
    read = plots.read_metrics(runs[runs["method"] == "rwf"])
    read = read[~((read["seed"] == 1) & (read["samples_seen"] == 5))]
    x, lines = plots._curves(read)
    assert x.tolist() == [10, 20]  # where both seeds have begun
    np.testing.assert_allclose(lines, [[1.0, 0.7], [0.9, 0.6]])


@pytest.mark.parametrize(
    ("less", "front"), [(True, [True, True, False, False]), (False, [False, True, True, False])]
)
def test_pareto_front_by_hand(less, front):
    cost, score = [1, 2, 3, math.nan], [0.5, 0.9, 0.7, 1.0]
    assert plots.pareto_front(cost, score, less).tolist() == front
    assert plots.pareto_front([1, 1], [0.5, 0.5]).all()  # equals do not beat each other


def test_every_picture_is_written_in_every_format(runs, tmp_path):
    written = plots.write_plots(runs, tmp_path / "plots")
    assert written.notes == []
    assert {p.name for p in written.paths} == {
        f"{name}.{kind}" for name in plots.PICTURES for kind in ("svg", "pdf", "png")
    }
    starts = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}
    for path in written.paths:
        content = path.read_bytes()
        assert content.startswith(starts[path.suffix[1:]])
        assert len(content) > 3000
    text = plots.svg(plots.accuracy_against_cost(runs))
    assert text.startswith("<svg")
    assert "<b>" not in text


def test_what_was_not_recorded_is_not_drawn_and_said(runs, tmp_path):
    for path in tmp_path.rglob("metrics.csv"):
        path.unlink()
    with pytest.raises(UsageError, match="accuracy_class_"):
        plots.forgetting_by_class(runs)
    with pytest.raises(UsageError, match="got none"):
        plots.anytime_accuracy(runs[runs["status"] == "failed"])


def test_few_shot_is_of_several_numbers_of_shots(make_run, tmp_path):
    for index, shots in enumerate((1, 5)):
        for seed in (0, 1):
            make_run("rwf", seed, f"aaa{index}", stream_options={"shots": shots},
                     summary={"a_last": 0.1 * shots + 0.1 * seed})  # fmt: skip
    runs = read_runs(tmp_path).frame
    (axis,) = plots.few_shot(runs).axes
    x, y = axis.containers[0].lines[0].get_data()
    assert list(x) == [1, 5]
    np.testing.assert_allclose(y, [15, 55])
    with pytest.raises(UsageError, match="two numbers of shots"):
        plots.few_shot(runs[runs["config_hash"] == "aaa0"])
