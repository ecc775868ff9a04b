"""RunConfig: everything that decides a run's numbers, frozen, and its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import resolve_stream_options
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import checked_preparation, is_number, is_whole
from avalanche_rwf.version import __version__

__all__ = ["BUSY", "LARGEST", "RunConfig", "run_directory", "slug"]

BUSY = "busy"
"""The status of a run that another process is at."""

LARGEST = 10**9
"""Of sizes and counts, in a run and in an entry of the leaderboard: more than any stream has."""


@dataclass(frozen=True)
class RunConfig:
    """One run: benchmark, stream seed, method with all its options, backbone, seed.

    The seed decides the class order, the order of samples and every initial value, so that
    methods compared at one seed see the same stream in the same order.

    :param benchmark: as on the command line, "split-digits" or "folder:PATH".
    :param method: a registered name.
    :param options: all options of the method, defaults included.
    :param seed: paired over methods.
    :param stream: kind of stream; "split" is disjoint classes per experience.
    :param stream_options: all options of that kind of stream but those that are left to the data.
    :param boundary_free: whether the strategy gets mini-batches as sub-experiences, which tell
        nothing of experiences.
    :param experiences: None is the benchmark's default.
    :param backbone: exact name.
    :param backbone_args: passed on to timm.
    :param weights: a local file, or None.
    :param weights_sha256: of the loaded weights; stands for `weights` in the hash.
    :param image_size: None is the backbone's own.
    :param batch_size: images per training step.
    :param gradient_steps: updates per mini-batch.
    :param precision: "fp32" or "bf16".
    :param augment: training augmentation by name.
    :param eval_every_samples: evaluate after each so many training samples too; 0 does not.
    :param eval_subset: test samples of these evaluations, a fixed part; 0 is all. Experience ends
        always have all.
    :param holdout: share of the training images that stands in for the test set; 0 for results.
    :param skip_corrupt: whether unreadable images are left out.
    :param budget: "default" or "tuned": whether the options were chosen on held-out training
        images before the comparison.
    :param code: SHA-256 of the file that holds the method, if that is not this package's.
    :param data_code: the same of the "benchmark" and the "stream", by these words.
    :param head_code: the same of the head.
    :param data_config: mean, std, interpolation and crop_pct of images in the place of the
        backbone's own.
    :param test_share: of a folder without test images, the share that becomes the test set.
    :param split_seed: of that choice; the run's seed does not move it.
    :param tuning: the record of that choice; the options are in the hash, how they were found is
        not.
    """

    benchmark: str
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    stream: str = "split"
    experiences: int | None = None
    backbone: str = ""
    backbone_args: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    weights_sha256: str = ""
    image_size: int | None = None
    batch_size: int = 16
    gradient_steps: int = 1
    precision: str = "fp32"
    augment: str = "none"
    eval_every_samples: int = 0
    holdout: float = 0.0
    skip_corrupt: bool = False
    budget: str = "default"
    tuning: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""
    stream_options: Mapping[str, Any] = field(default_factory=dict)
    boundary_free: bool = False
    eval_subset: int = 0
    data_config: Mapping[str, Any] = field(default_factory=dict)
    test_share: float = 0.0
    split_seed: int = 0
    data_code: Mapping[str, str] = field(default_factory=dict)
    head_code: str = ""

    def __post_init__(self) -> None:
        # NumPy's numbers have no JSON, and a seed of `numpy.arange` is the same seed.
        for one in fields(self):
            object.__setattr__(self, one.name, _plain(getattr(self, one.name)))

    def validate(self) -> RunConfig:
        """Check every number and the stream; returns itself.

        :raises UsageError: naming the argument, what it got and what it takes.
        """
        for name in ("experiences", "image_size", "batch_size", "gradient_steps"):
            value = getattr(self, name)
            optional = name in ("experiences", "image_size")
            flag = "--" + name.replace("_", "-")
            if not (is_whole(value) and value >= 1) and not (value is None and optional):
                raise UsageError(f"{flag} takes a whole number of at least 1, not {value}.")
            if value is not None and value > LARGEST:
                raise UsageError(f"{flag} takes a whole number of at most {LARGEST}, not {value}.")
        for name in ("eval_every_samples", "eval_subset"):
            value = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            if not is_whole(value) or value < 0:
                raise UsageError(f"{flag} takes 0 or more samples, not {value}.")
            if value > LARGEST:
                raise UsageError(f"{flag} takes at most {LARGEST} samples, not {value}.")
        resolve_stream_options(self.stream, self.stream_options, self.benchmark)
        if not is_whole(self.seed) or self.seed < 0:
            raise UsageError(f"--seeds takes whole numbers from 0, not {self.seed}.")
        if not is_number(self.holdout) or not 0 <= self.holdout < 1:
            raise UsageError(f"--holdout takes a share from 0 to below 1, not {self.holdout}.")
        if not is_number(self.test_share) or not 0 <= self.test_share < 1:
            raise UsageError(
                f"--test-share takes a share from 0 to below 1, not {self.test_share}."
            )
        if not is_whole(self.split_seed) or not 0 <= self.split_seed < 2**32:
            raise UsageError(
                f"--split-seed takes a whole number from 0 to 2**32 - 1, not {self.split_seed}."
            )
        if self.split_seed and not self.test_share:
            raise UsageError("--split-seed goes with --test-share, which is 0.")
        checked_preparation(self.data_config, "data_config (--data-config, --mean, --std)")
        if self.budget not in ("default", "tuned"):
            raise UsageError(f"--budget takes default or tuned, not {self.budget!r}.")
        if self.budget == "tuned" and self.holdout:
            raise UsageError(
                "--budget tuned chooses on training images that --holdout would test on, so "
                f"--holdout takes 0 with it, not {self.holdout}."
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
        del values["seed"], values["weights"], values["tuning"]
        # What is younger than the first runs counts where it is used: they keep their hash.
        young = ("code", "stream_options", "boundary_free", "eval_subset", "data_config")
        for name in (*young, "test_share", "split_seed", "data_code", "head_code"):
            if not values[name]:
                del values[name]
        values["version"] = __version__
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def with_seed(self, seed: int) -> RunConfig:
        """The same configuration at another seed."""
        return replace(self, seed=seed)


def _plain(value: Any) -> Any:
    """A value with Python's numbers in the place of NumPy's."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def slug(name: str) -> str:
    """A benchmark's or method's name as a folder name: "folder:../data/my set" -> "folder-my-set".

    Two names may give one folder; what is in it is told apart by the configuration's hash.
    """
    kind, _, path = name.rpartition(":") if ".py:" in name else name.partition(":")
    kind = Path(kind).name  # of a file; no benchmark's kind has a slash
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
