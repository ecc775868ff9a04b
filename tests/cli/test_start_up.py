"""What answers at once: PyTorch, timm and Avalanche take seconds and are not imported for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from avalanche_rwf.cli.index import build_index
from avalanche_rwf.utils.known import INDEX, known

from .command import call

# One process for all: (status, arguments).
AT_ONCE = [
    (0, []),
    *[(0, [*verb, "--help"]) for verb in ([], ["compare"], ["inspect"], ["leaderboard"])],
    *[(0, ["list", k]) for k in ("methods", "benchmarks", "backbones", "streams", "heads")],
    *[(0, ["list", *words]) for words in (["options", "rwf"], ["backbones", "*dino*"])],
    *[(2, ["compare", *words]) for words in (
        ["--mean", "1,2"], ["--std", "0,0,0"], ["--test-share", "2"], ["--split-seed", "1"],
        ["--weights", "nil.safetensors"], ["--methods", "rfw"], ["--exclude", "nil"],
        ["--benchmark", "folder:."], ["--checkpoint-every", "x"], ["--stream", "nil"],
        ["--batch-size", "0"], ["--set", "rwf"], ["--colour", "red"], ["--data-root", "file"],
    )],
    (2, ["explain", "file", "--run", "."]),
    (2, ["explain", "nil.png", "--run", "."]),
    *[(0, [*words]) for words in (
        ["leaderboard", "{results}"], ["report", "{results}", "--out", "page"],
        ["submit", "{results}", "--method", "ncm", "--out", "entry.json"], ["status", "{results}"],
    )],
]  # fmt: skip
CODE = """
import json, sys
from avalanche_rwf.cli import main
for status, words in json.loads(sys.argv[1]):
    try:
        got = main(words)
    except SystemExit as stopped:
        got = stopped.code
    slow = {"torch", "timm", "avalanche", "torchvision"} & set(sys.modules)
    assert (got, slow) == (status, set()), (words, got, slow)
"""


def test_names_help_mistakes_and_tables_need_no_pytorch(compared, tmp_path):
    (tmp_path / "file").write_text("")
    lines = [(n, [w.format(results=compared[0]) for w in words]) for n, words in AT_ONCE]
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(lines)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(INDEX.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_index_is_what_the_registries_say():
    """After a change of a method, a head or timm: ``make index``."""
    assert json.loads(INDEX.read_text()) == build_index()


@pytest.mark.parametrize("line", [
    ["list", "methods"], ["list", "methods", "*l2p"], ["list", "options", "er"], ["list", "heads"],
    ["list", "backbones", "*resnet*_vit*"], ["list", "backbones", "*.dino"],
], ids=" ".join)  # fmt: skip
def test_without_the_index_the_lists_are_the_same(line, capsys, monkeypatch):
    assert known("methods") is not None, "run `make index`"
    before = call(capsys, *line)
    monkeypatch.setattr("avalanche_rwf.utils.known._index", dict)
    assert known("methods") is None
    assert call(capsys, *line) == before


def test_every_option_of_every_method_is_explained():
    for name, entry in (known("methods") or {}).items():
        for option, (kind, _, meaning) in entry["options"].items():
            assert kind and meaning, f"{name}.{option}"
