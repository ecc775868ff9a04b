"""A leaderboard's rows as a contribution to ContinualAI's continual-learning-baselines.

That repository has a script per experiment, ``experiments/<benchmark>/<strategy>.py``, whose
function takes a dictionary of overrides and returns Avalanche's metrics; a unit test per strategy,
``tests/<strategy>/experiment.py``; and the numbers to reach in ``tests/target_results.csv``. The
scripts made here need this package and nothing of that repository, so they can be tried anywhere.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.store import write_text
from avalanche_rwf.leaderboard.aggregate import records, row_key, runs_by_row

_EXPERIMENT = '''\
#!/usr/bin/env python3
"""{mark}; needs `pip install avalanche-rwf`."""
from types import SimpleNamespace

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.build import build_benchmark, build_strategy, load_backbone
from avalanche_rwf.experiments.run import exposed_tests, train_experience
from avalanche_rwf.models.backbone import backbone_info

DEFAULTS = {defaults}


def {function}(override_args=None):
    """One pass over the stream; overrides are fields of RunConfig, and cuda (-1: CPU).

    Other weights than those of the target: override weights, and weights_sha256 with "".
    """
    args = SimpleNamespace(**{{**DEFAULTS, **(override_args or {{}})}})
    values = dict(vars(args))
    cuda = values.pop("cuda")
    device = f"cuda:{{cuda}}" if cuda >= 0 and torch.cuda.is_available() else "cpu"
    config = RunConfig(**values).validate()
    found = backbone_info(load_backbone(config)).sha256
    if config.weights_sha256 not in ("", found):
        raise RuntimeError(f"weights have the SHA-256 {{found}}, not {{config.weights_sha256}}.")
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), loggers=[InteractiveLogger()]
    )
    benchmark = build_benchmark(config)
    strategy = build_strategy(config, benchmark.num_classes, device, evaluator=evaluator)
    for experience in benchmark.train_stream:
        train_experience(strategy, experience, config.boundary_free)
    return strategy.eval(exposed_tests(benchmark, len(benchmark.train_stream)))


if __name__ == "__main__":
    print({function}())
'''

_TEST = '''\
"""{mark}."""
import unittest

{imports}
from tests.utils import get_average_metric, get_target_result


class {name}(unittest.TestCase):
    """Accuracy over all classes after the stream; targets are means over seeds."""
'''

_CASE = '''
    def test_{benchmark}(self):
        """{n} seed(s) gave the target."""
        result = get_average_metric({function}())
        target = float(get_target_result({strategy!r}, {benchmark!r}))
        if target > result:
            self.assertAlmostEqual(target, result, delta=0.03)
'''

_MARK = "Made by `avalanche-rwf leaderboard --format cl-baselines`"
_CODE = ("code", "data_code", "head_code")  # of files from outside
_TARGETS = "tests/target_results.csv"


def _identifier(text: str) -> str:
    """Return a name as a Python identifier and a file's name: "split-digits" -> split_digits."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
    return f"m_{name}" if name[0].isdigit() else name


def _defaults(config: dict[str, Any], sha256: str) -> dict[str, Any]:
    """Return the fields of a run as a script's defaults, without this machine's path to weights."""
    kept = {k: v for k, v in config.items() if k not in ("tuning", *_CODE, "weights")}
    return {**kept, "weights": None, "weights_sha256": sha256, "cuda": 0}


