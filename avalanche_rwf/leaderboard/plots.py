"""Pictures of a leaderboard: one function each, from runs to a matplotlib figure.

Every function takes the frame of `read_runs` (of one protocol: `aggregate.protocols` splits it) and
returns a `matplotlib.figure.Figure`, made without pyplot: nothing is shown and nothing global is
changed. All can be read in grey: methods differ by marker and line style, values by lightness.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard.aggregate import (
    MOST_MEASURED,
    PROTOCOL,
    aggregate,
    protocols,
    records,
    row_key,
    runs_by_row,
)
from avalanche_rwf.leaderboard.stats import interval
from avalanche_rwf.leaderboard.table import hardware_of, protocol_header, row_labels
from avalanche_rwf.utils.untrusted_io import drawable, printable, read_file

__all__ = [
    "PICTURES",
    "Written",
    "accuracy_against_cost",
    "accuracy_matrices",
    "anytime_accuracy",
    "few_shot",
    "few_shot_series",
    "forgetting_by_class",
    "pareto_front",
    "read_metrics",
    "svg",
    "unreadable",
    "write_plots",
]

# Of Okabe and Ito, told apart by the colour-blind; in grey the marker and the dashes tell.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP<X>*ph8"
_DASHES = ("-", "--", ":", "-.")
_STYLE: Any = {  # of which matplotlib knows every key by name
    "font.size": 8.0,
    "axes.titlesize": 8.0,
    "axes.labelsize": 8.0,
    "legend.fontsize": 7.5,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "pdf.fonttype": 42,  # text stays text in a paper
    "svg.hashsalt": "avalanche-rwf",  # the same runs give the same file
    "savefig.dpi": 200,
}
# Beyond this many methods lines in one frame hide each other: each gets a frame of its own.
_IN_ONE_FRAME = 9
# From a grey that can be told from the white of a cell without a value.
_FROM_GREY = LinearSegmentedColormap.from_list("from-grey", ["0.9", "0"])
# Forgetting of less than this many points is not drawn black, be it the most there is.
_MUCH = 20.0
# Of a sweep of hundreds of rows a picture shows the best.
MOST = 30
_NAME = 30


class _Method(NamedTuple):
    """One row of the leaderboard as it is drawn."""

    label: str
    runs: pd.DataFrame
    row: dict[str, Any]


def _text(label: str) -> str:
    """Keep matplotlib from reading a name as mathematics, or as one not to be in the legend."""
    short = label if len(label) <= _NAME else label[: _NAME - 1] + "…"
    short = drawable(" ".join(short.split()))
    return f" {short}" if short.startswith("_") else short


def _methods(runs: pd.DataFrame, most: int | None = MOST) -> list[_Method]:
    """Return the rows that have a result, best first.

    Raises:
        UsageError: if there are none, or if the runs are of several protocols.
    """
    done = runs[runs["status"] == "done"]
    if done.empty:
        raise UsageError("runs must hold a finished run to draw, got none.")
    board = aggregate(done)
    if len(protocols(board)) > 1:
        raise UsageError(
            f"runs must be of one protocol to be drawn together, got {len(protocols(board))}."
        )
    grouped = runs_by_row(done)
    rows = records(board)
    return [
        _Method(_text(label), grouped[row_key(row)], row)
        for label, row in zip(row_labels(board), rows, strict=True)
    ][:most]


def read_metrics(runs: pd.DataFrame) -> pd.DataFrame:
    """Read `metrics.csv` of every run of a frame, or the values that were submitted.

    Args:
        runs: the frame of `read_runs`, of finished runs.

    Returns:
        a tidy frame: `seed`, `samples_seen`, `experience` (NaN for values of the whole stream),
        `metric`, `value`, and `end`, the number of the training experience at whose end a value was
        measured, from 0 (NaN in mid-stream). Runs without a readable file give no rows.
    """
    frames = []
    for folder, run_dir, seed, submitted in zip(
        runs["folder"], runs["run_dir"], runs["seed"], runs["submitted"], strict=True
    ):
        if submitted:
            from avalanche_rwf.leaderboard.submissions import entry_metrics

            frame = entry_metrics(folder, int(seed))
        else:
            read = _read(Path(folder) / run_dir)
            if read is None:
                continue
            frame = read
        frames.append(frame.assign(seed=int(seed), end=_ends(frame)))
    columns = ["seed", "samples_seen", "experience", "metric", "value", "end"]
    return pd.concat(frames)[columns] if frames else pd.DataFrame(columns=columns)


def unreadable(runs: pd.DataFrame) -> list[str]:
    """Return the directories of finished runs whose `metrics.csv` gives no rows.

    Args:
        runs: the frame of `read_runs`.
    """
    own = runs[(runs["status"] == "done") & ~runs["submitted"].astype(bool)]
    places = (Path(folder) / run for folder, run in zip(own["folder"], own["run_dir"], strict=True))
    return [str(place) for place in places if _read(place) is None]


def _read(run: Path) -> pd.DataFrame | None:
    """Return a run's `metrics.csv`, or None if it is not what a run writes."""
    try:
        text = read_file(run / "metrics.csv").decode()
        frame = pd.read_csv(io.StringIO(text))
    except (OSError, ValueError):
        return None
    return frame if text.endswith("\n") and _sound(frame) else None  # without it, it is cut


