"""From run directories to one row per configuration.

A run directory is ``OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>/`` with `config.json` and
`summary.json`; `metrics.csv` is not read for a ranking. Means are taken over seeds of one
configuration and of nothing else: two runs that differ in anything but the seed (head, mask,
read-out, batch, gradient steps, stream, the backbone's weights) differ in the hash of the
configuration or in that of the weights and stay apart. So do runs of different code: by the version
of the package and by the hash of its sources that make numbers, or by the git revision where a run
is older than that record. Submitted runs stay apart from those made here. What may move a number in
its last digits only (the release of torch, the hardware) is noted and separates nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.evaluation.metrics import METRICS
from avalanche_rwf.experiments.config import run_settings
from avalanche_rwf.leaderboard.stats import interval, mean_std, paired_difference
from avalanche_rwf.utils.atomic_io import write_whole
from avalanche_rwf.utils.untrusted_io import MOST, printable, read_file, read_object
from avalanche_rwf.utils.validation import AnyPath

SETUP = ("head", "mask", "readout", "budget")
"""What tells methods apart besides their names: columns of a table where they differ."""

# Settings of a run that have a column of their own, by name.
_COLUMNS = {n: s for n, s in run_settings().items() if s.column == n}
# Further columns, each behind the setting that it goes with.
_BEHIND = {
    "backbone": ("backbone_sha256", "backbone_source", "method", "config_hash", *SETUP[:3]),
    "skip_corrupt": ("settings",),
    "weights": ("options",),
    "tuning": ("uses_boundaries",),
}
# Columns of a configuration, in their order in the leaderboard.
_IDENTITY = (
    *(
        column
        for name in _COLUMNS
        if name not in ("method", "options")
        for column in (name, *_BEHIND.get(name, ()))
    ),
    *("version", "source", "submitted"),
)
_INTEGERS = tuple(name for name, s in _COLUMNS.items() if s.kind == "whole")
# What runs of one row may differ in; the row has all values, as in "2.8.0; 2.9.1".
_NOTED = ("git", "torch", "hardware")
_RUN = ("folder", "run_dir", "seed", "status", "error", *_NOTED, "images")
_TAKEN = frozenset((*_IDENTITY, *_RUN))
# Rows that differ in any of these are in different tables and are never ranked against each other.
PROTOCOL = tuple(dict.fromkeys(s.column for s in run_settings().values() if s.role == "protocol"))
# What two runs must share to be seeds of one row. The hash would do; settings are compared too,
# because a file that was changed by hand keeps its hash. A run that failed early does not know the
# number of experiences.
_CODE_OF = ("version", "source")
_GROUP = (
    *_CODE_OF,
    *("config_hash", "submitted"),
    *(name for name in PROTOCOL if name != "experiences"),
    *(name for name, s in _COLUMNS.items() if s.role == "method"),
)
_CODE = slice(0, len(_CODE_OF))  # of _GROUP
# All other fields of a configuration are settings that this version does not know.
_NOT_SETTINGS = frozenset(
    (*_IDENTITY, *(name for name, s in run_settings().items() if s.column != "settings"))
)
_PLACE = "OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>"
_SEED = re.compile(r"seed(\d+)")
# Metrics that are computed from predictions; they get an interval.
_SCORES = tuple(name for name, metric in METRICS.items() if metric.kind in ("share", "change"))
_REFERENCE = ("difference", "difference_ci_low", "difference_ci_high", "p", "n_pairs")
_FILES = ("config.json", "summary.json", "metrics.csv")
FORMULA = ("=", "+", "-", "@")
"""A cell of a CSV file that begins with one of these is computed by the program that opens it."""
MOST_MEASURED = 1e30
"""The largest number that a run may have measured; sums of larger ones overflow."""

_RANGES = {"share": (0.0, 1.0, "share of 1"), "change": (-1.0, 1.0, "difference of shares")}
_AMOUNT = (0.0, MOST_MEASURED, "time, size or count")
# How deep foreign folders are looked into.
_DEPTH = 8


class BrokenRun(NamedTuple):
    """A run directory that gives no result, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}")


