"""Every Python block of the page on streams runs as it stands, without our command line."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "streams.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a block registers is gone afterwards."""
    from avalanche_rwf.benchmarks import stream_registry

    stream_registry.list_streams()
    for name in ("_STREAMS", "OPTIONS"):
        monkeypatch.setattr(stream_registry, name, dict(getattr(stream_registry, name)))


def run(code, capsys) -> str:
    capsys.readouterr()
    exec(compile(code, "<docs/streams.md>", "exec"), {"__name__": "user"})
    return capsys.readouterr().out


def test_anytime_evaluation_of_avalanches_naive(capsys):
    (code,) = (block for block in BLOCKS if "AnytimeEvaluation" in block)
    said = run(code, capsys)
    values = re.search(r"^A_auc (\d\.\d+), A_last (\d\.\d+)$", said, re.M)
    assert values and all(0.1 < float(value) < 1 for value in values.groups()), said


def test_a_stream_of_ones_own(capsys):
    (code,) = (block for block in BLOCKS if "register_stream" in block)
    sizes = run(code, capsys).splitlines()[-1]
    assert sum(map(int, re.findall(r"\d+", sizes))) == 1347


def test_every_block_is_tried():
    assert len(BLOCKS) == 2


def test_the_output_of_inspect_is_the_real_one(capsys, monkeypatch):
    from avalanche_rwf.cli import main

    monkeypatch.setenv("COLUMNS", "100")
    assert main(["inspect", "--stream", "si-blurry", "--seed", "1"]) == 0
    assert capsys.readouterr().out in PAGE


def test_commands_name_options_that_there_are(capsys):
    """Each `avalanche-rwf` line of a block without output, as far as the parser reads it."""
    from avalanche_rwf.cli import _parser

    variables = dict(re.findall(r'^([A-Z])="(.+?)"$', PAGE, re.M | re.S))
    lines = re.findall(r"^(?:\$ )?avalanche-rwf (.+)$", PAGE, re.M)
    assert len(lines) > 8
    for line in lines:
        words = string.Template(line).substitute(variables).split()
        assert _parser().parse_args(words).verb in ("compare", "inspect", "list")
