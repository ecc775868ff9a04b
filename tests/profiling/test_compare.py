"""Two revisions are compared in turn, and what cannot be compared is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "profiling" / "compare.py"

pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a git checkout")


def compare(*words):
    return subprocess.run([sys.executable, FILE, *words], capture_output=True, text=True)


def test_start_up_of_two_revisions_is_compared(tmp_path):
    words = ("--methods", "", "--job", "", "--repeats", "2", "--json", tmp_path / "found.json")
    done = compare("HEAD", ".", *map(str, words))
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "found.json").read_text())["numbers"]
    assert set(numbers) == {"start --help", "start list methods", "start list streams"}
    for name, found in numbers.items():
        assert name in done.stdout
        assert len(found) == 2 and all(value > 0 for pair in found for value in pair)


def test_a_revision_that_is_not_there_is_named():
    done = compare("no-such-revision")
    assert done.returncode != 0 and "no-such-revision" in done.stderr
    assert "Traceback" not in done.stderr
