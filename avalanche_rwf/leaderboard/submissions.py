"""Entries: a method's runs as one checked file, for a leaderboard that several people fill.

`build_entry` makes one from run directories, `read_entry` takes one from anybody. An entry is data
and nothing else: it is parsed by pydantic against a schema that knows every field, names are looked
up nowhere, and numbers that contradict each other are refused.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import METRICS, forgetting_experience
from avalanche_rwf.experiments.config import RunConfig, Setting, run_settings
from avalanche_rwf.leaderboard.aggregate import (
    FORMULA,
    MOST_MEASURED,
    configuration_row,
    runs_by_row,
    summary_column,
    to_frame,
)
from avalanche_rwf.leaderboard.metrics_file import Metrics, parse_metrics
from avalanche_rwf.utils import validation
from avalanche_rwf.utils.untrusted_io import read_file
from avalanche_rwf.version import __version__

MAX_BYTES = 5_000_000
_MAX_RUNS = 1000
_MAX_EXPERIENCES = 1000
# Sums of floats in another order differ by less.
_ROUNDING = 1e-9
_MARKUP = frozenset("<>&\"'`\\")


def _plain(text: str) -> str:
    """Refuse what could be markup, a control, a change of the writing direction or a formula."""
    wrong = sorted({c for c in text if c in _MARKUP or not c.isprintable()})
    if wrong:
        raise ValueError(f"must be plain text without {' '.join(ascii(c) for c in wrong)}")
    if text.startswith(FORMULA):
        raise ValueError(f"must not begin with {text[0]}, as a formula in a spreadsheet does")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain)]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{8,64}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Forgetting = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[float, Field(ge=-MOST_MEASURED, le=MOST_MEASURED, allow_inf_nan=False)]
Integer = Annotated[int, Field(ge=-(10**15), le=10**15)]
Value = bool | Integer | Number | Name | None
Values = Annotated[
    dict[Name, Value | Annotated[list[Value], Field(max_length=100)]], Field(max_length=200)
]

# The order of a thousand classes, by name or by number, is one of these.
Order = Annotated[str, Field(min_length=1, max_length=100_000), AfterValidator(_plain)]
StreamValues = Annotated[
    dict[Name, Value | Order | Annotated[list[Value], Field(max_length=10_000)]],
    Field(max_length=200),
]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _typed(setting: Setting) -> tuple[Any, Any]:
    """Return type and default of a setting, for pydantic."""
    found: Any
    match setting.takes:
        case validation.Whole(least, most):
            found = Annotated[int, Field(ge=least, le=most)]
        case validation.Number(least=least, below=below):
            found = Annotated[float, Field(allow_inf_nan=False, ge=least, lt=below)]
        case validation.Choice(prefix="") as choice:
            found = Literal[tuple(choice.known())]
        case validation.Choice(prefix=prefix) as choice:
            names = "|".join((*choice.known(), f"{prefix}.{{1,200}}"))
            found = Annotated[str, Field(pattern=f"^({names})$")]
        case validation.Flag():
            found = bool
        case "hash":
            found = Hash | Literal[""]
        case "mapping":
            found = StreamValues if setting.name == "stream_options" else Values
        case _:
            found = Name
    if getattr(setting.takes, "optional", False):
        found |= None
    required = setting.name in ("benchmark", "method", "backbone")
    return found, ... if required else setting.default


# Not in an entry's config: its runs have the seeds, and a path is of one machine.
_LEFT_OUT = ("seed", "weights", "tuning")
_FIELDS: Any = {name: _typed(s) for name, s in run_settings().items() if name not in _LEFT_OUT}
_Settings: Any = create_model("_Settings", __base__=_Record, **_FIELDS)


class Configuration(_Settings):
    """What a run's numbers depend on, but for the seed: the fields of `RunConfig`."""

    settings: Values = Field({}, description="further fields of RunConfig")


class Backbone(_Record):
    """The weights that ran."""

    name: Name
    sha256: Hash
    source: Name | None = None


class Ran(_Record):
    """Head, mask and read-out that ran, also where the method leaves no choice."""

    head: Name | None = None
    mask: Name | None = None
    readout: Name | None = None


