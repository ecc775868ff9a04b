"""What the page shows, as plain values: rows of protocols, curves, matrices, runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import METRICS
from avalanche_rwf.experiments.command import command_line
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.leaderboard import table as tables
from avalanche_rwf.leaderboard.aggregate import BrokenRun, row_key, runs_by_row, summary_column
from avalanche_rwf.leaderboard.stats import mean_std
from avalanche_rwf.strategies.registry import get_method
from avalanche_rwf.utils.untrusted_io import read_end
from avalanche_rwf.utils.user_code import may_import
from avalanche_rwf.version import __version__

__all__ = [
    "Metrics",
    "Row",
    "anytime_curve",
    "board_data",
    "end_curve",
    "first_end",
    "matrix",
    "metrics_of",
    "report_rows",
    "routing_curves",
    "row_data",
]

_LOG = 20_000  # characters of a log that are kept, from its end
_DIGITS = 5
Point = list[float | int | None]
"""[samples seen, mean, standard deviation or None, seeds]"""


@dataclass
class Metrics:
    """What ``metrics.csv`` of one run holds.

    :param exposed: accuracy on the classes so far, by samples seen.
    :param accuracy: by samples seen (of an experience end), then by test experience.
    :param routing: by metric, then by samples seen.
    :param places: samples seen at each experience's end, by the experience's number: one twice
        where an experience has no samples, none before the first that has some. Empty stands for
        the keys of `accuracy`.
    """

    exposed: dict[int, float] = field(default_factory=dict)
    accuracy: dict[int, dict[int, float]] = field(default_factory=dict)
    routing: dict[str, dict[int, float]] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    def ends(self) -> dict[int, int]:
        """Samples seen at each experience's end, by the experience's number."""
        return self.places or dict(enumerate(sorted(self.accuracy)))

    def grid(self, every: int) -> dict[int, int]:
        """The places that `a_auc` averages: the first at or after each multiple, and the end.

        By the multiple that was reached; the end, if it is none of them, by one more.
        """
        found: dict[int, int] = {}
        for seen in sorted(self.exposed):
            if every > 0 and seen // every > max(found, default=0):
                found[seen // every] = seen
        last = max(self.exposed, default=0)
        if every > 0 and last and last not in found.values():
            found[max(found, default=0) + 1] = last
        return found


def metrics_of(frame: pd.DataFrame) -> Metrics:
    """What the page needs of one seed of the frame of :func:`.plots.read_metrics`."""
    metrics = Metrics()
    columns = ("samples_seen", "experience", "metric", "value")
    for seen, where, name, value in zip(*(frame[column] for column in columns), strict=True):
        if not math.isfinite(value):
            continue
        if name == "accuracy_exposed":
            metrics.exposed[int(seen)] = float(value)
        elif name == "accuracy":
            metrics.accuracy.setdefault(int(seen), {})[int(where)] = float(value)
        elif name.startswith(("routing_", "prompt_")):
            metrics.routing.setdefault(name, {})[int(seen)] = float(value)
    ends = frame.loc[frame["metric"] == "accuracy", ["end", "samples_seen"]].drop_duplicates("end")
    ends = ends.sort_values("end").astype(int)
    metrics.places = dict(zip(ends["end"].tolist(), ends["samples_seen"].tolist(), strict=True))
    return metrics


def _points(places: Iterable[Iterable[tuple[int, float]]]) -> list[Point]:
    """Points of (samples seen, value) of several seeds at one place in the stream each."""
    points: list[Point] = []
    for pairs in places:
        found = list(pairs)
        if found:
            seen, values = zip(*found, strict=True)
            mean, deviation = mean_std(np.asarray(values))
            std = None if math.isnan(deviation) else round(deviation, _DIGITS)
            points.append([round(sum(seen) / len(seen)), round(mean, _DIGITS), std, len(found)])
    return points


def first_end(runs: Sequence[Metrics]) -> int:
    """The first experience at whose end every seed was evaluated: there end curves begin."""
    return max((min(run.ends()) for run in runs if run.ends()), default=0)


def _shared_ends(runs: Sequence[Metrics]) -> range:
    last = max((t for run in runs for t in run.ends()), default=-1)
    return range(first_end(runs), last + 1)


def end_curve(runs: Sequence[Metrics]) -> list[Point]:
    """Accuracy on the classes so far at each experience's end, over seeds, from `first_end` on.

    Classes of unequal size let experiences end elsewhere at each seed: the t-th ends are put
    together, at their mean number of samples; nothing is interpolated.
    """
    places = [run.ends() for run in runs]
    return _points(
        (
            (ends[t], run.exposed[ends[t]])
            for run, ends in zip(runs, places, strict=True)
            if t in ends and ends[t] in run.exposed
        )
        for t in _shared_ends(runs)
    )


def anytime_curve(runs: Sequence[Metrics], every: int) -> list[Point]:
    """Accuracy on the classes so far at the places that A_auc averages, over seeds."""
    grids = [run.grid(every) for run in runs]
    return _points(
        ((grid[k], run.exposed[grid[k]]) for run, grid in zip(runs, grids, strict=True)
         if k in grid)
        for k in sorted({k for grid in grids for k in grid})
    )  # fmt: skip


def routing_curves(runs: Sequence[Metrics]) -> dict[str, list[Point]]:
    """Each routing metric at each experience's end, as `end_curve`, with the accuracy on the same
    classes (those of the first experience that has any) as ``accuracy_first``."""
    names = sorted({name for run in runs for name in run.routing})
    if not names:
        return {}
    series = {name: [run.routing.get(name, {}) for run in runs] for name in names}
    series["accuracy_first"] = [
        {seen: values[first] for seen, values in run.accuracy.items() if first in values}
        for run in runs
        for first in [min(run.ends(), default=0)]
    ]
    curves = {}
    for name, seeds in series.items():
        placed = [
            {t: (seen, values[seen]) for t, seen in run.ends().items() if seen in values}
            for run, values in zip(runs, seeds, strict=True)
        ]
        curves[name] = _points(
            (values[t] for values in placed if t in values) for t in _shared_ends(runs)
        )
    return curves


def matrix(runs: Sequence[Metrics]) -> dict[str, list[list[float | None]]] | None:
    """Mean and standard deviation over seeds of the accuracy matrices, [T, T] with None above."""
    sizes = [
        1 + max((j for row in run.accuracy.values() for j in row), default=-1) for run in runs
    ]
    n = max([*sizes, *(1 + max(run.ends(), default=-1) for run in runs)], default=0)
    if not n:
        return None
    values = np.full((len(runs), n, n), np.nan)
    for s, run in enumerate(runs):
        for t, seen in run.ends().items():
            for j, value in run.accuracy[seen].items():
                values[s, t, j] = value
    cells = [[mean_std(values[:, t, j]) for j in range(n)] for t in range(n)]

    def part(index: int) -> list[list[float | None]]:
        return [
            [None if math.isnan(c[index]) else round(c[index], _DIGITS) for c in line]
            for line in cells
        ]

    return {"mean": part(0), "std": part(1)}


# ---- rows


@dataclass
class Row:
    """One configuration: a row of the board with its runs.

    :param key: names it in the page's address.
    :param file: of its details.
    :param protocol: index of its table.
    :param place: its line in that table.
    :param table: the table.
    :param values: of the board, by column.
    :param runs: rows of the frame of runs, by column, by seed.
    :param metrics: of those that are done.
    :param unread: of those that are done, those without readable metrics.
    """

    key: str
    file: str
    protocol: int
    place: int
    table: tables._Table
    values: dict[str, Any]
    runs: list[dict[Any, Any]]
    metrics: list[Metrics]
    unread: list[dict[Any, Any]]

    @property
    def label(self) -> str:
        """How the table names it."""
        fields = [column.field for column in self.table.columns]
        return self.table.cells[self.place][fields.index("label")]


def report_rows(board: pd.DataFrame, frame: pd.DataFrame) -> list[Row]:
    """The board's rows in the order of its tables, each with the metrics of its runs.

    :param board: of `aggregate`.
    :param frame: the runs it was made of.
    """
    from avalanche_rwf.leaderboard.plots import read_metrics  # matplotlib is an extra

    runs = runs_by_row(frame)
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for protocol, values in enumerate(tables._protocols(board)):
        table = tables._table(values, tables._offered(values))
        for place, row in enumerate(values):
            mine = runs[row_key(row)].sort_values("seed")
            finished = mine[mine["status"] == "done"]
            done = read_metrics(finished)
            without = ~finished["seed"].isin(done["seed"]) & ~finished["submitted"].astype(bool)
            key = str(row["config_hash"])
            seen[key] = seen.get(key, 0) + 1
            rows.append(
                Row(
                    key=key if seen[key] == 1 else f"{key}-{seen[key]}",
                    file=f"row-{len(rows):05}.js",
                    protocol=protocol,
                    place=place,
                    table=table,
                    values=row,
                    runs=mine.to_dict("records"),
                    metrics=[metrics_of(one) for _, one in done.groupby("seed")],
                    unread=finished[without].to_dict("records"),
                )
            )
    return rows


def _sort_value(column: tables._Column, row: Row) -> Any:
    """What a column is sorted by."""
    if column.field == "rank":
        return row.place
    if column.field == "label":
        return row.label
    if column.kind == "text" or column.field == "n":
        return tables._get(row.values, column.field)
    return tables._get(row.values, f"{column.field}_mean")


_HELP = {
    "rank": "Place by A_last within the protocol",
    **{name: metric.help for name, metric in METRICS.items()},
    "n": "Seeds",
}


def board_data(
    rows: Sequence[Row], frame: pd.DataFrame, broken: Sequence[BrokenRun], folders: Sequence[Path]
) -> dict[str, Any]:
    """Everything that the page needs at its start.

    :param rows: of `report_rows`.
    :param frame: the runs.
    :param broken: what `read_runs` left out.
    :param folders: where they are from; of several, a path says which.
    """
    protocols = []
    for index in dict.fromkeys(row.protocol for row in rows):
        mine = [row for row in rows if row.protocol == index]
        table = mine[0].table
        every = tables._get(mine[0].values, "eval_every_samples") or 0
        protocols.append(
            {
                "header": table.header,
                "notes": table.notes,
                "every": int(every),
                "columns": [
                    {
                        "title": column.title,
                        "field": column.field,
                        "kind": column.kind,
                        "help": _HELP.get(column.field),
                    }
                    for column in table.columns
                ],
                "rows": [_board_row(row, int(every)) for row in mine],
                "data": _stream(mine),
            }
        )
    failed = frame[frame["status"] == "failed"].to_dict("records")
    reasons = [(run, f"failed: {run['error'] or 'it does not say why'}") for run in failed]
    reasons += [
        (run, "in the table, but left out of the curves: its metrics.csv cannot be read")
        for row in rows
        for run in row.unread
    ]
    missing = [
        {
            "path": run["run_dir"] if len(folders) == 1 else _place(run).as_posix(),
            "reason": reason,
        }
        for run, reason in reasons
    ]
    for path, reason in broken:
        shown = path.relative_to(folders[0]) if len(folders) == 1 else path
        missing.append({"path": shown.as_posix(), "reason": reason})
    return {
        "version": __version__,
        "made": time.strftime("%Y-%m-%d %H:%M"),
        "runs": int((frame["status"] == "done").sum()),
        "protocols": protocols,
        "missing": missing,
    }


def _board_row(row: Row, every: int) -> dict[str, Any]:
    columns = row.table.columns
    return {
        "key": row.key,
        "file": row.file,
        "label": row.label,
        "method": str(row.values["method"]),
        "cells": [tables._one_space(cell) for cell in row.table.cells[row.place]],
        "values": [_sort_value(column, row) for column in columns],
        "best": [i for i, best in enumerate(row.table.best[row.place]) if best],
        "setup": {name: tables._get(row.values, name) for name in tables._SETUP},
        "failed": int(row.values["failed"] or 0),
        "seeds": str(row.values["seeds"]),
        "first": first_end(row.metrics),
        "ends": end_curve(row.metrics),
        "anytime": anytime_curve(row.metrics, every),
        "routing": routing_curves(row.metrics),
    }


def _stream(rows: Sequence[Row]) -> dict[str, Any] | None:
    """The stream's composition as the first run that says so has recorded it."""
    for row in rows:
        for run in row.runs:
            data = (read_json(_place(run) / "config.json") or {}).get("data")
            if not isinstance(data, dict):
                continue
            classes = data.get("classes_per_experience")
            if isinstance(classes, list) and all(isinstance(one, list) for one in classes):
                return {**data, "seed": int(run["seed"])}
    return None


