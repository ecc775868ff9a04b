"""``compare --log``: what TensorBoard, wandb and a CSV file hold of a run, read back."""

from __future__ import annotations

import csv
import importlib
import os

import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import run_logger
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.loggers import LOGGERS, check_loggers
from avalanche_rwf.experiments.run import run

from ..runs import execute_with
from ..wandb_files import from_wandb


def missing(name: str) -> bool:
    return name != "csv" and importlib.util.find_spec(name) is None


NAMES = [
    pytest.param(n, marks=pytest.mark.skipif(missing(n), reason=f"{n} is not installed"))
    for n in LOGGERS
]


def from_csv(folder):
    rows = csv.DictReader((folder / "log.csv").read_text().splitlines())
    return [(int(row["samples_seen"]), row["metric"], float(row["value"])) for row in rows]


def from_tensorboard(folder):
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder / "tensorboard")).Reload()
    return [
        (e.step, tag, e.value) for tag in events.Tags()["scalars"] for e in events.Scalars(tag)
    ]


READERS = {"csv": from_csv, "tensorboard": from_tensorboard, "wandb": from_wandb}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setattr(run_logger, "LOSS_EVERY", 3)


@pytest.fixture(scope="module")
def plain(configure, tmp_path_factory):
    """The same run without a logger."""
    out = tmp_path_factory.mktemp("plain")
    run(configure(), out)
    return run_directory(out, configure())


@pytest.mark.parametrize("name", NAMES)
def test_a_logger_gets_the_run_and_changes_no_number(
    name, configure, plain, tmp_path, monkeypatch
):
    execute_with(monkeypatch, log=(name,))
    summary = run(configure(), tmp_path)
    folder = run_directory(tmp_path, configure())
    assert folder.name == plain.name and folder.parent.name == plain.parent.name  # the hash
    assert (folder / "metrics.csv").read_bytes() == (plain / "metrics.csv").read_bytes()
    logged = READERS[name](folder)
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    recorded = {
        (int(row["samples_seen"]), metric): float(row["value"])
        for row in rows
        if (metric := named(row)) is not None
    }
    found = {(seen, metric): value for seen, metric, value in logged}
    assert {key: found[key] for key in recorded} == pytest.approx(recorded, rel=1e-6)
    # Steps 0, 3 and 6 of nine: 3 experiences of 8 images, in mini-batches of 3, 3 and 2.
    assert [seen for seen, metric, _ in logged if metric == "loss"] == [3, 11, 19]
    assert found[24, "trainable_parameters"] == summary["trainable_parameters"]


def named(row):
    if row["metric"] == "accuracy":
        return f"accuracy/experience_{row['experience']}"
    return None if row["metric"].startswith("accuracy_class") else row["metric"]


@pytest.mark.parametrize("name", NAMES)
def test_two_runs_of_one_process_are_logged_apart(name, configure, tmp_path, monkeypatch):
    execute_with(monkeypatch, log=(name,))
    for method in ("ncm", "slda"):
        summary = run(configure(method), tmp_path)
        logged = READERS[name](run_directory(tmp_path, configure(method)))
        values = [value for _, metric, value in logged if metric == "a_last"]
        assert values == pytest.approx([summary["a_last"]], rel=1e-6)
        assert "loss" not in {metric for _, metric, _ in logged}  # closed forms have none


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(configure, tmp_path, monkeypatch):
    def broken(folder, config, fresh):
        logger, close = LOGGERS["csv"](folder, config, fresh)

        def fail(*args):
            raise OSError("no space left")

        logger.log_single_metric = fail
        return logger, close

    monkeypatch.setitem(LOGGERS, "broken", broken)
    execute_with(monkeypatch, log=("broken", "csv"))
    assert run(configure(), tmp_path)["status"] == "done"
    folder = run_directory(tmp_path, configure())
    log = (folder / "log.txt").read_text()
    assert log.count("--log broken stopped (OSError: no space left); the run goes on") == 1
    assert from_csv(folder)


def test_an_earlier_attempt_leaves_no_lines(configure, tmp_path, monkeypatch):
    execute_with(monkeypatch, log=("csv",))
    folder = run_directory(tmp_path, configure())
    run(configure(), tmp_path)
    once = from_csv(folder)
    (folder / "summary.json").unlink()
    run(configure(), tmp_path)
    again = from_csv(folder)
    assert [row[:2] for row in again] == [row[:2] for row in once]


def test_compare_gives_the_names_to_its_workers(folder, tmp_path, capsys):
    from avalanche_rwf.cli import main

    words = ["compare", "--methods", "ncm", "--seeds", "0", "--quiet", "--jobs", "1",
             "--benchmark", f"folder:{folder}", "--out", str(tmp_path)]  # fmt: skip
    assert main([*words, "--log", "tensorbord"]) == 2
    assert "--log has no logger 'tensorbord'" in capsys.readouterr().err
    assert main([*words, "--log", "csv", "--log", "csv"]) == 0
    (found,) = tmp_path.glob("runs/*/ncm/*/seed0")
    assert from_csv(found)


def test_names_are_checked_before_any_work(monkeypatch):
    assert check_loggers(["csv, wandb", "csv"]) == ("csv", "wandb")
    with pytest.raises(UsageError, match=r"--log has no logger 'tensorbord'; .*'tensorboard'"):
        check_loggers(["csv,tensorbord"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "wandb" else find(n))
    with pytest.raises(UsageError, match="--log wandb needs the package wandb: pip install wandb"):
        check_loggers(["wandb"])


@pytest.mark.skipif(missing("wandb"), reason="wandb is not installed")
def test_wandb_without_an_account_is_refused(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="needs an account: run `wandb login`, or set WANDB_MODE"):
        check_loggers(["wandb"])
