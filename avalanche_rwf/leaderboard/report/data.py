"""What the page shows, as plain values: rows of protocols, curves, matrices, runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import METRICS
from avalanche_rwf.experiments.command import command_line
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.leaderboard import curves
from avalanche_rwf.leaderboard import table as tables
from avalanche_rwf.leaderboard.aggregate import BrokenRun, summary_column
from avalanche_rwf.leaderboard.curves import Curve, Measured, measured, over_seeds
from avalanche_rwf.leaderboard.style import Look, looks
from avalanche_rwf.utils.known import known
from avalanche_rwf.utils.untrusted_io import read_end
from avalanche_rwf.utils.user_code import may_import
from avalanche_rwf.version import __version__

_LOG = 20_000  # characters of a log that are kept, from its end
_DIGITS = 5
Point = list[float | int | None]
"""[samples seen, mean, standard deviation or None, seeds]"""


def points(curve: Curve) -> list[Point]:
    """A curve as the page draws it."""
    samples, values = curve
    return [
        [round(seen), round(mean, _DIGITS), None if math.isnan(std) else round(std, _DIGITS), n]
        for seen, mean, std, n in zip(
            samples.tolist(),
            *(part.tolist() for part in over_seeds(values)),
            (~np.isnan(values)).sum(axis=0).tolist(),
            strict=True,
        )
    ]


def _cells(values: NDArray[Any]) -> list[list[float | None]]:
    """A matrix with None for what is not there."""
    return [
        [None if math.isnan(v) else round(v, _DIGITS) for v in line] for line in values.tolist()
    ]


# ---- rows


@dataclass(frozen=True)
class Row(Measured):
    """One configuration, as the page shows it.

    :param key: names it in the page's address.
    :param file: of its details.
    :param protocol: index of its table.
    :param place: its line in that table.
    :param table: the table.
    :param look: how it is drawn.
    """

    key: str
    file: str
    protocol: int
    place: int
    table: tables.Table
    look: Look

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
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for protocol, values in enumerate(tables.ranked(board)):
        table = tables._table(values, tables._offered(values))
        found = zip(measured(values, frame), looks(values), strict=True)
        for place, (one, look) in enumerate(found):
            key = str(one.values["config_hash"])
            seen[key] = seen.get(key, 0) + 1
            key = key if seen[key] == 1 else f"{key}-{seen[key]}"
            file = f"row-{len(rows):05}.js"
            rows.append(Row(**vars(one), key=key, file=file, protocol=protocol, place=place,
                            table=table, look=look))  # fmt: skip
    return rows


def _sort_value(column: tables.Column, row: Row) -> Any:
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
        "cells": [tables.one_space(cell) for cell in row.table.cells[row.place]],
        "values": [_sort_value(column, row) for column in columns],
        "best": [i for i, best in enumerate(row.table.best[row.place]) if best],
        "setup": {name: tables._get(row.values, name) for name in tables.SETUP},
        "failed": int(row.values["failed"] or 0),
        "seeds": str(row.values["seeds"]),
        "look": row.look._asdict(),
        "first": curves.first_end(row.metrics),
        "ends": points(curves.end_curve(row.metrics)),
        "anytime": points(curves.anytime_curve(row.metrics, every)),
        "routing": {
            name: points(curve) for name, curve in curves.routing_curves(row.metrics).items()
        },
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
    mean, std = curves.matrix(row.metrics)
    return {
        "command": _command(runs[0]["config"], [run["seed"] for run in runs]),
        "matrix": {"mean": _cells(mean), "std": _cells(std)} if mean.size else None,
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
    there = known("methods")
    if there is not None and method in there:  # without PyTorch, which takes seconds
        return {key: default for key, (_, default, _) in there[method]["options"].items()}
    if not may_import(method):
        return None
    from avalanche_rwf.strategies.registry import get_method

    try:
        options = get_method(method).options
    except UsageError:
        return None
    return {key: str(v) if isinstance(v, str) else v for key, v in options.items()}


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
