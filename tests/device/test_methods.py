"""Every method and every head on the simulated GPU: equal to the CPU, and how often a step waits.

``python -m pytest tests/device/test_methods.py -k waits -rP`` prints the waits of each method's
steps, and those of the last step with their lines.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import SupervisedPlugin
from torch.utils.data import TensorDataset

from avalanche_rwf.models import classifier
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.feature_cache import MEMORY, image_digests
from avalanche_rwf.models.heads import list_heads
from avalanche_rwf.strategies.base import NonFiniteLossError
from avalanche_rwf.strategies.registry import create_strategy, list_methods

from ..conftest import make_data, make_vit, silent
from ..runs import assert_equal
from . import simcuda

ADAPTED = ["avalanche:Naive", "avalanche:StreamingLDA", "avalanche:SynapticIntelligence"]
METHODS = [*list_methods(), *ADAPTED]
# How often the host waits in a usual step after the first, and in one that renews or solves.
WAITS = {
    **dict.fromkeys(list_methods(), (1, 1)),
    **dict.fromkeys(list_methods("rwf*"), (1, 2)),  # an eigendecomposition
    "rwf-literal": (1, 1),
    **dict.fromkeys(("rp-ridge", "ranpac", "f-oal"), (1, 3)),  # the classes seen, a Cholesky factor
    "online-lora": (2, 2),  # whether the loss is at rest
    "layup": (1, 5),  # that, eigenvalues and the penalty
    # The classes seen, whether they vary, a Cholesky factor.
    **dict.fromkeys(("slda", "layers-lda", "rwf-lda", "rwf-lda-held", "klda", "randumb"), (1, 4)),
    "pool-lda": (1, 4),
    "fecam": (1, 10),  # the counts, and for each class whether it varies and its pseudo-inverse
    # In Avalanche's own code.
    "avalanche-l2p": (3, 3),
    "avalanche-l2p-as-shipped": (3, 3),
    "avalanche:SynapticIntelligence": (8, 8),
    "avalanche:Naive": (0, 0),
    "avalanche:StreamingLDA": (1, 1),  # a pseudo-inverse
}


class Steps(SupervisedPlugin):
    """The waits of each training step."""

    def __init__(self):
        super().__init__()
        self.found = []

    def before_training_iteration(self, strategy, **kwargs):
        self.before = simcuda.syncs.copy()

    def after_training_iteration(self, strategy, **kwargs):
        self.found.append(simcuda.syncs - self.before)


@pytest.fixture(scope="module")
def scenario():
    """6 classes in 2 experiences of 12 images."""
    data, test = make_data(6, 4), make_data(6, 2, seed=5)
    return nc_benchmark(
        data, test, 2, task_labels=False, seed=3, class_ids_from_zero_from_first_exp=True
    )


def trained(name, scenario, device, upto=None, batch=4, checks=True, **options):
    """A strategy that has seen the stream, and the waits of its steps."""
    torch.manual_seed(0)
    vit = make_vit(depth=5, embed_dim=16, num_heads=2, patch_size=16, init_values=None)
    torch.manual_seed(0)
    loop = {"train_mb_size": batch, "eval_mb_size": 8, "evaluator": silent(), "device": device}
    strategy = create_strategy(name, backbone=vit, num_classes=6, loop=loop, **options)
    strategy.checks = checks
    steps = Steps()
    strategy.plugins.append(steps)
    for experience in scenario.train_stream[:upto]:
        strategy.train(experience, eval_streams=[], shuffle=False)
    return strategy, steps.found


def assert_same(a, b):
    """Two strategies have the same model, to the last bit."""
    mine, theirs = a.model.state_dict(), b.model.state_dict()
    assert list(mine) == list(theirs)
    differ = [name for name in mine if not torch.equal(mine[name].cpu(), theirs[name].cpu())]
    assert not differ


@pytest.fixture(scope="module")
def there(scenario):
    """Name -> strategy on the device and the waits of its steps; each is trained once."""

    @functools.cache
    def train(name):
        return trained(name, scenario, "cuda")

    return train


@pytest.mark.parametrize("name", METHODS)
def test_a_method_ends_with_the_very_weights_that_it_has_on_the_cpu(name, scenario, there):
    strategy, _ = there(name)
    assert all(tensor.is_cuda for tensor in strategy.model.state_dict().values())
    assert_same(strategy, trained(name, scenario, "cpu")[0])


@pytest.mark.parametrize("name", METHODS)
def test_a_step_waits_for_the_device_as_often_as_is_stated(name, there):
    _, steps = there(name)
    waits = [simcuda.waits(step) for step in steps]
    print(name, waits, *(f"\n    {count} {' '.join(what)}" for what, count in steps[-1].items()))
    least, most = WAITS[name]
    # The first steps of a stream renew and solve most often: all of so few may do.
    assert least <= min(waits[1:])
    assert max(waits[1:]) == most


@pytest.mark.parametrize("name", ["linear-probe", "layers-lda", "rwf-lda", "l2p"])
def test_features_are_computed_once_on_the_device_too(name, scenario, monkeypatch):
    """Of training and test images, and a strategy ends with the same weights."""
    # The simulator is a mode of PyTorch's, which would see that nothing is computed.
    monkeypatch.setattr(classifier, "is_watched", lambda images: False)
    computed = []
    forward = FrozenViT._forward_blocks
    query = FrozenViT._frozen_query

    def counted(self, images, selection):
        computed.append(len(images))
        return forward(self, images, selection)

    def counted_query(self, images):
        computed.append(len(images))
        return query(self, images)

    monkeypatch.setattr(FrozenViT, "_forward_blocks", counted)
    monkeypatch.setattr(FrozenViT, "_frozen_query", counted_query)
    MEMORY.clear()
    with MEMORY.looking(off=True, training=False):
        plain, _ = trained(name, scenario, "cuda")
        alone = plain.eval(scenario.test_stream)
    each = sum(computed)
    computed.clear()
    with MEMORY.looking(off=False, training=True):
        for _ in range(2):
            strategy, _ = trained(name, scenario, "cuda")
            assert_same(strategy, plain)
            for _ in range(2):
                assert strategy.eval(scenario.test_stream) == alone
    assert all(batch.rows.base is not None for batch in MEMORY._batches)  # on the host
    again = {"linear-probe": 0, "layers-lda": 0, "rwf-lda": 36, "l2p": 60}[name]
    assert sum(computed) == each + again


def test_images_on_the_device_are_told_apart_there():
    images = torch.randn(4, 3, 32, 32)
    images[1] = images[0]
    images[2, 0, 0, 0] += 1e-6
    images[3, 2, 31, 31] = -images[3, 2, 31, 31]
    there = images.to("cuda")
    a, b, c, d = image_digests(there)
    assert a == b and len({a, c, d}) == 3
    assert image_digests(there.flip(0)) == [d, c, b, a]
    changed = images.clone()
    changed[2:, 0, 0, 0] += 1
    assert set(image_digests(changed.to("cuda"))).isdisjoint({c, d})
    for kind in (torch.bfloat16, torch.uint8, torch.float64):
        assert len({a, *image_digests(there[:1].to(kind))}) == 2


@pytest.mark.parametrize(
    ("name", "waits"), [("linear-probe", 0), ("rwf-literal", 0), ("slda", 0), ("er", 1)]
)
def test_without_checks_a_step_waits_for_what_goes_into_a_buffer_alone(name, waits, scenario):
    _, steps = trained(name, scenario, "cuda", checks=False)
    assert min(simcuda.waits(step) for step in steps[1:]) == waits


@pytest.mark.parametrize("name", ["linear-probe", "rwf", "slda", "er", "l2p"])
def test_features_that_are_not_finite_change_nothing(name, scenario):
    strategy, _ = trained(name, scenario, "cuda", upto=1)
    before = copy.deepcopy(strategy.trained_state())
    x, y = make_data(6, 4).tensors
    x[:] = float("nan")
    data = TensorDataset(x, y)
    data.targets = y.tolist()
    broken = nc_benchmark(data, data, 1, task_labels=False, seed=0).train_stream[0]
    with pytest.raises(NonFiniteLossError, match="nothing was changed"):
        strategy.train(broken, shuffle=False)
    after = strategy.trained_state()
    assert_equal(dict(before["model"]), dict(after["model"]))
    assert_equal(before["optimizer"], after["optimizer"])


def test_merged_maps_are_those_of_the_cpu(scenario):
    """Of online-lora; few steps at its defaults are not enough for a plateau."""
    soon = {"window": 2, "plateau_mean": 9.0, "plateau_variance": 9.0}
    there, steps = trained("online-lora", scenario, "cuda", **soon)
    here, _ = trained("online-lora", scenario, "cpu", **soon)
    assert 0 < here.model.merges < len(steps)
    assert_same(there, here)
    assert {simcuda.waits(step) for step in steps[1:]} == {2, 2 + 5}  # a new pair in each block


@pytest.mark.parametrize("head", list_heads())
def test_a_head_ends_with_the_very_weights_that_it_has_on_the_cpu(head, scenario):
    there, here = (trained("single-prompt", scenario, d, head=head)[0] for d in ("cuda", "cpu"))
    assert_same(there, here)
    images = make_data(6, 2, seed=7).tensors[0]
    assert torch.equal(there.predict(images).cpu(), here.predict(images))