class Environment(_Record):
    """Where a run was made."""

    versions: Annotated[dict[Name, Name], Field(max_length=100)] = {}
    hardware: Values = {}
    git: Name | None = None


_KINDS: dict[str, Any] = {"share": Share, "change": Forgetting, "seconds": Amount, "rate": Amount,
                          "count": Count, "bytes": Count}  # fmt: skip
_MEASURED: Any = {name: (_KINDS[metric.kind] | None, None) for name, metric in METRICS.items()}
_Metrics: Any = create_model("_Metrics", __base__=_Record, **_MEASURED)


class Summary(_Metrics):
    """A run's `summary.json`: shares of 1, seconds, bytes, counts."""

    a_last: Share


class Seed(_Record):
    """One run."""

    seed: Count
    summary: Summary
    accuracy_matrix: Annotated[
        list[Annotated[list[Share | None], Field(max_length=_MAX_EXPERIENCES)]],
        Field(max_length=_MAX_EXPERIENCES),
    ] = Field(description="after each training experience, on each test experience; null: not met")
    experience_ends: Annotated[list[Count], Field(max_length=_MAX_EXPERIENCES)] = Field(
        description="samples seen at the end of each experience"
    )
    curve: Annotated[list[tuple[Count, Share]], Field(max_length=10_000)] = Field(
        [], description="samples seen, accuracy on the classes so far"
    )
    metrics_sha256: Hash | None = None
    environment: Environment = Environment()

    @property
    def matrix(self) -> NDArray[Any]:
        """`accuracy_matrix` with NaN for null, [T, T]."""
        size = len(self.accuracy_matrix)
        return np.array(self.accuracy_matrix, np.float64).reshape(size, size)

    @model_validator(mode="after")
    def _consistent(self) -> Seed:
        size = len(self.accuracy_matrix)
        if any(len(line) != size for line in self.accuracy_matrix):
            raise ValueError(f"accuracy_matrix must be square, got {size} rows of other lengths")
        # An experience without samples, as Si-Blurry streams have, ends where the last one did.
        if len(self.experience_ends) != size or sorted(self.experience_ends) != list(
            self.experience_ends
        ):
            raise ValueError(f"experience_ends must be {size} ascending numbers, one a row")
        if [place for place, _ in self.curve] != sorted({place for place, _ in self.curve}):
            raise ValueError("curve must be ascending in samples seen, each place once")
        if size:
            self._agrees_with_matrix()
        if self.curve:
            self._agrees_with_curve()
        return self

    def _agrees_with_matrix(self) -> None:
        """Every accuracy over classes is a weighted mean of a row, so it lies within the row."""
        rows = [[value for value in line if value is not None] for line in self.accuracy_matrix]
        before = self._before()
        rows = rows[before:]
        # An experience without samples has no test samples either: its column is empty too.
        early = any(v is not None for line in self.accuracy_matrix for v in line[:before])
        if early or not rows or not all(rows):
            raise ValueError("accuracy_matrix must have a value in every row, got an empty one")
        low, high = min(rows[-1]), max(rows[-1])
        _within("summary.a_last", self.summary.a_last, low, high, "the last row of accuracy_matrix")
        low, high = (float(np.mean([end(row) for row in rows])) for end in (min, max))
        _within("summary.a_avg", self.summary.a_avg, low, high, "the rows of accuracy_matrix")
        loss, said = forgetting_experience(self.matrix), self.summary.forgetting_experience
        if math.isnan(loss) != (said is None) or abs((said or 0.0) - loss) > _ROUNDING:
            raise ValueError(
                f"summary.forgetting_experience contradicts accuracy_matrix: it says {said} and "
                f"the matrix gives {loss:.6g}"
            )

    def _before(self) -> int:
        """Rows before the first with a value: a stream may begin with experiences without samples,
        at whose ends there is nothing to evaluate."""
        empty = itertools.takewhile(
            lambda line: all(value is None for value in line), self.accuracy_matrix
        )
        return sum(1 for _ in empty)

    def _agrees_with_curve(self) -> None:
        curve = dict(self.curve)
        last = self.curve[-1][1]
        _within("summary.a_last", self.summary.a_last, last, last, "the end of curve")
        values = list(curve.values())
        _within("summary.a_auc", self.summary.a_auc, min(values), max(values), "curve")
        ends = self.experience_ends[self._before() :]
        if ends and set(ends) <= set(curve):
            mean = float(np.mean([curve[place] for place in ends]))
            _within("summary.a_avg", self.summary.a_avg, mean, mean, "curve at experience_ends")


