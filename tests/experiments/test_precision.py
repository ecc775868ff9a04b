"""The precision that a machine chooses: by a probe, once for a folder of results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from avalanche_rwf.experiments import precision
from avalanche_rwf.experiments.build import load_backbone
from avalanche_rwf.experiments.compare import plan
from avalanche_rwf.experiments.precision import (
    auto_precision,
    faster_precision,
    fastest_precision,
    step_times,
)
from avalanche_rwf.experiments.store import read_json

SLOW, FAST = {"fp32": [1.0], "bf16": [1.6]}, {"fp32": [1.0], "bf16": [0.62]}


@pytest.fixture
def probe(monkeypatch):
    """Sets what the probe measures, and lists the calls."""
    calls = []

    def be(times):
        def measured(backbone, batch_size, threads):
            calls.append((batch_size, threads))
            return times

        monkeypatch.setattr(precision, "step_times", measured)
        return calls

    return be


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.6, "bf16"), (0.9, "bf16"), (0.95, "fp32"), (1.6, "fp32")]
)
def test_bfloat16_is_taken_where_it_clearly_pays(ratio, expected):
    load = [1.0, 7.0, 1.5]  # what else the machine does hits both
    times = {"fp32": load, "bf16": [ratio * t for t in load]}
    assert faster_precision(times) == (expected, pytest.approx(ratio))


def test_the_probe_times_both_in_turn_and_leaves_all_as_it_was(configure, monkeypatch):
    monkeypatch.setattr(precision, "_SECONDS", 0.05)
    vit = load_backbone(configure("ncm"))
    threads, drawn = torch.get_num_threads(), torch.random.get_rng_state()
    times = step_times(vit, 3, threads + 1)
    assert len(times["fp32"]) == len(times["bf16"]) >= 1
    assert min(times["fp32"] + times["bf16"]) > 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert {p.dtype for p in vit.parameters()} == {torch.float32}
    assert all(p.grad is None for p in vit.parameters())


def test_a_folder_keeps_the_first_answer_for_each_backbone_and_batch(configure, tmp_path, probe):
    config = configure("ncm")
    calls = probe(FAST)
    assert fastest_precision(config, tmp_path, 2) == (
        "bf16", "bf16 takes 0.62 of fp32's time on this CPU"
    )  # fmt: skip
    probe(SLOW)  # another machine, or another load
    found, why = fastest_precision(config, tmp_path, 2)
    assert (found, calls) == ("bf16", [(3, 2)])
    assert why == "precision.json of this folder has it: bf16 took 0.62 of fp32's time"
    assert fastest_precision(replace(config, batch_size=9), tmp_path, 2)[0] == "fp32"
    assert len(read_json(tmp_path / "precision.json")) == 2
    (answer, _) = read_json(tmp_path / "precision.json").values()
    assert answer == {"precision": "fp32", "bf16_over_fp32": 1.6, "threads": 2}


@pytest.mark.parametrize(
    "text", ["", "[1]", '{{"{name}": 1}}', '{{"{name}": {{"precision": "x"}}}}']
)
def test_a_damaged_answer_is_found_again(configure, tmp_path, probe, text):
    probe(FAST)
    fastest_precision(configure("ncm"), tmp_path, 1)
    path = tmp_path / "precision.json"
    (name,) = read_json(path)
    path.write_text(text.format(name=name))
    probe(SLOW)
    assert fastest_precision(configure("ncm"), tmp_path, 1)[0] == "fp32"
    assert read_json(path)[name]["precision"] == "fp32"


def test_all_runs_of_a_plan_have_the_probed_precision(configure, tmp_path, probe):
    base = replace(configure("ncm"), method="", options={})

    def planned(**more):
        return plan(base, ["slda", "ncm"], [0, 1], {"slda": {}, "ncm": {}}, tmp_path, **more)

    calls = probe(FAST)
    assert {c.precision for c in planned().configs} == {"fp32"} and not calls
    found = planned(probe_threads=1)
    assert {c.precision for c in found.configs} == {"bf16"}
    assert found.notes == (
        "--precision fastest is bf16 here: bf16 takes 0.62 of fp32's time on this CPU.",
    )
    probe(SLOW)
    assert planned(probe_threads=1).configs == found.configs


def test_auto_is_float32_on_every_cpu():
    assert auto_precision("cpu")[0] == "fp32"
