"""The reading of Online-LoRA against plain PyTorch on a copy of the backbone, and its rules."""

from __future__ import annotations

import copy
import statistics

import pytest
import torch
import torch.nn.functional as F
from avalanche.training.plugins import SupervisedPlugin
from torch import nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.methods.online_lora import IMPORTANCES, OnlineLoRAStrategy, OnlineLoRAViT
from avalanche_rwf.models.backbone import weights_sha256
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.low_rank import LowRank
from avalanche_rwf.strategies.registry import create_strategy
from avalanche_rwf.strategies.replay import Replay

from ..families import FAMILIES

# Plateaus come soon: the mean is low enough before much has been learned.
SOON = {"window": 2, "plateau_mean": 3.0, "plateau_variance": 0.5, "lr": 0.01, "lr_head": 0.005,
        "strength": 50.0}  # fmt: skip


def build(tools, vit, **options):
    torch.manual_seed(0)
    return create_strategy(
        "online-lora", backbone=vit, num_classes=6, **{**SOON, **options},
        loop={"train_mb_size": 8, "evaluator": tools.silent()},
    )  # fmt: skip


def train(strategy, stream):
    for experience in stream:
        strategy.train(experience, eval_streams=[], shuffle=False)
    return strategy


@pytest.fixture
def fixed_starts(monkeypatch):
    """Each new A is a fixed one, the same for the method and for the loop below."""

    def restart(pair, generator=None):
        with torch.no_grad():
            pair.down.copy_(start_of(pair.down.shape))
            pair.up.zero_()

    monkeypatch.setattr(LowRank, "restart", restart)


def start_of(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(5)) / 3 - 1 / 6


class Slow:
    """The equations on a deep copy of the backbone, whose weights are W_0 + sum + B A.

    It keeps its own lists, draws nothing, and steps by Adam with clipped gradients.
    """

    def __init__(self, vit, head, importance, rank=4):
        self.vit, self.importance = copy.deepcopy(vit), importance
        width = vit.embed_dim
        self.sum = [torch.zeros(3 * width, width) for _ in vit.blocks]
        self.pairs = [self.fresh(rank, width) for _ in vit.blocks]
        self.head = copy.deepcopy(head)
        self.adam = torch.optim.Adam(
            [{"params": self.parameters(), "lr": 0.01},
             {"params": list(self.head.parameters()), "lr": 0.005}]
        )  # fmt: skip
        self.hard: list = []  # images and classes
        self.omega = self.anchor = None
        self.window, self.line, self.armed, self.plateaus = [], None, True, []

    @staticmethod
    def fresh(rank, width):
        return [start_of((2, rank, width)).requires_grad_(),
                torch.zeros(2, width, rank, requires_grad=True)]  # fmt: skip

    def parameters(self):
        return [p for pair in self.pairs for p in pair]

    def logits(self, images):
        weights = {}
        for index, ((down, up), earlier) in enumerate(zip(self.pairs, self.sum, strict=True)):
            of_queries, of_values = up[0] @ down[0], up[1] @ down[1]
            now = torch.cat([of_queries, torch.zeros_like(of_queries), of_values])
            name = f"blocks.{index}.attn.qkv.weight"
            weights[name] = self.vit.get_parameter(name) + earlier + now
        return self.head(torch.func.functional_call(self.vit, weights, images))

    def loss_of(self, image, label):
        return -self.logits(image[None]).log_softmax(1)[0, label]

    def fisher(self):
        total = [torch.zeros_like(p) for p in self.parameters()]
        for image, label in self.hard:
            found = torch.autograd.grad(self.loss_of(image, label), self.parameters())
            total = [t + g**2 for t, g in zip(total, found, strict=True)]
        return [t / len(self.hard) for t in total]

    def step(self, x, y):
        batch = list(zip(x, y.tolist(), strict=True))
        loss = F.cross_entropy(self.logits(x), y)
        own = loss.item()
        if self.hard:
            images, labels = torch.stack([i for i, _ in self.hard]), [c for _, c in self.hard]
            loss = loss + F.cross_entropy(self.logits(images), torch.tensor(labels))
        if self.omega is not None:
            for p, w, start in zip(self.parameters(), self.omega, self.anchor, strict=True):
                loss = loss + 50.0 / 2 * (w * (p - start) ** 2).sum()
        with torch.no_grad():
            candidates = batch + self.hard
            order = sorted(candidates, key=lambda c: -self.loss_of(*c).item())
        self.adam.zero_grad()
        loss.backward()
        for group in self.adam.param_groups:
            nn.utils.clip_grad_norm_(group["params"], 1.0)
        self.adam.step()
        self.hard = order[:4]
        self.window = [*self.window, own][-2:]
        mean, spread = statistics.mean(self.window), statistics.pvariance(self.window)
        if self.line is not None and mean > self.line:
            self.armed = True
        at_rest = self.armed and len(self.window) == 2 and mean < 3.0 and spread < 0.5
        self.plateaus.append(at_rest)
        if at_rest:
            self.armed, self.line = False, mean + spread**0.5
            self.merge()

    def merge(self):
        trained = self.fisher()
        with torch.no_grad():
            for earlier, (down, up) in zip(self.sum, self.pairs, strict=True):
                width = len(up[0])
                earlier[:width] += up[0] @ down[0]
                earlier[2 * width :] += up[1] @ down[1]
                down.copy_(start_of(down.shape))
                up.zero_()
        for p in self.parameters():
            del self.adam.state[p]
        self.omega = trained if self.importance == "trained" else self.fisher()
        self.anchor = [p.detach().clone() for p in self.parameters()]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_a_few_steps_are_those_of_the_equations(tools, vit, scenario, fixed_starts, importance):
    strategy = build(tools, vit, importance=importance)
    model, slow = strategy.model, Slow(vit, strategy.model.head, importance)
    seen = []

    class Keep(SupervisedPlugin):
        def before_training_iteration(self, strategy, **kwargs):
            seen.append((strategy.mb_x.clone(), strategy.mb_y.clone()))

    strategy.plugins.append(Keep())
    train(strategy, scenario.train_stream)
    for x, y in seen:
        slow.step(x, y)
    assert 2 <= sum(slow.plateaus) == int(model.merges) < len(slow.plateaus) - 1
    assert not slow.plateaus[-1]  # what has been learned since then is compared too
    for pair, (down, up), merged, earlier in zip(
        model.pairs, slow.pairs, model.merged, slow.sum, strict=True
    ):
        width = len(up[0])
        torch.testing.assert_close(pair.down, down, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(pair.up, up, rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(merged[0], earlier[:width], rtol=1e-3, atol=2e-5)
        torch.testing.assert_close(merged[1], earlier[2 * width :], rtol=1e-3, atol=2e-5)
    torch.testing.assert_close(
        model.importance, torch.cat([w.flatten() for w in slow.omega]), rtol=1e-2, atol=1e-7
    )
    assert model.hard_targets.tolist() == [label for _, label in slow.hard]
    assert torch.equal(model.hard_images, torch.stack([image for image, _ in slow.hard]))
    x = tools.data(6, 2, seed=5).tensors[0]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), slow.logits(x), rtol=1e-3, atol=1e-4)