def _within(name: str, value: float | None, low: float, high: float, of: str) -> None:
    if value is not None and not low - _ROUNDING <= value <= high + _ROUNDING:
        raise ValueError(f"{name} contradicts {of}: {value:.6g} is not in [{low:.6g}, {high:.6g}]")


class Entry(_Record):
    """A method's runs of one configuration, for somebody else's leaderboard."""

    format: Literal["avalanche-rwf-entry/1"]
    config_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{10}$")]
    config: Configuration
    backbone: Backbone
    ran: Ran = Ran()
    uses_boundaries: bool = False
    version: Name = Field(description="of avalanche-rwf")
    source_sha256: Hash | None = None
    runs: Annotated[list[Seed], Field(min_length=1, max_length=_MAX_RUNS)]

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        seeds = [run.seed for run in self.runs]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"runs must hold a seed once, got {twice[0]} twice")
        if self.config.weights_sha256 not in ("", self.backbone.sha256):
            raise ValueError("config.weights_sha256 contradicts backbone.sha256")
        sizes = {len(run.accuracy_matrix) for run in self.runs} - {0}
        if len(sizes) > 1 or (self.config.experiences and sizes - {self.config.experiences}):
            raise ValueError(
                f"runs must have accuracy_matrix of one size, that of config.experiences "
                f"({self.config.experiences}), got {sorted(sizes)}"
            )
        # Another version hashes its own version, and perhaps fields that this one does not know.
        if self.version == __version__:
            values = self.config.model_dump()
            further = values.pop("settings")
            try:
                config = RunConfig.from_dict({**values, **further})
                wanted = config.config_hash()
            except TypeError:
                raise ValueError(
                    f"config.settings must hold fields of RunConfig, got "
                    f"{sorted(self.config.settings)}"
                ) from None
            if wanted != self.config_hash:
                raise ValueError(
                    f"config_hash contradicts config: it is {self.config_hash}, and config gives "
                    f"{wanted}"
                )
        return self


