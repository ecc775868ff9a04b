"""Runs on the simulated GPU: memory, errors that end its use, resuming, kinds of numbers."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from torch import nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import Context, get_executor
from avalanche_rwf.experiments.precision import auto_precision
from avalanche_rwf.experiments.run import run
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import create_strategy

from ..conftest import make_data, make_scenario, make_vit, silent
from ..runs import Killed, configurer, execute_with, make_folder
from . import simcuda


@pytest.fixture(scope="module")
def configure(tmp_path_factory):
    """2 experiences of 15 images, in batches of 4."""
    folder = make_folder(tmp_path_factory.mktemp("images"), 5)
    return configurer(folder, experiences=2, batch_size=4)


def outcome(summary):
    """What of a summary does not depend on time and memory."""
    return {k: summary[k] for k in ("status", "a_last", "a_avg", "forgetting_class")}


def test_a_run_equals_the_cpu_and_records_its_arithmetic(configure, tmp_path):
    there, here = (run(configure("rwf"), tmp_path / d, d) for d in ("cuda", "cpu"))
    assert outcome(there) == outcome(here)
    config = run_directory(tmp_path / "cuda", configure("rwf")) / "config.json"
    hardware = json.loads(config.read_text())["hardware"]
    assert hardware["gpu"] == "Simulated"
    assert (hardware["tf32_matmul"], hardware["tf32_cudnn"]) == (False, False)


def test_no_model_of_an_earlier_run_is_alive_in_the_next(configure, tmp_path):
    alive = []

    def look(samples):
        alive.append(sum(isinstance(x, FrozenViT) for x in gc.get_objects()))

    gc.collect()
    before = sum(isinstance(x, FrozenViT) for x in gc.get_objects())
    gc.disable()
    try:
        for seed in range(3):
            run(configure(seed=seed), tmp_path, "cuda", look)
    finally:
        gc.enable()
    assert set(alive) == {before + 1}


@pytest.mark.parametrize("devices", [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_strategy_goes_on_on_another_device(devices, tmp_path):
    scenario = make_scenario(per_class=4)
    first, second, whole = (build("rwf", d) for d in (*devices, devices[1]))
    first.train(scenario.train_stream[0], shuffle=False)
    first.save(tmp_path / "it.pt", backbone=True)
    second.restore(tmp_path / "it.pt")
    second.train(scenario.train_stream[1], shuffle=False)
    for experience in scenario.train_stream[:2]:
        whole.train(experience, shuffle=False)
    mine, theirs = second.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(mine[name].cpu(), theirs[name].cpu()) for name in mine)


def test_a_run_that_was_killed_on_the_device_goes_on(configure, tmp_path, monkeypatch):
    config = configure("er")
    whole = run(config, tmp_path / "whole", "cuda")
    execute_with(monkeypatch, checkpoint_every=2)
    steps = []

    def kill(samples):
        steps.append(samples)
        if len(steps) == 7:
            raise Killed

    with pytest.raises(Killed):
        run(config, tmp_path / "cut", "cuda", kill)
    assert outcome(run(config, tmp_path / "cut", "cuda")) == outcome(whole)
    log = (run_directory(tmp_path / "cut", config) / "log.txt").read_text()
    assert "resumed" in log


def test_a_failed_assertion_of_the_device_is_recorded_and_others_go_on(
    configure, tmp_path, monkeypatch
):
    configs = [configure(seed=seed) for seed in range(2)]
    train = module.train_experience

    def fail(strategy, *args, **kwargs):
        torch.zeros(3, device="cuda")[torch.tensor([5], device="cuda")]
        return train(strategy, *args, **kwargs)

    monkeypatch.setattr(module, "train_experience", fail)
    handed = []

    def elsewhere(self, rest):
        handed.extend(rest)
        return ((config, {"status": "done"}) for config in rest)

    monkeypatch.setattr(get_executor("process"), "map", elsewhere)
    serial = get_executor("serial")(Context(tmp_path, Execution(device="cuda", jobs=1)))
    done = list(serial.map(configs))
    assert [summary["status"] for _, summary in done] == ["failed", "done"]
    assert handed == configs[1:]
    folder = run_directory(tmp_path, configs[0])
    summary = json.loads((folder / "summary.json").read_text())
    assert "device-side assert" in summary["error"]
    assert "device-side assert" in (folder / "log.txt").read_text()


def test_a_full_memory_names_what_fits_and_other_processes(configure, tmp_path, monkeypatch):
    # 4 images of 5 tokens with 64 hidden values; one has a quarter of it.
    monkeypatch.setattr(simcuda.state, "oom_above", 700)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 100), raising=False)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    summary = run(configure(batch_size=64), tmp_path, "cuda")
    assert summary["status"] == "failed"
    assert "other processes hold 60 % of it, so fewer --jobs" in summary["error"]
    assert json.loads(
        (run_directory(tmp_path, configure(batch_size=64)) / "summary.json").read_text()
    )["error"] == summary["error"]


def test_results_do_not_depend_on_the_size_of_an_evaluation_step(
    configure, tmp_path, monkeypatch
):
    whole = run(configure("mvp"), tmp_path / "64", "cuda")
    execute_with(monkeypatch, eval_batch_size=5)
    assert outcome(run(configure("mvp"), tmp_path / "5", "cuda")) == outcome(whole)


def build(name, device, **loop):
    torch.manual_seed(0)
    vit = make_vit(depth=5, embed_dim=16, num_heads=2, patch_size=16, init_values=None)
    torch.manual_seed(0)
    loop = {"train_mb_size": 4, "evaluator": silent(), "device": device, **loop}
    return create_strategy(name, backbone=vit, num_classes=6, loop=loop)


@pytest.mark.parametrize("name", ["linear-probe", "mvp", "slda"])
def test_an_evaluation_that_has_no_memory_is_done_in_smaller_parts(name, monkeypatch):
    strategy = build(name, "cuda")
    strategy.train(make_scenario(per_class=2).train_stream[0], shuffle=False)
    images = make_data(6, 4).tensors[0]
    whole = strategy.predict(images)
    few = strategy.model.encode
    monkeypatch.setattr(strategy.model, "encode", lambda x: few(x) if len(x) < 7 else _full())
    assert torch.equal(strategy.predict(images), whole)
    assert strategy._at_once == 6


def _full():
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_a_criterions_weights_go_to_the_device():
    vit = make_vit(depth=2, embed_dim=16, num_heads=2, patch_size=16)
    strategy = FrozenBackboneStrategy(
        model=FrozenViT(vit, 6), criterion=nn.CrossEntropyLoss(weight=torch.ones(6)),
        device="cuda", evaluator=silent(),
    )  # fmt: skip
    strategy.train(make_scenario(per_class=2).train_stream[0], shuffle=False)


def test_float16_scales_the_loss_and_learns(tmp_path):
    strategy = build("rwf", "cuda", precision="fp16")
    strategy._scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    before = strategy.model.head.weight.detach().clone()
    for experience in make_scenario(per_class=4).train_stream:
        strategy.train(experience, shuffle=False)
    after = strategy.model.head.weight
    assert not torch.equal(before, after)
    assert bool(torch.isfinite(after).all())
    strategy.save(tmp_path / "it.pt", backbone=True)
    again = build("rwf", "cuda", precision="fp16")
    again.restore(tmp_path / "it.pt")
    assert again._scaler.get_scale() == 1024.0


@pytest.mark.parametrize(
    ("capability", "precision"), [((9, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "fp32")]
)
def test_precision_auto_is_what_the_hardware_has(capability, precision, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    found, why = auto_precision("cuda")
    assert found == precision
    assert "Simulated" in why
    assert auto_precision("cpu")[0] == "fp32"


def test_a_device_without_float64_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match="device must be 'cpu' or 'cuda', not 'mps'"):
        build("linear-probe", "mps")
