"""RunConfig: everything that decides a run's numbers, frozen, with its hash.

Each setting of a run is declared once, in the field of :class:`RunConfig` that holds it: its flag
and help on the command line, what it takes, whether methods with different values may be compared,
how the header of a table shows it. The command line, :meth:`RunConfig.validate`, the hash, the
command of a row, the columns of the leaderboard, its headers and the schema of entries are made
from these declarations.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from avalanche_rwf.benchmarks.stream_registry import resolve_stream_options
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import (
    Choice,
    Flag,
    Kind,
    Number,
    Whole,
    checked_preparation,
)
from avalanche_rwf.version import __version__

BUSY = "busy"
"""The status of a run that another process is doing."""

STUDY = "study:"
"""Before the name of a study, as the budget of a run."""

LARGEST = 10**9
"""The largest size or count in a run or in an entry of the leaderboard."""

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting of a run: how it is given, checked, counted and shown.

    :param takes: what it takes; or, of what is checked elsewhere, its kind alone: "text", "hash",
        "mapping" or "list" (of a flag that may be repeated).
    :param role: "protocol": runs that differ in it are in different tables. "method": it tells the
        rows of one table apart. "run": it is no part of the configuration's hash.
    :param help: for the command line.
    :param flag: on the command line; "" where it has none of its own.
    :param metavar: of the flag's value in the help.
    :param computed: whether the command line computes it where the flag is not given, so that the
        command of a row always says it.
    :param young: whether it is younger than the first runs: it is in the hash only where it is not
        the default, so that older runs keep their hash.
    :param column: of the leaderboard; "settings" is the one that holds several as JSON; "" is none.
    :param place: in the header of a table, ascending.
    :param header: what the header of a table says, of all values of the row; "" says nothing. None
        says "name=value" where it is not the default.
    :param name: of the field; filled in.
    :param default: of the field; filled in.
    """

    takes: Kind | str
    role: str = "protocol"
    help: str = ""
    flag: str = ""
    metavar: str | None = None
    computed: bool = False
    young: bool = False
    column: str = ""
    place: int = 20
    header: Callable[[Values], str] | None = None
    name: str = ""
    default: Any = None

    @property
    def kind(self) -> str:
        """ "whole", "number", "flag" (true or false), "text", "hash", "mapping" or "list"."""
        if isinstance(self.takes, str):
            return self.takes
        return "text" if isinstance(self.takes, Choice) else type(self.takes).__name__.lower()

    def check(self, value: Any) -> None:
        """Refuse a value of another type or out of bounds.

        :raises UsageError: naming the flag, what it got and what it takes.
        """
        if isinstance(self.takes, Kind) and not self.takes.accepts(value):
            name = self.flag or self.name
            raise UsageError(f"{name} takes {self.takes.said()}, not {self.takes.got(value)}.")

    def shown(self, values: Values) -> str:
        """What the header of a table says of it.

        :param values: of the whole row, by name; a missing one is None.
        """
        value = values.get(self.name)
        if value is None:
            return ""
        if self.header is not None:
            return self.header(values)
        return f"{self.name}={short(value)}" if value != self.default else ""


def declare(default: Any, takes: Kind | str, **how: Any) -> Any:
    """A field of `RunConfig` with its `Setting`.

    :param default: an empty mapping is one of its own for each object; ``...`` is none.
    :param takes: as :class:`Setting` has it.
    :param how: as :class:`Setting` takes it.
    """
    metadata = {"setting": Setting(takes, **how)}
    if default is ...:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def short(value: Any) -> str:
    """A value as short as it can be written; of the hash of a file eight digits."""
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1", text)


def _plural(n: Any, noun: str) -> str:
    return f"{int(n)} {noun}" if n == 1 else f"{int(n)} {noun}s"


def _pairs(values: Any) -> str:
    """Options as "depth=9, patch=14"."""
    if not isinstance(values, Mapping):
        return str(values or "")
    return ", ".join(f"{key}={short(value)}" for key, value in values.items())


def _stream(row: Values) -> str:
    options = _pairs(row.get("stream_options"))
    return f"stream {row['stream']}" + (f" ({options})" if options else "")


