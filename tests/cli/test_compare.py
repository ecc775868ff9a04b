"""Tiny real comparisons and what they write."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from avalanche_rwf import cli

from .command import METHODS, call, copy, runs

SUMMARY = {
    "a_last", "a_avg", "a_auc", "forgetting_experience", "forgetting_class", "train_seconds",
    "eval_seconds", "eval_share", "train_samples_per_second", "trainable_parameters",
    "peak_memory_bytes", "state_bytes",
    "gradient_steps", "samples_seen", "forward_passes_per_image", "status",
}  # fmt: skip


def test_the_table_goes_to_stdout(compared):
    _, printed = compared
    assert printed.startswith("folder:")
    for method in METHODS:
        assert re.search(rf"^ *\d .*\b{method}\b.*±", printed, re.M), printed
    assert "img" not in printed.splitlines()[0]


def test_a_run_directory_has_the_files_of_the_contract(compared, weights):
    from avalanche_rwf.experiments.config import RunConfig

    found = runs(compared[0])
    assert set(found) == {(m, f"seed{s}") for m in METHODS for s in (0, 1)}
    for (method, seed), folder in found.items():
        names = {p.name for p in folder.iterdir()}
        routed = {"weights.safetensors"} if method == "rwf" else set()
        assert names == {"config.json", "metrics.csv", "summary.json", "log.txt", *routed}

        content = json.loads((folder / "config.json").read_text())
        config = RunConfig.from_dict(content["config"])
        assert (config.method, f"seed{config.seed}") == (method, seed)
        assert (config.batch_size, config.gradient_steps, config.experiences) == (4, 1, 2)
        assert config.weights == str(weights)
        assert config.eval_every_samples == 5  # a quarter of 20 images
        assert config.config_hash() == content["config_hash"] == folder.parent.name
        assert content["backbone"]["name"] == "vit_tiny_patch16_224"
        assert content["backbone"]["source"] == "file"
        assert content["backbone"]["sha256"] == config.weights_sha256
        assert content["backbone"]["image_size"] == 16
        assert content["data"] == {
            "classes_per_experience": [[0, 1], [2, 3]],
            "train_size": 20,
            "test_size": 12,
            "skipped": 0,
            "first_seen": [[0, 1], [2, 3]],
            "samples_per_experience": [10, 10],
        }
        assert {"python", "torch", "timm", "avalanche-lib"} <= set(content["versions"])
        assert content["hardware"]["device"] == "cpu"
        assert "git" in content

        summary = json.loads((folder / "summary.json").read_text())
        assert set(summary) == SUMMARY
        assert summary["status"] == "done"
        assert summary["samples_seen"] == 20
        assert summary["gradient_steps"] == (0 if method == "ncm" else 6)  # 2 x 10 images by 4
        assert (summary["trainable_parameters"] > 0) == (method != "ncm")


def test_metrics_are_tidy_and_agree_with_the_summary(compared):
    for folder in runs(compared[0]).values():
        with (folder / "metrics.csv").open() as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        assert reader.fieldnames == ["samples_seen", "experience", "metric", "value"]
        summary = json.loads((folder / "summary.json").read_text())
        for name in ("a_last", "a_avg", "a_auc", "forgetting_experience", "forgetting_class"):
            (row,) = (r for r in rows if r["metric"] == name)
            assert (row["samples_seen"], row["experience"]) == ("20", "")
            assert float(row["value"]) == summary[name]
        exposed = {r["samples_seen"]: float(r["value"]) for r in rows
                   if r["metric"] == "accuracy_exposed"}  # fmt: skip
        # Batches of 4, 4 and 2 in each experience; 5, 10, 15 and 20 are first reached at these.
        assert list(exposed) == ["8", "10", "18", "20"]
        assert exposed["20"] == summary["a_last"]
        assert summary["a_avg"] == pytest.approx((exposed["10"] + exposed["20"]) / 2)
        per_experience = [(r["samples_seen"], r["experience"]) for r in rows
                          if r["metric"] == "accuracy"]  # fmt: skip
        assert per_experience == [("10", "0"), ("20", "0"), ("20", "1")]


def test_leaderboard_csv_has_every_summary_field(compared):
    with (compared[0] / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["method"] for row in rows) == sorted(METHODS)
    numbers = [f"{f}_{s}" for f in SUMMARY - {"status"} for s in ("mean", "std")]
    setup = ["seeds", "head", "mask", "readout", "batch_size", "gradient_steps", "benchmark"]
    assert {*numbers, *setup} <= set(rows[0])
    assert {row["seeds"] for row in rows} == {"0,1"}
    values = [float(row["a_last_mean"]) for row in rows]
    assert values == sorted(values, reverse=True)


def test_a_second_call_does_nothing_new(compared, command, capsys):
    out, printed = compared

    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")}

    before = times()
    status, again, err = call(capsys, *command(out))
    assert status == 0
    assert times() == before
    assert again == printed
    assert "6 done already" in err


def test_the_fastest_precision_is_said_recorded_and_the_same_in_the_next_command(
    command, capsys, tmp_path, monkeypatch
):
    from avalanche_rwf.experiments import precision

    line = [*command(tmp_path), "--precision", "fastest", "--methods", "ncm", "--seeds", "0"]
    for bf16, says in ((0.5, "bf16 here: bf16 takes 0.5 of"), (2.0, "bf16 here: precision.json")):
        times = {"fp32": [1.0], "bf16": [bf16]}
        monkeypatch.setattr(precision, "step_times", lambda *_, times=times: times)
        status, printed, err = call(capsys, *line)
        assert (status, f"--precision fastest is {says}" in err) == (0, True)
        assert " bf16, " in " ".join(printed.split())  # wherever the header is wrapped
    assert "1 done already" in err
    (folder,) = runs(tmp_path).values()
    assert json.loads((folder / "config.json").read_text())["config"]["precision"] == "bf16"


def test_a_deleted_summary_runs_that_run_again(compared, command, capsys, tmp_path):
    out = copy(compared, tmp_path)
    lost = runs(out)["rwf", "seed1"]
    (lost / "summary.json").unlink()
    before = {f: (f / "log.txt").read_text() for f in runs(out).values()}
    metrics = (lost / "metrics.csv").read_bytes()
    status, _, err = call(capsys, *command(out))
    assert status == 0
    assert "5 done already" in err
    changed = [f for f, text in before.items() if (f / "log.txt").read_text() != text]
    assert changed == [lost]
    assert (lost / "metrics.csv").read_bytes() == metrics


def test_numbers_do_not_depend_on_the_jobs(compared, command, capsys, tmp_path):
    status, _, err = call(capsys, *command(tmp_path / "out", "--jobs", "2"))
    assert status == 0, err
    here, there = runs(tmp_path / "out"), runs(compared[0])
    assert set(here) == set(there)
    for key, folder in here.items():
        assert (folder / "metrics.csv").read_bytes() == (there[key] / "metrics.csv").read_bytes()


def test_a_failed_run_is_named_and_the_others_finish(command, capsys, tmp_path, monkeypatch):
    from avalanche_rwf.strategies import registry

    monkeypatch.setattr(registry.METHODS, "entries", dict(registry.METHODS.entries))
    probe = registry.get_method("linear-probe")

    @registry.register_method("breaks", summary="raises at the second experience")
    def breaks(*, backbone, num_classes, loop, lr: float = 1e-3):
        strategy = probe.build(backbone=backbone, num_classes=num_classes, loop=loop)
        step = strategy.optimizer_step

        def optimizer_step():
            if strategy.clock.train_exp_counter == 1:
                raise ArithmeticError("a number\nis wrong")
            step()

        strategy.optimizer_step = optimizer_step
        return strategy

    line = command(tmp_path, "--methods", "breaks,ncm", "--seeds", "0", "--checkpoint-every", "0")
    status, out, err = call(capsys, *line)
    found = runs(tmp_path)
    log = found["breaks", "seed0"] / "log.txt"
    assert status == 1
    assert f"FAILED breaks seed 0: a number is wrong (see {log})" in err
    assert "Traceback" not in err
    assert "Traceback" in log.read_text()
    assert "ArithmeticError" in log.read_text()
    summary = json.loads((log.parent / "summary.json").read_text())
    assert summary == {
        "status": "failed", "error": "a number is wrong", "error_type": "ArithmeticError"
    }  # fmt: skip
    assert json.loads((found["ncm", "seed0"] / "summary.json").read_text())["status"] == "done"
    assert "breaks" in out  # visible, though it has no numbers
    assert "left out" not in err
    with (tmp_path / "leaderboard.csv").open() as file:
        failed = {row["method"]: row["failed"] for row in csv.DictReader(file)}
    assert failed == {"breaks": "1", "ncm": "0"}

    # The leaderboard says why, and where the log is.
    status, _, err = call(capsys, "leaderboard", tmp_path)
    assert status == 0
    assert f"FAILED breaks seed 0: a number is wrong (see {log})" in err

    # Tried again, and its log keeps what happened before.
    status, _, err = call(capsys, *line)
    assert status == 1
    assert "1 done already" in err
    assert log.read_text().count("Traceback") == 2
    assert "resumed after experience 0" in log.read_text()


def test_the_tuned_budget_says_what_it_chose(command, capsys, tmp_path, compared):
    more = ("--budget", "tuned", "--seeds", "0,1", "--mask", "seen")
    status, out, err = call(capsys, *command(tmp_path, *more))
    assert status == 0, err
    for method, tried in (("ncm", 1), ("rwf", 10), ("linear-probe", 10)):
        said = rf"^{method}: .*, [\d.]+ % on held-out training images \({tried} settings?\)\.$"
        assert re.search(said, err, re.M), err
        assert re.search(rf"{method}[^,]* \(of {tried}\)", " ".join(out.split())), out
    assert len(list((tmp_path / "tuning").iterdir())) == 3
    for (method, _), folder in runs(tmp_path).items():
        config = json.loads((folder / "config.json").read_text())["config"]
        assert config["budget"] == "tuned"
        assert config["tuning"]["settings"] == (1 if method == "ncm" else 10)
        assert (config["tuning"]["seed"], config["tuning"]["holdout"]) == (0, 0.25)
        assert config["options"].get("mask", "seen") == "seen"  # given: not varied
        assert {**config["options"], **config["tuning"]["chosen"]} == config["options"]

    status, again, err = call(capsys, *command(tmp_path, *more))
    assert (status, again) == (0, out)
    assert "6 done already" in err

    # Beside the runs with default options: other rows of the same table.
    both = copy(compared, tmp_path / "both")
    shutil.copytree(tmp_path / "runs", both / "runs", dirs_exist_ok=True)
    status, out, _ = call(capsys, "leaderboard", both, "--format", "md")
    assert status == 0
    assert out.count("| tuned |") == out.count("| default |") == 3


def test_corrupt_images_are_skipped_and_counted(command, capsys, spoilt, tmp_path):
    more = ("--benchmark", f"folder:{spoilt / 'corrupt'}", "--skip-corrupt", "--methods", "ncm")
    status, _, err = call(capsys, *command(tmp_path, *more, "--seeds", "0"))
    assert status == 0
    assert "1 corrupt images were left out" in err
    content = json.loads((runs(tmp_path)["ncm", "seed0"] / "config.json").read_text())
    assert content["data"]["skipped"] == 1
    assert content["data"]["train_size"] == 3


def test_common_choices_reach_the_methods_that_have_them(command, capsys, tmp_path):
    more = ("--head", "cosine", "--set", "rwf*.num_prompts=2", "--seeds", "0")
    status, _, err = call(capsys, *command(tmp_path, *more))
    assert status == 0
    assert "ncm has no choice of head" in err
    options = {
        key[0]: json.loads((folder / "config.json").read_text())["config"]["options"]
        for key, folder in runs(tmp_path).items()
    }
    assert options["rwf"]["head"] == options["linear-probe"]["head"] == "cosine"
    assert options["rwf"]["num_prompts"] == 2


def test_the_packaged_backbone_runs_without_a_flag(images, capsys, tmp_path):
    status, out, err = call(
        capsys, "compare", "--benchmark", f"folder:{images}", "--methods", "ncm", "--seeds", "0",
        "--jobs", 1, "--quiet", "--out", tmp_path,
    )  # fmt: skip
    assert status == 0, err
    assert "rwf_vit_mini_patch8_32" in out


def test_a_folder_without_a_split_and_another_mean_are_recorded(
    command, images, capsys, tmp_path
):
    from avalanche_rwf.experiments.config import RunConfig

    whole = ["--benchmark", f"folder:{images}/train", "--test-share", "0.4"]
    more = [*whole, "--methods", "ncm", "--seeds", "0"]
    name = "hf-hub:timm/vit_tiny_patch16_224"  # for the hub's client; the bare name is recorded
    prepared = ["--data-config", "timm/vit_small_patch16_224.dino", "--std", "0.1,0.2,0.3"]
    given = ["--split-seed", "7", *prepared, "--backbone", name]
    status, _, err = call(capsys, *command(tmp_path / "a", *more))
    assert status == 0
    assert "for weights of your own" in err and "--mean and --std" in err
    status, _, err = call(capsys, *command(tmp_path / "b", *more, *given))
    assert status == 0
    assert "for weights of your own" not in err
    hashes = set()
    for out, seed in ((tmp_path / "a", 0), (tmp_path / "b", 7)):
        content = json.loads((runs(out)["ncm", "seed0"] / "config.json").read_text())
        config = RunConfig.from_dict(content["config"])
        assert (config.test_share, config.split_seed) == (0.4, seed)
        assert (content["data"]["train_size"], content["data"]["test_size"]) == (12, 8)
        assert content["backbone"]["name"] == config.backbone == "vit_tiny_patch16_224"
        hashes.add(content["config_hash"])
    assert len(hashes) == 2
    assert config.data_config["mean"] == [0.485, 0.456, 0.406]
    assert config.data_config["std"] == [0.1, 0.2, 0.3]
    status, out, _ = call(capsys, "inspect", *whole, "--split-seed", 7, "--json")
    assert status == 0
    assert [e["test_size"] for e in json.loads(out)["experiences"]] == [2, 2, 2, 2]


def test_ctrl_c_is_no_traceback(command, capsys, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("avalanche_rwf.experiments.executors.execute", stop)
    status, _, err = call(capsys, *command(tmp_path))
    assert status == 130
    assert "Traceback" not in err


def test_ctrl_c_in_an_import_of_compiled_code_is_no_traceback(
    command, capsys, tmp_path, monkeypatch
):
    """There it becomes an ImportError."""
    def stop(*args, **kwargs):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("avalanche_rwf.experiments.compare.plan", stop)
    status, _, err = call(capsys, *command(tmp_path, "--fresh"))
    assert status == 130
    assert "Stopped; the same command without --fresh goes on from here." in err


class Gone(io.StringIO):
    """stderr of a pipe whose reader has ended, as `2>&1 | head` does."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("stderr", [None, Gone()])