class Runs(NamedTuple):
    """What `read_runs` found: a frame with a row per finished or failed run, and the others."""

    frame: pd.DataFrame
    broken: list[BrokenRun]


def summary_column(field: str) -> str:
    """Return the column of a field of `summary.json` in the frame of runs.

    Its own name, but for one that a column of the configuration bears: `gradient_steps` is there
    the number per batch, so the summary's, counted over the whole run, is `gradient_steps_run`.
    """
    return f"{field}_run" if field in _TAKEN else field


def _summary_field(column: str) -> str:
    """Undo `summary_column`."""
    field = column.removesuffix("_run")
    return field if summary_column(field) == column else column


def read_runs(
    out_dir: str | os.PathLike[str], *more: str | os.PathLike[str]
) -> Runs:
    """Read every run directory under one or several folders.

    :param out_dir: the output folder of `compare`, the one that holds `runs/`.
    :param more: others, as from other machines. A run that is in several of them counts once if its
        files are the same to the byte.
    :returns: the runs as a frame: what identifies a configuration (`benchmark`, `backbone`,
        `method`, `config_hash`, `head`, ...; `options` and `settings`, what else the configuration
        holds, as sorted JSON text), `folder` (the one given), `run_dir` (relative to it), `seed`,
        `status` ("done" or "failed"), `error`, `git`, `torch`, `hardware`, `images` ("1200+540", of
        training and of the test), and the fields of the summary under `summary_column`; and a list
        of the directories that gave none, with the reason (unfinished, unreadable, contradictory,
        misplaced, foreign).
    :raises UsageError: if a folder is none, or if two of them hold different runs of one seed of
        one configuration.
    """
    rows: list[dict[str, Any]] = []
    broken: list[BrokenRun] = []
    for folder in (out_dir, *more):
        AnyPath().check("out_dir", folder)
        out = Path(folder)
        if not out.is_dir():
            raise UsageError(f"out_dir must be a folder with run directories, got {str(out)!r}.")
        for path in _run_directories(out / "runs"):
            try:
                rows.append({"folder": str(out), **_read_run(path, out)})
            except _UnusableError as error:
                broken.append(BrokenRun(path, str(error)))
    return Runs(to_frame(_once(rows) if more else rows), broken)


def _run_directories(runs: Path) -> list[Path]:
    """Return, sorted, what is a run directory or stands where one should.

    One pass, never into a run directory: thousands of them are read in seconds. Links are followed
    down to the depth of run directories only, so that a circle of them ends.
    """
    found: list[Path] = []

    def visit(folder: str, depth: int) -> None:
        try:
            entries = list(os.scandir(folder))
        except OSError:
            found.append(Path(folder))
            return
        names = {entry.name for entry in entries}
        below = [entry for entry in entries if entry.is_dir(follow_symlinks=depth < 4)]
        placed = depth == 4 and folder.rpartition(os.sep)[2].startswith("seed")
        if placed or {"config.json", "summary.json"} & names:
            found.append(Path(folder))
        elif not below or depth >= _DEPTH:
            if depth:  # an empty `runs` is no run
                found.append(Path(folder))
        else:
            for entry in below:
                visit(entry.path, depth + 1)

    if runs.is_dir():
        visit(str(runs), 0)
    return sorted(found)


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two runs must share to be seeds of one row."""
    return _values(row, _GROUP)


def _values(row: dict[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(None if missing(row[name]) else row[name] for name in names)


def missing(value: Any) -> bool:
    """Return whether a cell of a frame holds nothing."""
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out a finished run that another folder holds too.

    :raises UsageError: if it is another run of the same seed.
    """
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    result = []
    for row in rows:
        if row["status"] == "done":
            first = kept.setdefault((row_key(row), row["seed"]), row)
            # At two places of one folder it is a copied directory, which `aggregate` refuses.
            same_place = first["run_dir"] == row["run_dir"]
            if first is not row and (same_place or first["folder"] != row["folder"]):
                here, there = (Path(r["folder"]) / r["run_dir"] for r in (first, row))
                if not all(_content(here / name) == _content(there / name) for name in _FILES):
                    raise UsageError(
                        "Folders must hold a seed of a configuration once or as identical files, "
                        f"got different runs of it in {here} and {there}."
                    )
                continue
        result.append(row)
    return result


