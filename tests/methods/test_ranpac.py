"""RanPAC's first phase against loops over single images; what it keeps and when it drops it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from avalanche.benchmarks import split_online_stream

from avalanche_rwf.errors import NonFiniteLossError
from avalanche_rwf.methods.ranpac import TUNES, AdaptedViT
from avalanche_rwf.models.backbone import weights_sha256
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.registry import create_strategy

from ..families import FAMILIES

SIZES = {"head": "rp-ridge", "head_options": {"projections": 40}}
FAST = {"epochs": 2, "session_batch": 4, "bottleneck": 5, "num_prompts": 2}


def adapted(vit, **options):
    torch.manual_seed(3)
    return AdaptedViT(vit, 6, **{**SIZES, **FAST, **options}).train()


def session(n=6, first=0, classes=2, seed=0):
    """Images that are exact in 16 bits, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes + first
    x = torch.randn(n, 3, 32, 32, generator=draw) + y[:, None, None, None]
    return x.half().float(), y


def feed(model, *sessions, batch=3):
    for x, y in sessions:
        model.begin_experience()
        for images, labels in zip(x.split(batch), y.split(batch), strict=True):
            features, selection = model.encode(images)
            model.observe(features, labels, selection)
    return model


def with_adapters(slow, branches, image):
    """The class token of an image with AdaptFormer's branches, by loops."""
    tokens = slow.embed(image)
    for index, (down, shift, up, offset) in enumerate(branches):
        def branch(t, down=down, shift=shift, up=up, offset=offset):
            rows = [up @ torch.clamp(down @ row + shift, min=0) + offset for row in t]
            return 0.1 * torch.stack(rows)
        tokens = slow.block(index, tokens, branch=branch)
    return slow.finish(tokens)[0]


def with_lora(slow, pairs, image):
    """The same of a copy of the backbone that has W + B A for W, run by timm itself."""
    weights = {}
    for index, (down, up) in enumerate(pairs):
        of_queries, of_values = up[0] @ down[0], up[1] @ down[1]
        more = torch.cat([of_queries, torch.zeros_like(of_queries), of_values])
        name = f"blocks.{index}.attn.qkv.weight"
        weights[name] = slow.vit.get_parameter(name) + more
    return torch.func.functional_call(copy.deepcopy(slow.vit), weights, image[None])[0]