def schema() -> dict[str, Any]:
    """Return the JSON schema of an entry."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Entry.model_json_schema()}


# ---- reading


_LONGEST = 60  # characters of a foreign text in a message
# How pydantic names the branches of a union, which are no fields.
_BRANCH = ("bool", "int", "float", "str", "tuple")
_BRANCHES = ("constrained", "literal", "function", "list[")


def _field(path: tuple[int | str, ...]) -> str:
    """Name a field as one would write it: ``runs[0].summary.a_last``."""
    field = ""
    for part in path:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part in _BRANCH or part.startswith(_BRANCHES):
            continue
        elif part.isidentifier() and len(part) <= _LONGEST:
            field += f".{part}" if field else part
        else:
            field += f"[{_shown(part)}]"
    return field


def _sentence(path: str | os.PathLike[str], error: ValidationError) -> str:
    """Say the first thing that is wrong with an entry, and how many more there are."""
    errors = error.errors(include_url=False)
    fields = [_field(one["loc"]) for one in errors]
    # Every branch of a union complains; the value_error of a text says what is wrong.
    same = [one for one, field in zip(errors, fields, strict=True) if field == fields[0]]
    first = next((one for one in same if one["type"] == "value_error"), same[0])
    said = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] == "json_invalid":
        return f"{os.fspath(path)!r} is not an entry: {said}."
    field = f"{fields[0]}: " if fields[0] else ""
    got = "" if first["type"] in ("value_error", "missing") else f", got {_shown(first['input'])}"
    others = len(set(fields)) - 1
    more = f" ({others} more fault{'s' if others > 1 else ''})" if others else ""
    return f"{os.fspath(path)!r} is not an entry: {field}{said}{got}{more}."


def _shown(value: Any) -> str:
    """Return a value for a sentence on a terminal: short, on one line, nothing but ASCII."""
    text = ascii(value) if isinstance(value, (str, int, float, bool, type(None))) else (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else "it"
    )  # fmt: skip
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def read_entry(path: str | os.PathLike[str]) -> Entry:
    """Read an entry from anybody.

    :param path: a JSON file of at most 5 MB.
    :raises UsageError: naming the field, if it is no sound entry.
    """
    try:
        content = read_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{os.fspath(path)!r} cannot be read as an entry: {reason}.") from None
    try:
        return Entry.model_validate_json(content)
    except ValidationError as error:
        raise UsageError(_sentence(path, error)) from None


def _content(entry: Entry, run: Seed) -> dict[str, Any]:
    """Return what the `config.json` of a submitted run would hold."""
    config = entry.config.model_dump()
    further = config.pop("settings")
    versions = {**run.environment.versions, "avalanche-rwf": entry.version}
    return {
        "config": {**config, **further, "seed": run.seed},
        "config_hash": entry.config_hash,
        "backbone": entry.backbone.model_dump(),
        "ran": entry.ran.model_dump(),
        "uses_boundaries": entry.uses_boundaries,
        "data": {"classes_per_experience": [[]] * len(run.accuracy_matrix)},
        "source_sha256": entry.source_sha256,
        **run.environment.model_dump() | {"versions": versions},
    }


def read_entries(paths: list[str] | list[Path]) -> pd.DataFrame:
    """Read entries as runs, to be put beside those of `read_runs`.

    :param paths: of entries; the same content twice counts once.
    :returns: a frame as that of `read_runs`, `submitted` true, `folder` the file and `run_dir` the
        field.
    :raises UsageError: naming the file and the field, if one is no sound entry, or if two hold
        different runs of one seed of one configuration.
    """
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[Any, ...], tuple[Seed, str]] = {}
    for path in paths:
        entry = read_entry(path)
        for index, run in enumerate(entry.runs):
            key = (entry.config_hash, entry.backbone.sha256, entry.version, entry.source_sha256,
                   entry.config.method, run.seed)  # fmt: skip
            first, place = seen.setdefault(key, (run, os.fspath(path)))
            if first is not run:
                if first == run:
                    continue
                raise UsageError(
                    f"--add takes a seed of a configuration once, got different runs of seed "
                    f"{run.seed} in {place!r} and {os.fspath(path)!r}."
                )
            row = configuration_row(_content(entry, run))
            row.update(folder=os.fspath(path), run_dir=f"runs[{index}]", submitted=True)
            row.update(status="done", error=None)
            summary = run.summary.model_dump(exclude_none=True)
            row.update({summary_column(name): float(value) for name, value in summary.items()})
            rows.append(row)
    return to_frame(rows)


def entry_metrics(path: str | os.PathLike[str], seed: int) -> Metrics:
    """Return what a submitted run measured, as far as an entry has it.

    :raises UsageError: if the file is no sound entry (any more).
    """
    run = next(run for run in _cached_entry(os.fspath(path)).runs if run.seed == seed)
    lines = zip(run.experience_ends, run.matrix, strict=True)
    ends = {end: seen for end, (seen, line) in enumerate(lines) if not np.isnan(line).all()}
    return Metrics(seed, dict(run.curve), ends, run.matrix)


def entry_content(path: str | os.PathLike[str], seed: int) -> dict[str, Any]:
    """Return what the `config.json` of a submitted run would hold.

    :raises UsageError: if the file is no sound entry (any more).
    """
    entry = _cached_entry(os.fspath(path))
    return next(_content(entry, run) for run in entry.runs if run.seed == seed)


@functools.lru_cache(maxsize=16)
def _cached_entry(path: str) -> Entry:
    return read_entry(path)


# ---- writing


def build_entry(runs: pd.DataFrame, method: str, config_hash: str = "") -> Entry:
    """Make an entry of a method's finished runs.

    :param runs: the frame of `read_runs`.
    :param method: by name.
    :param config_hash: the beginning of the configuration's hash, where the method has several.
    :raises UsageError: if the method has no finished run, or several configurations or versions of
        the code and `config_hash` does not choose, or if a run's files are not sound.
    """
    done = runs[(runs["status"] == "done") & ~runs["submitted"].astype(bool)]
    own = done[done["method"] == method]
    if own.empty:
        known = ", ".join(sorted(set(done["method"]))) or "no method"
        raise UsageError(f"--method takes a method with finished runs ({known}), not {method!r}.")
    chosen = own[own["config_hash"].str.startswith(config_hash)]
    hashes = sorted(set(chosen["config_hash"]))
    if len(hashes) != 1:
        known = ", ".join(hashes or sorted(set(own["config_hash"])))
        raise UsageError(
            f"--config takes the beginning of one configuration's hash, and {config_hash!r} is "
            f"that of {len(hashes)} of {method} ({known})."
        )
    if len(runs_by_row(chosen)) != 1:
        raise UsageError(
            f"An entry takes runs of one version of the code and one backbone, and those of "
            f"{method} {hashes[0]} are of several: give a folder with the runs of one."
        )
    folders = [Path(f) / r for f, r in zip(chosen["folder"], chosen["run_dir"], strict=True)]
    seeds = dict(zip(chosen["seed"].astype(int), folders, strict=True))
    if len(seeds) != len(folders):
        raise UsageError(f"An entry takes a seed once, and {method} has one twice.")
    content = json.loads((folders[0] / "config.json").read_text(encoding="utf-8"))
    try:
        values = _configuration(content)
        values["runs"] = [_seed(seed, seeds[seed]) for seed in sorted(seeds)]
        # Through JSON, as a reader will: a tuple is a list there.
        return Entry.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UsageError(_sentence(folders[0].parent, error)) from None


def _configuration(content: dict[str, Any]) -> dict[str, Any]:
    """Return an entry's fields but for its runs; a path to the weights stays at home."""
    config = {k: v for k, v in content["config"].items() if k not in _LEFT_OUT}
    further = {name: config.pop(name) for name in set(config) - set(Configuration.model_fields)}
    backbone = content["backbone"]
    ran, versions = (_object(content.get(name)) for name in ("ran", "versions"))
    return {
        "format": "avalanche-rwf-entry/1",
        "config_hash": content["config_hash"],
        "config": {**config, "settings": further},
        "backbone": {name: backbone.get(name) for name in Backbone.model_fields},
        "ran": {name: ran.get(name) for name in Ran.model_fields},
        "uses_boundaries": bool(content.get("uses_boundaries")),
        "version": versions.get("avalanche-rwf", __version__),
        "source_sha256": content.get("source_sha256"),
    }


