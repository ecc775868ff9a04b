"""Reading and averaging run directories, sound and broken."""

from __future__ import annotations

import json
import math
import os

import pandas as pd
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import aggregate, read_runs, write_leaderboard
from avalanche_rwf.leaderboard.aggregate import protocols


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_one_row_per_run(make_run, tmp_path):
    make_run(seed=0, options={"num_prompts": 5})
    make_run(seed=1, options={"num_prompts": 5}, summary={"a_last": 0.8})
    runs, broken = read_runs(tmp_path)
    assert broken == []
    assert runs["run_dir"].tolist() == [f"runs/split-digits/rwf/aaaa/seed{k}" for k in (0, 1)]
    assert runs["seed"].tolist() == [0, 1]
    assert runs["a_last"].tolist() == [0.9, 0.8]
    assert runs["head"].tolist() == ["white", "white"]
    assert json.loads(runs["options"][0])["num_prompts"] == 5
    # the configuration's number per batch, and the summary's number over the run
    assert runs["gradient_steps"].tolist() == [1, 1]
    assert runs["gradient_steps_run"].tolist() == [75.0, 75.0]


def test_mean_and_sample_deviation_by_hand(make_run, tmp_path):
    for seed, a_last in enumerate([0.5, 0.7, 0.9]):
        make_run(seed=seed, summary={"a_last": a_last, "forgetting_class": [0.1, None, 0.3][seed]})
    board = aggregate(read_runs(tmp_path).frame)
    assert len(board) == 1
    row = board.iloc[0]
    assert row["a_last_mean"] == pytest.approx(0.7)
    assert row["a_last_std"] == pytest.approx(0.2)  # sqrt((0.04 + 0 + 0.04) / 2)
    assert row["forgetting_class_mean"] == pytest.approx(0.2)
    assert row["forgetting_class_std"] == pytest.approx(math.sqrt(0.02))
    assert (row["n"], row["seeds"], row["failed"]) == (3, "0,1,2", 0)
    assert (row["head"], row["mask"], row["readout"]) == ("white", "seen", "cls")
    assert (row["batch_size"], row["gradient_steps"]) == (16, 1)
    assert row["gradient_steps_mean"] == 75
    assert row["samples_seen_mean"] == 1200
    assert "gradient_steps_run_mean" not in board


def test_every_summary_field_is_there(make_run, tmp_path):
    path = make_run()
    summary = json.loads((path / "summary.json").read_text())
    board = aggregate(read_runs(tmp_path).frame)
    for field in set(summary) - {"status"}:
        assert {f"{field}_mean", f"{field}_std"} <= set(board.columns)


def test_one_seed_has_no_deviation(make_run, tmp_path):
    make_run()
    row = aggregate(read_runs(tmp_path).frame).iloc[0]
    assert row["a_last_mean"] == 0.9
    assert math.isnan(row["a_last_std"])


def test_field_that_is_none_everywhere_stays(make_run, tmp_path):
    make_run(summary={"forgetting_class": None})
    row = aggregate(read_runs(tmp_path).frame).iloc[0]
    assert math.isnan(row["forgetting_class_mean"])


@pytest.mark.parametrize(
    "other",
    [
        {"config_hash": "bbbb", "options": {"head": "linear"}},
        {"config_hash": "bbbb", "batch_size": 32},
        {"config_hash": "bbbb", "gradient_steps": 2},
        {"config_hash": "bbbb", "stream": "si-blurry"},
        # were the hash to forget it, or a file changed by hand
        *({"seed": 1, **change} for change in (
            {"options": {"head": "linear"}}, {"options": {"mask": "none"}}, {"batch_size": 32},
            {"gradient_steps": 2}, {"stream_options": {"shots": 2}}, {"boundary_free": True},
            {"eval_subset": 9}, {"precision": "bf16"}, {"augment": "flip"}, {"budget": "tuned"},
            {"backbone_args": {"depth": 3}}, {"holdout": 0.5}, {"image_size": 48}, {"future": 1},
        )),
        {"seed": 1, "sha": "0" * 64},  # same configuration, other weights under the same name
        {"seed": 1, "stream": "si-blurry"},  # were the hash to forget the stream
        {"method": "rwf-mean"},
    ],
)  # fmt: skip
def test_different_configurations_stay_apart(make_run, tmp_path, other):
    make_run()
    make_run(summary={"a_last": 0.5}, **other)
    board = aggregate(read_runs(tmp_path).frame)
    assert sorted(board["a_last_mean"]) == [0.5, 0.9]
    assert board["n"].tolist() == [1, 1]


