"""A finished run leaves its routing, and gives it back to the bit; measuring changes nothing."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.routing import ROUTING_METRICS
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.build import build_benchmark, build_strategy
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.load_run import load_routed
from avalanche_rwf.experiments.run import WEIGHTS, routing_state, run
from avalanche_rwf.utils.user_code import VARIABLE

ROUTED = ("rwf", "rwf-lda", "rwf-lda-held", "rwf-static")


@pytest.fixture(scope="module")
def finished(configure, tmp_path_factory):
    """Run directories and models of three routed methods and one without, by method."""
    out, built = tmp_path_factory.mktemp("out"), {}

    def keep(config, *args, **kwargs):
        built[config.method] = build_strategy(config, *args, **kwargs)
        return built[config.method]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_strategy", keep)
        configs = [configure(name) for name in (*ROUTED, "ncm")]
        for config in configs:
            assert run(config, out)["status"] == "done"
    return {c.method: (run_directory(out, c), built[c.method].model, c) for c in configs}


@pytest.mark.parametrize("method", ROUTED)
def test_routing_comes_back_to_the_bit(method, finished):
    folder, trained, config = finished[method]
    loaded_config, model = load_routed(folder)
    assert loaded_config.config_hash() == config.config_hash()
    expected, found = routing_state(trained), routing_state(model)
    assert list(expected) == list(found) and len(found) > 1
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not any(name.startswith("backbone.") for name in found)
    assert not model.training
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert file.metadata()["config_hash"] == config.config_hash()


def test_drift_begins_where_the_images_classes_have_been_learned(configure, tmp_path):
    """At seed 3 the first experience has no sample: untrained routes are nothing to drift from."""
    config = configure("rwf", seed=3, experiences=4, stream="si-blurry",
                       stream_options={"disjoint": 50, "blurry": 10})  # fmt: skip
    assert not build_benchmark(config).class_counts[0]
    assert run(config, tmp_path)["status"] == "done"
    with (run_directory(tmp_path, config) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    drift = [row for row in rows if row["metric"] == "prompt_drift"]
    tested = {(row["samples_seen"], row["experience"]) for row in rows
              if row["metric"] == "accuracy"}  # fmt: skip
    assert len(drift) == 3
    assert {row["experience"] for row in drift} == {"1"}
    # Beside each stands the accuracy on the same images' experience.
    assert {(row["samples_seen"], row["experience"]) for row in drift} <= tested
    assert float(drift[0]["value"]) == pytest.approx(0, abs=1e-12)
    assert float(drift[-1]["value"]) > 1e-9


def test_metrics_of_the_first_classes_at_each_experience_end(finished):
    with (finished["rwf"][0] / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] in ROUTING_METRICS]
    assert len(rows) == 3 * len(ROUTING_METRICS)
    assert {row["experience"] for row in rows} == {"0"}
    assert [int(row["samples_seen"]) for row in rows[:: len(ROUTING_METRICS)]] == [8, 16, 24]
    drift = [float(row["value"]) for row in rows if row["metric"] == "prompt_drift"]
    assert abs(drift[0]) < 1e-9 < drift[-1]
    plain = (finished["ncm"][0] / "metrics.csv").read_text()
    assert not any(name in plain for name in ROUTING_METRICS)
    assert not (finished["ncm"][0] / WEIGHTS).exists()


def test_numbers_are_the_same_without_the_metrics(finished, configure, tmp_path, monkeypatch):
    folder, model, config = finished["rwf"]
    built = []

    def keep(*args, **kwargs):
        built.append(build_strategy(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(module, "build_strategy", keep)
    monkeypatch.setattr(module.RoutingRecorder, "record", lambda *args: None)
    run(config, tmp_path)
    lines = (folder / "metrics.csv").read_text().splitlines()
    kept = [line for line in lines if not any(f",{name}," in line for name in ROUTING_METRICS)]
    assert (run_directory(tmp_path, config) / "metrics.csv").read_text().splitlines() == kept
    state, other = model.state_dict(), built[0].model.state_dict()
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_what_cannot_be_loaded_is_said_in_one_sentence(finished, tmp_path):
    with pytest.raises(UsageError, match=r"has no config.json"):
        load_routed(tmp_path)
    with pytest.raises(UsageError, match=r"ncm in .* has no weights.safetensors"):
        load_routed(finished["ncm"][0])

    folder = finished["rwf"][0]
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())

    def load(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**content, **changes}))
        load_routed(tmp_path)

    with pytest.raises(UsageError, match="does not describe one"):
        load(data=None)
    with pytest.raises(UsageError, match=r"are .* here and were 0000"):
        load(backbone={**content["backbone"], "sha256": "0000"})
    other = {**content["config"], "options": {**content["config"]["options"], "num_prompts": 2}}
    with pytest.raises(UsageError, match="does not fit rwf"):
        load(config=other)
    sound = load_file(folder / WEIGHTS)
    name = next(name for name in sound if name.endswith("queries"))
    changes = (lambda w: w * float("nan"), lambda w: w / 0, lambda w: w.double(),
               lambda w: w.to(torch.int8), lambda w: w * 1j)  # fmt: skip
    for change in changes:
        save_file({**sound, name: change(sound[name])}, tmp_path / WEIGHTS)
        with pytest.raises(UsageError, match="does not fit rwf"):
            load()
    (tmp_path / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(UsageError, match="does not fit rwf"):
        load()


SPOILT = {
    "a backbone that is a text": lambda c: c.update(backbone="vit"),
    "a method that is a number": lambda c: c["config"].update(method=5),
    "a method that no file can have": lambda c: c["config"].update(method="a/\0.py:Mine"),
    "a method that is not there": lambda c: c["config"].update(method="rfw"),
    "an option of another type": lambda c: c["config"]["options"].update(insert=[1]),
    "an option that is not there": lambda c: c["config"]["options"].update(prompts=1),
    "options that are a list": lambda c: c["config"].update(options=[1]),
    "an argument without a hash": lambda c: c["config"]["backbone_args"].update(depth=[5]),
    "an image size that is a text": lambda c: c["config"].update(image_size="16"),
    "classes that are numbers": lambda c: c.update(data={"classes_per_experience": [1]}),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_configuration_that_no_run_has_is_one_sentence(case, finished, tmp_path):
    folder = finished["rwf"][0]
    content = json.loads((folder / "config.json").read_text())
    SPOILT[case](content)
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UsageError) as said:
        load_routed(tmp_path)
    assert str(said.value).startswith("--run takes ")
    assert repr(str(tmp_path)) in str(said.value)
    assert str(said.value).endswith(".") and "\n" not in str(said.value)


def test_a_run_directory_runs_no_code_that_the_user_did_not_name(finished, tmp_path, monkeypatch):
    """Its configuration may name any file or module, one that lies beside it too."""
    folder = finished["rwf"][0]
    content = json.loads((folder / "config.json").read_text())
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    code = tmp_path / "theirs.py"
    code.write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "from avalanche_rwf.strategies.rwf import RwFStrategy as Mine\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in (f"{code}:Mine", "theirs.py:Mine", "theirs:Mine", f"avalanche:{code}:Mine"):
        content["config"]["method"] = name
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=r"other code: --import it if you trust it"):
            load_routed(tmp_path)
    assert not (tmp_path / "ran").exists()
    # Named, it is looked up; what it is does not fit here.
    content["config"]["method"] = "theirs.py:Mine"
    (tmp_path / "config.json").write_text(json.dumps(content))
    monkeypatch.setenv(VARIABLE, str(code))
    with pytest.raises(UsageError, match=r"theirs\.py:Mine"):
        load_routed(tmp_path)
    assert (tmp_path / "ran").exists()