def _backbone(row: Values) -> str:
    inside = [_pairs(row.get("backbone_args")), str(row.get("backbone_sha256") or "")[:8]]
    said = ", ".join(part for part in inside if part)
    return f"{row['backbone']} ({said})" if said else str(row["backbone"])


def _evaluations(row: Values) -> str:
    every, subset = row["eval_every_samples"], row.get("eval_subset")
    part = f" on {_plural(subset, 'test image')}" if subset else ""
    return f"A_auc every {_plural(every, 'sample')}{part}" if every else ""


def _nothing(row: Values) -> str:
    """Nothing: the text of another setting says it."""
    return ""


@dataclass(frozen=True)
class RunConfig:
    """One run: benchmark, stream seed, method with all its options, backbone, seed.

    The seed decides the class order, the order of samples and every initial value, so that
    methods compared at one seed see the same stream in the same order. The order of the fields is
    that of the columns of the leaderboard.

    :param benchmark: as on the command line, "split-digits" or "folder:PATH".
    :param method: a registered name.
    :param options: all options of the method, defaults included.
    :param seed: paired over methods.
    :param stream: kind of stream; "split" is disjoint classes per experience.
    :param experiences: None is the benchmark's default.
    :param backbone: exact name.
    :param batch_size: images per training step.
    :param gradient_steps: updates per mini-batch.
    :param precision: "fp32", "bf16" or "fp16".
    :param image_size: None is the backbone's own.
    :param augment: training augmentation by name.
    :param eval_every_samples: evaluate after each so many training samples too; 0 does not.
    :param holdout: share of the training images that stands in for the test set; 0 for results.
    :param backbone_args: passed on to timm.
    :param skip_corrupt: whether unreadable images are left out.
    :param weights: a local file, or None.
    :param weights_sha256: of the loaded weights; stands for `weights` in the hash.
    :param budget: "default"; "tuned", where the options were chosen on held-out training images
        before the comparison; "grid", where they were chosen from values that the user gave; or
        "study:NAME", where a study of ``tune`` found them.
    :param tuning: the record of that choice; the options are in the hash, how they were found is
        not.
    :param stream_options: all options of that kind of stream but those that are left to the data.
    :param boundary_free: whether the strategy gets mini-batches as sub-experiences, which tell
        nothing of experiences.
    :param eval_subset: test samples of the evaluations in mid-stream, a fixed part; 0 is all.
        Experience ends always have all.
    :param data_config: mean, std, interpolation and crop_pct of images in the place of the
        backbone's own.
    :param test_share: of a folder without test images, the share that becomes the test set.
    :param split_seed: of that choice; the run's seed does not move it.
    :param data_code: SHA-256 of the files that hold the "benchmark" and the "stream", by these
        words, if they are not this package's.
    :param code: the same of the method.
    :param head_code: the same of the head.
    """

    benchmark: str = declare(
        ..., "text", flag="--benchmark", column="benchmark", place=0,
        header=lambda row: str(row["benchmark"]),
        help="a name of `list benchmarks`, such as split-digits, or folder:PATH",
    )  # fmt: skip
    method: str = declare(..., "text", role="method", column="method")
    options: Mapping[str, Any] = declare({}, "mapping", role="method", column="options")
    seed: int = declare(0, Whole(0, 2**32 - 1), role="run", flag="--seeds")
    stream: str = declare(
        "split", "text", flag="--stream", column="stream", place=1, header=_stream
    )
    experiences: int | None = declare(
        None, Whole(1, LARGEST, optional=True), flag="--experiences", metavar="N",
        column="experiences", place=4,
        header=lambda row: _plural(row["experiences"], "experience"),
        help="number of experiences (default: its own)",
    )  # fmt: skip
    backbone: str = declare(
        "", "text", flag="--backbone", metavar="NAME", column="backbone", place=5,
        header=_backbone, help="timm ViT by exact tag (default: the packaged one)",
    )  # fmt: skip
    batch_size: int = declare(
        16, Whole(1, LARGEST), flag="--batch-size", metavar="N", column="batch_size", place=7,
        header=lambda row: f"batch {int(row['batch_size'])}", help="images per training step",
    )  # fmt: skip
    gradient_steps: int = declare(
        1, Whole(1, LARGEST), flag="--gradient-steps", metavar="N", column="gradient_steps",
        place=8, header=lambda row: _plural(row["gradient_steps"], "gradient step"),
        help="updates per mini-batch",
    )  # fmt: skip
    precision: str = declare(
        "fp32", Choice(("fp32", "bf16", "fp16")), flag="--precision", computed=True,
        column="precision", place=9, header=lambda row: str(row["precision"]),
        help="fp32, bf16, fp16, auto (on a GPU what it is fast in, else fp32) or fastest (on a CPU "
        "too, found by a probe of two seconds)",
    )  # fmt: skip
    image_size: int | None = declare(
        None, Whole(1, LARGEST, optional=True), flag="--image-size", metavar="N",
        column="image_size", place=6, header=lambda row: f"{int(row['image_size'])} px",
        help="side in pixels (default: the backbone's)",
    )  # fmt: skip
    augment: str = declare(
        "none", "text", flag="--augment", column="augment", place=10,
        header=lambda row: "" if row["augment"] == "none" else f"augment {row['augment']}",
        help="training augmentation: none, flip, flip-crop or autoaug",
    )  # fmt: skip
    eval_every_samples: int = declare(
        0, Whole(0, LARGEST), flag="--eval-every-samples", metavar="N", computed=True,
        column="eval_every_samples", place=11, header=_evaluations,
        help="also evaluate after each N training samples, for a_auc (default: 4 times a stream)",
    )  # fmt: skip
    holdout: float = declare(
        0.0, Number(least=0, below=1), flag="--holdout", metavar="SHARE", column="holdout",
        place=13,
        header=lambda row: f"tested on {100 * row['holdout']:g} % held out of the training images"
        if row["holdout"] else "",
        help="evaluate on this share of the training images instead of the test set (tuning)",
    )  # fmt: skip
    backbone_args: Mapping[str, Any] = declare(
        {}, "mapping", column="backbone_args", header=_nothing
    )
    skip_corrupt: bool = declare(
        False, Flag(), flag="--skip-corrupt", column="skip_corrupt", place=12,
        header=lambda row: "corrupt images left out" if row["skip_corrupt"] else "",
        help="leave out images that cannot be read",
    )  # fmt: skip
    weights: str | None = declare(
        None, "text", role="run", flag="--weights", metavar="FILE", column="weights",
        help="local .safetensors, .pth or .npz",
    )  # fmt: skip
    weights_sha256: str = declare("", "hash", column="backbone_sha256", header=_nothing)
    budget: str = declare(
        "default", Choice(("default", "tuned", "grid"), STUDY), role="method", flag="--budget",
        column="budget", metavar="default|tuned|study:FOLDER",
        help="each method's own options; the best of up to 10 settings on held-out training images "
        "of the first experiences; or what `tune` found, by its folder",
    )  # fmt: skip
    tuning: Mapping[str, Any] = declare({}, "mapping", role="run", column="tuning")
    stream_options: Mapping[str, Any] = declare(
        {}, "mapping", young=True, column="stream_options", header=_nothing
    )
    boundary_free: bool = declare(
        False, Flag(), flag="--boundary-free", young=True, column="boundary_free", place=2,
        header=lambda row: "no boundaries" if row["boundary_free"] else "",
        help="give strategies mini-batches as sub-experiences that tell no boundaries",
    )  # fmt: skip
    eval_subset: int = declare(
        0, Whole(0, LARGEST), flag="--eval-subset", metavar="N", young=True, column="eval_subset",
        header=_nothing,
        help="of these evaluations, on N test images only, a fixed part with all classes; "
        "experience ends always take all (default: all)",
    )  # fmt: skip
    data_config: Mapping[str, Any] = declare({}, "mapping", young=True, column="settings", place=3)
    test_share: float = declare(
        0.0, Number(least=0, below=1), flag="--test-share", metavar="SHARE", young=True,
        column="settings", place=3,
        help="of a folder without test images: take this share of each class as the test set",
    )  # fmt: skip
    split_seed: int = declare(
        0, Whole(0, 2**32 - 1), flag="--split-seed", metavar="N", young=True,
        column="settings", place=3, help="of --test-share's choice",
    )  # fmt: skip
    data_code: Mapping[str, str] = declare({}, "mapping", young=True, column="settings", place=3)
    code: str = declare("", "hash", role="method", young=True)
    head_code: str = declare("", "hash", role="method", young=True)

    def __post_init__(self) -> None:
        # NumPy's numbers have no JSON, and a seed of `numpy.arange` is the same seed.
        for one in fields(self):
            object.__setattr__(self, one.name, _plain(getattr(self, one.name)))

    def validate(self) -> RunConfig:
        """Check every number and the stream; returns itself.

        :raises UsageError: naming the argument, what it got and what it takes.
        """
        for name, setting in run_settings(type(self)).items():
            setting.check(getattr(self, name))
        resolve_stream_options(self.stream, self.stream_options, self.benchmark)
        checked_preparation(self.data_config, "data_config (--data-config, --mean, --std)")
        if self.split_seed and not self.test_share:
            raise UsageError("--split-seed goes with --test-share, which is 0.")
        if self.budget != "default" and self.holdout:
            raise UsageError(
                f"--budget {self.budget} chooses on training images that --holdout would test on, "
                f"so --holdout takes 0 with it, not {self.holdout}."
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; a default that is marked as one is the text alone."""
        values = asdict(self)
        values["options"] = {
            key: str(value) if isinstance(value, str) else value
            for key, value in values["options"].items()
        }
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of :meth:`to_dict`."""
        return cls(**values)

    def config_hash(self) -> str:
        """Ten hexadecimal digits of the SHA-256 of everything but the seed and the tuning's record.

        A weights file counts by its content and the package by its version, so that rows of
        different weights or code are never averaged.
        """
        values = self.to_dict()
        for name, setting in run_settings(type(self)).items():
            if setting.role == "run" or (setting.young and not values[name]):
                del values[name]
        values["version"] = __version__
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def with_seed(self, seed: int) -> RunConfig:
        """The same configuration at another seed."""
        return replace(self, seed=seed)


def run_settings(config: type[Any] | None = None) -> Mapping[str, Setting]:
    """The settings of a run by the names of their fields, in the fields' order.

    :param config: a class whose fields are declared; None is :class:`RunConfig`.
    """
    chosen: Any = config or RunConfig
    return dict(_settings(chosen))


@functools.cache
def _settings(config: Any) -> Mapping[str, Setting]:
    found = {}
    for one in fields(config):
        default = None if one.default is MISSING else one.default
        default = {} if one.default_factory is dict else default
        found[one.name] = replace(one.metadata["setting"], name=one.name, default=default)
    return found


def header_parts(values: Values) -> list[str]:
    """What runs of one protocol share, for the line above a table.

    :param values: of a run's fields, and ``backbone_sha256``; those that are not known are shown
        as "name=value".
    """
    declared = run_settings()
    parts = [
        (setting.place, setting.shown(values))
        for setting in declared.values()
        if setting.role == "protocol"
    ]
    other = [name for name in values if name not in declared and name != "backbone_sha256"]
    parts += [(3, f"{name}={short(values[name])}") for name in other]
    return [text for _, text in sorted(parts, key=lambda part: part[0]) if text]


def _plain(value: Any) -> Any:
    """A value with Python's numbers in the place of NumPy's."""
    numpy = sys.modules.get("numpy")  # which need not be imported for a value that is not its own
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def slug(name: str) -> str:
    """A benchmark's or method's name as a folder name: "folder:../data/my set" -> "folder-my-set".

    Two names may give one folder; what is in it is told apart by the configuration's hash.
    """
    kind, _, path = name.rpartition(":") if ".py:" in name else name.partition(":")
    kind = Path(kind).name  # without a file's folder; no benchmark's kind has a slash
    tail = Path(path).resolve().name if path else ""
    text = f"{kind}-{tail}" if tail else kind
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "benchmark"


def run_directory(out: Path, config: RunConfig) -> Path:
    """``OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>``."""
    return (
        out
        / "runs"
        / slug(config.benchmark)
        / slug(config.method)
        / config.config_hash()
        / f"seed{config.seed}"
    )
