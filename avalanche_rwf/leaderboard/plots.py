"""Pictures of a leaderboard: one function each, from runs to a matplotlib figure.

Every picture takes `runs`, the frame of `read_runs`, of one protocol (`aggregate.protocols` splits
it); `most`, the best so many rows are drawn; and `target`, one of `TARGETS`: what it is for. It
raises `UsageError` if no run recorded what it shows. It returns a `matplotlib.figure.Figure`, made
without pyplot: nothing is shown and nothing global is changed. A method has one colour, marker and
line everywhere (`style`), and values are told by lightness, so all can be read in grey.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import curves
from avalanche_rwf.leaderboard.aggregate import (
    PROTOCOL,
    aggregate,
    is_reference,
    protocols,
    records,
    row_key,
    runs_by_row,
)
from avalanche_rwf.leaderboard.curves import Measured, measured, over_seeds
from avalanche_rwf.leaderboard.stats import interval
from avalanche_rwf.leaderboard.style import Look, look, looks
from avalanche_rwf.leaderboard.table import hardware_of, protocol_header, row_labels
from avalanche_rwf.utils.untrusted_io import drawable, printable


class Target(NamedTuple):
    """What a picture is for: its width in inches, its letters in points and their family."""

    width: float
    points: float
    family: str

    @property
    def narrow(self) -> bool:
        """One column: frames stand below each other, and the legend below them."""
        return self.width < 4.5

    def rows(self, inches: float) -> float:
        """Return a height that is meant for letters of 8 points."""
        return inches * self.points / 8


TARGETS = {
    "screen": Target(7.2, 8.0, "sans-serif"),
    "neurips": Target(5.5, 8.0, "STIXGeneral"),  # the text's width; a Times that matplotlib ships
    "icml": Target(3.25, 7.5, "STIXGeneral"),  # one of two columns
    "slides": Target(10.0, 14.0, "sans-serif"),
}
# With more methods than this, only the best ones and the reference are drawn in colour.
_IN_ONE_FRAME = 12
_HIGHLIGHTED = 6
# Without the palest end, which looks like the white of a cell without a value.
_BLUES, _ORANGES = (
    LinearSegmentedColormap.from_list(name, colormaps[name](np.linspace(0.07, 1.0, 256)))
    for name in ("Blues", "Oranges")
)
# The colour scale of forgetting reaches at least so many points: a small loss is never dark.
_MUCH = 20.0
# The most rows in a picture, the best first.
MOST = 30
_NAME = 30
_SPREAD = "± 1 st. dev. over seeds"


class _Method(NamedTuple):
    """One row of the leaderboard as it is drawn."""

    label: str
    look: Look
    found: Measured

    @property
    def style(self) -> dict[str, Any]:
        """Return its colour, marker and line for matplotlib."""
        return {"color": self.look.light, "marker": self.look.marker, "linestyle": self.look.line}


Runs = pd.DataFrame | Sequence[_Method]


def _style(target: Target) -> Any:  # matplotlib knows every key by name
    small = 0.94 * target.points
    return {
        "font.family": target.family,
        "mathtext.fontset": "stix" if target.family == "STIXGeneral" else "dejavusans",
        "font.size": target.points,
        "axes.titlesize": target.points,
        "axes.labelsize": target.points,
        "figure.labelsize": target.points,
        "legend.fontsize": small,
        "xtick.labelsize": small,
        "ytick.labelsize": small,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": target.points / 11.5,
        "lines.linewidth": 0.14 * target.points,
        "lines.markersize": 0.5 * target.points,
        "legend.frameon": False,
        "legend.labelspacing": 0.4,
        "figure.constrained_layout.w_pad": 0.05,
        "figure.constrained_layout.h_pad": 0.05,
        "pdf.fonttype": 42,  # text stays text in a paper
        "svg.hashsalt": "avalanche-rwf",  # the same runs give the same file
        "savefig.dpi": 200,
    }


def _text(label: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or as one not to be in the legend."""
    short = label if len(label) <= _NAME else label[: _NAME - 1] + "…"
    short = drawable(" ".join(short.split()))
    return f" {short}" if short.startswith("_") else short


