"""RunConfig: what its hash depends on, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import config as module
from avalanche_rwf.experiments.config import RunConfig, run_directory, slug

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
def test_every_other_field_is(name):
    if name in ("seed", "weights", "tuning"):
        return
    assert replace(CONFIG, **{name: OTHER[name]}).config_hash() != CONFIG.config_hash()


def test_the_version_is_in_the_hash(monkeypatch):
    before = CONFIG.config_hash()
    monkeypatch.setattr(module, "__version__", "999")
    assert CONFIG.config_hash() != before


def test_it_survives_json():
    read = RunConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert read == CONFIG
    assert read.config_hash() == CONFIG.config_hash()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(n, v) for n in ("experiences", "image_size", "batch_size", "gradient_steps")
          for v in (0, -1)],
        ("eval_every_samples", -1),
        ("eval_subset", -1),
        ("seed", -1),
        ("holdout", -0.1),
        ("holdout", 1.0),
        ("holdout", float("nan")),
        ("budget", "large"),
    ],
)  # fmt: skip
def test_sizes_are_checked(name, value):
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}.*{value}"):
        replace(CONFIG, **{name: value}).validate()


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("batch_size", value) for value in ("16", 16.0, True, None, float("nan"))],
        *[("seed", value) for value in ("0", 1.5, True, None)],
        *[("eval_subset", value) for value in ("1", 1.5, None)],
        *[("holdout", value) for value in ("0.2", None, True, float("nan"))],
        ("image_size", 32.0), ("experiences", "5"),
    ],
)  # fmt: skip
def test_numbers_of_another_type_are_refused(name, value):
    flag = "seeds" if name == "seed" else name.replace("_", "-")
    with pytest.raises(UsageError, match=f"^--{flag} takes "):
        replace(CONFIG, **{name: value}).validate()


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
