"""The table of speed has a row for each limit."""

from __future__ import annotations

import collections
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "profiling"


@pytest.fixture
def table(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("table")


def test_each_limit_is_of_a_figure_that_is_measured(table, monkeypatch):
    found = collections.defaultdict(lambda: 1.0)
    heads = "Unit: ..., 16 images, 2.00 s of CPU\n| x |" + " 3 |" * 10
    monkeypatch.setattr(table, "step_time", lambda *words: found)
    monkeypatch.setattr(table, "script", lambda *words: heads)
    monkeypatch.setattr(table, "command", lambda folder, words: 2.0)
    measured = {
        **table.steps(table.VIT_S), **table.steps(table.VIT_B), **table.loop(), **table.heads(),
        **table.comparisons(FOLDER),
        **{f"20 evaluations over none within experiences, {m}": 1 for m in table.FIXED.split(",")},
    }  # fmt: skip
    assert set(table.LIMITS) <= set(measured)
    assert measured["rp-ridge, M=C=10,000, 2,000 images: a solution, s"] == 6.0
    assert "six fixed-feature methods, three seeds, CPU over --no-cache" in table.comparisons(None)


def test_a_row_says_whether_its_limit_is_met(table):
    name = "rp-ridge, M=C=10,000, 2,000 images: peak, GB"
    lines = list(table.rows([{name: x, "other": 10 * x} for x in (0.5, 3.0, 2.0)]))
    assert lines == [f"| {name} | 2 | 0.5 | 3 | 1 | missed |", "| other | 20 | 5 | 30 |  |  |"]


def test_a_part_that_is_not_there_is_refused():
    words = [sys.executable, str(FOLDER / "table.py"), "--parts", "loop,lop"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--parts takes compare, looked-up, " in done.stderr and "not 'lop'." in done.stderr
