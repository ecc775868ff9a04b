"""A setting or a metric is declared in one place, and everything that shows it finds it there."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own, before anything has read the declarations.
SCRIPT = '''
import dataclasses, sys
from avalanche_rwf.evaluation import metrics
from avalanche_rwf.experiments import config
from avalanche_rwf.utils.validation import Whole

before = config.RunConfig("split-digits", "ncm")

@dataclasses.dataclass(frozen=True)
class More(config.RunConfig):
    warm_up: int = config.declare(
        0, Whole(0, 10**9), flag="--warm-up", metavar="N", young=True, column="warm_up",
        help="steps of a rising learning rate",
    )

config.RunConfig = More

@metrics.metric("A_min", "share", "The worst accuracy of an experience's end", best="max", keep=1)
def a_min(points):
    return min(map(metrics.accuracy_exposed, metrics.experience_ends(points).values()))

'''
CHECKS = {
    "hash": '''
assert More("split-digits", "ncm").config_hash() == before.config_hash()
assert More("split-digits", "ncm", warm_up=3).config_hash() != before.config_hash()
''',
    "validation": '''
from avalanche_rwf.errors import UsageError
try:
    More("split-digits", "ncm", warm_up=-1).validate()
except UsageError as error:
    assert str(error) == "--warm-up takes a whole number from 0 to 1000000000, not -1.", error
else:
    raise AssertionError("-1 was taken")
''',
    "the command of a row": '''
from avalanche_rwf.experiments.command import command_line
assert "--warm-up 3" in command_line(More("split-digits", "ncm", warm_up=3))
''',
    "the command line": '''
import argparse
from avalanche_rwf.cli import compare
parser = argparse.ArgumentParser()
compare.add_flags(parser)
assert parser.parse_args(["--warm-up", "3"]).warm_up == 3
assert "steps of a rising learning rate" in parser.format_help()
''',
    "summary": '''
import numpy as np
points = [
    metrics.EvaluationPoint(10 * (t + 1), t, np.arange(2), np.full(2, t), (0, 1), np.zeros(2, int))
    for t in range(2)
]
assert metrics.summarise(points, 2)["a_min"] == 0.5
''',
    "leaderboard": '''
import importlib
aggregate = importlib.import_module("avalanche_rwf.leaderboard.aggregate")
from avalanche_rwf.leaderboard import render_text
rows = []
for seed in (0, 1):
    ran = More("split-digits", "ncm", warm_up=3, seed=seed)
    row = aggregate.configuration_row(
        {"config": ran.to_dict(), "config_hash": ran.config_hash(),
         "backbone": {"name": "vit", "sha256": "00"}}
    )
    rows.append({**row, "status": "done", "a_last": 0.5, "a_min": 0.25 + seed / 2})
board = aggregate.aggregate(aggregate.to_frame(rows))
assert board["warm_up"].tolist() == [3] and board["a_min_mean"].tolist() == [0.5]
assert "a_min_ci_low" in board
text = render_text(board, width=300)
assert "A_min" in text and "warm_up=3" in text, text
''',
    "entries": '''
from avalanche_rwf.leaderboard import submissions
definitions = submissions.schema()["$defs"]
assert "warm_up" in definitions["Configuration"]["properties"]
assert "a_min" in definitions["Summary"]["properties"]
''',
}  # fmt: skip


def test_a_new_setting_and_a_new_metric_are_everywhere():
    script = SCRIPT + "".join(f"# {where}\n{check}" for where, check in CHECKS.items())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
