"""The searches of `tune` on the page; a study's files may be anybody's."""

from __future__ import annotations

import json

import pytest

from avalanche_rwf.leaderboard.report import write_report
from avalanche_rwf.leaderboard.report.studies import studies

NOTES = [
    {"options": {}, "score": 0.5, "pruned": False, "accuracies": [0.9, 0.5]},
    {"options": {"lr": 0.1}, "score": None, "pruned": True, "accuracies": [0.4]},
    {"options": {"lr": 0.2}, "score": 0.75, "pruned": False, "accuracies": [0.9, 0.75]},
    {"options": {"lr": 1e9}, "score": None, "pruned": False, "error": "NaN", "accuracies": []},
    {"options": {"lr": 0.3}, "score": 0.75, "pruned": False, "accuracies": [0.9, 0.75]},
]


def test_trials_the_best_and_importance_are_read(tmp_path, study):
    place = study(tmp_path, "rwf", NOTES, {"mask": 0.25, "lr": 0.75})
    (found,) = studies([tmp_path])
    assert (found["method"], found["seed"], found["folder"]) == ("rwf", 3, place.as_posix())
    assert [t["state"] for t in found["trials"]] == ["done", "pruned", "done", "failed", "done"]
    assert [t["accuracy"] for t in found["trials"]] == [0.5, None, 0.75, None, 0.75]
    assert [t["evaluations"] for t in found["trials"]] == [2, 1, 2, 0, 2]
    assert found["best"] == 2  # the earlier of two
    assert found["importance"] == [["lr", 0.75], ["mask", 0.25]]


@pytest.mark.parametrize("note", [
    "[]", "{", "{}", '{"options": [], "score": 1}', '{"options": {}}', "\x00",
])  # fmt: skip
def test_a_damaged_trial_is_left_out(tmp_path, study, note):
    place = study(tmp_path, "rwf", NOTES[:1])
    (place / "trials" / "0001.json").write_text(note)
    (place / "trials" / "1x.json").write_text(json.dumps(NOTES[0]))
    assert len(studies([tmp_path])[0]["trials"]) == 1


def test_a_score_that_is_none_is_no_accuracy(tmp_path, study):
    odd = [{**NOTES[0], "score": score} for score in (7, -1, True, "1", None)]
    (found,) = studies([study(tmp_path, "rwf", odd, {"lr": "x", "mask": 9}).parents[1]])
    assert [t["accuracy"] for t in found["trials"]] == [None] * 5
    assert (found["best"], found["importance"]) == (None, [])


def test_a_damaged_study_is_left_out(tmp_path, study):
    file = study(tmp_path, "rwf", NOTES) / "study.json"
    for text in ("{", "[]", "{}", '{"method": 1, "config": {}}', '{"method": "x", "config": []}'):
        file.write_text(text)
        assert studies([tmp_path]) == []


def test_a_link_to_another_folder_is_not_followed(tmp_path, study):
    place = study(tmp_path / "theirs", "rwf", NOTES)
    (tmp_path / "out" / "tuning").mkdir(parents=True)
    (tmp_path / "out" / "tuning" / "x").symlink_to(place, target_is_directory=True)
    assert studies([tmp_path / "out"]) == []


def test_a_folder_with_a_search_alone_has_a_page(tmp_path, study):
    study(tmp_path, "<script>alert(1)</script>", NOTES)
    page = write_report(tmp_path)
    text = (page.parent / "data" / "board.js").read_text()
    assert '"studies":[{"method":"\\u003cscript' in text and "<script" not in text
