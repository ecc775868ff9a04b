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
from avalanche_rwf.leaderboard.aggregate import records, row_key, runs_by_row

__all__ = ["contribution", "write_contribution"]

_EXPERIMENT = '''\
#!/usr/bin/env python3
"""Made by `avalanche-rwf leaderboard --format cl-baselines`; needs `pip install avalanche-rwf`."""
from types import SimpleNamespace

import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.run import build_benchmark, build_strategy

# SHA-256 of the backbone's weights that gave the target result.
WEIGHTS_SHA256 = {sha256!r}
DEFAULTS = {defaults}


def {function}(override_args=None):
    """One pass over the stream; overrides are fields of RunConfig, and cuda (-1: CPU)."""
    args = SimpleNamespace(**{{**DEFAULTS, **(override_args or {{}})}})
    values = dict(vars(args))
    cuda = values.pop("cuda")
    device = f"cuda:{{cuda}}" if cuda >= 0 and torch.cuda.is_available() else "cpu"
    config = RunConfig(**values).validate()
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), loggers=[InteractiveLogger()]
    )
    benchmark = build_benchmark(config)
    strategy = build_strategy(config, benchmark.num_classes, device, evaluator=evaluator)
    for experience in benchmark.train_stream:
        # The benchmark fixed the order of samples.
        strategy.train(experience, eval_streams=[], shuffle=False)
    return strategy.eval(benchmark.test_stream)


if __name__ == "__main__":
    print({function}())
'''

_TEST = '''\
import unittest

from experiments.{benchmark} import {function}
from tests.utils import get_average_metric, get_target_result


class {name}(unittest.TestCase):
    """{n} seed(s) gave the target: mean accuracy after the stream."""

    def test_{benchmark}(self):
        result = get_average_metric({function}())
        target = float(get_target_result({strategy!r}, {benchmark!r}))
        if target > result:
            self.assertAlmostEqual(target, result, delta=0.03)
'''


def _identifier(text: str) -> str:
    """Return a name as a Python identifier and a file's name: "split-digits" -> split_digits."""
    name = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or "unnamed"
    return f"m_{name}" if name[0].isdigit() else name


def _defaults(config: dict[str, Any], sha256: str) -> dict[str, Any]:
    """Return the fields of a run as a script's defaults; a path to weights is nobody else's."""
    kept = {k: v for k, v in config.items() if k not in ("tuning", "code", "weights")}
    return {**kept, "weights": None, "weights_sha256": sha256, "cuda": 0}


def contribution(board: pd.DataFrame, runs: pd.DataFrame) -> tuple[dict[str, str], list[str]]:
    """Make the files of a contribution.

    Args:
        board: the frame of `aggregate`.
        runs: the frame of `read_runs` that it was made of.

    Returns:
        text by path within that repository, and what was left out and why: rows without a result,
        submitted ones, and methods that are not this package's.

    Raises:
        UsageError: if no row is left.
    """
    files: dict[str, str] = {}
    notes: list[str] = []
    targets, inits = ["strategy,benchmark,result"], dict[str, list[str]]()
    grouped = runs_by_row(runs)
    for row in records(board):
        method = str(row["method"])
        if not row["n"] or row["submitted"] or ".py:" in method:
            reason = ("it has no finished run" if not row["n"] else
                      "it was submitted" if row["submitted"] else "its code is a file of yours")
            notes.append(f"{method} {row['config_hash']} left out: {reason}.")
            continue
        own = grouped[row_key(row)]
        first = own[own["status"] == "done"].sort_values("seed").iloc[0]
        path = Path(first["folder"]) / first["run_dir"] / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))["config"]
        benchmark, strategy = _identifier(str(row["benchmark"])), _identifier(method)
        if f"experiments/{benchmark}/{strategy}.py" in files:
            strategy = f"{strategy}_{_identifier(str(row['config_hash']))}"
        function = f"{strategy}_{benchmark}"
        lines = ",\n".join(f"    {name!r}: {value!r}" for name, value in
                           _defaults(config, str(row["backbone_sha256"])).items())  # fmt: skip
        files[f"experiments/{benchmark}/{strategy}.py"] = _EXPERIMENT.format(
            sha256=str(row["backbone_sha256"]), defaults="{\n" + lines + ",\n}", function=function
        )
        name = "".join(part.title() for part in strategy.split("_"))
        files[f"tests/{strategy}/experiment.py"] = _TEST.format(
            benchmark=benchmark, strategy=strategy, function=function, name=name, n=int(row["n"])
        )
        files[f"tests/{strategy}/__init__.py"] = f"from .experiment import {name}\n"
        inits.setdefault(benchmark, []).append(f"from .{strategy} import {function}")
        targets.append(f"{strategy},{benchmark},{row['a_last_mean']:.4f}")
    if not files:
        raise UsageError("--format cl-baselines takes rows with finished runs made here, got none.")
    for benchmark, lines_of in inits.items():
        files[f"experiments/{benchmark}/__init__.py"] = "\n".join(lines_of) + "\n"
    files["tests/target_results.csv"] = "\n".join(targets) + "\n"
    return files, notes


def write_contribution(files: dict[str, str], folder: str | os.PathLike[str]) -> list[Path]:
    """Write the files of `contribution` under a folder, to be copied into that repository.

    Raises:
        UsageError: if the folder cannot be written to.
    """
    paths = []
    for name, text in files.items():
        path = Path(folder) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--out takes a folder that can be written to, not {os.fspath(folder)!r} "
                f"({error.strerror})."
            ) from None
        paths.append(path)
    return paths
