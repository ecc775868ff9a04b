"""Pictures: their numbers by hand, and that every file is written, whatever a method is called."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from avalanche_rwf.cli import main
from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import plots, read_runs
from avalanche_rwf.leaderboard.style import look

from .test_curves import metrics

NASTY = "_$x<b>&amp;"


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
        # A name is text, not markup.
        assert b"<b>" not in content or path.suffix != ".svg"


def test_what_was_not_recorded_is_not_drawn_and_said(runs, tmp_path):
    for path in tmp_path.rglob("metrics.csv"):
        path.unlink()
    with pytest.raises(UsageError, match="accuracy_class_"):
        plots.forgetting_by_class(runs)
    with pytest.raises(UsageError, match="got none"):
        plots.anytime_accuracy(runs[runs["status"] == "failed"])
    costs = ["train_samples_per_second", "trainable_parameters"]
    with pytest.raises(UsageError, match="their speed or parameters, got none"):
        plots.accuracy_against_cost(runs.assign(**dict.fromkeys(costs, math.nan)))
    halves = runs.assign(batch_size=runs["seed"] + 1)
    with pytest.raises(UsageError, match="of one protocol to be drawn together, got 2"):
        plots.anytime_accuracy(halves)


def test_a_folder_that_takes_no_picture_is_named(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    place = str(tmp_path / "file")
    assert main(["leaderboard", str(tmp_path), "--plots", place]) == 2
    err = capsys.readouterr().err
    assert f"--plots takes a folder that can be written to, and {place!r} cannot" in err
    assert err.count("\n") == 1
    assert (tmp_path / "file").read_text() == ""


@pytest.fixture
def methods(make_run, tmp_path):
    """A function: so many methods with curves, the best first -> their runs."""

    def make(number, **summary):
        for index in range(number):
            path = make_run(f"m{index:02}", experiences=2,
                            summary={"a_last": 0.9 - 0.01 * index, **summary})  # fmt: skip
            (path / "metrics.csv").write_text(metrics(0.01 * index))
        return read_runs(tmp_path).frame

    return make


@pytest.mark.parametrize(("number", "bright"), [(12, range(12)), (14, (0, 1, 2, 3, 4, 5, 13))])
def test_many_curves_share_a_frame_with_the_best_and_the_reference_in_colour(
    number, bright, methods
):
    figure = plots.anytime_accuracy(methods(number), reference="m13")
    (axis,) = figure.axes
    (legend,) = figure.legends
    said = [text.get_text() for text in legend.get_texts()]
    assert said[: len(bright)] == [f"m{index:02}" for index in bright]
    assert ("the other 7" in said) == (number > 12)
    drawn = {line.get_color() for line in axis.lines if len(line.get_xdata()) == 3}
    grey = {"0.82"} if number > 12 else set()
    assert drawn == grey | {look(f"m{i:02}").light for i in bright}


def test_methods_of_no_parameters_and_one_score_do_not_hide_each_other(methods):
    runs = methods(6, trainable_parameters=0, a_last=0.9)
    figure = plots.accuracy_against_cost(runs)
    axis = figure.axes[1]
    low, high = axis.get_xlim()
    places = [axis.transData.transform((bars.lines[0].get_xdata()[0], 0))[0]
              for bars in axis.containers]  # fmt: skip
    assert all(low < bars.lines[0].get_xdata()[0] < high for bars in axis.containers)
    marker = axis.containers[0].lines[0].get_markersize() * figure.dpi / 72
    assert np.diff(sorted(places)).min() > marker


@pytest.mark.parametrize("target", plots.TARGETS)
def test_pictures_fit_what_they_are_for(target, methods):
    runs = methods(7)
    for picture in plots.PICTURES.values():
        figure = picture(runs, target=target)
        figure.draw_without_rendering()
        width, high = figure.get_size_inches()
        assert width <= plots.TARGETS[target].width and high < 1.9 * width
        page = figure.bbox
        texts = [axis.xaxis.label for axis in figure.axes] + figure.legends
        boxes = [text.get_window_extent() for text in texts]
        for box in boxes:
            assert page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1
        for one, other in itertools.combinations([box for box in boxes if box.width > 1], 2):
            assert not one.overlaps(other)
    with pytest.raises(UsageError, match=r"target must be one of screen, .* got 'poster'"):
        plots.anytime_accuracy(runs, target="poster")


def test_what_was_gained_is_hatched_and_said(make_run, tmp_path):
    path = make_run("rwf", experiences=2)
    gained = metrics().replace("20,,accuracy_class_0,0.6", "20,,accuracy_class_0,1.0").replace(
        "10,,accuracy_class_0,1.0", "10,,accuracy_class_0,0.25")
    (path / "metrics.csv").write_text(gained)
    axis = plots.forgetting_by_class(read_runs(tmp_path).frame).axes[0]
    (patch,) = axis.patches
    assert patch.get_hatch() and patch.get_xy() == (-0.5, -0.5)
    assert "hatched: gained" in axis.get_xlabel()
    assert axis.texts[0].get_text() == "-75"


@pytest.mark.parametrize("costs", [(5e-324, 1e30), (1e-320, 0.0), (5e-324, 5e-324)])
def test_costs_of_next_to_nothing_are_drawn(costs, make_run, tmp_path):
    for name, cost in zip("ab", costs, strict=True):
        both = {"train_samples_per_second": cost, "trainable_parameters": cost}
        make_run(name, summary=both)
    figure = plots.accuracy_against_cost(read_runs(tmp_path).frame)
    figure.draw_without_rendering()
    assert len(figure.axes) == 2


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


@pytest.mark.parametrize(
    "values",
    [
        (0, 0, 1610, 11_210, 139_200), (222, 240), (0,), (105, 659), (53, 150), (0.4, 30, 1e9),
        (0, 3, 86_000_000), (1000,), (999.6, 1000.2), (0, 5), (0, 650, 700),
    ],
)  # fmt: skip
def test_ticks_of_costs_are_plain_numbers_that_do_not_meet(make_run, tmp_path, values):
    for index, value in enumerate(values):
        make_run(f"m{index}", summary={"trainable_parameters": value,
                                       "train_samples_per_second": value or None})  # fmt: skip
    figure = plots.accuracy_against_cost(read_runs(tmp_path).frame)
    figure.draw_without_rendering()
    axis = figure.axes[1]
    low, high = axis.get_xlim()
    assert all(low < value < high for value in values)
    shown = [label for place, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
             if low <= place <= high]  # fmt: skip
    assert len(shown) >= (1 if not any(values) else 2)
    assert all(re.fullmatch(r"[0-9.]+[kMG]?", label.get_text()) for label in shown)
    assert not axis.get_xticklabels(minor=True)
    boxes = [label.get_window_extent() for label in shown]
    for left, right in itertools.pairwise(boxes):
        assert left.x1 + 3 < right.x0


def test_a_picture_says_what_its_bars_and_bands_are(runs):
    said = {
        plots.anytime_accuracy: "± 1 st. dev. over seeds",
        plots.accuracy_against_cost: "bar: ± 1 st. dev. over seeds",
    }
    for picture, words in said.items():
        (legend,) = picture(runs).legends
        assert words in [text.get_text() for text in legend.get_texts()]


def test_few_shot_curves_of_other_benchmarks_are_other_pictures(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_FORMATS", ("svg",))
    monkeypatch.setattr(plots, "PICTURES", {})
    for index, (benchmark, shots) in enumerate([("a", 1), ("a", 5), ("b", 1), ("b", 5), ("c", 1)]):
        for seed in (0, 1):
            make_run("rwf", seed, f"aaa{index}", benchmark=benchmark,
                     stream_options={"shots": shots, "classes_per_experience": 2},
                     eval_every_samples=10 * shots,
                     summary={"a_last": 0.5 + 0.4 * seed})  # fmt: skip
    runs = read_runs(tmp_path).frame
    assert [sorted(set(series["benchmark"])) for series in plots.few_shot_series(runs)] == [
        ["a"], ["b"]
    ]  # fmt: skip
    with pytest.raises(UsageError, match="2 series"):
        plots.few_shot(runs)
    names = {path.stem for path in plots.write_plots(runs, tmp_path / "plots").paths}
    assert {"few-shot-1", "few-shot-2"} <= names
    (axis,) = plots.few_shot(runs[runs["benchmark"] == "a"]).axes
    (bars,) = axis.containers[0].lines[2]
    ends = np.array(bars.get_segments())[:, :, 1]
    np.testing.assert_allclose(ends, [[0, 100], [0, 100]])  # two seeds, far apart
