"""Loading processes and normalisation on the device change no number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from avalanche.training.templates import SupervisedTemplate

from avalanche_rwf.benchmarks import images
from avalanche_rwf.benchmarks.datasets import folder as folders
from avalanche_rwf.benchmarks.images import FileImages, Geometry, Normalisation, Pixels
from avalanche_rwf.experiments import data_loading, run, tuning
from avalanche_rwf.experiments.build import build_benchmark, build_strategy
from avalanche_rwf.experiments.data_loading import (
    NormaliseOnDevice,
    loader_workers,
    normalises,
    training_workers,
)
from avalanche_rwf.strategies.registry import list_methods

from ..runs import execute_with


@pytest.fixture
def from_files(monkeypatch):
    """Images are decoded when they are asked for."""
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    folders._memory.clear()
    yield
    folders._memory.clear()


def results(config, out):
    assert run.run(config, out)["status"] == "done", (out, config)
    (metrics,) = out.rglob("metrics.csv")
    return metrics.read_text()


def test_a_batch_is_normalised_as_its_images_are():
    pixels = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (6, 3, 8, 8), np.uint8))
    held = Pixels([None] * 6, Geometry(8), pixels.numpy())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    one_by_one = FileImages(held, [0] * 6, mean, std)
    raw = FileImages(held, [0] * 6, mean, std, normalised=False)
    batch = torch.stack([raw[i][0] for i in range(6)])
    assert batch.dtype == torch.uint8
    expected = torch.stack([one_by_one[i][0] for i in range(6)])
    assert torch.equal(Normalisation(mean, std)(batch), expected)
    assert torch.equal(batch, pixels)  # and is itself not changed


@pytest.mark.parametrize("augment", ["none", "flip", "autoaug"])
def test_uint8_streams_are_the_normalised_ones(configure, augment, from_files):
    config = configure(augment=augment)
    plain, raw = build_benchmark(config), build_benchmark(config, normalised=False)
    normalise = Normalisation((0.5,) * 3, (0.5,) * 3)
    for ours, theirs in ((raw.train_stream, plain.train_stream), (raw.test_stream,
                          plain.test_stream)):  # fmt: skip
        for a, b in zip(ours, theirs, strict=True):
            for (x, y, _), (x2, y2, _) in zip(a.dataset, b.dataset, strict=True):
                assert x.dtype == torch.uint8 and y == y2
                assert torch.equal(normalise(x), x2)


def test_no_number_depends_on_workers_or_where_images_are_normalised(
    configure, tmp_path, monkeypatch, from_files
):
    # Replay keeps images, several steps see a mini-batch, evaluation falls into training.
    changes = {"augment": "autoaug", "gradient_steps": 2, "experiences": 2}
    config = configure("er", options={"buffer": 4}, eval_every_samples=10, **changes)
    execute_with(monkeypatch, workers=0)
    plain = results(config, tmp_path / "uint8")
    monkeypatch.setattr(data_loading, "normalises", lambda method: False)
    assert results(config, tmp_path / "normalised") == plain
    monkeypatch.undo()
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    execute_with(monkeypatch, workers=2)
    assert results(config, tmp_path / "workers") == plain
    held = configure(holdout=0.25, experiences=2)
    scores = set()
    for workers in (0, 2):
        execute_with(monkeypatch, workers=workers)
        scores.add(tuning.held_out_accuracy(held, experiences=1))
    monkeypatch.setattr(data_loading, "normalises", lambda method: False)
    assert {tuning.held_out_accuracy(held, experiences=1)} == scores


@pytest.mark.parametrize("method", ["avalanche-l2p", "avalanche-l2p-as-shipped"])
def test_other_loops_get_what_they_take(configure, tmp_path, monkeypatch, from_files, method):
    execute_with(monkeypatch, workers=0)
    config = configure(method, eval_every_samples=0, experiences=2)
    ours = results(config, tmp_path / "ours")
    monkeypatch.setattr(data_loading, "normalises", lambda method: False)
    assert results(config, tmp_path / "normalised") == ours


def test_images_are_normalised_on_the_device_for_our_methods():
    own = [name for name in list_methods() if ":" not in name]
    assert len(own) > 20 and all(normalises(name) for name in own)
    assert not normalises("avalanche:EWC")


def test_every_method_of_the_package_reads_images_from_the_mini_batch_alone(configure):
    """What the plugin relies on: the plain loops of Avalanche and of this package."""
    from avalanche.training.templates.update_type.sgd_update import SGDUpdate

    from avalanche_rwf.strategies.base import FrozenBackboneStrategy
    from avalanche_rwf.strategies.common import CommonStrategy

    for name in list_methods():
        if ":" in name:
            continue
        kind = type(build_strategy(configure(name), 6))
        loop = FrozenBackboneStrategy if issubclass(kind, FrozenBackboneStrategy) else SGDUpdate
        assert kind.training_epoch is loop.training_epoch, name
        assert kind.eval_epoch is SupervisedTemplate.eval_epoch, name
        # That of `CommonStrategy` makes labels int64 and leaves the images to Avalanche's.
        unpacks = (SupervisedTemplate._unpack_minibatch, CommonStrategy._unpack_minibatch)
        assert kind._unpack_minibatch in unpacks, name


def test_images_in_memory_need_no_workers(configure, monkeypatch, from_files):
    benchmark = build_benchmark(configure())
    assert not benchmark.in_memory and loader_workers(benchmark) == torch.get_num_threads()
    benchmark.in_memory = True
    assert loader_workers(benchmark) == 0
    execute_with(monkeypatch, workers=3)
    assert loader_workers(benchmark) == 3
    ours, theirs = (build_strategy(configure(m), 6) for m in ("er", "avalanche-l2p-as-shipped"))
    assert training_workers(ours, 3) == 3
    assert training_workers(theirs, 3) == 0


def test_normalised_images_stay_as_they_are():
    class Strategy:
        mbatch = [torch.randn(2, 3, 4, 4), torch.zeros(2)]

    before = Strategy.mbatch[0].clone()
    plugin = NormaliseOnDevice((0.5,) * 3, (0.5,) * 3)
    plugin.before_training_iteration(Strategy)
    plugin.before_eval_iteration(Strategy)
    assert torch.equal(Strategy.mbatch[0], before)
    Strategy.mbatch = [torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)]
    plugin.before_eval_iteration(Strategy)
    assert torch.equal(Strategy.mbatch[0], torch.ones(2, 3, 4, 4))
