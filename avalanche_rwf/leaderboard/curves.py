"""From runs to arrays: the curves and matrices that the pictures and the page draw.

Seeds are put together place by place, never by the number of samples alone: the t-th ends of an
experience, the k-th evaluations. Symbols: S seeds, T experiences, m points of a curve.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from avalanche_rwf.leaderboard.aggregate import row_key, runs_by_row
from avalanche_rwf.leaderboard.metrics_file import Metrics, parse_metrics
from avalanche_rwf.leaderboard.stats import mean_std
from avalanche_rwf.utils.untrusted_io import read_file


class Curve(NamedTuple):
    """A curve of several seeds.

    :param samples: where its points are, the mean over the seeds that have the point, [m].
    :param values: [S, m]; NaN where a seed has no value.
    """

    samples: NDArray[Any]
    values: NDArray[Any]


# ---- reading


def read_metrics(runs: pd.DataFrame) -> list[Metrics]:
    """Read `metrics.csv` of every run of a frame, or the values that were submitted.

    :param runs: the frame of `read_runs`, of finished runs. Those without a readable file give
        none.
    """
    found = []
    for folder, run_dir, seed, submitted in zip(
        runs["folder"], runs["run_dir"], runs["seed"].astype(int), runs["submitted"], strict=True
    ):
        if submitted:
            from avalanche_rwf.leaderboard.submissions import entry_metrics

            found.append(entry_metrics(folder, seed))
        else:
            with contextlib.suppress(OSError, ValueError):
                content = read_file(Path(folder) / run_dir / "metrics.csv")
                found.append(parse_metrics(content, seed))
    return found


# ---- rows of the leaderboard with what their runs measured


@dataclass(frozen=True)
class Measured:
    """One row of the leaderboard and its runs.

    :param values: of the board, by column.
    :param runs: rows of the frame of `read_runs`, by column, by seed.
    :param metrics: of those that are done and can be read.
    :param unread: of those that are done, those without readable metrics.
    """

    values: dict[str, Any]
    runs: list[dict[Any, Any]]
    metrics: list[Metrics]
    unread: list[dict[Any, Any]]


def measured(rows: Sequence[dict[str, Any]], runs: pd.DataFrame) -> list[Measured]:
    """Read what the runs of rows have measured.

    :param rows: of `aggregate`.
    :param runs: the frame that it was made of.
    """
    grouped = runs_by_row(runs)
    found = []
    for row in rows:
        own = grouped[row_key(row)].sort_values("seed")
        done = own[own["status"] == "done"]
        metrics = read_metrics(done)
        read = done["seed"].isin([one.seed for one in metrics]) | done["submitted"].astype(bool)
        unread = done[~read].to_dict("records")
        found.append(Measured(row, own.to_dict("records"), metrics, unread))
    return found


# ---- over seeds


def over_seeds(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and sample standard deviation over the seeds, [S, ...] -> [...] each.

    NaN is a seed without a value, and where no seed has one.
    """
    cells = values.reshape(len(values), -1).T if values.size else ()
    found = np.array([mean_std(cell) for cell in cells]).reshape(-1, 2)
    mean, deviation = (part.reshape(values.shape[1:]) for part in found.T)
    return mean, deviation


def _curve(lines: Sequence[Mapping[Any, tuple[float, float]]]) -> Curve:
    """Put the points of several seeds together by their key, in the order of the keys.

    :param lines: of each seed samples seen and value by key.
    """
    keys = sorted({key for line in lines for key in line})
    nowhere = (math.nan, math.nan)
    points = np.array([[line.get(key, nowhere) for key in keys] for line in lines])
    points = points.reshape(len(lines), len(keys), 2)
    return Curve(over_seeds(points[..., 0])[0], points[..., 1])


def first_end(runs: Sequence[Metrics]) -> int:
    """Return the first experience at whose end every seed was evaluated: end curves begin there."""
    return max((min(run.ends) for run in runs if run.ends), default=0)


def _at_ends(
    runs: Sequence[Metrics], value: Callable[[Metrics, int, int], float | None]
) -> Curve:
    """Return a curve over the ends of experiences, from `first_end` on.

    :param runs: one a seed.
    :param value: of a run at the end of an experience, by its number and the samples seen.
    """
    first = first_end(runs)
    lines: list[dict[int, tuple[float, float]]] = []
    for run in runs:
        found = {t: (seen, value(run, t, seen)) for t, seen in run.ends.items() if t >= first}
        lines.append({t: (seen, v) for t, (seen, v) in found.items() if v is not None})
    return _curve(lines)