def _sound(frame: pd.DataFrame) -> bool:
    """Return whether a frame holds what a run writes; of a damaged file nothing is drawn.

    It may be anybody's: matrices are as large as the largest experience says, which has a row.
    """
    if list(frame.columns) != ["samples_seen", "experience", "metric", "value"]:
        return False
    names = frame["metric"]
    if not all(kind.kind in "if" for kind in frame.drop(columns="metric").dtypes):
        return False
    if not all(isinstance(name, str) for name in names):
        return False
    accuracies = frame.loc[names.str.startswith("accuracy"), "value"]
    known = frame.loc[names == "accuracy", "experience"]
    experiences = frame["experience"].dropna()
    classes = names[names.str.startswith("accuracy_class_")].str.removeprefix("accuracy_class_")
    return bool(
        frame["samples_seen"].between(0, 2**53).all()
        # Sums of larger numbers overflow; infinite ones are left out where they are met.
        and not frame["value"].abs().between(MOST_MEASURED, math.inf, inclusive="left").any()
        and accuracies.between(0, 1).all()
        and known.notna().all()
        and experiences.isin(range(len(frame))).all()
        and classes.str.fullmatch("[0-9]{1,6}").all()
    )


def _ends(frame: pd.DataFrame) -> NDArray[Any]:
    """Return for each row of a `metrics.csv` at which experience's end it was measured, [rows].

    By the order of the rows: an evaluation begins with ``accuracy_exposed``, and those at ends of
    experiences have the accuracies of experiences too. The number of samples seen would not do: an
    experience without samples, as Si-Blurry streams have, ends where the one before it did.

    A stream may begin with such experiences, and nothing can be evaluated at their ends: the first
    evaluation has no other samples than those of its own experience's classes, which number it.
    """
    first = (frame["metric"] == "accuracy_exposed") | frame["samples_seen"].diff().ne(0)
    evaluation = first.cumsum()
    tested = frame["metric"] == "accuracy"
    at_end = evaluation[tested].unique()
    before = 0
    if len(at_end):
        before = int(frame.loc[tested & (evaluation == at_end[0]), "experience"].max())
    numbers = dict(zip(at_end, range(before, before + len(at_end)), strict=True))
    return evaluation.map(numbers).to_numpy(np.float64)


# ---- what is drawn, as numbers


def pareto_front(
    cost: ArrayLike, score: ArrayLike, less_is_better: bool = True
) -> NDArray[np.bool_]:
    """Return which points no other point beats: none is as good in both and better in one.

    Args:
        cost: [n]; NaN is on no front.
        score: [n], more is better.
        less_is_better: of the cost; False for a speed.
    """
    x = np.asarray(cost, np.float64) * (1.0 if less_is_better else -1.0)
    y = np.asarray(score, np.float64)
    beaten = (
        (x[None] <= x[:, None])
        & (y[None] >= y[:, None])
        & ((x[None] < x[:, None]) | (y[None] > y[:, None]))
    ).any(axis=1)
    return ~beaten & ~np.isnan(x) & ~np.isnan(y)