def _object(value: Any) -> dict[str, Any]:
    """Return a JSON object; an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def _seed(seed: int, folder: Path) -> dict[str, Any]:
    """Return one run of an entry from its directory.

    :raises UsageError: if `metrics.csv` cannot be read.
    """
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    try:
        file = read_file(folder / "metrics.csv")
        found = parse_metrics(file, seed)
    except (OSError, ValueError) as error:
        raise UsageError(f"{str(folder / 'metrics.csv')!r} cannot be read: {error}.") from None
    # A stream without samples at its start has experiences before the first that is evaluated.
    ends = [*_sizes(content, min(found.ends, default=0)), *found.ends.values()]
    return {
        "seed": seed,
        "summary": {name: summary.get(name) for name in Summary.model_fields},
        "accuracy_matrix": [
            [None if math.isnan(value) else value for value in line]
            for line in found.matrix.tolist()
        ],
        "experience_ends": ends,
        "curve": sorted(found.exposed.items()),
        "metrics_sha256": hashlib.sha256(file).hexdigest(),
        "environment": {name: content.get(name) for name in Environment.model_fields},
    }


def _sizes(content: dict[str, Any], before: int) -> list[int]:
    """Return the samples seen at the ends of the first experiences, at which none was evaluated."""
    sizes = _object(content.get("data")).get("samples_per_experience")
    sizes = sizes[:before] if isinstance(sizes, list) else []
    if len(sizes) < before or not all(type(size) is int for size in sizes):
        return [0] * before
    return list(itertools.accumulate(sizes))
