"""Each example runs offline with ``--smoke``; those that need Avalanche share one import of it."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
SAYS = {
    "quickstart": "accuracy over all 2 classes seen",
    "custom_folder": "rwf-lda",
    "route_study": "learned prior; first ones read anew",
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


def test_pretraining_runs(offline, monkeypatch, tmp_path):
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as ended:
        run("pretrain_backbone", "--out", tmp_path / "it.safetensors", monkeypatch=monkeypatch)
    torch.set_num_threads(threads)

    assert ended.value.code == 0
    assert (tmp_path / "it.safetensors").is_file()


def test_adding_a_method_takes_under_40_lines_and_a_comparison_of_it_runs(tmp_path):
    """As a script, it is a comparison that imports itself, here in two processes.

    That the package lists it and that the tests of all methods run on it: test_user_code.py.
    """
    file = EXAMPLES / "add_your_method.py"
    assert len(file.read_text().splitlines()) < 40
    names = runpy.run_path(str(EXAMPLES / "custom_folder.py"))
    names["draw_images"](tmp_path / "images", train=4, test=2)
    line = [file, "--benchmark", f"folder:{tmp_path / 'images'}", "--experiences", 2]
    line += ["--seeds", "0,1", "--jobs", 2, "--quiet", "--set", "my-method.length=3"]
    done = subprocess.run(
        [sys.executable, *map(str, line)], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={
            **os.environ, "PYTHONPATH": str(EXAMPLES.parent), "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my-method" in done.stdout