def _curves(metrics: pd.DataFrame) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return samples seen [m] and accuracy on the classes so far [seeds, m].

    Seeds have experiences of other sizes. Where all were evaluated alike, as many times and at the
    ends of experiences by the same turns, the k-th evaluations are put together at their mean
    place; otherwise each seed's line is read, between its own points, at the places of all, from
    where every seed has begun to where the first one ends.
    """
    exposed = metrics[metrics["metric"] == "accuracy_exposed"]
    ends = metrics[metrics["metric"] == "accuracy"]
    lines, turns = [], set()
    for seed, one in exposed.groupby("seed"):
        # An experience's end, written last, is what stands for its place in the stream.
        line = one.groupby("samples_seen")["value"].last()
        lines.append((line.index.to_numpy(np.float64), line.to_numpy(np.float64)))
        turns.add(tuple(line.index.isin(ends.loc[ends["seed"] == seed, "samples_seen"])))
    if len(turns) == 1:
        return np.mean([x for x, _ in lines], axis=0), np.array([y for _, y in lines])
    places = np.unique(exposed["samples_seen"].to_numpy(np.float64))
    table = np.array([np.interp(places, x, y, left=math.nan, right=math.nan) for x, y in lines])
    table = table.reshape(len(lines), len(places))
    common = ~np.isnan(table).any(axis=0)
    return places[common], table[:, common]


def _boundaries(metrics: pd.DataFrame) -> NDArray[Any]:
    """Return where the experiences end, in samples seen, as the mean over seeds."""
    ends = metrics[metrics["metric"] == "accuracy"]
    ends = ends[["seed", "end", "samples_seen"]].drop_duplicates()
    return ends.groupby("end")["samples_seen"].mean().to_numpy(np.float64)


def _matrix(metrics: pd.DataFrame) -> NDArray[Any]:
    """Return the accuracy matrix [T, T], the mean over seeds; NaN where no seed has a value."""
    rows = metrics[metrics["metric"] == "accuracy"]
    if rows.empty:
        return np.empty((0, 0))
    after, test = rows["end"].astype(int), rows["experience"].astype(int)
    means = rows.groupby([after, test])["value"].mean()
    size = 1 + max(max(pair) for pair in means.index)
    matrix = np.full((size, size), np.nan)
    for (after, experience), value in means.items():
        matrix[after, experience] = value
    return matrix


def _class_forgetting(metrics: pd.DataFrame) -> NDArray[Any]:
    """Return best accuracy before the last experience minus the last, by class [C].

    The mean over seeds; NaN for classes of the last experience. Source: as `forgetting_class`.
    """
    rows = metrics[metrics["metric"].str.startswith("accuracy_class_")]
    if rows.empty:
        return np.empty(0)
    number = rows["metric"].str.removeprefix("accuracy_class_").astype(int).rename("number")
    # One value of a class at an end, as a run writes them; what is at none, or again, is no run's.
    table = rows.groupby([rows["seed"], rows["end"], number])["value"].last().unstack()
    if table.empty:
        return np.empty(0)
    losses = []
    for _, one in table.groupby("seed"):
        best = one.iloc[:-1].max() if len(one) > 1 else one.iloc[0] * math.nan
        losses.append(best - one.iloc[-1])
    means = pd.concat(losses, axis=1).mean(axis=1)
    return means.reindex(range(1 + int(means.index.max()))).to_numpy(np.float64)


# ---- the pictures


def _styles(n: int) -> list[dict[str, Any]]:
    """Return how `n` methods are drawn, no two alike even without colour."""
    return [
        {
            "color": _COLOURS[i % len(_COLOURS)],
            "marker": _MARKERS[i % len(_MARKERS)],
            "linestyle": _DASHES[(i + i // len(_MARKERS)) % len(_DASHES)],
        }
        for i in range(n)
    ]


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put the legend outside, to the right of everything."""
    figure.legend(handles, labels, loc="outside right upper", handlelength=3.2, labelspacing=0.45)


