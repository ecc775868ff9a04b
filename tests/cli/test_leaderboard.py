"""``leaderboard`` on the folder of a comparison."""

from __future__ import annotations

import io
import sys

import pytest

from avalanche_rwf import cli
from avalanche_rwf.cli.common import FORMATS

from .command import METHODS, call, copy, runs


@pytest.mark.parametrize("name", FORMATS)
def test_leaderboard_in_every_format(name, compared, capsys):
    status, out, err = call(capsys, "leaderboard", compared[0], "--format", name)
    assert (status, err) == (0, "")
    assert all(method in out for method in METHODS)
    if name == "text":
        assert out == compared[1]


def test_leaderboard_names_what_it_leaves_out(compared, capsys, tmp_path):
    out = copy(compared, tmp_path)
    (runs(out)["ncm", "seed0"] / "summary.json").write_text("{")
    status, printed, err = call(capsys, "leaderboard", out)
    assert status == 0
    assert err.startswith("left out: ")
    assert err.count("\n") == 1
    assert "seed0" in err
    assert "rwf" in printed


def test_the_formats_are_those_of_the_leaderboard():
    from avalanche_rwf.leaderboard.render import FORMATS as RENDERED

    assert RENDERED == FORMATS


def test_a_terminal_without_the_signs_gets_question_marks(compared, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["leaderboard", str(compared[0])]) == 0
    terminal.seek(0)
    assert " ? " in terminal.read()
