"""Each example runs offline with ``--smoke``; those that need Avalanche share one import of it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "quickstart": "accuracy over all 2 classes seen",
    "custom_folder": "rwf-lda",
}


@pytest.fixture
def offline(monkeypatch):
    """Whatever opens a connection fails."""

    def refuse(*args, **kwargs):
        raise OSError("an example must not use the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def run(name, *args, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--smoke", *map(str, args)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


@pytest.mark.parametrize("name", SAYS)
def test_example_runs_offline(name, offline, monkeypatch, capsys):
    run(name, monkeypatch=monkeypatch)

    assert SAYS[name] in capsys.readouterr().out


def test_comparison_logs_both_methods_alike(offline, monkeypatch, tmp_path, capsys):
    run("compare_with_l2p", "--csv", tmp_path / "rows.csv", monkeypatch=monkeypatch)

    rows = pd.read_csv(tmp_path / "rows.csv")
    logged = rows.groupby("method")["metric"].apply(list)
    assert logged["rwf"] == logged["avalanche-l2p"]
    assert rows.groupby("method")["samples_seen"].max().nunique() == 1
    out = capsys.readouterr().out
    assert out.count("Start of training phase") == 2  # one logger has seen both
    assert "after 1" in out


def test_custom_folder_takes_a_path(offline, monkeypatch, tmp_path, capsys):
    names = runpy.run_path(str(EXAMPLES / "custom_folder.py"))
    names["draw_images"](tmp_path, train=4, test=2)

    run("custom_folder", tmp_path, "--experiences", 2, monkeypatch=monkeypatch)

    out = capsys.readouterr().out
    assert "after 2" in out and "after 3" not in out


def test_pretraining_runs(tmp_path):
    """In a process of its own: it sets the number of threads."""
    done = subprocess.run(
        [
            sys.executable, str(EXAMPLES / "pretrain_backbone.py"), "--smoke",
            "--out", str(tmp_path / "weights.safetensors"),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "weights.safetensors").is_file()