def _methods(runs: pd.DataFrame, most: int = MOST) -> list[_Method]:
    """Return the rows that have a result, best first.

    :raises UsageError: if there are none, or if the runs are of several protocols.
    """
    done = runs[runs["status"] == "done"]
    if done.empty:
        raise UsageError("runs must hold a finished run to draw, got none.")
    board = aggregate(done)
    if len(protocols(board)) > 1:
        raise UsageError(
            f"runs must be of one protocol to be drawn together, got {len(protocols(board))}."
        )
    rows = records(board)
    named = list(zip(map(_text, row_labels(board)), looks(rows), strict=True))
    found = measured(rows[:most], done)
    return [_Method(*name, one) for name, one in zip(named, found, strict=False)]


@contextlib.contextmanager
def _styled(target: str) -> Iterator[Target]:
    """Draw in the style of a target, leaving the user's own style as it is.

    :raises UsageError: if there is no such target.
    """
    if target not in TARGETS:
        raise UsageError(f"target must be one of {', '.join(TARGETS)}, got {target!r}.")
    with matplotlib.rc_context(_style(TARGETS[target])):
        yield TARGETS[target]


def _picture(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Give what draws the methods in the place of their runs, and the target itself."""

    @functools.wraps(draw)
    def drawn(runs: Runs, most: int = MOST, target: str = "screen", **kwargs: Any) -> Figure:
        with _styled(target) as chosen:
            methods = _methods(runs, most) if isinstance(runs, pd.DataFrame) else runs
            return draw(methods, chosen, **kwargs)

    return drawn


def _legend(
    figure: Figure, target: Target, handles: Sequence[Any], labels: Sequence[str]
) -> None:
    """Put the legend outside: to the right of everything, or below it in one column."""
    place: dict[str, Any] = {"loc": "outside right upper", "handlelength": 3.0}
    if target.narrow:
        place = {"loc": "outside lower center", "ncols": 2, "handlelength": 2.4,
                 "columnspacing": 1.0}  # fmt: skip
    figure.legend(handles, labels, **place)


def _figure(target: Target, high: float, entries: int) -> Figure:
    """Return a figure of a target's width.

    :param target: what it is for.
    :param high: inches of what is drawn, at letters of 8 points.
    :param entries: in the legend, which takes its place.
    """
    line = 0.165  # inches
    high = high + line * math.ceil(entries / 2) if target.narrow else max(high, line * entries)
    return Figure(figsize=(target.width, target.rows(high)), layout="constrained")


# ---- the pictures


@_picture
def anytime_accuracy(runs: Sequence[_Method], target: Target, reference: str = "") -> Figure:
    """Accuracy on the classes so far against samples seen, with bands and experience boundaries.

    A line is the mean over seeds, its band one sample standard deviation to each side; dotted lines
    are the ends of experiences (the mean over seeds, where seeds differ). Of more than twelve
    methods the best six and the reference are drawn in colour before the others in grey.

    :param reference: a method, or the beginning of a configuration's hash, that is always in
        colour.
    """
    lines = [(m, curves.accuracy_curve(m.found.metrics)) for m in runs]
    lines = [(method, curve) for method, curve in lines if len(curve.samples)]
    if not lines:
        raise UsageError("runs must have recorded accuracy_exposed in metrics.csv, got none.")
    ends = max((curves.boundaries(m.found.metrics) for m, _ in lines), key=len)
    many = len(lines) > _IN_ONE_FRAME
    bright = [
        i for i, (method, _) in enumerate(lines)
        if not many or i < _HIGHLIGHTED or is_reference(method.found.values, reference)
    ]  # fmt: skip
    figure = _figure(target, 2.1 if target.narrow else 3.2, len(bright) + 3)
    axis = figure.subplots()
    for end in ends[:-1]:
        axis.axvline(end, color="0.6", linewidth=0.7, linestyle=":", zorder=0)
    handles: list[Any] = []
    labels: list[str] = []
    for i, (method, (x, values)) in enumerate(lines):
        mean, deviation = over_seeds(100 * values)
        if i not in bright:
            axis.plot(x, mean, color="0.82", linewidth=0.6, zorder=1)
            continue
        deviation = np.nan_to_num(deviation)
        low, high = np.maximum(mean - deviation, 0.0), np.minimum(mean + deviation, 100.0)
        faint = 0.15 if len(bright) < 6 else 0.06  # many bands lie over each other
        axis.fill_between(x, low, high, color=method.look.light, alpha=faint, linewidth=0)
        # The best is drawn last, over the others.
        every = math.ceil(len(x) / 12)
        handles += axis.plot(x, mean, **method.style, markevery=every, zorder=3 - i / 100)
        labels.append(method.label)
    axis.set(xlabel="training samples seen", ylabel="accuracy on the classes so far (%)")
    axis.xaxis.set_major_locator(MaxNLocator(4 if target.narrow else 6, integer=True))
    if many:
        handles.append(Line2D([], [], color="0.82", linewidth=0.6))
        labels.append(f"the other {len(lines) - len(bright)}")
    handles.append(Rectangle((0, 0), 1, 1, color="0.5", alpha=0.25, linewidth=0))
    labels.append(_SPREAD)
    if len(ends) > 1:
        handles.append(Line2D([], [], color="0.6", linewidth=0.7, linestyle=":"))
        labels.append("end of an experience")
    _legend(figure, target, handles, labels)
    return figure


@_picture
def accuracy_matrices(runs: Sequence[_Method], target: Target) -> Figure:
    """Accuracy on every experience after every experience, one heat map a method, side by side.

    Darker is better; cells are means over seeds in per cent, white where an experience had not been
    met. Experiences are numbered from 1, as on the page. Values are written in maps of up to ten.
    """
    drawn = [(m, 100 * curves.matrix(m.found.metrics)[0]) for m in runs]
    drawn = [(method, matrix) for method, matrix in drawn if matrix.size]
    if not drawn:
        raise UsageError("runs must have recorded accuracy by experience in metrics.csv, got none.")
    size = max(len(matrix) for _, matrix in drawn)
    across = (2 if target.narrow else 3) if 5 < size <= 10 else (3 if target.narrow else 5)
    across = min(across, len(drawn))
    down = math.ceil(len(drawn) / across)
    letters = target.points / 72
    side = min((target.width - 10 * letters) / across - 2 * letters, 2.2)
    width = min(target.width, across * (side + 2 * letters) + 9 * letters)
    figure = Figure(
        figsize=(width, down * (side + 2 * letters) + 4 * letters), layout="constrained"
    )
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    scale = Normalize(0, 100)
    step = math.ceil(size / 6) if size > 10 else 1
    ticks = range(step - 1, size, step)
    cell = 72 * side / size  # points
    small = min(0.82 * target.points, 0.48 * cell)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    for axis, (method, matrix) in zip(axes, drawn, strict=False):
        axis.imshow(matrix, cmap=_BLUES, norm=scale, aspect="equal")
        room = int(1.9 * 72 * (side + letters) / target.points)  # letters of a title
        axis.set_title(method.label if len(method.label) <= room else
                       method.label[: room - 1] + "…", pad=3)  # fmt: skip
        for set_ticks in (axis.set_xticks, axis.set_yticks):
            set_ticks(ticks, [str(tick + 1) for tick in ticks])
        axis.tick_params(labelsize=max(small, 0.6 * target.points), pad=2, length=2)
        if size <= 10:
            _write_values(axis, matrix, lambda value: value > 55, small)
    for axis in axes[max(0, len(drawn) - across) : len(drawn)]:  # the lowest of each column
        axis.tick_params(labelbottom=True)
    figure.supxlabel("test experience")
    figure.supylabel("after training experience")
    figure.colorbar(
        ScalarMappable(scale, _BLUES), ax=axes, label="accuracy (%)", pad=0.02, aspect=30
    )
    return figure


def _write_values(
    axis: Axes, values: NDArray[Any], dark: Callable[[float], bool], size: float
) -> None:
    """Write the numbers of a heat map [rows, columns] into its cells, white on dark ones."""
    for i, j in product(*map(range, values.shape)):
        value = float(values[i, j])
        if not math.isnan(value):
            text = f"{value:.0f}".replace("-0", "0") if abs(value) < 0.5 else f"{value:.0f}"
            colour = "white" if dark(value) else "black"
            written = axis.text(
                j, i, text, ha="center", va="center", fontsize=size, color=colour
            )
            if value < 0:  # a white spot keeps a number on hatching readable
                written.set_bbox({"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"})


@_picture
def accuracy_against_cost(runs: Sequence[_Method], target: Target) -> Figure:
    """A_last against training speed and against trainable parameters, the Pareto front marked.

    Points are means over seeds, bars one sample standard deviation. A filled point is on the front:
    no other method is as good in both and better in one; hollow ones are behind it. Points that
    would hide each other stand side by side.
    """
    rows = [method.found.values for method in runs]
    score, deviation = (
        np.array([100 * _number(row, f"a_last_{name}") for row in rows]) for name in ("mean", "std")
    )
    costs = {
        field: np.array([_number(row, f"{field}_mean") for row in rows])
        for field in ("train_samples_per_second", "trainable_parameters")
    }
    if all(np.isnan(cost).all() for cost in costs.values()):
        raise UsageError("runs must have recorded their speed or parameters, got none.")
    figure = _figure(target, 4.0 if target.narrow else 3.2, len(rows) + 3)
    axes = figure.subplots(*((2, 1) if target.narrow else (1, 2)), sharey=True)
    points = []
    for axis, (field, cost) in zip(axes, costs.items(), strict=True):
        less = field == "trainable_parameters"
        points += _draw_cost(axis, runs, cost, score, np.nan_to_num(deviation), less, target)
        several = not less and len(hardware_of(rows)) > 1
        better = "less" if less else "of several machines; more" if several else "more"
        title = "trained parameters" if less else "training images/s"
        axis.set_xlabel(f"{title}\n({better} is better)")
        axis.grid(color="0.9", linewidth=0.5)
        if less or not target.narrow:
            axis.margins(y=0.08)
    for axis in axes if target.narrow else axes[:1]:
        axis.set_ylabel("accuracy after the stream (%)")
    marker = 0.8 * target.points
    handles: list[Any] = [
        Line2D([], [], **{**method.style, "linestyle": "none"}, markersize=marker)
        for method in runs
    ]
    grey: dict[str, Any] = {"color": "0.4", "linewidth": 0.9}
    handles += [
        Line2D([], [], **grey, marker="o"),
        Line2D([], [], **{**grey, "linewidth": 0}, marker="o", markerfacecolor="white"),
        Line2D([], [], **{**grey, "linewidth": 0}, marker="|", markersize=9),
    ]
    said = ["filled: Pareto front", "hollow: behind it", f"bar: {_SPREAD}"]
    _legend(figure, target, handles, [*(method.label for method in runs), *said])
    figure.draw_without_rendering()
    _move_apart(points, marker)
    return figure


def _draw_cost(
    axis: Axes,
    runs: Sequence[_Method],
    cost: NDArray[Any],
    score: NDArray[Any],
    deviation: NDArray[Any],
    less: bool,
    target: Target,
) -> list[tuple[Axes, float, float, Any]]:
    """Draw the methods' scores against one cost, and the front; less: of the cost is better.

    :returns: axis, place, height and what `errorbar` has drawn, of each method.
    """
    points = []
    front = curves.pareto_front(cost, score, less)
    for i, method in enumerate(runs):
        bars = axis.errorbar(
            cost[i], score[i], yerr=deviation[i], elinewidth=0.8, zorder=4 if front[i] else 3,
            **{**method.style, "linestyle": "none"}, markersize=0.8 * target.points,
            markerfacecolor=method.look.light if front[i] else "white",
        )  # fmt: skip
        points.append((axis, cost[i], score[i], bars))
    order = np.flatnonzero(front)[np.argsort(cost[front])]
    # A method on the front is the best to be had from its cost on (or down to its speed).
    where = "steps-post" if less else "steps-pre"
    axis.plot(cost[order], score[order], drawstyle=where, color="0.4", linewidth=0.9, zorder=2)
    _log_scale(axis, cost[~np.isnan(cost)], 3 if target.narrow else 5)
    return points


def _move_apart(points: Sequence[tuple[Axes, float, float, Any]], size: float) -> None:
    """Move points that would hide each other sideways, each to the nearest free place.

    :param points: axis, place, height and what `errorbar` has drawn there; the first stay.
    :param size: of a marker, in points.
    """
    placed: list[tuple[Axes, float, float]] = []
    for axis, x, y, bars in points:
        if math.isnan(x):
            continue
        pixels = size * axis.figure.dpi / 72
        here, height = axis.transData.transform((x, y))
        left, right = axis.get_window_extent().intervalx
        taken = [px for other, px, py in placed
                 if other is axis and abs(py - height) < 0.9 * pixels]  # fmt: skip
        sides = [here + sign * step * 0.68 * pixels for step in range(60) for sign in (1, -1)]
        free = [place for place in sides if left < place < right
                and all(abs(place - px) >= 1.35 * pixels for px in taken)]  # fmt: skip
        place = free[0] if free else here
        placed.append((axis, place, height))
        if place != here:
            moved = axis.transData.inverted().transform((place, height))[0]
            line, _, bar_lines = bars
            line.set_xdata([moved])
            for bar in bar_lines:
                bar.set_segments([[(moved, py) for _, py in ends] for ends in bar.get_segments()])


def _log_scale(axis: Axes, values: NDArray[Any], most: int) -> None:
    """Set a logarithmic x axis with a place for 0, and a few plain ticks such as 50, 200 and 10k.

    :param axis: to be set.
    :param values: what is drawn on it, 0 or more.
    :param most: ticks that there is room for, about.
    """
    positive = values[values > 1e-30]  # smaller ones look like 0
    if not len(positive):
        axis.set_xlim(-1, 1)
        axis.set_xticks([0], ["0"])
        return
    low, high = float(positive.min()), float(positive.max())
    # The axis reaches at least a factor of 1.6 to each side of a value.
    low, high = min(low, high / 1.6) / 1.3, max(high, low * 1.6) * 1.5
    zeros = len(values) - len(positive)
    digits, every = _tick_digits(low, high, most)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ticks = [d * 10.0**e for e in range(first, last + 1) for d in digits if e % every == 0]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if zeros:
        # From 0 to the smallest value it is as wide as a decade; left of 0 is room for points that
        # stand side by side.
        axis.set_xscale("symlog", linthresh=low, linscale=0.6)
        axis.set_xlim(-low * (0.3 if zeros == 1 else 0.8), high)
        ticks = [0.0, *ticks]
    else:
        axis.set_xscale("log")
        axis.set_xlim(low, high)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.minorticks_off()


def _tick_digits(low: float, high: float, most: int) -> tuple[tuple[float, ...], int]:
    """Return the first digits of an axis' ticks and how many decades are from one to the next.

    The finest that give no more than `most` and one ticks, so that no two labels meet.
    """
    decades = math.log10(high / low)
    for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        if len(digits) * decades <= most + 0.5:
            return digits, 1
    return (1,), max(1, math.ceil(decades / (most + 0.5)))


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    return math.nan if value is None or value is pd.NA else float(value)


@_picture
def forgetting_by_class(runs: Sequence[_Method], target: Target) -> Figure:
    """What each method lost of each class since its best moment, methods down and classes across.

    Classes are numbered in the order in which the stream brings them, so the oldest are on the
    left. Means over seeds in per cent points, darker is more; a class that gained is hatched.
    """
    drawn = [(m, 100 * curves.class_forgetting(m.found.metrics)) for m in runs]
    drawn = [(method, losses) for method, losses in drawn if not np.isnan(losses).all()]
    if not drawn:
        raise UsageError(
            "runs must have recorded accuracy_class_* in metrics.csv and have two experiences or "
            "more, got none."
        )
    classes = max(1 + int(np.flatnonzero(~np.isnan(losses))[-1]) for _, losses in drawn)
    table = np.full((len(drawn), classes), np.nan)
    for row, (_, losses) in zip(table, drawn, strict=True):
        row[: min(len(losses), classes)] = losses[:classes]
    letters = target.points / 72
    names = min(14.0, 0.62 * max(len(method.label) for method, _ in drawn) + 1)
    width = min(target.width, (names + 9) * letters + max(2.6, 3.2 * letters * classes))
    figure = Figure(
        figsize=(width, target.rows(0.9 + 0.22 * max(3, len(drawn)))), layout="constrained"
    )
    axis = figure.subplots()
    most_lost = max(_MUCH, float(np.nanmax(table)))
    image = axis.imshow(
        table, cmap=_ORANGES, norm=Normalize(0, most_lost), aspect="auto", interpolation="nearest"
    )
    for i, j in np.argwhere(table < -0.5):
        axis.add_patch(
            Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.6", lw=0)
        )
    cell = 72 * (width - (names + 8) * letters) / classes
    if cell > 10:
        _write_values(axis, table, lambda value: value > 0.55 * most_lost,
                      min(0.82 * target.points, 0.55 * cell))  # fmt: skip
    axis.set_yticks(range(len(drawn)), [method.label for method, _ in drawn])
    axis.xaxis.set_major_locator(MaxNLocator(min(classes, 12), integer=True))
    hatched = " (hatched: gained)" if axis.patches else ""
    axis.set_xlabel(f"class number, in the order of the stream{hatched}")
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    figure.colorbar(image, ax=axis, label="forgetting (points)", pad=0.02)
    return figure


def _shots(options: Any) -> float:
    """Return the shots of a stream from the options of its runs, NaN if they name none."""
    value = json.loads(options).get("shots") if isinstance(options, str) and options else None
    return float(value) if isinstance(value, (int, float)) else math.nan


# Settings whose default follows from the shots: a stream is evaluated at every quarter.
_FOLLOWS = ("eval_every_samples",)


def few_shot_series(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Split runs into those that `few_shot` may draw together: protocols alike but for the shots.

    :param runs: the frame of `read_runs`.
    :returns: runs that are done, at two numbers of shots or more each, in their order.
    """
    done = runs[runs["status"] == "done"]
    done = done[done["stream_options"].map(_shots).notna()]

    def others(text: str) -> str:
        return json.dumps({k: v for k, v in json.loads(text).items() if k != "shots"})

    keys = [name for name in PROTOCOL if name not in ("stream_options", *_FOLLOWS)]
    by = [done[name] for name in keys] + [done["stream_options"].map(others)]
    groups: list[pd.DataFrame] = []
    for _, group in done.groupby(by, dropna=False, sort=False):
        shots = group["stream_options"].map(_shots)
        follows = group.groupby(shots)[list(_FOLLOWS)].nunique().to_numpy().max() < 2
        parts = [(0, group)] if follows else group.groupby(list(_FOLLOWS), sort=False)
        groups += [part for _, part in parts]
    return [group for group in groups if group["stream_options"].map(_shots).nunique() > 1]


def few_shot(runs: pd.DataFrame, most: int = MOST, target: str = "screen") -> Figure:
    """A_last against the number of training images per class, from runs at several of them.

    Points are means over seeds, bars the 95 % interval (Student's t), cut at 0 and 100 %.

    Its runs are of two numbers of shots or more and differ in these (and in what follows from them)
    only; `few_shot_series` splits them so.
    """
    series = few_shot_series(runs)
    if len(series) != 1:
        raise UsageError(
            "runs must be of two numbers of shots or more to draw a few-shot curve."
            if not series
            else f"runs must differ in their shots only to be drawn together, got {len(series)} "
            "series of other streams, backbones or batches."
        )
    with _styled(target) as chosen:
        return _draw_few_shot(series[0], most, chosen)


def _draw_few_shot(done: pd.DataFrame, most: int, target: Target) -> Figure:
    lines: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    grouped = runs_by_row(done)
    for table in protocols(aggregate(done)):
        shots = _shots(table["stream_options"].iloc[0])
        for label, row in zip(row_labels(table), records(table), strict=True):
            values = grouped[row_key(row)]["a_last"].to_numpy(np.float64)
            point = (shots, float(values.mean()), *interval(values))
            lines.setdefault((str(row["method"]), label), []).append(point)
    chosen = sorted(lines.items(), key=lambda item: -max(item[1])[1])[:most]
    named = sorted(lines)
    figure = _figure(target, 2.1 if target.narrow else 3.2, len(chosen) + 1)
    axis = figure.subplots()
    handles: list[Any] = []
    # Moved apart by a few per cent of their place, so that the bars can be told from each other.
    apart = 1.0 + 0.012 * (np.arange(len(chosen)) - (len(chosen) - 1) / 2)
    for move, ((method, label), line) in zip(apart, chosen, strict=True):
        found = look(method, [one for one in named if one[0] == method].index((method, label)))
        x, mean, low, ends = np.array(sorted(line)).T
        ends = np.stack([mean - np.maximum(low, 0.0), np.minimum(ends, 1.0) - mean])
        bars = 100 * np.nan_to_num(ends)
        handles.append(
            axis.errorbar(
                x * move, 100 * mean, yerr=bars, elinewidth=0.7, capsize=2,
                color=found.light, marker=found.marker, linestyle=found.line,
            )
        )  # fmt: skip
    ticks = sorted({shots for _, line in chosen for shots, *_ in line})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{shots:g}" for shots in ticks])
    axis.minorticks_off()
    axis.set(xlabel="training images per class", ylabel="accuracy after the stream (%)")
    handles.append(Line2D([], [], color="0.4", linestyle="none", marker="|", markersize=9))
    _legend(
        figure, target, handles, [*(_text(label) for (_, label), _ in chosen), "bar: 95 % interval"]
    )
    return figure


# ---- files

# Of one protocol each; `few_shot` is of several.
PICTURES: dict[str, Callable[..., Figure]] = {
    "anytime-accuracy": anytime_accuracy,
    "accuracy-matrices": accuracy_matrices,
    "accuracy-against-cost": accuracy_against_cost,
    "forgetting-by-class": forgetting_by_class,
}
_FORMATS = ("svg", "pdf", "png")


class Written(NamedTuple):
    """What `write_plots` wrote, and what it could not draw and why."""

    paths: list[Path]
    notes: list[str]


def write_plots(
    runs: pd.DataFrame,
    folder: str | os.PathLike[str],
    target: str = "screen",
    reference: str = "",
) -> Written:
    """Write every picture that the runs allow, each as SVG, PDF and PNG.

    One protocol's are ``<picture>.svg`` and so on; those of several are in a folder each, numbered
    as the tables of the leaderboard are, with the protocol in the file's title.

    :param runs: the frame of `read_runs`.
    :param folder: made where it is missing.
    :param target: one of `TARGETS`: what the pictures are for.
    :param reference: a method, or the beginning of a configuration's hash, that is always in
        colour.
    :raises UsageError: if the folder cannot be written to.
    """
    out = Path(folder)
    paths: list[Path] = []
    notes: list[str] = []
    try:
        for place, title, draw in _to_draw(runs, out, reference, notes):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                figure = draw(target=target)
            except UsageError as error:
                notes.append(f"{place.parent.name}/{place.name} not drawn: {error}")
                continue
            # Laid out once, and not again for every format.
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            for kind in _FORMATS:
                paths.append(place.with_name(f"{place.name}.{kind}"))
                with _styled(target):
                    figure.savefig(paths[-1], format=kind, metadata=_metadata(kind, title))
    except OSError as error:
        raise UsageError(
            f"--plots takes a folder that can be written to, and {str(out)!r} cannot "
            f"({error.strerror})."
        ) from error
    return Written(paths, notes)


def _to_draw(
    runs: pd.DataFrame, out: Path, reference: str, notes: list[str]
) -> Iterator[tuple[Path, str, Callable[..., Figure]]]:
    """Give each picture's place without ending, its title, and what draws it; notes are added."""
    tables = protocols(aggregate(runs))
    grouped = runs_by_row(runs)
    for number, table in enumerate(tables, 1):
        place = out if len(tables) == 1 else out / str(number)
        rows = records(table)
        own = pd.concat([grouped[row_key(row)] for row in rows])
        drawn: Runs = own  # without a result, each picture says so
        if (own["status"] == "done").any():
            drawn = _methods(own)
            notes += [
                f"no curve of {Path(run['folder']) / run['run_dir']}: its metrics.csv cannot be "
                "read"
                for method in drawn for run in method.found.unread
            ]  # fmt: skip
        for name, picture in PICTURES.items():
            more = {"reference": reference} if picture is anytime_accuracy else {}
            draw = functools.partial(picture, drawn, **more)
            yield place / name, protocol_header(rows[0]), draw
    series = few_shot_series(runs)
    for number, own in enumerate(series, 1):
        name = "few-shot" if len(series) == 1 else f"few-shot-{number}"
        yield out / name, "accuracy against shots", functools.partial(few_shot, own)


def _metadata(kind: str, title: str) -> dict[str, Any]:
    """Return what a file says of itself; no date, so that the same runs give the same file."""
    said = {"Title": printable(title)}
    return {**said, **{"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})}
