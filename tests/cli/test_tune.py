"""``tune`` and what a comparison takes of it."""

from __future__ import annotations

import pytest

from avalanche_rwf.experiments import study

from .command import VIT, call

pytest.importorskip("optuna", reason="the search needs Optuna (pip install optuna)")


def test_the_options_that_tune_prints_are_those_that_compare_uses(
    images, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(
        study, "held_out_accuracy",
        lambda config, *args, **kwargs: float(config.options["readout"] == "mean"),
    )  # fmt: skip
    flags = (
        "--benchmark", f"folder:{images}", "--experiences", 2, "--batch-size", 4,
        "--weights", weights, *VIT, "--jobs", 1, "--out", tmp_path, "--quiet",
    )  # fmt: skip
    status, printed, _ = call(capsys, "tune", "slda", "--trials", 4, *flags)
    assert (status, "--set slda.readout=mean" in printed) == (0, True)
    (folder,) = (tmp_path / "tuning").iterdir()
    budget = f"study:{folder.name}"
    line = ("compare", "--methods", "slda", "--seeds", 0, "--budget", budget)
    status, table, _ = call(capsys, *line, *flags)
    assert status == 0
    assert budget in table
    assert "readout=mean" in table


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nosuch"], "There is no method 'nosuch'"),
        (["rwf,l2p"], "tune takes one method, not 'rwf,l2p'"),
        (["rwf", "--trials", "0"], "--trials takes a whole number from 1 to 100000, not 0"),
        (["rwf", "--seed", "x"], "--seed takes a whole number from 0 to 2**32 - 1, not 'x'"),
        (["rwf", "--budget", "tuned"], "There is no --budget"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(words, says, tmp_path, capsys):
    status, _, said = call(capsys, "tune", *words, "--out", tmp_path)
    assert status == 2
    assert said.startswith(f"avalanche-rwf: {says}"), said
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, said = call(capsys, "tune", "rwf", "--out", tmp_path)
    assert (status, 'pip install "avalanche-rwf[tune]"' in said) == (2, True)