def contribution(board: pd.DataFrame, runs: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Make the files of a contribution.

    :param board: the frame of `aggregate`.
    :param runs: the frame of `read_runs` that it was made of.
    :returns: text by path within that repository, and what was left out and why: rows without a
        result, submitted ones, and methods that are not this package's.
    :raises UsageError: if no row is left.
    """
    files: dict[str, str] = {}
    notes: list[str] = []
    targets = ["strategy,benchmark,result"]
    inits: dict[str, str] = {}
    tests: dict[str, list[dict[str, Any]]] = {}  # by strategy: what _CASE says of each benchmark
    grouped = runs_by_row(runs)
    for row in records(board):
        method = str(row["method"])
        config = _config(grouped[row_key(row)])
        reason = _left_out(row, config)
        if reason:
            notes.append(f"{method} {row['config_hash']} left out: {reason}.")
            continue
        stream = "" if row["stream"] in (None, "split") else f"_{row['stream']}"
        benchmark, strategy = _identifier(f"{row['benchmark']}{stream}"), _identifier(method)
        if f"experiments/{benchmark}/{strategy}.py" in files:
            strategy = _identifier(f"{method} {row['config_hash']}")
        function = f"{strategy}_{benchmark}"
        defaults = _defaults(config, str(row["backbone_sha256"]))
        lines = ",\n".join(f"    {name!r}: {value!r}" for name, value in defaults.items())
        files[f"experiments/{benchmark}/{strategy}.py"] = _EXPERIMENT.format(
            mark=_MARK, defaults="{\n" + lines + ",\n}", function=function
        )
        case = {"benchmark": benchmark, "function": function, "strategy": strategy, "n": row["n"]}
        tests.setdefault(strategy, []).append(case)
        init = f"experiments/{benchmark}/__init__.py"
        inits[init] = inits.get(init, "") + f"from .{strategy} import {function}\n"
        targets.append(f"{strategy},{benchmark},{row['a_last_mean']:.4f}")
    if not files:
        raise UsageError("--format cl-baselines takes rows with finished runs made here, got none.")
    files |= inits
    for strategy, cases in tests.items():
        name = "".join(part.title() for part in strategy.split("_"))
        imports = "\n".join(map("from experiments.{benchmark} import {function}".format_map, cases))
        head = _TEST.format(mark=_MARK, imports=imports, name=name)
        files[f"tests/{strategy}/experiment.py"] = head + "".join(map(_CASE.format_map, cases))
        files[f"tests/{strategy}/__init__.py"] = f"from .experiment import {name}\n"
    files[_TARGETS] = "\n".join(targets) + "\n"
    return files, notes


def _config(runs: pd.DataFrame) -> dict[str, Any]:
    """Return the configuration of a row's first finished run that was made here, or nothing."""
    done = runs[(runs["status"] == "done") & ~runs["submitted"].astype(bool)].sort_values("seed")
    if done.empty:
        return {}
    path = Path(done.iloc[0]["folder"]) / done.iloc[0]["run_dir"] / "config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["config"])


def _left_out(row: dict[str, Any], config: dict[str, Any]) -> str | None:
    """Return why a row is no contribution; None if it is one."""
    if not row["n"]:
        return "it has no finished run"
    if row["submitted"]:
        return "it was submitted"
    if ".py:" in row["method"] or any(config.get(name) for name in _CODE):
        return "its code is a file of yours"
    return None


def write_contribution(files: dict[str, str], folder: str | os.PathLike[str]) -> list[Path]:
    """Write the files of `contribution` under a folder, such as a checkout of that repository.

    Lines are added to the lists that the folder has already, `__init__.py` and the targets (where
    a target of the same strategy and benchmark is replaced); a script made earlier is replaced.

    :raises UsageError: if the folder cannot be written to, has a list that cannot be read, or has a
        script of the same name that was not made here.
    """
    merged = {}
    for name, text in files.items():
        path = Path(folder) / name
        try:
            there = path.read_text(encoding="utf-8") if path.is_file() else ""
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
            raise UsageError(
                f"--out takes a folder whose {name} can be read, and {str(path)!r} cannot "
                f"({reason})."
            ) from None
        listing = path.name == "__init__.py" or name == _TARGETS
        if there and not listing and _MARK not in there:
            raise UsageError(f"--out takes a folder without another {name}, and it has one.")
        merged[path] = _merged(there, text, name == _TARGETS) if listing else text
    for path, text in merged.items():
        try:
            write_text(path, text)  # whole or not at all: the lists have lines of others
        except OSError as error:
            raise UsageError(
                f"--out takes a folder that can be written to, not {os.fspath(folder)!r} "
                f"({error.strerror})."
            ) from None
    return list(merged)


def _merged(there: str, ours: str, targets: bool) -> str:
    """Return the lines that are there and those of ours that are not."""
    lines = there.splitlines()
    if targets:
        keys = {line.rpartition(",")[0] for line in ours.splitlines()[1:]}
        lines = [line for line in lines if line.rpartition(",")[0] not in keys]
    return "\n".join([*lines, *(line for line in ours.splitlines() if line not in lines)]) + "\n"
