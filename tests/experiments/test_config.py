"""RunConfig: what its hash depends on, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import config as module
from avalanche_rwf.experiments.config import RunConfig, run_directory, run_settings, slug
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.utils.validation import Kind

from ..wrong_values import extreme_values, wrong_values

CONFIG = RunConfig(
    benchmark="split-digits",
    method="rwf",
    options={"head": "white", "lr": 0.005, "beta": None},
    backbone="a",
    backbone_args={"depth": 5, "class_token": True},
    weights="here.pth",
    weights_sha256="12",
)
OTHER = {
    "benchmark": "folder:x",
    "method": "ncm",
    "options": {"head": "white", "lr": 0.006, "beta": None},
    "stream": "si-blurry",
    "experiences": 3,
    "backbone": "b",
    "backbone_args": {"depth": 6, "class_token": True},
    "weights_sha256": "13",
    "image_size": 64,
    "batch_size": 8,
    "gradient_steps": 2,
    "precision": "bf16",
    "augment": "flip",
    "eval_every_samples": 10,
    "holdout": 0.2,
    "skip_corrupt": True,
    "code": "14",
    "data_code": {"stream": "15"},
    "head_code": "16",
    "budget": "tuned",
    "stream_options": {"disjoint": 40},
    "boundary_free": True,
    "eval_subset": 100,
    "data_config": {"mean": (0.1, 0.2, 0.3)},
    "test_share": 0.2,
    "split_seed": 1,
}


def test_the_hash_is_that_of_an_earlier_version(monkeypatch):
    """If this fails, finished runs of users are done again: a new package version is due."""
    monkeypatch.setattr(module, "__version__", "1")
    assert CONFIG.config_hash() == "980151b315"


def test_the_hash_does_not_depend_on_the_order_of_options():
    backwards = replace(
        CONFIG,
        options=dict(reversed(CONFIG.options.items())),
        backbone_args=dict(reversed(CONFIG.backbone_args.items())),
    )
    assert backwards.config_hash() == CONFIG.config_hash()


def test_seed_tuning_and_place_of_the_weights_are_not_in_the_hash():
    assert replace(CONFIG, tuning={"score": 0.5}).config_hash() == CONFIG.config_hash()
    assert CONFIG.with_seed(7).seed == 7
    assert CONFIG.with_seed(7).config_hash() == CONFIG.config_hash()
    assert replace(CONFIG, weights="there.pth").config_hash() == CONFIG.config_hash()


@pytest.mark.parametrize("name", [f.name for f in fields(RunConfig)])
def test_every_other_field_changes_the_hash(name):
    if name in ("seed", "weights", "tuning"):
        return
    assert replace(CONFIG, **{name: OTHER[name]}).config_hash() != CONFIG.config_hash()


def test_the_version_is_in_the_hash(monkeypatch):
    before = CONFIG.config_hash()
    monkeypatch.setattr(module, "__version__", "999")
    assert CONFIG.config_hash() != before


def test_a_configuration_comes_back_from_json():
    read = RunConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert read == CONFIG
    assert read.config_hash() == CONFIG.config_hash()


DECLARED = {
    setting.name: (kind, setting.flag or setting.name, setting.takes)
    for kind in (CONFIG, Execution())
    for setting in run_settings(type(kind)).values()
    if isinstance(setting.takes, Kind)
}
BOUNDS = {
    "--seeds": "0 to 4294967295", "--split-seed": "0 to 4294967295",
    "--experiences": "1 to 1000000000", "--batch-size": "1 to 1000000000",
    "--gradient-steps": "1 to 1000000000", "--image-size": "1 to 1000000000",
    "--eval-every-samples": "0 to 1000000000", "--eval-subset": "0 to 1000000000",
    "--holdout": "at least 0 and below 1", "--test-share": "at least 0 and below 1",
    "--jobs": "1 to 1024", "--runs-per-device": "1 to 1024", "--workers": "0 to 1024",
    "--eval-batch-size": "1 to 1000000000",
}  # fmt: skip
"""Written a second time, so that a slip in a declaration is not its own measure."""


@pytest.mark.parametrize("name", DECLARED)
def test_a_wrong_setting_is_refused_by_its_flag(name):
    good, flag, takes = DECLARED[name]
    for value in wrong_values(takes):
        with pytest.raises(UsageError, match=f"^{flag} takes .+, not .+[.]$"):
            replace(good, **{name: value}).validate()
    for value in extreme_values(takes):
        run_settings(type(good))[name].check(value)


def test_the_bounds_of_numbers_are_those_that_are_meant():
    said = {flag: takes.said() for _, flag, takes in DECLARED.values()}
    numbers = {flag: text for flag, text in said.items() if "number" in text}
    assert numbers.keys() == BOUNDS.keys()
    assert not [flag for flag, text in numbers.items() if not text.endswith(BOUNDS[flag])]


def test_a_good_configuration_validates_to_itself():
    assert CONFIG.validate() is CONFIG


@pytest.mark.parametrize(
    ("name", "is_"),
    [
        ("split-digits", "split-digits"),
        ("folder:../data/my set", "folder-my-set"),
        ("folder:/data/b\u00e4ume/", "folder-b-ume"),
        ("folder:x/..%2f", "folder-..-2f"),
    ],
)
def test_slugs_are_names_of_folders(name, is_):
    assert slug(name) == is_


def test_the_run_directory_is_that_of_the_contract():
    hash_ = CONFIG.config_hash()
    expected = Path("out/runs/split-digits/rwf") / hash_ / "seed3"
    assert run_directory(Path("out"), CONFIG.with_seed(3)) == expected


def test_numpys_numbers_are_the_same_configuration():
    config = replace(
        CONFIG, seed=np.int64(3), batch_size=np.int32(8), holdout=np.float64(0.25),
        options={"head": "white", "lr": np.float64(0.005), "beta": None},
        stream_options={"order": [np.int64(1), np.int64(0)]},
    )  # fmt: skip
    plain = replace(
        CONFIG, seed=3, batch_size=8, holdout=0.25, stream_options={"order": [1, 0]}
    )
    assert config.config_hash() == plain.config_hash()
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())
    assert run_directory(Path("out"), config) == run_directory(Path("out"), plain)