def _place(run: Mapping[Any, Any]) -> Path:
    """A run's directory; a submitted run has none, and its place holds no file."""
    return Path(run["folder"]) / run["run_dir"]


def row_data(row: Row) -> dict[str, Any]:
    """Details of a row: its command, its matrix, and configuration and log of each run."""
    runs: list[dict[str, Any]] = []
    for run in row.runs:
        place = _place(run)
        if run["submitted"]:
            runs.append(_submitted(run))
            continue
        summary = read_json(place / "summary.json") or {}
        try:
            log = read_end(place / "log.txt", 4 * _LOG).decode(errors="replace")
        except OSError:
            log = ""
        runs.append(
            {
                "seed": int(run["seed"]),
                "dir": str(run["run_dir"]),
                "summary": summary,
                "config": read_json(place / "config.json") or {},
                "log": log[-_LOG:],
            }
        )
    return {
        "command": _command(runs[0]["config"], [run["seed"] for run in runs]),
        "matrix": matrix(row.metrics),
        "runs": runs,
        "options": json.loads(tables._get(row.values, "options") or "{}"),
    }


def _submitted(run: Mapping[Any, Any]) -> dict[str, Any]:
    """Details of a submitted run: what its entry says; a log is not submitted."""
    from avalanche_rwf.leaderboard.submissions import Summary, entry_content

    values = {name: run.get(summary_column(name)) for name in Summary.model_fields}
    return {
        "seed": int(run["seed"]),
        "dir": f"{Path(run['folder']).name} {run['run_dir']}",
        "summary": {**values, "status": run["status"]},
        "config": entry_content(run["folder"], int(run["seed"])),
        "log": "",
    }


@functools.cache
def _defaults(method: str) -> dict[str, Any] | None:
    """A method's own options, None where it is not known here: the command then gives all.

    What a file of a run or an entry names is not imported for that: it may be anybody's.
    """
    if not may_import(method):
        return None
    try:
        return dict(get_method(method).options)
    except UsageError:
        return None


def _command(content: Mapping[str, Any], seeds: Sequence[int]) -> str | None:
    """The command of a row; None if the configuration is not one of this version."""
    known = {f.name for f in dataclasses.fields(RunConfig)}
    values = content.get("config")
    try:
        assert isinstance(values, dict)
        config = RunConfig.from_dict({k: v for k, v in values.items() if k in known})
        origins = {"method": content.get("method_origin"), **(content.get("origins") or {})}
        if ":" in config.method:
            del origins["method"]  # its name says where it is
        files = [(origin or {}).get("file") for origin in origins.values()]
        imports = list(dict.fromkeys(file for file in files if file))
        return command_line(
            config, seeds=seeds, defaults=_defaults(config.method), imports=imports
        )
    except (AssertionError, TypeError, AttributeError, KeyError, ValueError, UsageError):
        return None  # of another version, or with a stream or an option that is not known here
