"""Every method and every head on the simulated GPU: equal to the CPU, and how often a step waits.

``python -m pytest tests/device/test_methods.py -k waits -rP`` prints every wait with its line.
"""

from __future__ import annotations

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training.plugins import SupervisedPlugin

from avalanche_rwf.models.heads import list_heads
from avalanche_rwf.strategies.registry import create_strategy, list_methods

from ..conftest import make_data, make_vit, silent
from . import simcuda

ADAPTED = ["avalanche:Naive", "avalanche:StreamingLDA", "avalanche:SynapticIntelligence"]
METHODS = [*list_methods(), *ADAPTED]


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


def trained(name, scenario, device, upto=None, batch=4, **options):
    """A strategy that has seen the stream, and the waits of its steps."""
    torch.manual_seed(0)
    vit = make_vit(depth=5, embed_dim=16, num_heads=2, patch_size=16, init_values=None)
    torch.manual_seed(0)
    loop = {"train_mb_size": batch, "eval_mb_size": 8, "evaluator": silent(), "device": device}
    strategy = create_strategy(name, backbone=vit, num_classes=6, loop=loop, **options)
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


@pytest.mark.parametrize("name", METHODS)
def test_a_method_ends_with_the_very_weights_that_it_has_on_the_cpu(name, scenario):
    there, steps = trained(name, scenario, "cuda")
    print(name, [simcuda.waits(step) for step in steps], dict(steps[-1]))
    assert all(tensor.is_cuda for tensor in there.model.state_dict().values())
    assert_same(there, trained(name, scenario, "cpu")[0])


@pytest.mark.parametrize("head", list_heads())
def test_a_head_ends_with_the_very_weights_that_it_has_on_the_cpu(head, scenario):
    there, here = (trained("single-prompt", scenario, d, head=head)[0] for d in ("cuda", "cpu"))
    assert_same(there, here)
    images = make_data(6, 2, seed=7).tensors[0]
    assert torch.equal(there.predict(images).cpu(), here.predict(images))
