"""From run directories to one row per configuration.

A run directory is ``OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>/`` with `config.json` and
`summary.json`. Means are taken over seeds of one configuration and of nothing else: two runs that
differ in anything but the seed (head, mask, read-out, batch, gradient steps, stream, the backbone's
weights) differ in the hash of the configuration or in that of the weights and stay apart.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from avalanche_rwf.errors import UsageError

__all__ = ["BrokenRun", "Runs", "aggregate", "read_runs", "write_leaderboard"]

# Columns of a configuration, in their order in the leaderboard.
_IDENTITY = (
    *("benchmark", "stream", "experiences", "backbone", "backbone_sha256", "backbone_source"),
    *("method", "config_hash", "head", "mask", "readout", "batch_size", "gradient_steps"),
    *("precision", "image_size", "augment", "eval_every_samples", "holdout", "backbone_args"),
    *("skip_corrupt", "weights", "options", "budget", "tuning", "uses_boundaries"),
    *("stream_options", "boundary_free", "eval_subset"),
)
_INTEGERS = (
    *("experiences", "batch_size", "gradient_steps", "image_size", "eval_every_samples"),
    "eval_subset",
)
_RUN = ("run_dir", "seed", "status", "error")
_GROUP = ("benchmark", "stream", "backbone", "backbone_sha256", "method", "config_hash")
_PLACE = "OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>"
_SEED = re.compile(r"seed(\d+)")
_METRICS = ("a_last", "a_avg", "a_auc", "forgetting_experience", "forgetting_class")


class BrokenRun(NamedTuple):
    """A run directory that gives no result, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Runs(NamedTuple):
    """What `read_runs` found: a frame with a row per finished or failed run, and the others."""

    frame: pd.DataFrame
    broken: list[BrokenRun]


def summary_column(field: str) -> str:
    """Return the column of a field of `summary.json` in the frame of runs.

    Its own name, but for one that a column of the configuration bears: `gradient_steps` is there
    the number per batch, so the summary's, counted over the whole run, is `gradient_steps_run`.
    """
    return f"{field}_run" if field in (*_IDENTITY, *_RUN) else field


def _summary_field(column: str) -> str:
    """Undo `summary_column`."""
    field = column.removesuffix("_run")
    return field if summary_column(field) == column else column


