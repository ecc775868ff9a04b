"""``tune``: what is searched, nothing lost or done twice, and what ``compare`` takes of it."""

from __future__ import annotations

import csv
import os
import signal
import time
from dataclasses import replace
from typing import Literal

import executor_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import study, tuning
from avalanche_rwf.experiments.compare import Plan
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors.process import process_context
from avalanche_rwf.experiments.run import run
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.experiments.study import (
    plan_studies,
    read_study,
    search,
    search_space,
    study_choice,
)
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs
from avalanche_rwf.leaderboard.render import render
from avalanche_rwf.leaderboard.report.studies import studies
from avalanche_rwf.strategies.base import NonFiniteLossError
from avalanche_rwf.strategies.registry import MethodSpec, get_method, list_methods

pytest.importorskip("optuna", reason="the search needs Optuna (pip install optuna)")


def everything(key, value) -> bool:
    return True


def do(config, out, trials, fixed=(), **how):
    """The folder of the study, and what the trials of this call came to."""
    folder, found = search(config, fixed, out, trials, Execution(jobs=1, quiet=True, **how))
    return folder, [result for _, result in found]


def told(folder) -> list[tuple[int, str]]:
    """The trials in Optuna's journal."""
    trials = study._open(folder, 0).get_trials()
    return sorted((t.user_attrs["trial"], t.state.name) for t in trials)


@pytest.fixture
def quick(monkeypatch):
    """Scores without training."""
    monkeypatch.setattr(study, "held_out_accuracy", lambda *args, **kwargs: 0.5)


# ---- what is searched


@pytest.mark.parametrize("name", list_methods())
def test_every_method_has_a_space_around_its_own_options(name, configure):
    config = configure(name)
    space = search_space(config, (), everything)
    assert space
    assert not {"buffer", "replay_batch", "tasks", "head"} & set(space)
    rates = {key for key, value in config.options.items() if key.startswith("lr") and value}
    assert rates <= set(space)
    for key, part in space.items():
        own = config.options[key]
        assert own in part["choices"] if "choices" in part else part["low"] < own < part["high"]
    for one in get_method(name).grid or ():  # nothing that the tuned budget tries is left out
        for key, value in one.items():
            part = space[key]
            inside = "choices" not in part and part["low"] <= value <= part["high"]
            assert inside or value in part["choices"]
    assert "lr" not in search_space(config, {"lr"}, everything)


def test_the_space_is_what_the_method_takes(configure, monkeypatch):
    options = {"share": 0.5, "width": 2.0, "size": 3, "way": "a", "on": True, "none": None,
               "zero": 0.0}  # fmt: skip
    spec = MethodSpec(
        "m", build=dict, summary="", options=options, types={"way": Literal["a", "b", "c"]}
    )
    monkeypatch.setattr(study, "get_method", lambda name: spec)
    refused = {"way": lambda v: v == "c", "share": lambda v: v > 1, "width": lambda v: v < 2}
    takes = lambda key, value: not refused.get(key, lambda v: False)(value)  # noqa: E731
    assert search_space(replace(configure(), method="m", options=options), (), takes) == {
        "share": {"low": 0.05, "high": 1.0},
        "width": {"low": 2.0, "high": 20.0},
        "size": {"choices": [1, 2, 3, 6, 12]},
        "way": {"choices": ["a", "b"]},
        "on": {"choices": [True, False]},
    }


def test_nothing_to_search_is_said(configure, tmp_path):
    with pytest.raises(UsageError, match="ncm has no option to search"):
        do(configure("ncm"), tmp_path, 3, fixed={"readout"})


# ---- the search


def test_the_best_is_found_recorded_and_read_again(configure, tmp_path):
    config = configure("slda")
    folder, results = do(config, tmp_path, 7)
    assert len(results) == 7
    assert folder.parent == tmp_path / "tuning"
    assert {result["status"] for result in results} == {"done"}
    # The first is the method's own, scored as --budget tuned scores it.
    assert results[0]["options"] == {}
    assert results[0]["score"] == tuning.held_out_accuracy(tuning.held_out_config(config), 2)
    best = max(r["score"] for r in results if r["score"] is not None)
    choice = study_choice(folder)
    assert choice.record()["score"] == best
    assert choice.record()["settings"] == 7
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == list("0123456")
    assert float(rows[-1]["best"]) == best
    # The same command again has nothing to do, with more trials it goes on.
    assert do(config, tmp_path, 7) == (folder, [])
    assert len(do(config, tmp_path, 9)[1]) == 2
    assert [number for number, _ in told(folder)] == list(range(9))