def _grid(n: int, wide: float, high: float, columns: int = 5) -> tuple[Figure, list[Axes]]:
    """Return a figure of `n` small frames in rows, and the frames."""
    across = min(columns, n) if n != 6 else 3
    down = math.ceil(n / across)
    figure = Figure(figsize=(wide * across + 0.8, high * down + 0.4), layout="constrained")
    axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axis in axes[n:]:
        axis.set_visible(False)
    for axis in axes[max(0, n - across) : n]:  # the lowest frame of each column
        axis.tick_params(labelbottom=True)
    return figure, axes[:n]


def _draw(picture: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw in the house style and leave the user's as it is."""

    def drawn(*args: Any, **kwargs: Any) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return picture(*args, **kwargs)

    drawn.__doc__, drawn.__name__ = picture.__doc__, picture.__name__
    return drawn


@_draw
def anytime_accuracy(runs: pd.DataFrame, most: int = MOST) -> Figure:
    """Accuracy on the classes so far against samples seen, with bands and experience boundaries.

    A line is the mean over seeds, its band one sample standard deviation to each side; dotted lines
    are the ends of experiences (the mean over seeds, where seeds differ). More than nine methods
    get a frame each, with the others in grey behind.

    Args:
        runs: the frame of `read_runs`, of one protocol.
        most: the best so many rows are drawn.

    Raises:
        UsageError: if no run recorded a curve.
    """
    drawn, boundaries = [], np.empty(0)
    for method in _methods(runs, most):
        metrics = read_metrics(method.runs)
        x, lines = _curves(metrics)
        if len(x):
            drawn.append((method, x, *_mean_band(lines)))
            ends = _boundaries(metrics)
            boundaries = ends if len(ends) > len(boundaries) else boundaries
    if not drawn:
        raise UsageError("runs must have recorded accuracy_exposed in metrics.csv, got none.")
    one = len(drawn) <= _IN_ONE_FRAME
    if one:
        figure = Figure(figsize=(6.8, 3.4), layout="constrained")
        axes = [figure.subplots()] * len(drawn)
    else:
        figure, axes = _grid(len(drawn), 1.75, 1.25)
        behind = [np.column_stack([x, 100 * mean]) for _, x, mean, _, _ in drawn]
        for axis in axes:
            axis.add_collection(LineCollection(behind, colors="0.82", linewidths=0.6, zorder=1))
    for axis in dict.fromkeys(axes):
        for end in boundaries[:-1]:
            colour, width = ("0.6", 0.7) if one else ("0.8", 0.4)
            axis.axvline(end, color=colour, linewidth=width, linestyle=":", zorder=0)
        axis.xaxis.set_major_locator(MaxNLocator(5 if one else 3, integer=True))
    handles = []
    styles = _styles(len(drawn)) if one else [{"color": "black", "marker": "o"}] * len(drawn)
    for axis, style, (method, x, mean, low, high) in zip(axes, styles, drawn, strict=True):
        axis.fill_between(x, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0)
        handles += axis.plot(x, 100 * mean, **style, markersize=4 if one else 2.5, zorder=3)
        if not one:
            axis.set_title(method.label, pad=3)
    if one:
        axes[0].set(xlabel="training samples seen", ylabel="accuracy on the classes so far (%)")
        keys: list[Any] = [Rectangle((0, 0), 1, 1, color="0.5", alpha=0.25, linewidth=0)]
        said = ["± 1 st. dev. over seeds"]
        if len(boundaries) > 1:
            keys.append(Line2D([], [], color="0.6", linewidth=0.7, linestyle=":"))
            said.append("end of an experience")
        _legend(figure, [*handles, *keys], [*(method.label for method, *_ in drawn), *said])
    else:
        figure.supxlabel(
            "training samples seen (band: ± 1 st. dev. over seeds; grey: the other methods)",
            fontsize=8,
        )
        figure.supylabel("accuracy on the classes so far (%)", fontsize=8)
    return figure


def _mean_band(lines: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return mean and mean ± standard deviation of lines [seeds, m], cut at 0 and 1."""
    frame = pd.DataFrame(lines)
    mean = frame.mean().to_numpy(np.float64)
    deviation = frame.std(ddof=1).fillna(0.0).to_numpy(np.float64)
    return mean, np.maximum(mean - deviation, 0.0), np.minimum(mean + deviation, 1.0)


@_draw
def accuracy_matrices(runs: pd.DataFrame, most: int = MOST) -> Figure:
    """Accuracy on every experience after every experience, one heat map a method, side by side.

    Darker is better; cells are means over seeds in per cent, white where an experience had not been
    met. Experiences are numbered from 1, as on the page. Values are written in maps of up to ten.

    Args:
        runs: the frame of `read_runs`, of one protocol.
        most: the best so many rows are drawn.

    Raises:
        UsageError: if no run recorded a matrix.
    """
    found = [(m, 100 * _matrix(read_metrics(m.runs))) for m in _methods(runs, most)]
    drawn = [(method, matrix) for method, matrix in found if matrix.size]
    if not drawn:
        raise UsageError("runs must have recorded accuracy by experience in metrics.csv, got none.")
    size = max(len(matrix) for _, matrix in drawn)
    side = 1.55 if size <= 5 else 2.0 if size <= 10 else 1.7
    figure, axes = _grid(len(drawn), side, side, 4 if 5 < size <= 10 else 5)
    scale = Normalize(0, 100)
    for axis, (method, matrix) in zip(axes, drawn, strict=True):
        axis.imshow(matrix, cmap=_FROM_GREY, norm=scale, aspect="equal")
        axis.set_title(method.label, pad=3)
        step = math.ceil(size / 6) if size > 10 else 1
        numbers = range(step, size + 1, step)
        axis.set_xticks([number - 1 for number in numbers], list(map(str, numbers)))
        axis.set_yticks([number - 1 for number in numbers], list(map(str, numbers)))
        axis.tick_params(labelsize=7.5 if size <= 5 else 6)
        if size <= 10:
            small = 6.5 if size <= 5 else 5.0
            _write_values(axis, matrix, lambda value: value > 55, small)
    figure.supxlabel("test experience", fontsize=8)
    figure.supylabel("after training experience", fontsize=8)
    figure.colorbar(
        ScalarMappable(scale, _FROM_GREY), ax=axes, label="accuracy (%)", pad=0.02, aspect=40
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
            if value < 0:  # a number on hatching is read on a spot of white
                written.set_bbox({"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none"})


@_draw
def accuracy_against_cost(runs: pd.DataFrame, most: int = MOST) -> Figure:
    """A_last against training speed and against trainable parameters, the Pareto front marked.

    Points are means over seeds, bars one sample standard deviation. A filled point is on the front:
    no other method is as good in both and better in one; hollow ones are behind it.

    Args:
        runs: the frame of `read_runs`, of one protocol.
        most: the best so many rows are drawn.

    Raises:
        UsageError: if no run recorded a cost.
    """
    methods = _methods(runs, most)
    score = np.array([100 * _number(m.row, "a_last_mean") for m in methods])
    deviation = np.array([100 * _number(m.row, "a_last_std") for m in methods])
    costs = (
        ("train_samples_per_second", "training samples per second", False),
        ("trainable_parameters", "trainable parameters", True),
    )
    values = {
        field: np.array([_number(m.row, f"{field}_mean") for m in methods]) for field, *_ in costs
    }
    if all(np.isnan(cost).all() for cost in values.values()):
        raise UsageError("runs must have recorded their speed or parameters, got none.")
    high = max(3.2, 0.155 * len(methods) + 0.7)
    figure = Figure(figsize=(8.6, high), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    styles = _styles(len(methods))
    for axis, (field, title, less) in zip(axes, costs, strict=True):
        cost = values[field]
        front = pareto_front(cost, score, less)
        for i, style in enumerate(styles):
            shape = {**style, "linestyle": "none", "markersize": 6.5}
            face = style["color"] if front[i] else "white"
            axis.errorbar(
                cost[i], score[i], yerr=np.nan_to_num(deviation[i]), **shape,
                markerfacecolor=face, elinewidth=0.8, zorder=4 if front[i] else 3,
            )  # fmt: skip
        order = np.flatnonzero(front)[np.argsort(cost[front])]
        # A method on the front is the best to be had from its cost on (or down to its speed).
        where = "steps-post" if less else "steps-pre"
        axis.plot(cost[order], score[order], drawstyle=where, color="0.4", linewidth=0.9, zorder=2)
        _log_scale(axis, cost[~np.isnan(cost)])
        several = not less and len(hardware_of([m.row for m in methods])) > 1
        said_of = "fewer" if less else "of several machines; more" if several else "more"
        axis.set_xlabel(f"{title} ({said_of} is better)")
        axis.grid(color="0.9", linewidth=0.5)
    axes[0].set_ylabel("accuracy after the stream (%)")
    shapes: list[Any] = [
        Line2D([], [], **{**style, "linestyle": "none"}, markersize=6.5) for style in styles
    ]
    keys = [
        Line2D([], [], color="0.4", linewidth=0.9, marker="o", markersize=5),
        Line2D([], [], color="0.4", linestyle="none", marker="o", markerfacecolor="white"),
        Line2D([], [], color="0.4", linestyle="none", marker="|", markersize=9),
    ]
    said = ["filled: Pareto front", "hollow: behind it", "bar: ± 1 st. dev. over seeds"]
    _legend(figure, [*shapes, *keys], [*(method.label for method in methods), *said])
    return figure


def _log_scale(axis: Axes, values: NDArray[Any]) -> None:
    """Set a logarithmic x axis with a place for 0, and a few plain ticks such as 50, 200 and 10k.

    Args:
        axis: to be set.
        values: what is drawn on it, 0 or more.
    """
    positive = values[values > 1e-30]  # what is smaller can be told from 0 by nobody
    if not len(positive):
        axis.set_xlim(-1, 1)
        axis.set_xticks([0], ["0"])
        return
    low, high = float(positive.min()), float(positive.max())
    # Half of the narrowest axis that there may be is a factor of 1.6 to each side.
    low, high = min(low, high / 1.6) / 1.25, max(high, low * 1.6) * 1.25
    zero = len(positive) < len(values)
    digits, every = _tick_digits(low, high)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    ticks = [d * 10.0**e for e in range(first, last + 1) for d in digits if e % every == 0]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if zero:
        # As wide below the smallest value, down to 0, as a decade is above it.
        axis.set_xscale("symlog", linthresh=low, linscale=0.6)
        axis.set_xlim(-0.25 * low, high)
        ticks = [0.0, *ticks]
    else:
        axis.set_xscale("log")
        axis.set_xlim(low, high)
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.minorticks_off()


def _tick_digits(low: float, high: float) -> tuple[tuple[float, ...], int]:
    """Return the first digits of an axis' ticks and how many decades are from one to the next.

    The finest that give no more than six ticks, so that no two labels meet.
    """
    decades = math.log10(high / low)
    for digits in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3)):
        if len(digits) * decades <= 5.5:
            return digits, 1
    return (1,), max(1, math.ceil(decades / 5.5))


def _number(row: dict[str, Any], name: str) -> float:
    value = row.get(name)
    return math.nan if value is None or value is pd.NA else float(value)


@_draw
def forgetting_by_class(runs: pd.DataFrame, most: int = MOST) -> Figure:
    """What each method lost of each class since its best moment, methods down and classes across.

    Classes are numbered in the order in which the stream brings them, so the oldest are on the
    left. Means over seeds in per cent points, darker is more; a class that gained is hatched.

    Args:
        runs: the frame of `read_runs`, of one protocol.
        most: the best so many rows are drawn.

    Raises:
        UsageError: if no run recorded accuracies of classes, or none had two experiences.
    """
    found = [(m, 100 * _class_forgetting(read_metrics(m.runs))) for m in _methods(runs, most)]
    drawn = [(method, losses) for method, losses in found if not np.isnan(losses).all()]
    if not drawn:
        raise UsageError(
            "runs must have recorded accuracy_class_* in metrics.csv and have two experiences or "
            "more, got none."
        )
    classes = max(1 + int(np.flatnonzero(~np.isnan(losses))[-1]) for _, losses in drawn)
    table = np.full((len(drawn), classes), np.nan)
    for row, (_, losses) in zip(table, drawn, strict=True):
        row[: min(len(losses), classes)] = losses[:classes]
    written = classes <= 25
    figure = Figure(
        figsize=(2.4 + min(6.4, max(2.8, 0.36 * classes)), 0.9 + 0.22 * max(3, len(drawn))),
        layout="constrained",
    )
    axis = figure.subplots()
    most_lost = max(_MUCH, float(np.nanmax(table)))
    image = axis.imshow(
        table, cmap="Greys", norm=Normalize(0, most_lost), aspect="auto", interpolation="nearest"
    )
    for i, j in np.argwhere(table < -0.5):
        axis.add_patch(
            Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.6", lw=0)
        )
    if written:
        _write_values(axis, table, lambda value: value > 0.55 * most_lost, 6.5)
    axis.set_yticks(range(len(drawn)), [method.label for method, _ in drawn])
    axis.xaxis.set_major_locator(MaxNLocator(min(classes, 12), integer=True))
    hatched = " (hatched: gained)" if axis.patches else ""
    axis.set_xlabel(f"class, in the order of the stream{hatched}")
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    figure.colorbar(image, ax=axis, label="forgetting (points)", pad=0.02)
    return figure


def _shots(options: Any) -> float:
    """Return the shots of a stream from the options of its runs, NaN if they name none."""
    value = json.loads(options).get("shots") if isinstance(options, str) and options else None
    return float(value) if isinstance(value, (int, float)) else math.nan


# What follows from the shots: an evaluation every quarter of a stream that is as long as they say.
_FOLLOWS = ("eval_every_samples",)


def few_shot_series(runs: pd.DataFrame) -> list[pd.DataFrame]:
    """Split runs into those that `few_shot` may draw together: protocols alike but for the shots.

    Args:
        runs: the frame of `read_runs`.

    Returns:
        runs that are done, at two numbers of shots or more each, in their order.
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


@_draw
def few_shot(runs: pd.DataFrame, most: int = MOST) -> Figure:
    """A_last against the number of training images per class, from runs at several of them.

    Points are means over seeds, bars the 95 % interval (Student's t), cut at 0 and 100 %.

    Args:
        runs: the frame of `read_runs`, of protocols that differ in `shots` (and in what follows
            from it) only; `few_shot_series` splits it.
        most: the best so many methods are drawn.

    Raises:
        UsageError: if the runs are not of at least two numbers of shots, or differ in more.
    """
    series = few_shot_series(runs)
    if len(series) != 1:
        raise UsageError(
            "runs must be of two numbers of shots or more to draw a few-shot curve."
            if not series
            else f"runs must differ in their shots only to be drawn together, got {len(series)} "
            "series of other streams, backbones or batches."
        )
    (done,) = series
    lines: dict[str, list[tuple[float, float, float, float]]] = {}
    grouped = runs_by_row(done)
    for table in protocols(aggregate(done)):
        shots = _shots(table["stream_options"].iloc[0])
        for label, row in zip(row_labels(table), records(table), strict=True):
            values = grouped[row_key(row)]["a_last"].to_numpy(np.float64)
            lines.setdefault(label, []).append((shots, float(values.mean()), *interval(values)))
    chosen = sorted(lines.items(), key=lambda item: -max(item[1])[1])[:most]
    high = max(3.2, 0.155 * len(chosen) + 0.7)
    figure = Figure(figsize=(6.8, high), layout="constrained")
    axis = figure.subplots()
    handles: list[Any] = []
    # Moved apart by a few per cent of their place, so that the bars can be told from each other.
    apart = 1.0 + 0.012 * (np.arange(len(chosen)) - (len(chosen) - 1) / 2)
    for style, move, (_, line) in zip(_styles(len(chosen)), apart, chosen, strict=True):
        x, mean, low, ends = np.array(sorted(line)).T
        ends = np.stack([mean - np.maximum(low, 0.0), np.minimum(ends, 1.0) - mean])
        bars = 100 * np.nan_to_num(ends)
        handles.append(
            axis.errorbar(x * move, 100 * mean, yerr=bars, **style, elinewidth=0.7, capsize=2)
        )
    ticks = sorted({shots for _, line in chosen for shots, *_ in line})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{shots:g}" for shots in ticks])
    axis.minorticks_off()
    axis.set(xlabel="training images per class", ylabel="accuracy after the stream (%)")
    handles.append(Line2D([], [], color="0.4", linestyle="none", marker="|", markersize=9))
    _legend(figure, handles, [*(_text(label) for label, _ in chosen), "bar: 95 % interval"])
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


def svg(figure: Figure) -> str:
    """Return a figure as SVG text, with its letters drawn as shapes: no font and no markup in it.

    The XML declaration is left out, so that it can stand in an HTML page.
    """
    text = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.fonttype": "path"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "<svg" + text.getvalue().partition("<svg")[2]


def write_plots(runs: pd.DataFrame, folder: str | os.PathLike[str]) -> Written:
    """Write every picture that the runs allow, each as SVG, PDF and PNG.

    One protocol's are ``<picture>.svg`` and so on; those of several are in a folder each, numbered
    as the tables of the leaderboard are, with the protocol in the file's title.

    Args:
        runs: the frame of `read_runs`.
        folder: made where it is missing.

    Raises:
        UsageError: if the folder cannot be written to.
    """
    out = Path(folder)
    paths: list[Path] = []
    notes: list[str] = []

    def write(place: Path, name: str, title: str, draw: Callable[[], Figure]) -> None:
        try:
            figure = draw()
        except UsageError as error:
            notes.append(f"{place.name}/{name} not drawn: {error}")
            return
        # Laid out once, and not again for every format.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for kind in _FORMATS:
            path = place / f"{name}.{kind}"
            with matplotlib.rc_context(_STYLE):
                figure.savefig(path, format=kind, metadata=_metadata(kind, title))
            paths.append(path)

    tables = protocols(aggregate(runs))
    grouped = runs_by_row(runs)
    try:
        for number, table in enumerate(tables, 1):
            place = out if len(tables) == 1 else out / str(number)
            place.mkdir(parents=True, exist_ok=True)
            rows = records(table)
            own = pd.concat([grouped[row_key(row)] for row in rows])
            drawn = pd.concat([grouped[row_key(row)] for row in rows[:MOST]])
            notes += [f"no curve of {run}: its metrics.csv cannot be read"
                      for run in unreadable(drawn)]  # fmt: skip
            for name, picture in PICTURES.items():
                write(place, name, protocol_header(rows[0]), functools.partial(picture, own))
        series = few_shot_series(runs)
        for number, own in enumerate(series, 1):
            out.mkdir(parents=True, exist_ok=True)
            name = "few-shot" if len(series) == 1 else f"few-shot-{number}"
            write(out, name, "accuracy against shots", functools.partial(few_shot, own))
    except OSError as error:
        raise UsageError(
            f"--plots takes a folder that can be written to, and {str(out)!r} cannot "
            f"({error.strerror})."
        ) from error
    return Written(paths, notes)


def _metadata(kind: str, title: str) -> dict[str, Any]:
    """Return what a file says of itself; no date, so that the same runs give the same file."""
    said = {"Title": printable(title)}
    return {**said, **{"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})}