def test_failed_runs_are_counted_and_enter_no_mean(make_run, tmp_path):
    make_run(seed=0)
    make_run(seed=1, status="failed", summary={"a_last": 0.0, "error": "loss is nan"})
    make_run(
        "ncm",
        seed=0,
        status="failed",
        summary={"a_last": None, "a_avg": None, "error": "out of memory"},
    )
    runs = read_runs(tmp_path).frame
    assert sorted(runs["error"].dropna()) == ["loss is nan", "out of memory"]
    board = aggregate(runs).set_index("method")
    assert board.loc["rwf", ["n", "seeds", "failed", "a_last_mean"]].tolist() == [1, "0", 1, 0.9]
    assert board.loc["ncm", ["n", "seeds", "failed"]].tolist() == [0, "", 1]
    assert math.isnan(board.loc["ncm", "a_last_mean"])
    assert board.index.tolist() == ["rwf", "ncm"]  # without a result, last


def test_best_first_within_benchmark_and_backbone(make_run, tmp_path):
    for method, a_last in [("a", 0.5), ("b", 0.9), ("c", 0.7)]:
        make_run(method, summary={"a_last": a_last})
    assert aggregate(read_runs(tmp_path).frame)["method"].tolist() == ["b", "c", "a"]


def test_whole_numbers_stay_whole(make_run, tmp_path):
    make_run("a", image_size=None)
    make_run("b", image_size=32)
    text = write_leaderboard(tmp_path).read_text()
    assert "32.0" not in text
    assert "16.0" not in text