def test_what_matters_is_told(configure, tmp_path, monkeypatch):
    def score(config, *args, **kwargs):
        return 0.5 + 0.4 * (config.options["readout"] == "mean")

    monkeypatch.setattr(study, "held_out_accuracy", score)
    folder, _ = do(configure("slda"), tmp_path, 12)
    importance = read_study(folder)["importance"]
    assert importance["readout"] > 0.8 > 0.2 > importance["shrinkage"]
    assert study_choice(folder).options["readout"] == "mean"
    (shown,) = studies([tmp_path])  # on the page of a report
    assert [trial["number"] for trial in shown["trials"]] == read_study(folder)["trials"]
    assert shown["importance"] == [[key, share] for key, share in importance.items()]


def test_no_test_image_is_touched(configure, tmp_path, monkeypatch):
    seen = []

    def score(config, experiences, *args, **kwargs):
        seen.append((config.holdout, experiences, config.seed, config.budget))
        return 0.5

    monkeypatch.setattr(study, "held_out_accuracy", score)
    do(configure("slda", seed=3, eval_every_samples=4), tmp_path, 2)
    assert seen == [(tuning.HOLDOUT, 2, 3, "default")] * 2


def test_options_that_go_to_infinity_have_lost_and_other_errors_are_tried_again(
    configure, tmp_path, monkeypatch
):
    errors = [NonFiniteLossError("The loss is nan."), MemoryError("no memory"), None]

    def score(*args, **kwargs):
        error = errors.pop(0)
        if error is not None:
            raise error
        return 0.5

    monkeypatch.setattr(study, "held_out_accuracy", score)
    folder, results = do(configure("slda"), tmp_path, 2)
    assert [result["status"] for result in results] == ["done", "failed"]
    assert told(folder) == [(0, "PRUNED"), (1, "RUNNING")]
    (again,) = do(configure("slda"), tmp_path, 2)[1]
    assert again["score"] == 0.5
    assert told(folder) == [(0, "PRUNED"), (1, "COMPLETE")]
    assert "1 of them failed (The loss is nan)" in study_choice(folder).sentence()


def test_a_trial_that_was_cut_is_done_again_with_the_same_values(configure, tmp_path, monkeypatch):
    asked = []

    def score(config, *args, **kwargs):
        asked.append(config.options)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return 0.5

    monkeypatch.setattr(study, "held_out_accuracy", score)
    with pytest.raises(KeyboardInterrupt):
        do(configure("slda"), tmp_path, 4)
    folder, results = do(configure("slda"), tmp_path, 4)
    assert len(results) == 2
    assert asked[3] == asked[2]
    assert told(folder) == [(number, "COMPLETE") for number in range(4)]


def test_worse_than_half_of_the_others_is_pruned():
    notes = {n: {"score": 0.5, "accuracies": [0.9, 0.1 * n, 0.5]} for n in range(5)}
    judge = study._MedianPruner(notes, None)
    judge.evaluated(0.0)  # too early
    with pytest.raises(study._PrunedError):
        judge.evaluated(1.0)
    judge = study._MedianPruner(notes, None)
    for accuracy in (0.9, 0.3, 0.0):  # the last is the score
        judge.evaluated(accuracy)
    few = study._MedianPruner({n: notes[n] for n in range(4)}, None)
    for _ in range(2):
        few.evaluated(0.0)


def test_a_line_of_the_journal_that_was_cut_is_no_end_of_the_study(
    quick, configure, tmp_path
):
    folder, _ = do(configure("slda"), tmp_path, 1)
    with (folder / "journal.log").open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    assert len(do(configure("slda"), tmp_path, 2)[1]) == 1
    assert len(told(folder)) == 2


def test_a_damaged_note_is_made_again(
    quick, configure, tmp_path
):
    folder, _ = do(configure("slda"), tmp_path, 2)
    (folder / "trials" / "0001.json").write_text('{"score": "high"}')
    assert len(do(configure("slda"), tmp_path, 2)[1]) == 1
    assert len(told(folder)) == 2


