"""What a run's `metrics.csv` says, sorted by what it is."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from avalanche_rwf.leaderboard.aggregate import MOST_MEASURED

_CLASS = "accuracy_class_"
_COLUMNS = ["samples_seen", "experience", "metric", "value"]


@dataclass(frozen=True)
class Metrics:
    """What `metrics.csv` of one run holds.

    :param seed: of the run.
    :param exposed: accuracy on the classes so far, by samples seen.
    :param ends: samples seen at each experience's end, by the experience's number from 0: the same
        twice where an experience has no samples, none before the first that has some.
    :param matrix: accuracy after each training experience on each test experience, [T, T].
    :param forgetting: a class's best accuracy before the last end minus that at the last end, by
        class; NaN where a class has none of the two.
    :param routing: by metric, then by samples seen.
    """

    seed: int = 0
    exposed: dict[int, float] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    matrix: NDArray[Any] = field(default_factory=lambda: np.empty((0, 0)))
    forgetting: dict[int, float] = field(default_factory=dict)
    routing: dict[str, dict[int, float]] = field(default_factory=dict)

    def grid(self, every: int) -> dict[int, int]:
        """Return the places that `a_auc` averages: the first at or after each multiple, and the
        end. By the multiple that was reached; the end, if it is none of them, by one more."""
        found: dict[int, int] = {}
        for seen in sorted(self.exposed):
            if every > 0 and seen // every > max(found, default=0):
                found[seen // every] = seen
        last = max(self.exposed, default=0)
        if every > 0 and last and last not in found.values():
            found[max(found, default=0) + 1] = last
        return found


def parse_metrics(content: bytes, seed: int) -> Metrics:
    """Return what the content of a `metrics.csv` says.

    :raises ValueError: if it is not what a run writes.
    """
    text = content.decode()
    # Values as texts: what pandas makes of them may differ from Python's in the last bit.
    frame = pd.read_csv(io.StringIO(text), dtype={"value": str})
    if "value" in frame:
        frame["value"] = frame["value"].astype("float64")
    if not text.endswith("\n") or not _sound(frame):
        raise ValueError("it is cut or is not what a run writes")
    exposed: dict[int, float] = {}
    ends: dict[int, int] = {}
    routing: dict[str, dict[int, float]] = {}
    cells: dict[tuple[int, int], float] = {}
    classes: dict[int, dict[int, float]] = {}  # by end, then by class
    columns = (*(frame[name].tolist() for name in _COLUMNS), _ends(frame).tolist())
    for seen, where, name, value, end in zip(*columns, strict=True):
        if not math.isfinite(value):
            continue
        if name == "accuracy_exposed":
            exposed[int(seen)] = value  # an experience's end is written last at its place
        elif name == "accuracy":
            ends[int(end)] = int(seen)
            cells[int(end), int(where)] = value
        elif name.startswith(("routing_", "prompt_")):
            routing.setdefault(name, {})[int(seen)] = value
        elif name.startswith(_CLASS) and not math.isnan(end):
            classes.setdefault(int(end), {})[int(name.removeprefix(_CLASS))] = value
    size = 1 + max((max(pair) for pair in cells), default=-1)
    matrix = np.full((size, size), np.nan)
    for pair, value in cells.items():
        matrix[pair] = value
    return Metrics(seed, exposed, ends, matrix, _forgetting(classes), routing)


def _sound(frame: pd.DataFrame) -> bool:
    """Return whether a frame holds what a run writes; a damaged file is not drawn.

    The file may come from anybody. Matrices are as large as its largest experience number says, so
    that must be below the number of rows.
    """
    if list(frame.columns) != _COLUMNS:
        return False
    names = frame["metric"]
    if not all(kind.kind in "if" for kind in frame.drop(columns="metric").dtypes):
        return False
    if not all(isinstance(name, str) for name in names):
        return False
    accuracies = frame.loc[names.str.startswith("accuracy"), "value"]
    known = frame.loc[names == "accuracy", "experience"]
    experiences = frame["experience"].dropna()
    classes = names[names.str.startswith(_CLASS)].str.removeprefix(_CLASS)
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


def _forgetting(classes: Mapping[int, Mapping[int, float]]) -> dict[int, float]:
    """Return what each class has lost since its best; source: as `forgetting_class`."""
    best: dict[int, float] = {}
    ends = sorted(classes)
    for end in ends[:-1]:
        for name, value in classes[end].items():
            best[name] = max(value, best.get(name, 0.0))
    last = classes[ends[-1]] if ends else {}
    return {c: best.get(c, math.nan) - last.get(c, math.nan) for c in {**best, **last}}