BROKEN = {
    "no summary": (lambda p: (p / "summary.json").unlink(), "unfinished: it has no summary.json"),
    "no config": (lambda p: (p / "config.json").unlink(), "unfinished: it has no config.json"),
    "failed early": (
        lambda p: (
            (p / "config.json").unlink(),
            edit(p / "summary.json", lambda c: c.update(status="failed", error="no weights")),
        ),
        "unfinished: it has no config.json; the run failed: no weights",
    ),
    "cut short": (
        lambda p: (p / "summary.json").write_text('{"a_last": 0.'),
        "summary.json cannot be read",
    ),
    "not text": (
        lambda p: (p / "config.json").write_bytes(b"\xff\xfe\x00"),
        "config.json cannot be read",
    ),
    "a list": (lambda p: (p / "summary.json").write_text("[]"), "holds a list, not an object"),
    "running": (
        lambda p: edit(p / "summary.json", lambda c: c.update(status="running")),
        "unfinished: summary.json has the status 'running'",
    ),
    "no a_last": (
        lambda p: edit(p / "summary.json", lambda c: c.pop("a_last")),
        "done but has no a_last",
    ),
    "no hash": (
        lambda p: edit(p / "config.json", lambda c: c.pop("config_hash")),
        "config.json does not say config_hash",
    ),
    "no weights": (
        lambda p: edit(p / "config.json", lambda c: c["backbone"].pop("sha256")),
        "config.json does not say backbone.sha256",
    ),
    "no backbone": (
        lambda p: edit(p / "config.json", lambda c: c.pop("backbone")),
        "config.json has no object 'backbone'",
    ),
    "bad options": (
        lambda p: edit(p / "config.json", lambda c: c["config"].update(options=[1])),
        "config.json has options of type list, not an object",
    ),
    "per cent": (
        lambda p: edit(p / "summary.json", lambda c: c.update(a_last=97.5)),
        "summary.json has a_last 97.5, which is no share of 1",
    ),
    "less than nothing": (
        lambda p: edit(p / "config.json", lambda c: c["config"].update(batch_size=-5)),
        "config.json has batch_size of -5",
    ),
    "all held out": (
        lambda p: edit(p / "config.json", lambda c: c["config"].update(holdout=math.inf)),
        "config.json has holdout inf, which is no share",
    ),
    "copied as another seed": (
        lambda p: edit(p / "config.json", lambda c: c["config"].update(seed=3)),
        "config.json is of seed 3, not 7",
    ),
    "copied as another configuration": (
        lambda p: edit(p / "config.json", lambda c: c.update(config_hash="cccc")),
        "config.json is of configuration cccc, not aaaa",
    ),
    "renamed": (lambda p: p.rename(p.parent / "seed-old"), "is not at OUT/runs/"),
    "misplaced": (lambda p: p.rename(p.parents[1] / "seed7"), "is not at OUT/runs/"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_directories_are_listed_with_the_reason(make_run, tmp_path, case):
    make_run(seed=0)
    damage, reason = BROKEN[case]
    damage(make_run(seed=7))
    frame, broken = read_runs(tmp_path)
    assert frame["seed"].tolist() == [0]
    assert len(broken) == 1
    assert reason in broken[0].reason
    assert broken[0].path.name.startswith("seed")
    assert str(broken[0]) == f"{broken[0].path}: {broken[0].reason}"


def test_a_folder_that_cannot_be_listed_is_broken_and_the_rest_is_read(
    make_run, tmp_path, monkeypatch
):
    make_run(seed=0)
    closed = tmp_path / "runs" / "split-digits" / "closed"
    closed.mkdir()
    scan = os.scandir

    def scandir(folder):
        if str(folder) == str(closed):
            raise PermissionError(13, "Permission denied", folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    frame, broken = read_runs(tmp_path)
    assert frame["seed"].tolist() == [0]
    assert [run.path for run in broken] == [closed]
    assert "is not a run directory" in broken[0].reason


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("a_last", math.inf), ("a_avg", 7.5), ("a_auc", -0.1), ("forgetting_class", 1.01),
        ("forgetting_experience", -2), ("train_seconds", 1e308), ("train_samples_per_second", -1),
        ("trainable_parameters", -3), ("gradient_steps", math.inf), ("unheard_of", -math.inf),
    ],
)  # fmt: skip
def test_a_measurement_that_cannot_be_is_not_ranked(field, value, make_run, tmp_path):
    make_run(seed=0)
    make_run(seed=1, summary={field: value})
    frame, broken = read_runs(tmp_path)
    (row,) = aggregate(frame).to_dict("records")
    assert (row["seeds"], len(broken)) == ("0", 1)
    assert f"summary.json has {field} {value:g}, which is no" in broken[0].reason


def test_a_shortened_hash_in_the_folder_name_is_fine(make_run, tmp_path):
    path = make_run()
    edit(path / "config.json", lambda c: c.update(config_hash="aaaa" + "5" * 60))
    frame, broken = read_runs(tmp_path)
    assert len(frame) == 1
    assert not broken


def test_experiences_left_to_the_benchmark_are_those_of_the_stream(make_run, tmp_path):
    path = make_run(experiences=None)
    edit(path / "config.json", lambda c: c.update(data={"classes_per_experience": [[0], [1, 2]]}))
    make_run(experiences=None, seed=1)
    frame = read_runs(tmp_path).frame
    assert frame["experiences"].tolist() == [2, pd.NA]


def test_same_seed_twice_is_refused(make_run, tmp_path):
    path = make_run()
    copy = tmp_path / "runs" / "copy-of-it" / "rwf" / "aaaa" / "seed0"
    copy.mkdir(parents=True)
    for name in ("config.json", "summary.json"):
        (copy / name).write_text((path / name).read_text())
    with pytest.raises(UsageError, match="the same one in runs/copy-of-it/rwf/aaaa/seed0, runs/sp"):
        write_leaderboard(tmp_path)


def test_write_leaderboard_replaces_the_file_at_once(make_run, tmp_path):
    make_run(seed=0)
    (tmp_path / "leaderboard.csv").write_text("old")
    path = write_leaderboard(str(tmp_path))
    assert path == tmp_path / "leaderboard.csv"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "runs"]
    board = pd.read_csv(path, dtype={"seeds": str})
    assert board["seeds"].tolist() == ["0"]
    assert {"benchmark", "stream", "backbone", "method", "a_last_mean"} <= set(board.columns)


def test_write_leaderboard_leaves_the_old_file_when_it_fails(make_run, tmp_path, monkeypatch):
    make_run()
    (tmp_path / "leaderboard.csv").write_text("old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # half of it may have been written
    with pytest.raises(UsageError, match=r"can be written to.*No space left"):
        write_leaderboard(tmp_path)
    assert (tmp_path / "leaderboard.csv").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "runs"]


def test_nothing_is_of_no_protocol(tmp_path):
    assert protocols(read_runs(tmp_path).frame) == []


@pytest.mark.parametrize("folder", [None, 3, ["results"]])
def test_a_folder_is_a_path(folder, tmp_path):
    with pytest.raises(UsageError, match="out_dir must be a path"):
        read_runs(tmp_path, folder)


def test_empty_and_missing_folders(tmp_path):
    frame, broken = read_runs(tmp_path)
    assert frame.empty
    assert broken == []
    board = pd.read_csv(write_leaderboard(tmp_path))
    assert board.empty
    assert "method" in board
    with pytest.raises(UsageError, match="out_dir must be a folder with run directories"):
        read_runs(tmp_path / "nowhere")