def end_curve(runs: Sequence[Metrics]) -> Curve:
    """Accuracy on the classes so far at each experience's end, from `first_end` on.

    Classes of unequal size let experiences end elsewhere at each seed: the t-th ends are put
    together, at their mean number of samples; nothing is interpolated.
    """
    return _at_ends(runs, lambda run, t, seen: run.exposed.get(seen))


def anytime_curve(runs: Sequence[Metrics], every: int) -> Curve:
    """Accuracy on the classes so far at the places that A_auc averages."""
    return _curve(
        [{k: (seen, run.exposed[seen]) for k, seen in run.grid(every).items()} for run in runs]
    )


def accuracy_curve(runs: Sequence[Metrics]) -> Curve:
    """Accuracy on the classes so far at every evaluation.

    Where all seeds were evaluated alike, as many times and at the ends of experiences by the same
    turns, the k-th evaluations are put together; otherwise each seed's line is read, between its
    own points, at the places of all, from where every seed has begun to where the first one ends.
    """
    there = [run for run in runs if run.exposed]
    lines = [sorted(run.exposed.items()) for run in there]
    ends = [set(run.ends.values()) for run in there]
    turns = {
        tuple(seen in own for seen, _ in line) for line, own in zip(lines, ends, strict=True)
    }
    if len(turns) < 2:
        return _curve([dict(enumerate(line)) for line in lines])
    places = np.array(sorted({seen for line in lines for seen, _ in line}), np.float64)
    rows = [
        np.interp(places, [x for x, _ in line], [y for _, y in line], left=math.nan, right=math.nan)
        for line in lines
    ]
    common = ~np.isnan(rows).any(axis=0)
    return Curve(places[common], np.array(rows)[:, common])


def boundaries(runs: Sequence[Metrics]) -> NDArray[Any]:
    """Return where the experiences end, in samples seen, the mean over seeds, [<= T]."""
    return _curve([{t: (seen, seen) for t, seen in run.ends.items()} for run in runs]).samples


def routing_curves(runs: Sequence[Metrics]) -> dict[str, Curve]:
    """Each routing metric at each experience's end, from `first_end` on.

    With the accuracy on the same classes (those of the first experience that has any) as
    ``accuracy_first``. Empty where no run has routing metrics.
    """

    def accuracy(run: Metrics, t: int, seen: int) -> float | None:
        value = float(run.matrix[t, min(run.ends)])
        return None if math.isnan(value) else value

    names = sorted({name for run in runs for name in run.routing})
    curves = {
        name: _at_ends(
            runs, lambda run, t, seen, name=name: run.routing.get(name, {}).get(seen)  # type: ignore[misc]
        )
        for name in names
    }  # fmt: skip
    return {**curves, "accuracy_first": _at_ends(runs, accuracy)} if names else {}


def matrix(runs: Sequence[Metrics]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and standard deviation over seeds of the accuracy matrices, [T, T] each."""
    size = max((len(run.matrix) for run in runs), default=0)
    values = np.full((len(runs), size, size), np.nan)
    for one, run in zip(values, runs, strict=True):
        one[: len(run.matrix), : len(run.matrix)] = run.matrix
    return over_seeds(values) if size else (values.reshape(0, 0), values.reshape(0, 0))


def class_forgetting(runs: Sequence[Metrics]) -> NDArray[Any]:
    """Return what each class has lost since its best, the mean over seeds, [C].

    NaN for classes of the last experience; of a single experience nothing can be said.
    """
    classes = 1 + max((c for run in runs for c in run.forgetting), default=-1)
    means = np.full(classes, np.nan)
    for number in {c for run in runs for c in run.forgetting}:
        means[number] = mean_std([run.forgetting.get(number, math.nan) for run in runs])[0]
    return means


def pareto_front(
    cost: ArrayLike, score: ArrayLike, less_is_better: bool = True
) -> NDArray[np.bool_]:
    """Return which points no other point beats: none is as good in both and better in one.

    :param cost: [n]; NaN is on no front.
    :param score: [n], more is better.
    :param less_is_better: of the cost; False for a speed.
    """
    x = np.asarray(cost, np.float64) * (1.0 if less_is_better else -1.0)
    y = np.asarray(score, np.float64)
    beaten = (
        (x[None] <= x[:, None])
        & (y[None] >= y[:, None])
        & ((x[None] < x[:, None]) | (y[None] > y[:, None]))
    ).any(axis=1)
    return ~beaten & ~np.isnan(x) & ~np.isnan(y)
