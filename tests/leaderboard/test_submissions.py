"""Entries: what is written can be read, and hostile ones are refused with the field named."""

from __future__ import annotations

import copy
import json
import os

import numpy as np
import pandas as pd
import pytest

from avalanche_rwf import cli
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.leaderboard import aggregate, read_runs, render
from avalanche_rwf.leaderboard import submissions as sub
from avalanche_rwf.leaderboard.curves import read_metrics
from avalanche_rwf.version import __version__

SHA = "3fa9c1d2" * 8
METRICS = """samples_seen,experience,metric,value
10,,accuracy_exposed,1.0
10,0,accuracy,1.0
20,,accuracy_exposed,0.7
20,0,accuracy,0.6
20,1,accuracy,0.8
20,,accuracy_class_0,0.6
"""
SUMMARY = {
    "a_last": 0.7, "a_avg": 0.85, "a_auc": 0.8, "forgetting_experience": 0.4,
    "forgetting_class": 0.3, "train_seconds": 2.0, "trainable_parameters": 10, "status": "done",
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    out = tmp_path / "results"
    for seed in (0, 1):
        config = RunConfig("split-digits", "rwf", {"head": "white", "lr": 0.01, "blocks": (1, 2)},
                           seed, weights="/home/me/w.pth", weights_sha256=SHA, backbone="vit",
                           experiences=2)  # fmt: skip
        folder = run_directory(out, config)
        folder.mkdir(parents=True)
        content = {
            "config": config.to_dict(), "config_hash": config.config_hash(),
            "backbone": {"name": "vit", "sha256": SHA, "source": "file", "image_size": 32},
            "ran": {"head": "white", "mask": "seen", "readout": "cls", "clip_norm": None},
            "uses_boundaries": False, "source_sha256": "1" * 64, "git": "a",
            "versions": {"avalanche-rwf": __version__, "torch": "2.9"},
            "hardware": {"cpu": "x", "cores": 2},
        }  # fmt: skip
        (folder / "config.json").write_text(json.dumps(content))
        (folder / "summary.json").write_text(json.dumps(SUMMARY))
        (folder / "metrics.csv").write_text(METRICS)
    return out


@pytest.fixture
def entry(results):
    built = sub.build_entry(read_runs(results).frame, "rwf")
    return json.loads(built.model_dump_json())


def write(tmp_path, content, name="entry.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_is_submitted_comes_back(results, entry, tmp_path):
    assert "/home/me" not in json.dumps(entry)
    own = read_runs(results).frame
    others = sub.read_entries([write(tmp_path, entry), write(tmp_path, entry, "again.json")])
    assert others["seed"].tolist() == [0, 1]
    board = aggregate(pd.concat([own, others], ignore_index=True))
    assert board["submitted"].tolist() == [False, True]  # never averaged with one's own
    mine, theirs = board.to_dict("records")
    for name in ("a_last_mean", "n", "head", "config_hash", "source", "options", "experiences"):
        assert mine[name] == theirs[name]
    assert "rwf‡" in render(board)
    assert "submitted, not run here" in render(board)
    assert [np.isfinite(one.matrix).sum() for one in read_metrics(others)] == [3, 3]


def assert_same(own, theirs):
    """What an entry holds: curves and matrices, no classes and no routing."""
    for mine, other in zip(own, theirs, strict=True):
        assert (mine.seed, mine.exposed, mine.ends) == (other.seed, other.exposed, other.ends)
        np.testing.assert_array_equal(mine.matrix, other.matrix)


def change(path, value):
    """A function that sets a field, given by its keys, of an entry."""

    def apply(entry):
        *parents, last = path
        for key in parents:
            entry = entry[key]
        entry[last] = value

    return apply


RUN = ("runs", 0)
HOSTILE = {
    "a type": (change((*RUN, "summary", "a_last"), "0.7"), "runs[0].summary.a_last"),
    "a boolean": (change((*RUN, "summary", "a_last"), True), "runs[0].summary.a_last"),
    "not a number": (change((*RUN, "summary", "a_last"), float("nan")), "runs[0].summary.a_last"),
    "infinite": (change((*RUN, "summary", "train_seconds"), float("inf")), "train_seconds"),
    "above 1": (change((*RUN, "summary", "a_avg"), 1.5), "runs[0].summary.a_avg"),
    "below 0": (change((*RUN, "summary", "a_last"), -0.1), "runs[0].summary.a_last"),
    "matrix above 1": (
        change((*RUN, "accuracy_matrix", 1, 0), 60.0), "runs[0].accuracy_matrix[1][0]"
    ),
    "matrix of another a_last": (change((*RUN, "accuracy_matrix", 1), [0.1, 0.2]), "a_last"),
    "matrix of other forgetting": (
        change((*RUN, "summary", "forgetting_experience"), 0.0), "forgetting_experience"
    ),
    "matrix that is not square": (change((*RUN, "accuracy_matrix", 1), [0.7]), "square"),
    "curve of another a_last": (change((*RUN, "curve", 1), [20, 0.65]), "summary.a_last"),
    "curve of another a_avg": (change((*RUN, "curve", 0), [10, 0.5]), "summary.a_a"),
    "markup": (change(("config", "method"), "<script>alert(1)</script>"), "config.method"),
    "markup in an option": (
        change(("config", "options", "head"), "<b>"),
        "config.options.head: must be plain text without '<' '>'.",
    ),
    "markup in a key": (change(("config", "options", "<b>"), 1), "config.options"),
    "a formula": (change(("config", "method"), "=1+1"), "config.method"),
    "ends that go back": (change((*RUN, "experience_ends"), [20, 10]), "experience_ends"),
    "a curve that goes back": (change((*RUN, "curve"), [[20, 0.7], [10, 1.0]]), "curve"),
    "an empty row": (change((*RUN, "accuracy_matrix", 0), [None, None]), "a value in every row"),
    "a control": (change(("backbone", "name"), "vit\x1b[31m"), "backbone.name"),
    "right to left": (change(("config", "method"), "rwf\u202e"), "config.method"),
    "a long name": (change(("config", "method"), "a" * 10_000), "config.method"),
    "a seed twice": (change(("runs", 1, "seed"), 0), "runs must hold a seed once"),
    "no run": (change(("runs",), []), "runs"),
    "runs of a type": (change(("runs",), {"0": 1}), "runs"),
    "many runs": (change(("runs",), [0] * 2000), "runs"),
    "a huge number": (change((*RUN, "seed"), 10**400), "seed"),
    "a negative seed": (change((*RUN, "seed"), -1), "runs[0].seed"),
    "another hash": (change(("config_hash",), "0" * 10), "config_hash"),
    "another option": (change(("config", "options", "lr"), 0.5), "config_hash"),
    "an unknown setting": (change(("config", "settings"), {"x": 1}), "config.settings"),
    "other weights": (change(("backbone", "sha256"), "0" * 64), "weights_sha256"),
    "an unknown field": (change(("__class__",), "os.system"), "__class__"),
    "another format": (change(("format",), "x"), "format"),
    "experiences": (change(("config", "experiences"), 3), "config.experiences"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_entries_are_refused_with_the_field_named(case, entry, tmp_path):
    spoil, field = HOSTILE[case]
    spoilt = copy.deepcopy(entry)
    spoil(spoilt)
    path = write(tmp_path, spoilt)
    with pytest.raises(UsageError) as error:
        sub.read_entries([path])
    said = str(error.value)
    assert field in said
    assert str(path) in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 600


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "\x00", "[" * 200_000, '{"a":' * 100_000, "NaN", '{"runs": 1e999}',
    ],
)  # fmt: skip
def test_what_is_no_entry_at_all(content, tmp_path):
    with pytest.raises(UsageError, match=r"entry\.json' is not an entry"):
        sub.read_entry(write(tmp_path, content))


def test_size_is_checked_before_anything_is_parsed(tmp_path, monkeypatch):
    path = tmp_path / "entry.json"
    with path.open("wb") as file:
        file.truncate(10**10)  # sparse

    def parsed(*args, **kwargs):
        raise AssertionError("parsed")

    monkeypatch.setattr(sub.Entry, "model_validate_json", parsed)
    with pytest.raises(UsageError, match="more than 5,000,000 bytes"):
        sub.read_entry(path)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "nowhere"):
        with pytest.raises(UsageError, match="cannot be read as an entry"):
            sub.read_entry(tmp_path / name)


def test_two_entries_with_other_runs_of_a_seed(entry, tmp_path):
    other = copy.deepcopy(entry)
    other["runs"][0]["summary"]["train_seconds"] = 3.0
    paths = [write(tmp_path, entry), write(tmp_path, other, "other.json")]
    with pytest.raises(UsageError, match=r"seed 0 in .*entry\.json' and .*other\.json"):
        sub.read_entries(paths)


def test_a_submitted_entry_can_be_added_to_a_leaderboard(results, tmp_path, capsys):
    path = tmp_path / "entry.json"
    line = ["submit", str(results), "--method", "rwf", "--out", str(path)]
    assert cli.main(line) == 0
    assert "seeds 0,1" in capsys.readouterr().err
    add = ["leaderboard", str(results), "--add", str(path), "--format", "csv"]
    assert cli.main(add) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    assert not (results / "leaderboard.csv").exists()  # it is of the folder's own runs
    assert cli.main(["submit", "--schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["runs"]["maxItems"] == 1000
    for bad, said in (
        (["submit"], "DIR"),
        (["submit", str(results), "--out", "x"], "--method"),
        (["submit", str(results), "--method", "ncm", "--out", str(path)], "'ncm'"),
        ([*line, "--config", "ffff"], "--config"),
        (["leaderboard", str(results), "--add", str(tmp_path / "nil")], "nil"),
        (["leaderboard", str(results), "--out", "x"], "--out"),
        (["leaderboard", str(results), "--reference", "nmc"], "--reference"),
    ):
        assert cli.main(bad) == 2
        captured = capsys.readouterr()
        assert said in captured.err
        assert captured.err.count("\n") == 1


def test_an_experience_without_samples_is_submitted_too(results, tmp_path):
    """As of a Si-Blurry stream: it ends where the one before it did and brings no class."""
    rows = METRICS.splitlines()
    text = "\n".join([*rows[:3], *rows[1:3], rows[3], rows[4], rows[5].replace("20,1", "20,2")])
    for path in results.rglob("metrics.csv"):
        path.write_text(text + "\n")
    config = RunConfig("split-digits", "ncm", {}, 0, stream="si-blurry", backbone="vit",
                       weights_sha256=SHA)  # fmt: skip
    old = next(results.rglob("seed0"))
    folder = run_directory(results, config)
    folder.parent.mkdir(parents=True)
    old.rename(folder)
    content = json.loads((folder / "config.json").read_text())
    content.update(config=config.to_dict(), config_hash=config.config_hash())
    (folder / "config.json").write_text(json.dumps(content))
    summary = {**SUMMARY, "a_avg": 0.9}
    (folder / "summary.json").write_text(json.dumps(summary))
    runs = read_runs(results).frame
    entry = sub.build_entry(runs, "ncm")
    assert entry.runs[0].experience_ends == [10, 10, 20]
    none = None
    assert entry.runs[0].accuracy_matrix == [[1, none, none], [1, none, none], [0.6, none, 0.8]]
    own = read_metrics(runs[runs["method"] == "ncm"])
    theirs = read_metrics(sub.read_entries([write(tmp_path, entry.model_dump_json())]))
    assert_same(own, theirs)


def test_a_stream_that_begins_without_samples_is_submitted_too(results, tmp_path):
    """Nothing is evaluated at the end of its first experience: a row without a value."""
    text = METRICS.replace(",1,accuracy,", ",2,accuracy,").replace(",0,accuracy,", ",1,accuracy,")
    old = next(results.rglob("seed0"))
    config = RunConfig("split-digits", "ncm", {}, 0, stream="si-blurry", backbone="vit",
                       experiences=3, weights_sha256=SHA)  # fmt: skip
    folder = run_directory(results, config)
    folder.parent.mkdir(parents=True)
    old.rename(folder)
    (folder / "metrics.csv").write_text(text)
    content = json.loads((folder / "config.json").read_text())
    content.update(config=config.to_dict(), config_hash=config.config_hash())
    (folder / "config.json").write_text(json.dumps(content))
    runs = read_runs(results).frame
    entry = sub.build_entry(runs, "ncm")
    none = None
    assert entry.runs[0].experience_ends == [0, 10, 20]
    assert entry.runs[0].accuracy_matrix == [[none] * 3, [none, 1, none], [none, 0.6, 0.8]]
    path = write(tmp_path, entry.model_dump_json())
    own = read_metrics(runs[runs["method"] == "ncm"])
    assert list(own[0].ends) == [1, 2]
    assert_same(own, read_metrics(sub.read_entries([path])))

    # The images of an experience whose classes are not tested count.
    content["data"] = {"samples_per_experience": [4, 6, 10]}
    (folder / "config.json").write_text(json.dumps(content))
    assert sub.build_entry(runs, "ncm").runs[0].experience_ends == [4, 10, 20]

    # What is checked of other entries is checked of these.
    said = json.loads(path.read_text())
    for change, field in (
        ({"a_avg": 0.8}, "a_avg"), ({"forgetting_experience": 0.1}, "forgetting_experience"),
    ):  # fmt: skip
        wrong = copy.deepcopy(said)
        wrong["runs"][0]["summary"].update(change)
        with pytest.raises(UsageError, match=f"summary.{field} contradicts"):
            sub.read_entry(write(tmp_path, wrong))
    for row in (1, 2):
        wrong = copy.deepcopy(said)
        for line in wrong["runs"][0]["accuracy_matrix"][row:]:
            line[:] = [none] * 3
        with pytest.raises(UsageError, match="a value in every row"):
            sub.read_entry(write(tmp_path, wrong))


SPOILT = {
    "text in the place of a number": METRICS.replace("0.7", "abc"),
    "an experience without a number": METRICS.replace("20,1,", "20,,"),
    "cut in a row": METRICS[:-30],
    "no text": b"\xff\xfe\x00",
    "other columns": METRICS.replace("metric", "name"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_run_with_spoilt_metrics_is_not_submitted(case, results, tmp_path, capsys):
    path = sorted(results.rglob("metrics.csv"))[1]
    content = SPOILT[case]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "entry.json"
    assert cli.main(["submit", str(results), "--method", "rwf", "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert f"{str(path)!r} cannot be read" in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_without_accuracies_on_all_classes_the_matrix_is_the_entry(results):
    rows = [row for row in METRICS.splitlines() if "exposed" not in row]
    for path in results.rglob("metrics.csv"):
        path.write_text("\n".join(rows) + "\n")
    run = sub.build_entry(read_runs(results).frame, "rwf").runs[0]
    assert (run.experience_ends, run.accuracy_matrix) == ([10, 20], [[1.0, None], [0.6, 0.8]])
    assert run.curve == []


def test_metrics_of_another_run_contradict_its_summary(results):
    path = sorted(results.rglob("metrics.csv"))[1]
    path.write_text(METRICS.replace("0.8", "0.65"))
    with pytest.raises(UsageError, match=r"summary\.a_last contradicts the last row"):
        sub.build_entry(read_runs(results).frame, "rwf")


@pytest.mark.parametrize("spoilt", [None, "x", ["x"]])
def test_notes_of_another_type_are_left_out_or_named(spoilt, results):
    for path in results.rglob("config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "ran": spoilt}))
    assert sub.build_entry(read_runs(results).frame, "rwf").ran.head is None
    for path in results.rglob("config.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "versions": spoilt}))
    with pytest.raises(UsageError, match=r"environment\.versions: must be an object"):
        sub.build_entry(read_runs(results).frame, "rwf")


def test_an_entry_is_of_one_version_and_of_a_seed_once(results, tmp_path):
    runs = read_runs(results).frame
    copied = pd.concat([runs, runs.iloc[:1].assign(folder=str(tmp_path))], ignore_index=True)
    with pytest.raises(UsageError, match=r"takes a seed once, and rwf has one twice"):
        sub.build_entry(copied, "rwf")
    path = next(results.rglob("config.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "source_sha256": "2" * 64}))
    with pytest.raises(UsageError, match=r"one version of the code.*are of several"):
        sub.build_entry(read_runs(results).frame, "rwf")


def test_a_submitted_seed_that_is_there_twice_is_named_by_its_file(entry, tmp_path):
    path = write(tmp_path, entry)
    twice = pd.concat([sub.read_entries([path])] * 2, ignore_index=True)
    with pytest.raises(UsageError, match=r"a seed once .*entry\.json \(runs\[0\]\)"):
        aggregate(twice)