def _content(path: Path) -> bytes | None:
    try:
        return read_file(path)
    except (OSError, ValueError):
        return None


def to_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Make the frame of `read_runs` from its rows."""
    fields = sorted({name for row in rows for name in row} - set(_IDENTITY) - set(_RUN))
    ordered = [name for name in _SCORES if name in fields]
    ordered += [name for name in fields if name not in _SCORES]
    frame = pd.DataFrame(rows, columns=[*_RUN[:2], *_IDENTITY, *_RUN[2:], *ordered])
    for name in ordered:
        frame[name] = frame[name].astype("float64")
    return _whole_numbers(frame, rows)


def _whole_numbers(frame: pd.DataFrame, rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Keep integers integers: one missing value would turn a batch of 16 into one of 16.0."""
    for name in _INTEGERS:
        values = [row.get(name) for row in rows]
        known = [value for value in values if value is not None and value is not pd.NA]
        if all(isinstance(value, (int, np.integer)) for value in known):
            frame[name] = pd.array(values, dtype="Int64")
    return frame


class _UnusableError(Exception):
    """Why a run directory gives no row."""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except FileNotFoundError:
        raise _UnusableError(f"unfinished: it has no {path.name}") from None
    except (OSError, ValueError) as error:
        raise _UnusableError(f"{path.name} cannot be read: {error}") from None


def _part(content: dict[str, Any], key: str, file: str) -> dict[str, Any]:
    """Return the object under a key, or say that it is missing."""
    part = content.get(key)
    if not isinstance(part, dict):
        raise _UnusableError(f"{file} has no object {key!r}")
    return part


def _text(value: Any) -> str | None:
    """Return structured values as sorted JSON text, None for nothing."""
    if value is None or value == {} or value == []:
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _read_run(path: Path, out: Path) -> dict[str, Any]:
    """Return the row of one run directory.

    :raises _UnusableError: if it gives none.
    """
    parts = path.parts[len(out.parts) :]  # runs, benchmark, method, hash, seed
    match = _SEED.fullmatch(parts[-1])
    if match is None and not any((path / name).exists() for name in _FILES[:2]):
        raise _UnusableError(f"is not a run directory: it has neither {' nor '.join(_FILES[:2])}")
    if len(parts) != 5 or match is None:
        raise _UnusableError(f"is not at {_PLACE}")
    try:
        content = _read_json(path / "config.json")
    except _UnusableError as error:
        # A run that fails before its backbone or data is there has an error and nothing else.
        raise _UnusableError(f"{error}{_failure(path / 'summary.json')}") from None
    config = _part(content, "config", "config.json")
    backbone = _part(content, "backbone", "config.json")
    _check_types(config)
    missing = [key for key in ("benchmark", "method", "seed") if config.get(key) is None]
    missing += [key for key in ("config_hash",) if not content.get(key)]
    missing += [f"backbone.{key}" for key in ("name", "sha256") if not backbone.get(key)]
    if missing:
        raise _UnusableError(f"config.json does not say {', '.join(missing)}")
    # A copied or renamed directory must not count as another seed or another configuration.
    if str(config["seed"]) != match.group(1):
        raise _UnusableError(f"config.json is of seed {config['seed']}, not {match.group(1)}")
    config_hash, folder = str(content["config_hash"]), parts[-2]
    if not (config_hash.startswith(folder) or folder.startswith(config_hash)):
        raise _UnusableError(f"config.json is of configuration {config_hash}, not {folder}")

    row = configuration_row(content)
    row["run_dir"] = "/".join(parts)
    row.update(_read_summary(path / "summary.json"))
    return row


# The type of a setting's value by the setting's kind, and its name in a message.
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "mapping": ((dict,), "an object"),
    "text": ((str,), "a text"),
    "whole": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
}