def test_a_trial_that_another_command_told_of_first_is_no_error(monkeypatch):
    optuna = pytest.importorskip("optuna")
    shared = optuna.create_study(direction="maximize")
    running = optuna.trial.TrialState.RUNNING
    shared.add_trial(optuna.trial.create_trial(state=running, user_attrs={"trial": 0}))
    before, notes = shared.get_trials(), {0: {"accuracies": [0.25, 0.5], "score": 0.5}}
    study._tell(shared, notes)
    monkeypatch.setattr(shared, "get_trials", lambda **_: before)
    notes[0]["accuracies"].append(0.75)  # as if the other was faster than this one's reports
    study._tell(shared, notes)
    monkeypatch.undo()
    assert [trial.value for trial in shared.get_trials()] == [0.5]


@pytest.mark.usefixtures("server")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_two_commands_share_a_study_and_one_is_killed(configure, tmp_path):
    """The killed one's trial is done by the other, every trial once, and none is forgotten."""
    config = configure("slda")
    processes = [
        process_context().Process(target=children.tunes, args=(config, tmp_path, 5))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    while len(list(tmp_path.glob("tuning/*/trials/*.json"))) < 2:
        time.sleep(0.01)
    os.kill(processes[0].pid, signal.SIGKILL)
    processes[1].join(60)
    assert processes[1].exitcode == 0
    (folder,) = (tmp_path / "tuning").iterdir()
    assert len(read_study(folder)["trials"]) == 5
    assert [number for number, _ in told(folder)] == list(range(5))
    assert "RUNNING" not in dict(told(folder)).values()


# ---- a comparison with what was found


@pytest.fixture(scope="module")
def found(configure, tmp_path_factory):
    out = tmp_path_factory.mktemp("found")
    folder, _ = do(configure("slda"), out, 3)
    return out, folder


def planned(*configs) -> Plan:
    return Plan(configs, configs, 24, ())


def test_a_row_says_which_study_its_options_are_from(configure, found, tmp_path):
    out, folder = found
    content = read_json(folder / "study.json")
    plan, notes = plan_studies(planned(configure("slda", seed=1)), f"study:{folder}", {}, out)
    (config,) = plan.configs
    assert config.budget == f"study:{folder.name}"
    chosen = study_choice(folder).content["chosen"]
    assert config.options == {**content["config"]["options"], **chosen}
    assert notes == [study_choice(folder).sentence()]
    assert run(config, tmp_path)["status"] == "done"
    assert read_json(run_directory(tmp_path, config) / "config.json")["config"]["tuning"][
        "file"
    ] == folder.name
    text = render(aggregate(read_runs(tmp_path)[0]), "md")
    assert f"study:{folder.name}" in text
    assert "Settings chosen on held-out training images: slda" in text
    # By the name alone, or by a folder of studies.
    for budget in (folder.name, str(folder.parent)):
        again, _ = plan_studies(planned(configure("slda", seed=1)), f"study:{budget}", {}, out)
        assert again.configs == plan.configs


def test_a_study_of_another_setup_is_named(configure, found, tmp_path):
    out, folder = found
    plan, notes = plan_studies(planned(configure("slda", batch_size=6)), f"study:{folder}", {}, out)
    assert notes[0] == "slda: its study was of another batch_size."
    assert plan.configs[0].tuning["differs"] == ["batch_size"]


@pytest.mark.parametrize(
    ("method", "changes", "given", "says"),
    [
        ("ncm", {}, {}, "has no study of ncm"),
        ("slda", {"split_seed": 1}, {}, "may be test images here"),
        ("slda", {}, {"shrinkage": "0.1"}, "slda.shrinkage=0.1 was given, and the study"),
    ],
)
def test_what_does_not_go_together_is_refused(method, changes, given, says, configure, found):
    out, folder = found
    with pytest.raises(UsageError, match=says):
        plan_studies(
            planned(configure(method, **changes)), f"study:{folder}", {method: given}, out
        )


def test_two_studies_of_a_method_are_not_chosen_from(configure, found, tmp_path):
    do(configure("slda"), tmp_path, 1)
    do(configure("slda"), tmp_path, 1, fixed={"readout"})
    with pytest.raises(UsageError, match="has 2 studies"):
        plan_studies(planned(configure("slda")), f"study:{tmp_path / 'tuning'}", {}, tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"method": 1}'])
def test_what_is_no_study_is_said(content, tmp_path):
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UsageError, match="no study"):
        read_study(tmp_path)


def test_a_budget_of_no_study_is_refused(configure):
    for budget in ("study:", "stady:x"):
        with pytest.raises(UsageError, match="takes one of default, tuned, grid, study:NAME, not"):
            configure(budget=budget).validate()
    configure(budget="study:x").validate()