def read_runs(out_dir: str | os.PathLike[str]) -> Runs:
    """Read every run directory under `out_dir`.

    Args:
        out_dir: the output folder of `compare`, the one that holds `runs/`.

    Returns:
        the runs as a frame: what identifies a configuration (`benchmark`, `backbone`, `method`,
        `config_hash`, `head`, ...; `options` as sorted JSON text), `run_dir` (relative to
        `out_dir`), `seed`, `status` ("done" or "failed"), `error`, and the fields of the summary
        under `summary_column`; and a list of the directories that gave none, with the reason
        (unfinished, unreadable, contradictory, misplaced).

    Raises:
        UsageError: if `out_dir` is not a folder.
    """
    out = Path(out_dir)
    if not out.is_dir():
        raise UsageError(f"out_dir must be a folder with run directories, got {str(out)!r}.")
    runs = out / "runs"
    found = {path for path in runs.glob("*/*/*/seed*") if path.is_dir()}
    for name in ("config.json", "summary.json"):
        found.update(path.parent for path in runs.rglob(name))
    rows, broken = [], []
    for path in sorted(found):
        try:
            rows.append(_read_run(path, out))
        except _UnusableError as error:
            broken.append(BrokenRun(path, str(error)))
    fields = sorted({name for row in rows for name in row} - set(_IDENTITY) - set(_RUN))
    ordered = [name for name in _METRICS if name in fields]
    ordered += [name for name in fields if name not in _METRICS]
    frame = pd.DataFrame(rows, columns=[*_RUN[:1], *_IDENTITY, *_RUN[1:], *ordered])
    for name in ordered:
        frame[name] = frame[name].astype("float64")
    return Runs(_whole_numbers(frame, rows), broken)


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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _UnusableError(f"unfinished: it has no {path.name}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _UnusableError(f"{path.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise _UnusableError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


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

    Raises:
        _UnusableError: if it gives none.
    """
    match = _SEED.fullmatch(path.name)
    if len(path.relative_to(out / "runs").parts) != 4 or match is None:
        raise _UnusableError(f"is not at {_PLACE}")
    try:
        content = _read_json(path / "config.json")
    except _UnusableError as error:
        # A run that fails before its backbone or data is there has an error and nothing else.
        raise _UnusableError(f"{error}{_failure(path / 'summary.json')}") from None
    config = _part(content, "config", "config.json")
    backbone = _part(content, "backbone", "config.json")
    options = config.get("options") or {}
    if not isinstance(options, dict):
        raise _UnusableError("config.json has options that are not an object")
    missing = [key for key in ("benchmark", "method", "seed") if config.get(key) is None]
    missing += [key for key in ("config_hash",) if not content.get(key)]
    missing += [f"backbone.{key}" for key in ("name", "sha256") if not backbone.get(key)]
    if missing:
        raise _UnusableError(f"config.json does not say {', '.join(missing)}")
    # A copied or renamed directory must not count as another seed or another configuration.
    if str(config["seed"]) != match.group(1):
        raise _UnusableError(f"config.json is of seed {config['seed']}, not {match.group(1)}")
    config_hash, folder = str(content["config_hash"]), path.parent.name
    if not (config_hash.startswith(folder) or folder.startswith(config_hash)):
        raise _UnusableError(f"config.json is of configuration {config_hash}, not {folder}")

    row: dict[str, Any] = {name: config.get(name) for name in _IDENTITY}
    # Methods that leave no choice of head, mask or read-out have one all the same.
    ran = content.get("ran")
    ran = ran if isinstance(ran, dict) else {}
    row.update(
        run_dir=path.relative_to(out).as_posix(),
        seed=int(config["seed"]),
        backbone=str(backbone["name"]),
        backbone_sha256=str(backbone["sha256"]),
        backbone_source=_text(backbone.get("source")),
        config_hash=config_hash,
        stream=_text(config.get("stream")),
        # Runs of an earlier version have none of the three.
        stream_options=_text(config.get("stream_options")),
        boundary_free=bool(config.get("boundary_free")),
        eval_subset=config.get("eval_subset") or 0,
        experiences=_experiences(config, content),
        skip_corrupt=bool(config.get("skip_corrupt")),
        backbone_args=_text(config.get("backbone_args")),
        weights=_text(config.get("weights")),
        options=_text(options),
        budget=config.get("budget") or "default",
        tuning=_text(config.get("tuning")),
        uses_boundaries=bool(content.get("uses_boundaries")),
        **{
            name: _text(ran.get(name) or options.get(name)) for name in ("head", "mask", "readout")
        },
    )
    row.update(_read_summary(path / "summary.json"))
    return row


def _failure(path: Path) -> str:
    """Return what a summary without a configuration says of a failure, for the reason."""
    try:
        error = _read_json(path).get("error")
    except _UnusableError:
        return ""
    return f"; the run failed: {error}" if error else ""


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
    if status == "done" and not math.isfinite(row.get("a_last", math.nan)):
        raise _UnusableError("summary.json is of a run that is done but has no a_last")
    return row


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Reduce a frame of runs to one row per configuration.

    Args:
        runs: the frame of `read_runs`, or several of them concatenated.

    Returns:
        one row per (benchmark, stream, backbone and its weights, method, config hash): the columns
        that identify it, `n` and `seeds` (those that are done, "0,1,2"), `failed` (how many runs
        failed; they enter no mean), and for every numeric field of the summaries `<field>_mean` and
        `<field>_std` (of the sample, ddof=1; NaN for one seed). Fields that a seed lacks are
        averaged over the others. Best `a_last_mean` first within each benchmark and backbone.

    Raises:
        UsageError: if a seed occurs twice in a configuration.
    """
    known = (*_IDENTITY, *_RUN)
    fields = [
        name
        for name in runs.columns
        if name not in known and pd.api.types.is_numeric_dtype(runs[name])
    ]
    rows = []
    for _, group in runs.groupby(list(_GROUP), dropna=False, sort=False):
        done = group[group["status"] == "done"].sort_values("seed")
        twice = done[done["seed"].duplicated(keep=False)]
        if len(twice):
            raise UsageError(
                "runs must hold a seed once in a configuration, got the same one in "
                f"{', '.join(map(str, twice['run_dir']))}."
            )
        row = {name: group[name].iloc[0] for name in _IDENTITY}
        # A run that failed early does not say.
        row["uses_boundaries"] = bool(group["uses_boundaries"].any())
        row["n"] = len(done)
        row["seeds"] = ",".join(str(seed) for seed in done["seed"])
        row["failed"] = int((group["status"] == "failed").sum())
        for field in fields:
            name = _summary_field(field)
            row[f"{name}_mean"], row[f"{name}_std"] = _mean_std(done[field].to_numpy())
        rows.append(row)
    values = [
        f"{_summary_field(field)}_{statistic}" for field in fields for statistic in ("mean", "std")
    ]
    board = pd.DataFrame(rows, columns=[*_IDENTITY, "n", "seeds", "failed", *values])
    board = _whole_numbers(board, rows)
    if "a_last_mean" not in board or board.empty:
        return board
    order = ["benchmark", "stream", "backbone", "backbone_sha256", "a_last_mean", "method"]
    ascending = [name != "a_last_mean" for name in order]
    return board.sort_values(order, ascending=ascending, na_position="last", ignore_index=True)


def _mean_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof=1) of the values that are not NaN."""
    there = np.asarray(values, dtype=np.float64)
    there = there[~np.isnan(there)]
    mean = float(there.mean()) if len(there) else math.nan
    return mean, float(there.std(ddof=1)) if len(there) > 1 else math.nan


def write_leaderboard(out_dir: str | os.PathLike[str]) -> Path:
    """Write ``OUT/leaderboard.csv`` from the run directories under OUT, and return its path.

    The file is replaced in one step, so a reader never sees half of it.

    Args:
        out_dir: OUT.

    Raises:
        UsageError: if `out_dir` is not a folder or cannot be written to.
    """
    out = Path(out_dir)
    board = aggregate(read_runs(out).frame)
    target = out / "leaderboard.csv"
    temporary = out / f".leaderboard.csv.{os.getpid()}.tmp"
    try:
        board.to_csv(temporary, index=False)
        temporary.replace(target)
    except OSError as error:
        raise UsageError(
            f"out_dir must be a folder that can be written to, got {str(out)!r} ({error.strerror})."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target
