"""A row's command, parsed again, is the configuration it was made from."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from avalanche_rwf.cli import backbone_args, main
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.build import load_backbone
from avalanche_rwf.experiments.command import command_line, command_words
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.strategies.registry import get_method


@pytest.fixture
def planned(monkeypatch):
    """Parse a command and return the runs it would do; nothing is run."""
    from avalanche_rwf.experiments import compare

    def parse(words):
        kept = []

        def keep(*args, **kwargs):
            kept.append(plan(*args, **kwargs))
            raise UsageError("Enough.")

        plan = compare.plan
        with monkeypatch.context() as patch:
            patch.setattr(compare, "plan", keep)
            main([*words, "--jobs", "1"])
        return kept[0].configs

    return parse


CASES = {
    "plain": ("ncm", {}, {}),
    "options": (
        "rwf",
        {"num_prompts": 3, "routed_blocks": "0,2", "beta": 0.5, "stop_gradient": True, "lr": 1.0},
        {"batch_size": 5, "gradient_steps": 2, "augment": "flip", "eval_every_samples": 0},
    ),
    "none in place of a number": ("rwf-lda", {"centre": None}, {"holdout": 0.25}),
    "whole numbers with a point": ("rwf-lda", {"beta": 1.0, "centre": 2.0}, {"skip_corrupt": True}),
    "a stream's options": (
        "ncm", {}, {"stream": "si-blurry", "stream_options": {
            "disjoint": 50, "blurry": 30, "remainder": "drop"}},
    ),
    "classes in order": (
        "ncm", {}, {"stream_options": {"class_order": "sorted", "classes_per_experience": [2, 4]},
                    "experiences": 2, "boundary_free": True},
    ),
    "evaluation on a part": ("ncm", {}, {"eval_every_samples": 4, "eval_subset": 6}),
    "images prepared otherwise": (
        "ncm", {}, {"data_config": {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3),
                                    "interpolation": "bicubic-squash", "crop_pct": 0.9}},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parsing_the_command_gives_the_same_hash(case, configure, planned, tmp_path):
    method, options, changes = CASES[case]
    config = configure(method, options=options, **changes)
    # As a run has it: with the weights' hash that `plan` finds.
    info = backbone_info(load_backbone(config))
    config = dataclasses.replace(config, weights_sha256=info.sha256)
    for defaults in (dict(get_method(method).options), None):
        line = command_line(config, seeds=[0, 2], defaults=defaults)
        words = shlex.split(line)
        assert words[0] == "avalanche-rwf"
        configs = planned([*words[1:], "--out", str(tmp_path)])
        assert [c.seed for c in configs] == [0, 2]
        assert {c.config_hash() for c in configs} == {config.config_hash()}, line


def test_the_methods_own_options_are_left_out(configure):
    config = configure("rwf", options={"num_prompts": 3})
    line = command_line(config, defaults=dict(get_method("rwf").options))
    assert line.count("--set") == 1 and "--set rwf.num_prompts=3" in line


def test_what_the_tuning_chose_is_found_again_and_not_told(configure):
    config = configure("rwf", options={"lr": 0.1, "num_prompts": 3})
    tuned = dataclasses.replace(
        config, budget="tuned", tuning={"chosen": {"lr": 0.1}, "settings": 6}
    )
    line = command_line(tuned, defaults=dict(get_method("rwf").options))
    assert "--budget tuned" in line and "num_prompts=3" in line and "rwf.lr=" not in line


def test_every_field_that_decides_a_number_is_in_the_command():
    changed = {
        "benchmark": "folder:x y", "method": "m", "options": {"k": 2}, "seed": 4,
        "stream": "k-shot",
        "experiences": 3, "backbone": "b", "backbone_args": {"depth": 2, "act": "True"},
        "weights": "a'b.pth", "image_size": 48, "batch_size": 2, "gradient_steps": 3,
        "precision": "bf16", "augment": "flip", "eval_every_samples": 9, "holdout": 0.5,
        "skip_corrupt": True, "budget": "tuned", "boundary_free": True, "eval_subset": 7,
        "stream_options": {"shots": 2, "classes_per_experience": [3, 1]},
        "data_config": {"mean": (0.5, 0.5, 0.5), "crop_pct": 0.9},
        "test_share": 0.3, "split_seed": 5,
    }  # fmt: skip
    found_again = {"weights_sha256", "tuning", "code", "data_code", "head_code"}
    assert {f.name for f in dataclasses.fields(RunConfig)} == {*changed, *found_again}
    words = command_words(RunConfig(**changed), imports=["my.py"])
    assert words == [
        "compare", "--benchmark", "folder:x y", "--methods", "m", "--import", "my.py",
        "--seeds", "4", "--backbone", "b", "--backbone-arg", "depth=2",
        "--backbone-arg", "act='True'", "--stream", "k-shot", "--experiences", "3",
        "--batch-size", "2", "--gradient-steps", "3", "--precision", "bf16", "--image-size", "48",
        "--augment", "flip", "--eval-every-samples", "9", "--holdout", "0.5", "--skip-corrupt",
        "--weights", "a'b.pth", "--budget", "tuned", "--boundary-free", "--eval-subset", "7",
        "--test-share", "0.3", "--split-seed", "5", "--mean", "0.5,0.5,0.5", "--crop-pct", "0.9",
        "--shots", "2", "--classes-per-experience", "3,1", "--set", "m.k=2",
    ]  # fmt: skip


def test_tuples_are_told_once_and_read_again():
    config = RunConfig("split-digits", "m", {"blocks": (1, 2), "lr": 1}, backbone="b",
                       backbone_args={"patch_size": (8, 8)})  # fmt: skip
    defaults = {"blocks": [1, 2], "lr": 1.0}
    words = command_words(config, defaults=defaults)
    assert backbone_args([words[words.index("--backbone-arg") + 1]]) == config.backbone_args
    # As JSON has it, a tuple is a list; a whole number is not one with a point.
    assert words[words.index("--set"):] == ["--set", "m.lr=1"]
    defaults["blocks"] = [1, 3]
    assert "m.blocks=(1, 2)" in command_words(config, defaults=defaults)