def _check_types(config: dict[str, Any]) -> None:
    """Check the types of settings that are used: one odd file must not stop a leaderboard.

    :raises _UnusableError: naming the field.
    """
    for name, setting in run_settings().items():
        value = config.get(name)
        if value is None or setting.column == "settings" or setting.kind not in _KINDS:
            continue
        types, said = _KINDS[setting.kind]
        if value == [] and dict in types:
            continue
        if not isinstance(value, types) or isinstance(value, bool):  # a bool is an int
            raise _UnusableError(
                f"config.json has {name} of type {type(value).__name__}, not {said}"
            )
        if setting.kind == "whole" and not 0 <= config[name] < MOST:
            raise _UnusableError(f"config.json has {name} of {value:.3g}")
        if setting.kind == "number" and not 0 <= config[name] < 1:
            raise _UnusableError(f"config.json has {name} {value:.3g}, which is no share")
    tuning = config.get("tuning")
    if tuning and not (isinstance(tuning.get("chosen"), dict) and "settings" in tuning):
        raise _UnusableError("config.json has tuning that does not say chosen and settings")


def configuration_row(content: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that a `config.json`, checked by the caller, gives to a run."""
    config, backbone = content["config"], content["backbone"]
    options = config.get("options") or {}
    # Methods that leave no choice of head, mask or read-out have one all the same.
    ran, versions, hardware = (
        part if isinstance(part, dict) else {}
        for part in (content.get(name) for name in ("ran", "versions", "hardware"))
    )
    row: dict[str, Any] = {name: config.get(name) for name in _IDENTITY}
    for name, setting in _COLUMNS.items():
        if setting.kind == "mapping" or setting.kind == "text":
            row[name] = _text(row[name])
        if setting.kind == "flag":
            row[name] = bool(row[name])
        # Runs of an earlier version do not have these.
        if setting.young and setting.kind == "whole":
            row[name] = row[name] or 0
    git = _text(content.get("git"))
    row.update(
        seed=int(config["seed"]),
        backbone=str(backbone["name"]),
        backbone_sha256=str(backbone["sha256"]),
        backbone_source=_text(backbone.get("source")),
        config_hash=str(content["config_hash"]),
        experiences=_experiences(config, content),
        settings=_text(_settings(config)),
        budget=config.get("budget") or "default",
        uses_boundaries=bool(content.get("uses_boundaries")),
        version=_text(versions.get("avalanche-rwf")),
        # The git revision also changes with a page of the documentation.
        source=_text(content.get("source_sha256")) or git,
        submitted=False,
        git=git,
        torch=_text(versions.get("torch")),
        hardware=_text(hardware.get("gpu") or hardware.get("cpu")),
        images=_images(content.get("data")),
        **{name: _text(ran.get(name) or options.get(name)) for name in SETUP[:3]},
    )
    return row


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration holds besides the columns."""
    return {
        name: value
        for name, value in config.items()
        if name not in _NOT_SETTINGS and value  # as in the hash
    }


def _failure(path: Path) -> str:
    """Return what a summary without a configuration says of a failure, for the reason."""
    try:
        error = _read_json(path).get("error")
    except _UnusableError:
        return ""
    return f"; the run failed: {error}" if error else ""


def _images(data: Any) -> str | None:
    """Return how many training and test images a run had, "1200+540"; None if it does not say."""
    if not isinstance(data, dict):
        return None
    sizes = [data.get(name) for name in ("train_size", "test_size")]
    return "+".join(map(str, sizes)) if all(type(size) is int for size in sizes) else None


def _differing(runs: list[dict[str, Any]]) -> set[int]:
    """Return which finished runs had other images than one of the same protocol and seed.

    A seed fixes the stream, so their numbers can differ only if the data did: a folder that has
    changed since, or that is another one on another machine.

    :param runs: rows of the frame of `read_runs`.
    """
    found: dict[tuple[Any, ...], dict[str, list[int]]] = {}
    for index, run in enumerate(runs):
        if run["status"] == "done" and not missing(run["images"]):
            same = found.setdefault((*_values(run, PROTOCOL), int(run["seed"])), {})
            same.setdefault(run["images"], []).append(index)
    return {i for by in found.values() if len(by) > 1 for indices in by.values() for i in indices}


def _experiences(config: dict[str, Any], content: dict[str, Any]) -> Any:
    """Return the number of experiences, of the stream itself where it is left to the benchmark."""
    if config.get("experiences") is not None:
        return config["experiences"]
    data = content.get("data")
    classes = data.get("classes_per_experience") if isinstance(data, dict) else None
    return len(classes) if isinstance(classes, list) else None


def _read_summary(path: Path) -> dict[str, Any]:
    summary = _read_json(path)
    status = summary.get("status")
    if status not in ("done", "failed"):
        raise _UnusableError(f"unfinished: summary.json has the status {status!r}")
    row: dict[str, Any] = {"status": status, "error": _text(summary.get("error"))}
    for field, value in summary.items():
        if field in ("status", "error") or isinstance(value, bool):
            continue
        if value is None or isinstance(value, (int, float)):
            row[summary_column(field)] = math.nan if value is None else float(value)
    a_last = row.get("a_last", math.nan)
    if status == "done" and math.isnan(a_last):
        raise _UnusableError("summary.json is of a run that is done but has no a_last")
    if status == "done":
        _check_measured(row)
    return row


def _check_measured(row: dict[str, Any]) -> None:
    """Check the numbers of a finished run: impossible ones must not be ranked or shown.

    :raises _UnusableError: naming the field.
    """
    for column, value in row.items():
        if isinstance(value, float) and not math.isnan(value):
            field = _summary_field(column)
            low, high, what = -MOST_MEASURED, MOST_MEASURED, "measurement"
            if field in METRICS:
                low, high, what = _RANGES.get(METRICS[field].kind, _AMOUNT)
            if not low <= value <= high:
                raise _UnusableError(f"summary.json has {field} {value:g}, which is no {what}")


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Reduce a frame of runs to one row per configuration.

    :param runs: the frame of `read_runs`, or several of them concatenated.
    :returns: one row per (benchmark, stream, backbone and its weights, method, config hash, version
        and source of the code, submitted or not): the columns that identify it, `n` and `seeds`
        (those that are done, "0,1,2"), `failed` (how many runs failed; they enter no mean), `git`,
        `torch` and `hardware` (all that its runs have), `images_differ` where there are such (the
        seeds at which other runs of the protocol had other numbers of images), and for every
        numeric field of the summaries `<field>_mean` and `<field>_std` (of the sample, ddof=1; NaN
        for one seed), for accuracies and forgetting also `<field>_ci_low` and `<field>_ci_high`
        (95 %, Student's t). Fields that a seed lacks are averaged over the others. Best
        `a_last_mean` first within each benchmark and backbone.
    :raises UsageError: if a seed occurs twice in a configuration.
    """
    known = (*_IDENTITY, *_RUN)
    fields = [
        name
        for name in runs.columns
        if name not in known and pd.api.types.is_numeric_dtype(runs[name])
    ]
    # Plain rows and arrays: thousands of small frames would take longer than reading the files.
    said = records(runs, (*_IDENTITY, *_RUN))
    values = {name: runs[name].to_numpy(np.float64) for name in fields}
    differing = _differing(said)
    rows = []
    for indices in _groups(said):
        row = _row_of([said[i] for i in indices])
        done = [i for i in indices if said[i]["status"] == "done"]
        done.sort(key=lambda i: int(said[i]["seed"]))
        others = [str(int(said[i]["seed"])) for i in done if i in differing]
        row["images_differ"] = ",".join(others) or None
        for field in fields:
            name, numbers = _summary_field(field), values[field][done]
            row[f"{name}_mean"], row[f"{name}_std"] = mean_std(numbers)
            if name in _SCORES:
                row[f"{name}_ci_low"], row[f"{name}_ci_high"] = interval(numbers)
        rows.append(row)
    columns = [*_IDENTITY, "n", "seeds", "failed", *_NOTED]
    columns += ["images_differ"] if differing else []
    for field in fields:
        columns += [f"{_summary_field(field)}_{statistic}" for statistic in ("mean", "std")]
        columns += [f"{field}_ci_low", f"{field}_ci_high"] if field in _SCORES else []
    board = _whole_numbers(pd.DataFrame(rows, columns=columns), rows)
    if "a_last_mean" not in board or board.empty:
        return board
    order = ["benchmark", "stream", "backbone", "backbone_sha256", "a_last_mean", "method"]
    ascending = [name != "a_last_mean" for name in order]
    return board.sort_values(order, ascending=ascending, na_position="last", ignore_index=True)


def _row_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns of a row that are no statistics.

    :raises UsageError: if a seed occurs twice.
    """
    done = [run for run in runs if run["status"] == "done"]
    done.sort(key=lambda run: int(run["seed"]))
    seeds = [int(run["seed"]) for run in done]
    twice = [_name(run) for run in done if seeds.count(int(run["seed"])) > 1]
    if twice:
        raise UsageError(
            "runs must hold a seed once in a configuration, got the same one in "
            f"{', '.join(twice)}."
        )
    row: dict[str, Any] = {name: runs[0][name] for name in _IDENTITY}
    # A run that failed early does not know.
    row["uses_boundaries"] = any(bool(run["uses_boundaries"]) for run in runs)
    row.update(n=len(done), seeds=",".join(map(str, seeds)), failed=len(runs) - len(done))
    for name in _NOTED:
        there = {str(run[name]) for run in runs if not missing(run[name])}
        row[name] = "; ".join(sorted(there)) or None
    return row


def records(frame: pd.DataFrame, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return rows as plain dictionaries; `to_dict` looks at every value and takes far longer.

    :param frame: of runs or a leaderboard.
    :param names: its columns to keep, by default all.
    """
    names = list(frame.columns) if names is None else names
    columns = [frame[name].tolist() for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _groups(records: list[dict[str, Any]]) -> list[list[int]]:
    """Return the indices of the runs of each row, in the order of their first run."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(row_key(record), []).append(index)
    # A run that failed before its backbone or data was there does not name its code: it counts in
    # any row of its configuration.
    rows: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for key in groups:
        if key[_CODE] != (None, None):
            rows.setdefault((*key[: _CODE.start], *key[_CODE.stop :]), key)
    for key in [key for key in groups if key[_CODE] == (None, None)]:
        other = rows.get((*key[: _CODE.start], *key[_CODE.stop :]))
        if other and not any(records[index].get("status") == "done" for index in groups[key]):
            groups[other] += groups.pop(key)
    return list(groups.values())


def _name(record: dict[str, Any]) -> str:
    """Name a run in a sentence: by its directory, or by the file that it was submitted in."""
    if record["submitted"] is True:
        return f"{record['folder']} ({record['run_dir']})"
    return str(record["run_dir"])


def protocols(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Split runs or a leaderboard into what may be compared: one protocol each, in their order.

    :param frame: of `read_runs` or `aggregate`.
    """
    keys = [name for name in PROTOCOL if name in frame.columns]
    if frame.empty:
        return []
    return [group for _, group in frame.groupby(keys, dropna=False, sort=False)]


def add_reference(board: pd.DataFrame, runs: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Add to each row its paired difference in A_last to a reference, over the seeds both have.

    :param board: the frame of `aggregate`.
    :param runs: the frame that it was made of.
    :param reference: a method, or the beginning of a configuration's hash where a protocol has
        several configurations of the method. In every protocol that has it the rows are compared
        with its row; where it has one row per version of the code, with that of the same code.
    :returns: the board with `reference`, `difference` (row minus reference), `difference_ci_low`
        and `difference_ci_high` (95 %, Student's t), `p` (two-sided paired t-test, not corrected
        for the number of rows) and `n_pairs`; missing in the reference's own row and in protocols
        without it.
    :raises UsageError: if no finished row is of the reference, or several of one protocol are.
    """
    scored = {
        key: dict(zip(group["seed"], group["a_last"], strict=True))
        for key, group in runs_by_row(runs[runs["status"] == "done"]).items()
    }
    board = board.copy()
    found = False
    columns: dict[str, dict[Any, Any]] = {name: {} for name in ("reference", *_REFERENCE)}
    for table in protocols(board):
        rows = dict(zip(table.index, table.to_dict("records"), strict=True))
        named = {
            index: row
            for index, row in rows.items()
            if row["n"] and is_reference(row, reference)
        }
        found = found or bool(named)
        for index, row in rows.items():
            if not named or index in named:
                continue
            other = _counterpart(row, list(named.values()), reference)
            ours, theirs = scored.get(row_key(row), {}), scored[row_key(other)]
            seeds = sorted(ours.keys() & theirs.keys())
            paired = paired_difference([ours[s] for s in seeds], [theirs[s] for s in seeds])
            said = (paired.difference, paired.low, paired.high, paired.p, paired.n)
            for name, value in zip(_REFERENCE, said, strict=True):
                columns[name][index] = value
            columns["reference"][index] = other["method"]
    if not found:
        known = sorted(set(board.loc[board["n"] > 0, "method"]))
        raise UsageError(
            f"--reference takes a method with finished runs or the beginning of a configuration's "
            f"hash, not {reference!r}; {nearest(reference, known)}."
        )
    for name, values in columns.items():
        kind = "object" if name == "reference" else "Int64" if name == "n_pairs" else "float64"
        board[name] = pd.Series(values, index=board.index, dtype=kind)
    return board


def runs_by_row(runs: pd.DataFrame) -> dict[tuple[Any, ...], pd.DataFrame]:
    """Return the runs of each row of the leaderboard."""
    said = records(runs, (*_GROUP, "status"))
    return {row_key(said[i[0]]): runs.iloc[i] for i in _groups(said)}


def is_reference(row: dict[str, Any], reference: str) -> bool:
    """Return whether a row is named: by its method, or by the beginning, of six digits or more, of
    its configuration's hash."""
    by_hash = len(reference) >= 6 and str(row["config_hash"]).startswith(reference)
    return bool(row["method"] == reference or by_hash)


def _counterpart(
    row: dict[str, Any], candidates: list[dict[str, Any]], reference: str
) -> dict[str, Any]:
    """Return the one row of the reference to compare a row with.

    :raises UsageError: if there are several.
    """
    same = [c for c in candidates if row_key(c)[_CODE] == row_key(row)[_CODE]]
    chosen = same if len(candidates) > 1 and len(same) == 1 else candidates
    if len(chosen) > 1:
        hashes = ", ".join(sorted({str(c["config_hash"]) for c in chosen}))
        raise UsageError(
            f"--reference takes one row of a table, and {reference!r} is {len(chosen)} rows of "
            f"{row['benchmark']} (configurations {hashes}): give the hash of one."
        )
    return chosen[0]


def csv_text(board: pd.DataFrame) -> str:
    """Write a leaderboard as CSV: every column, numbers in full precision.

    Names in it may be anybody's. A terminal would obey their control characters, which are written
    as in Python (``\\x1b``), and a spreadsheet would compute a cell that begins with one of
    ``= + - @``, which gets an apostrophe before it, as such programs write a text.
    """
    plain = board.copy()
    for name in plain.columns:
        if not pd.api.types.is_numeric_dtype(plain[name]):
            plain[name] = plain[name].map(_cell)
    return plain.to_csv(index=False, header=[_cell(str(name)) for name in plain.columns])


def _cell(value: Any) -> Any:
    """Return a value for a CSV file, where a text must not be read as a formula."""
    if not isinstance(value, str):
        return value
    if not value.isprintable():  # not printable, but spaces of other scripts are kept
        value = "".join(ascii(sign)[1:-1] if _commands(sign) else sign for sign in value)
    return f"'{value}" if value.startswith(FORMULA) else value


def _commands(sign: str) -> bool:
    """Return whether a character is a control or format character, a surrogate or a line break."""
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def write_leaderboard(
    out_dir: str | os.PathLike[str], board: pd.DataFrame | None = None
) -> Path:
    """Write ``OUT/leaderboard.csv`` from the run directories under OUT, and return its path.

    The file is replaced in one step, so a reader never sees half of it.

    :param out_dir: OUT.
    :param board: their leaderboard, if the caller has read them already.
    :raises UsageError: if `out_dir` is not a folder or cannot be written to.
    """
    out = Path(out_dir)
    board = aggregate(read_runs(out).frame) if board is None else board
    target = out / "leaderboard.csv"
    content = csv_text(board).encode()
    try:
        write_whole(target, lambda file: file.write(content), make_folder=False)
    except OSError as error:
        raise UsageError(
            f"out_dir must be a folder that can be written to, got {str(out)!r} ({error.strerror})."
        ) from error
    return target