def test_without_a_reader_of_messages_the_work_is_done(
    stderr, command, compared, capsys, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", stderr)
    words = [word for word in command(tmp_path) if word != "--quiet"]
    words[words.index("--methods") + 1] = "ncm"
    assert cli.main(words) == 0
    assert sys.stderr is stderr
    assert capsys.readouterr().out.count("\n1  ncm") == 1
    assert cli.main(["leaderboard", str(tmp_path / "nothing")]) == 2


def test_a_leaderboard_that_cannot_be_written_is_printed(
    compared, command, capsys, tmp_path, monkeypatch
):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    out = copy(compared, tmp_path)
    monkeypatch.setattr("pandas.DataFrame.to_csv", full)
    status, printed, err = call(capsys, *command(out))
    assert status == 1
    assert printed == compared[1]
    assert f"leaderboard.csv in {str(out)!r} was not written (No space left on device)." in err


def test_a_folder_that_was_renamed_meanwhile_is_no_wrong_flag(
    compared, command, capsys, tmp_path, monkeypatch
):
    out = copy(compared, tmp_path)

    def renames(*args, **kwargs):
        out.rename(tmp_path / "elsewhere")
        return iter(())

    monkeypatch.setattr("avalanche_rwf.experiments.executors.execute", renames)
    status, printed, err = call(capsys, *command(out))
    assert (status, printed) == (1, "")
    assert f"The folder {str(out)!r} was removed or renamed meanwhile." in err