def test_it_begins_at_the_plain_backbone_and_a_merge_changes_no_feature(vit, images):
    torch.manual_seed(0)
    model = OnlineLoRAViT(vit, 6).eval()
    assert torch.equal(model.features(images), FrozenViT(vit, 6).eval().features(images))
    with torch.no_grad():
        for pair in model.pairs:
            pair.up.normal_()
    before = model.features(images)
    model.merge()
    assert not any(bool(pair.up.any()) for pair in model.pairs)
    torch.testing.assert_close(model.features(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::avalanche_rwf.models.blocks.FitWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_merges_and_keeps_its_weights(tools, scenario, family):
    vit = tools.vit(depth=2, **FAMILIES[family])
    before = weights_sha256(vit)
    strategy = train(build(tools, vit, plateau_mean=9.0, plateau_variance=9.0),
                     scenario.train_stream[:2])  # fmt: skip
    assert int(strategy.model.merges) >= 1 and bool(strategy.model.merged.any())
    assert weights_sha256(vit) == before
    x = tools.data(6, 1).tensors[0]
    together = strategy.model.eval().features(x)
    for i in range(len(x)):
        torch.testing.assert_close(strategy.model.features(x[i : i + 1])[0], together[i])


def test_a_plateau_comes_once_after_each_peak(vit):
    model = OnlineLoRAViT(vit, 6, window=2, plateau_mean=1.0, plateau_variance=0.05)
    found = []
    for loss in (0.9, 3.0, 0.9, 0.5, 0.4, 0.4, 0.4, 0.5, 0.6, 0.9, 0.4, 0.3, 0.3):
        found.append(bool(model.at_plateau(torch.tensor(loss))))
    # The window must be full; 0.9, 0.5 is the first rest, its line 0.7 + 0.2. A mean of 0.75 is no
    # peak, and there is none until the next two losses.
    assert [i for i, at in enumerate(found) if at] == [3]
    for loss in (3.0, 0.6, 0.5, 0.4):
        found.append(bool(model.at_plateau(torch.tensor(loss))))
    assert [i for i, at in enumerate(found) if at] == [3, 15]


def test_the_buffer_holds_the_hardest_of_batch_and_buffer(vit):
    model = OnlineLoRAViT(vit, 6, buffer=3)
    x = torch.arange(8.0)[:, None, None, None].expand(8, 3, 32, 32)
    model.keep_hardest(x[:2], torch.tensor([0, 1]), torch.tensor([0.1, 0.2]))
    assert model.hard_targets.tolist() == [1, 0]
    losses = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.4])  # the last two: the buffer's, seen again
    model.keep_hardest(x[2:5], torch.tensor([2, 3, 4]), losses)
    assert model.hard_targets.tolist() == [2, 0, 4]
    assert model.hard_images[:, 0, 0, 0].tolist() == [2.0, 0.0, 4.0]


def test_a_resumed_run_goes_on_bit_for_bit(tools, vit, scenario):
    whole = train(build(tools, vit), scenario.train_stream)
    half = train(build(tools, vit), scenario.train_stream[:2])
    assert 1 <= int(half.model.merges) < int(whole.model.merges)
    rest = build(tools, copy.deepcopy(vit))
    rest.load_trained_state(copy.deepcopy(half.trained_state()))
    train(rest, scenario.train_stream[2:])
    for (name, one), two in zip(
        whole.model.state_dict().items(), rest.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name


def test_without_strength_nothing_is_held(tools, vit, scenario):
    free, held = (
        train(build(tools, vit, strength=s), scenario.train_stream).model for s in (0.0, 1e6)
    )
    assert free.merges and held.merges and free.auxiliary_loss(None) is None
    far = [float((m._parameters_in_a_row() - m.anchor).norm()) for m in (free, held)]
    assert far[1] < far[0]


def test_another_buffer_is_refused(vit, tools):
    with pytest.raises(UsageError, match="replay must be left out for online-lora"):
        OnlineLoRAStrategy(model=OnlineLoRAViT(vit, 6), replay=Replay(4), evaluator=tools.silent())