def slow_phase_one(slow, model, x, y):
    """One image at a time, SGD with momentum, decay and cosine written out; returns features."""
    branches = [[p.detach().clone().requires_grad_() for p in part.parameters()]
                for part in model.parts.values()]  # fmt: skip
    weight = torch.zeros(2, 32, requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    trained = [p for branch in branches for p in branch] + [weight, bias]
    speed = [torch.zeros_like(p) for p in trained]

    def read(image):
        form = with_adapters if model.tune == "adapter" else with_lora
        return form(slow, branches, image)

    draw = torch.Generator().manual_seed(0)
    for epoch in range(model.epochs):
        rate = model.lr / 2 * (1 + math.cos(math.pi * epoch / model.epochs))
        for at in torch.randperm(len(y), generator=draw).split(model.session_batch):
            logits = torch.stack([weight @ read(x[i]) + bias for i in at])
            loss = -logits.log_softmax(1)[range(len(at)), y[at]].mean()
            for p, v, g in zip(trained, speed, torch.autograd.grad(loss, trained), strict=True):
                with torch.no_grad():
                    v.mul_(0.9).add_(g + 5e-4 * p)
                    p.sub_(rate * v)
    with torch.no_grad():
        return torch.stack([read(image) for image in x])


@pytest.mark.parametrize("tune", ["adapter", "lora"])
def test_phase_one_is_that_of_the_equations(vit, slow, tune):
    x, y = session()
    model = adapted(vit, tune=tune, lr=0.1)
    expected = slow_phase_one(slow(vit), copy.deepcopy(model), x, y)
    plain = model.eval().features(x)
    feed(model.train(), (x, y), session(3, first=2))
    found = model.eval().features(x)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    assert float((found - plain).abs().max()) > 1e-3
    assert model.own_gradient_steps() == 2 * 2


@pytest.mark.parametrize("tune", TUNES)
def test_statistics_are_those_of_all_images_on_the_adapted_backbone(vit, tune):
    first, second = session(), session(4, first=2, seed=1)
    model = feed(adapted(vit, tune=tune, lr_queries=0.05), first, second)
    head = copy.deepcopy(model.head)
    head.clear()
    assert not head.moments.samples and torch.equal(head.random, model.head.random)
    model.eval()
    for x, y in (second, first):  # in any order
        head.observe(model.features(x), y)
    torch.testing.assert_close(
        model.head.moments.second_moment(), head.moments.second_moment(), atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(model.head(model.features(first[0])), head(model.features(first[0])))


@pytest.mark.parametrize("tune", TUNES)
def test_every_parameter_of_phase_one_moves_and_is_held_after(vit, tune):
    model = adapted(vit, tune=tune, epochs=3)
    # The first step leaves W_d as it is, because W_u is zero then.
    start = {name: p.clone() for name, p in model.parts.named_parameters()}
    feed(model, session(), session(3, first=2))
    moved = dict(model.parts.named_parameters())
    assert sum(not torch.equal(start[n], p) for n, p in moved.items()) == len(start)
    assert model.trainable_parameters() == sum(p.numel() for p in moved.values())
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    held = {name: p.clone() for name, p in moved.items()}
    feed(model, session(3, first=4, seed=2))
    assert all(torch.equal(held[n], p) for n, p in model.parts.named_parameters())


def test_until_the_second_experience_it_is_rp_ridge(vit):
    x, y = session()
    model = feed(adapted(vit), (x, y)).eval()
    plain = FrozenViT(vit, 6, **SIZES)
    plain.head.random.copy_(model.head.random)
    for images, labels in zip(x.split(3), y.split(3), strict=True):
        plain.observe(plain.features(images), labels)
    assert torch.equal(model(x), plain.eval()(x))
    assert torch.equal(model.session_images.float(), x) and model.own_gradient_steps() == 0


def test_images_are_dropped_when_the_second_experience_begins(vit):
    x, y = session()
    model = feed(adapted(vit), (x, y))
    assert len(model.session_images) == len(y)
    model.begin_experience()
    assert model.adapted and not len(model.session_images) and not len(model.session_targets)
    feed(model, session(3, first=4, seed=2))
    assert not len(model.session_images)


def test_zero_prompts_leave_the_plain_backbone(vit):
    x, _ = session()
    model = feed(adapted(vit, tune="prompts", num_prompts=0), session(), session(3, first=2))
    plain = FrozenViT(vit, 6, **SIZES).eval()
    assert model.adapted and torch.equal(model.eval().features(x), plain.features(x))


def test_a_first_session_of_one_class_adapts_nothing(vit):
    model = feed(adapted(vit), session(classes=1), session(3, first=2))
    assert not model.adapted and model.own_gradient_steps() == 0 and not len(model.session_images)
    assert model.head.moments.samples == 9


@pytest.mark.parametrize("tune", ["adapter", "lora"])
def test_before_its_first_step_a_branch_leaves_the_plain_backbone(vit, tune):
    x, _ = session()
    model = adapted(vit, tune=tune).eval()
    model._adapted = True  # the branches are asked
    assert len(model.prompted_blocks()) == 4
    assert torch.equal(model.features(x), FrozenViT(vit, 6, **SIZES).eval().features(x))


@pytest.mark.filterwarnings("ignore::avalanche_rwf.models.blocks.FitWarning")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tune", TUNES)
def test_every_family_is_adapted_and_none_of_its_weights(tools, family, tune):
    vit = tools.vit(depth=2, **FAMILIES[family])
    before, (x, y) = weights_sha256(vit), session()
    model = adapted(vit, tune=tune, lr=0.1)
    plain = model.eval().features(x)
    feed(model.train(), (x, y), session(3, first=2)).eval()
    together = model.features(x)
    assert not torch.equal(together, plain)
    for i in range(len(x)):
        torch.testing.assert_close(model.features(x[i : i + 1])[0], together[i])
    assert weights_sha256(vit) == before


@pytest.mark.parametrize("tune", TUNES)
def test_a_loaded_state_predicts_as_the_saved_one(vit, tune):
    x, _ = session()
    saved = feed(adapted(vit, tune=tune), session(), session(3, first=2)).eval()
    other = AdaptedViT(vit, 6, tune=tune, **SIZES, **FAST)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.eval()(x), saved(x)) and other.own_gradient_steps() == 4
    early = feed(adapted(vit, tune=tune), session())
    again = AdaptedViT(vit, 6, tune=tune, **SIZES, **FAST).train()
    again.load_state_dict(early.state_dict())
    for model in (early, again):
        feed(model, session(3, first=2))
    assert torch.equal(again.eval()(x), early.eval()(x))


def test_test_images_are_computed_once_after_phase_one(vit, monkeypatch):
    """No gradient step follows, so their features stay as they are; two models share none."""
    x, _ = session()
    model, other = (
        feed(adapted(vit, lr=lr), session(), session(3, first=2)).eval() for lr in (0.01, 0.05)
    )
    with torch.no_grad():
        first, second = model.features(x), other.features(x)
        assert not torch.equal(first, second)
        monkeypatch.setattr(model, "_encode", lambda images: pytest.fail("computed again"))
        assert torch.equal(first, model.features(x))


def test_a_rate_that_is_too_high_ends_the_run_with_a_sentence(vit):
    with pytest.raises(NonFiniteLossError, match="lower lr"):
        feed(adapted(vit, lr=1e30), session(), session(3, first=2))


def test_a_head_that_is_trained_is_refused(vit):
    with pytest.raises(ValueError, match="head must be a closed form"):
        AdaptedViT(vit, 3, head="linear")


def test_sub_experiences_end_with_the_weights_of_whole_experiences(vit, tools):
    found = []
    for parts in (1, 2):
        torch.manual_seed(0)
        strategy = create_strategy(
            "ranpac", backbone=vit, num_classes=6, epochs=2, projections=40,
            loop={"train_mb_size": 8, "evaluator": tools.silent()},
        )  # fmt: skip
        for whole in tools.scenario().train_stream:
            subs = split_online_stream([whole], 8, shuffle=False) if parts > 1 else [whole]
            for experience in subs:
                strategy.train(experience, eval_streams=[], shuffle=False)
        assert strategy.model.adapted and strategy.describe().uses_boundaries
        found.append(strategy.model.state_without_backbone())
    assert bool(found[0]["parts.0.up.weight"].any())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name
