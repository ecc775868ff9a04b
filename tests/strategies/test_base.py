import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks import split_online_stream
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EvaluationPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)
from torch import nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.methods.mvp import MVPStrategy, MVPViT
from avalanche_rwf.models.blockwise import TokenPrompt
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import HEADS, LinearHead, held
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import (
    FrozenBackboneStrategy,
    NonFiniteLossError,
    build_optimizer,
)
from avalanche_rwf.strategies.registry import create_strategy
from avalanche_rwf.strategies.replay import Replay
from avalanche_rwf.strategies.rwf import RwFStrategy


def routed(tools, classes=6, **options):
    vit = tools.vit()
    torch.manual_seed(0)
    return RoutedViT(vit, classes, routed_blocks="first 2", num_prompts=3, **options)


def strategy(tools, model=None, **options):
    model = model if model is not None else routed(tools)
    rates = {"o": 1e-3, "queries": 1e-2, "head": 1e-2}
    return FrozenBackboneStrategy(
        model=model, learning_rates=rates, train_mb_size=8, evaluator=tools.silent(), **options
    )


def train(s, scenario, **kwargs):
    for experience in scenario.train_stream:
        s.train(experience, eval_streams=[], shuffle=False, **kwargs)
    return s


def weights(s):
    return {n: p.clone() for n, p in s.model.state_dict().items()}


def test_experiences_and_a_true_online_stream_give_equal_weights(tools, scenario):
    """One experience per task against sub-experiences of 8 images: no boundary is used."""
    a = train(strategy(tools, mask="decoupled"), scenario)
    b = strategy(tools, mask="decoupled")
    for experience in scenario.train_stream:
        for sub in split_online_stream([experience], 8, shuffle=False):
            b.train(sub, eval_streams=[], shuffle=False)
    assert a.clock.train_iterations == b.clock.train_iterations > 0
    for (name, p), q in zip(weights(a).items(), weights(b).values(), strict=True):
        assert torch.equal(p, q), name


def test_the_optimizer_is_built_once_and_keeps_its_state(tools, scenario):
    s = strategy(tools)
    optimizer = s.optimizer
    train(s, scenario)
    assert s.optimizer is optimizer
    assert [g["name"] for g in optimizer.param_groups] == ["queries", "o", "head"]
    steps = {int(state["step"]) for state in optimizer.state.values()}
    assert steps == {s.clock.train_iterations}
    frozen = {id(p) for p in s.model.backbone.parameters()}
    assert not frozen & {id(p) for g in optimizer.param_groups for p in g["params"]}
    s.train(scenario.train_stream[0], eval_streams=[], reset_optimizer_state=True)
    assert {int(x["step"]) for x in optimizer.state.values()} != steps


def test_a_user_given_optimizer_is_used(tools, scenario):
    model = routed(tools)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = weights_of(model)
    s = FrozenBackboneStrategy(
        model=model, optimizer=optimizer, train_mb_size=8, evaluator=tools.silent()
    )
    s.train(scenario.train_stream[0], eval_streams=[])
    assert s.optimizer is optimizer
    assert any(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def weights_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("mask", ["none", "seen", "batch"])
def test_training_loss_is_the_masked_cross_entropy(tools, scenario, mask):
    s = strategy(tools, FrozenViT(tools.vit(), 6), mask=mask)
    losses = []

    class Spy(type(s.plugins[0])):
        def after_update(self, strategy, **kwargs):
            losses.append(float(strategy.loss))

    x = torch.stack([scenario.train_stream[0].dataset[i][0] for i in range(8)])
    y = torch.tensor([scenario.train_stream[0].dataset[i][1] for i in range(8)])
    logits = s.model(x)
    seen = sorted(set(y.tolist()))
    columns = list(range(6)) if mask == "none" else seen
    expected = nn.functional.cross_entropy(
        logits[:, columns], torch.tensor([columns.index(int(c)) for c in y])
    )
    s.model.seen[y] = True
    s.is_training, s.mbatch, s._observed = True, [x, y], False
    s.experience = scenario.train_stream[0]
    s.forward()
    torch.testing.assert_close(s.criterion(), expected)


@pytest.mark.parametrize(("mask", "runs"), [("seen", 1), ("batch", 1), ("decoupled", 2)])
def test_a_step_runs_the_head_once_for_log_and_loss_or_once_for_each_part(
    tools, scenario, mask, runs
):
    s = strategy(tools, routed(tools, head="white"), mask=mask)
    calls = []
    s.model.head.register_forward_hook(lambda *a: calls.append(1))
    train(s, scenario)
    assert len(calls) == runs * s.clock.train_iterations


def test_decoupled_gives_each_part_its_own_loss(tools):
    """Prompts: batch mask through the fixed head; head: seen mask on fixed features."""
    torch.manual_seed(0)
    model = routed(tools, head="cosine", readout="cls")
    s = strategy(tools, model, mask="decoupled", clip_norm=None)
    x, y = torch.randn(8, 3, 32, 32), torch.tensor([0, 1] * 4)
    model.seen[:4] = True
    s.is_training, s.mbatch, s._observed = True, [x, y], False
    s.forward()
    s.criterion().backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    def loss(columns, logits):
        return nn.functional.cross_entropy(logits[:, columns], y)

    loss([0, 1, 2, 3], model.head(model.features(x).detach())).backward()
    with held(model.head):
        loss([0, 1], model.head(model.features(x))).backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, got[name], rtol=1e-4, atol=1e-6)
    assert not (got["head.weight"][2:4] == 0).all()


def test_label_smoothing_stays_finite_under_a_mask(tools, scenario):
    s = strategy(tools, criterion=nn.CrossEntropyLoss(label_smoothing=0.1), mask="seen")
    train(s, scenario)
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


def test_evaluation_masks_what_was_not_seen_and_its_loss_is_finite(tools, scenario):
    s = strategy(tools)
    s.train(scenario.train_stream[0], eval_streams=[])
    outputs = []

    from avalanche.training.plugins import SupervisedPlugin

    class Spy(SupervisedPlugin):
        def after_eval_iteration(self, strategy, **kwargs):
            outputs.append((strategy.mb_output.clone(), float(strategy.loss)))

    s.plugins.append(Spy())
    s.eval(scenario.test_stream)
    seen = s.model.seen
    assert int(seen.sum()) == 2
    for logits, loss in outputs:
        assert torch.isinf(logits[:, ~seen]).all() and torch.isfinite(logits[:, seen]).all()
        assert math.isfinite(loss)


def test_gradient_steps_are_counted_once_per_batch_and_see_a_sample_once(tools, scenario):
    one, three = strategy(tools), strategy(tools, gradient_steps=3)
    train(one, scenario), train(three, scenario)
    assert one.clock.train_iterations == three.clock.train_iterations
    step = {int(state["step"]) for state in three.optimizer.state.values()}
    assert step == {3 * one.clock.train_iterations}
    assert int(three.model.head.count) == int(one.model.head.count) == 72


def test_a_non_finite_loss_stops_before_the_step_and_names_it(tools, scenario):
    s = strategy(tools, routed(tools, head="linear"))
    s.train(scenario.train_stream[0], eval_streams=[])
    before = weights(s)

    class Poison(nn.Module):
        def forward(self, logits, targets):
            return nn.functional.cross_entropy(logits, targets) * float("nan")

    s._criterion = Poison()
    with pytest.raises(NonFiniteLossError, match=f"training step {s.clock.train_iterations}"):
        s.train(scenario.train_stream[1], eval_streams=[])
    for name, p in s.model.named_parameters():
        assert torch.equal(p, before[name]), name


def test_gradients_are_clipped_per_kind(tools):
    model = routed(tools)
    s = strategy(tools, model, clip_norm=0.5)
    for p in model.parameters():
        if p.requires_grad:
            p.grad = torch.full_like(p, 10.0)
    s.loss = torch.zeros(1)
    s.optimizer_step()
    for group in s.optimizer.param_groups:
        norm = torch.cat([p.grad.flatten() for p in group["params"]]).norm()
        torch.testing.assert_close(norm, torch.tensor(0.5), rtol=1e-3, atol=1e-3)


def test_labels_outside_num_classes_are_named(tools, scenario):
    s = strategy(tools, routed(tools, classes=3))
    with pytest.raises(ValueError, match="does not fit num_classes=3"):
        train(s, scenario)


def test_the_head_may_grow_with_the_stream_and_the_optimizer_follows(tools, scenario):
    fixed = strategy(tools, routed(tools, head="cosine"), mask="seen")
    model = routed(tools, classes=1, head="cosine")
    grown = strategy(tools, model, mask="seen", grows=True)
    train(fixed, scenario), train(grown, scenario)
    assert model.num_classes == 6 and int(model.seen.sum()) == 6
    heads = [g for g in grown.optimizer.param_groups if g["name"] == "head"]
    assert heads[0]["params"] == [model.head.weight]
    state = grown.optimizer.state[model.head.weight]
    assert state["exp_avg"].shape == model.head.weight.shape
    assert len(grown.optimizer.state) == len(fixed.optimizer.state)


def test_bf16_runs_and_stays_near_fp32(tools, scenario):
    a = train(strategy(tools), scenario)
    b = train(strategy(tools, precision="bf16"), scenario)
    assert all(p.dtype is not torch.bfloat16 for p in b.model.parameters())
    for p, q in zip(a.model.layers.parameters(), b.model.layers.parameters(), strict=True):
        assert (p - q).abs().max() < 0.2


def test_state_resumes_bit_for_bit(tools, scenario):
    whole = train(strategy(tools, mask="decoupled"), scenario)
    first = strategy(tools, mask="decoupled")
    first.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    state = copy.deepcopy(first.trained_state())
    rest = strategy(tools, mask="decoupled")
    rest.load_trained_state(state)
    for experience in scenario.train_stream[1:]:
        rest.train(experience, eval_streams=[], shuffle=False)
    for (name, p), q in zip(weights(whole).items(), weights(rest).values(), strict=True):
        assert torch.equal(p, q), name
    other = strategy(tools, routed(tools, head="linear"))
    with pytest.raises(ValueError, match="does not fit this model"):
        other.load_trained_state(state)


def test_the_backbone_stays_in_eval_mode_and_unchanged(tools, scenario):
    model = routed(tools)
    before = {n: p.clone() for n, p in model.backbone.named_parameters()}
    s = train(strategy(tools, model), scenario)
    s.eval(scenario.test_stream)
    model.train()
    assert model.training and not any(m.training for m in model.backbone.modules())
    assert all(torch.equal(p, before[n]) for n, p in model.backbone.named_parameters())
    copy.deepcopy(s)


def test_replay_plugin_runs_and_mixes_old_images_in(tools, scenario):
    s = strategy(tools, plugins=[ReplayPlugin(mem_size=12)])
    train(s, scenario)
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


def test_rates_reach_their_groups_and_a_missing_one_is_named(tools):
    model = routed(tools)
    optimizer = build_optimizer(model, {"queries": 1.0, "o": 2.0, "head": 3.0})
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {
        "queries": 1.0, "o": 2.0, "head": 3.0,
    }
    with pytest.raises(ValueError, match="no rate for the parameters of kind 'o'"):
        build_optimizer(model, {"queries": 1.0, "head": 3.0})
    assert build_optimizer(FrozenViT(tools.vit(), 3, head="ncm"), {}) is None


def test_a_mask_that_there_is_not_is_named(tools):
    with pytest.raises(ValueError, match="mask must be one of"):
        strategy(tools, mask="all")


def test_learned_prompts_with_a_closed_form_head_learn_through_a_head_of_their_own(
    tools, scenario
):
    model = routed(tools, head="slda")
    start = weights_of(model)
    s = train(strategy(tools, model, mask="decoupled"), scenario)
    assert model.training_head is not None
    layers = model.layers.named_parameters(prefix="layers")
    assert any(not torch.equal(p, start[n]) for n, p in layers)
    assert isinstance(s, FrozenBackboneStrategy) and not isinstance(s, RwFStrategy)


@pytest.mark.parametrize("head", ["white", "slda", "linear"])
def test_features_that_are_not_finite_change_nothing(tools, scenario, head):
    s = strategy(tools, FrozenViT(tools.vit(), 6, head=head))
    s.train(scenario.train_stream[0], eval_streams=[])
    before = weights(s)
    from torch.utils.data import TensorDataset

    x, y = torch.full((8, 3, 32, 32), float("nan")), torch.zeros(8, dtype=torch.long)
    bad = TensorDataset(x, y)
    bad.targets = y.tolist()
    from avalanche.benchmarks import nc_benchmark

    stream = nc_benchmark(bad, bad, 1, task_labels=False)
    with pytest.raises(NonFiniteLossError, match="features are not finite at training step 3"):
        s.train(stream.train_stream[0], eval_streams=[])
    after = weights(s)
    assert all(torch.equal(p, after[name]) for name, p in before.items())


def test_a_grown_strategy_goes_on_from_its_saved_state(tools, scenario):
    def grown():
        return strategy(tools, routed(tools, classes=1), grows=True)

    first = grown()
    train(first, scenario)
    second = grown()
    second.load_trained_state(first.trained_state())
    assert second.model.num_classes == 6
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(first.predict(x), second.predict(x))
    with pytest.raises(ValueError, match="does not fit this model"):
        strategy(tools, routed(tools, classes=2)).load_trained_state(first.trained_state())


@pytest.mark.parametrize("head", ["ncm", "slda", "ridge"])
def test_closed_forms_have_a_finite_evaluation_loss_and_a_training_accuracy(
    tools, scenario, head
):
    from avalanche.training.plugins import SupervisedPlugin

    right, losses = [], []

    class Spy(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            right.append(float((strategy.mb_output.argmax(1) == strategy.mb_y).float().mean()))

        def after_eval_iteration(self, strategy, **kwargs):
            losses.append(float(strategy.loss))

    s = strategy(tools, FrozenViT(tools.vit(), 6, head=head), plugins=[Spy()])
    train(s, scenario)
    s.model.seen[5] = False
    s.eval(scenario.test_stream)
    assert all(math.isfinite(loss) for loss in losses)
    # The last experience's classes are new there, and not wrong by default.
    assert sum(right[-3:]) / 3 > 0.3


@pytest.mark.parametrize("head", ["white", "slda"])
def test_evaluation_of_classes_to_come_grows_no_head_and_is_finite(tools, scenario, head):
    """The whole test stream after each experience, as Avalanche's examples do."""
    s = strategy(tools, routed(tools, classes=1, head=head), grows=True)
    s.eval(scenario.test_stream)
    assert s.model.num_classes == 1
    s.train(scenario.train_stream[0], eval_streams=[], shuffle=False)
    known = s.model.num_classes
    before, losses, outputs = weights(s), [], []
    kept = s.criterion

    def criterion():
        losses.append(float(kept()))
        outputs.append(s.mb_output)
        return kept()

    s.criterion = criterion
    s.eval(scenario.test_stream)
    assert s.model.num_classes == known < 6
    assert all(torch.equal(before[name], p) for name, p in weights(s).items())
    assert len(losses) == 3 and all(map(math.isfinite, losses))
    assert outputs[-1].shape[1] == 6 and torch.isinf(outputs[-1][:, known:]).all()
    assert all(int(o.argmax(1).max()) < known for o in outputs)


@pytest.mark.parametrize("name", ["rwf-literal", "slda", "avalanche-l2p"])
def test_a_test_label_outside_num_classes_is_named(tools, scenario, name):
    s = create_strategy(
        name, backbone=tools.vit(), num_classes=3, loop={"evaluator": tools.silent()}
    )
    with pytest.raises(ValueError, match="does not fit num_classes=3; labels run from 0"):
        s.eval(scenario.test_stream)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(2, 1, 32, 32), "not float32 [2, 1, 32, 32]"),
        (torch.zeros(2, 3, 28, 28), "not float32 [2, 3, 28, 28]"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "not uint8 [2, 3, 32, 32]"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.float64), "not float64 [2, 3, 32, 32]"),
        (torch.zeros(2, 32, 32, 3), "not float32 [2, 32, 32, 3]"),
        (torch.zeros(3, 32, 32), "not float32 [3, 32, 32]"),
    ],
)
def test_images_that_the_backbone_does_not_take_are_named(tools, images, said):
    s = strategy(tools)
    with pytest.raises(UsageError, match=re.escape(f"images must be float32 [B, 3, 32, 32] as "
                                                   f"the backbone takes them, {said}.")):
        s.predict(images)


def test_predictions_are_of_tensors_and_of_no_image_there_are_none(tools):
    s = strategy(tools)
    with pytest.raises(UsageError, match="images must be a tensor, not a ndarray"):
        s.predict(torch.zeros(2, 3, 32, 32).numpy())
    found = s.predict(torch.zeros(0, 3, 32, 32))
    assert found.shape == (0,) and found.dtype == torch.long


def test_another_error_of_the_model_stays_as_it_is(tools, images):
    s = strategy(tools)
    s.model.encode = lambda images: (_ for _ in ()).throw(RuntimeError("mine"))
    with pytest.raises(RuntimeError, match=r"^mine$"):
        s.predict(images)


@pytest.mark.parametrize("name", ["rwf", "slda", "l2p", "coda-prompt", "der", "rwf-lda-held"])
def test_a_model_in_float64_keeps_it(tools, name):
    """For instance under ``torch.set_default_dtype(torch.float64)``."""
    torch.set_default_dtype(torch.float64)
    try:
        scenario = tools.scenario()
        s = create_strategy(
            name, backbone=tools.vit(depth=5), num_classes=6,
            loop={"evaluator": tools.silent(), "train_mb_size": 8},
        )
        images = scenario.train_stream[0].dataset[0][0][None]
        assert images.dtype == torch.float64
        train(s, scenario)
        s.eval(scenario.test_stream)
        with torch.no_grad():
            assert s.model.features(images).dtype == torch.float64
        assert s.predict(images).shape == (1,)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mask", ["batch", "seen", "none"])
def test_weights_of_classes_are_those_of_the_classes_that_compete(tools, mask, smoothing):
    class Mine(nn.CrossEntropyLoss):
        """A subclass that computes what PyTorch's does."""

    w = torch.arange(1.0, 7.0)
    s = strategy(tools, criterion=Mine(weight=w, label_smoothing=smoothing), mask=mask)
    logits, targets = torch.randn(4, 6), torch.tensor([1, 4, 4, 1])
    s.model.seen[torch.tensor([0, 1, 4])] = True
    chosen = {"batch": [1, 4], "seen": [0, 1, 4], "none": list(range(6))}[mask]
    found = s.loss_of_logits(logits, targets, mask)
    places = torch.tensor([chosen.index(t) for t in targets.tolist()])
    expected = nn.functional.cross_entropy(
        logits[:, chosen], places, weight=w[chosen], label_smoothing=smoothing
    )
    torch.testing.assert_close(found, expected)
    assert torch.equal(s._criterion.weight, w)


def test_fine_tuning_leaves_a_backbone_that_others_share_alone(tools, scenario):
    vit = tools.vit()
    before = {name: p.clone() for name, p in vit.state_dict().items()}
    loop = {"evaluator": tools.silent(), "train_mb_size": 8}
    one = create_strategy("linear-probe", backbone=vit, num_classes=6, loop=loop)
    tuned = create_strategy("fine-tune", backbone=vit, num_classes=6, loop=loop)
    create_strategy("slda", backbone=vit, num_classes=6, loop=loop)  # freezes what it is given
    train(tuned, scenario)
    assert one.model.backbone is vit
    assert not any(p.requires_grad for p in vit.parameters())
    assert all(torch.equal(p, before[name]) for name, p in vit.state_dict().items())
    moved = tuned.model.backbone.state_dict()
    assert any(not torch.equal(p, before[name]) for name, p in moved.items())


@pytest.mark.parametrize("head", ["cosine", "slda"])
def test_early_stopping_goes_back_to_before_the_head_grew(tools, scenario, head):
    """Accuracy on the first classes alone never rises again once others compete."""
    evaluator = EvaluationPlugin(accuracy_metrics(stream=True), loggers=[])
    s = FrozenBackboneStrategy(
        model=routed(tools, classes=1, head=head), grows=True, train_mb_size=8, train_epochs=4,
        eval_every=1, evaluator=evaluator, plugins=[EarlyStoppingPlugin(1, "test_stream")],
    )
    states = []
    for experience in scenario.train_stream[:2]:
        s.train(experience, eval_streams=[scenario.test_stream[:1]], shuffle=False)
        states.append((s.model.num_classes, weights(s)))
    (early, before), (late, after) = states
    assert early < late
    assert after["seen"].tolist() == before["seen"].tolist() + [False] * (late - early)
    for name, p in before.items():
        q = after[name]
        assert torch.equal(q[: len(p)] if p.dim() and len(p) == early else q, p), name
    s.train(scenario.train_stream[2], eval_streams=[], shuffle=False)  # and goes on


@pytest.mark.parametrize("head", ["white", "linear", "rp-ridge"])
def test_a_model_takes_its_own_state_from_before_it_grew(tools, scenario, head):
    s = strategy(tools, routed(tools, classes=1, head=head), grows=True)
    first, second, third = scenario.train_stream
    s.train(first, eval_streams=[], shuffle=False)
    early, before = s.model.num_classes, weights(s)
    s.train(second, eval_streams=[], shuffle=False)
    rows = {name: p[early:].clone() for name, p in s.model.named_parameters() if p.dim()}
    s.model.load_state_dict(before)
    assert s.model.num_classes > early and len(before["seen"]) == early  # the state is as it was
    assert s.model.seen.tolist() == [True] * early + [False] * (s.model.num_classes - early)
    for name, q in weights(s).items():
        p = before[name]
        if p.shape != q.shape:
            assert torch.equal(q[: len(p)], p), name
            rest = q[len(p) :]
            assert torch.equal(rest, rows.get(name, torch.zeros_like(rest))), name
        else:
            assert torch.equal(q, p), name
    s.train(third, eval_streams=[], shuffle=False)
    s.train(second, eval_streams=[], shuffle=False)
    assert s.model.seen.all()
    s.eval(scenario.test_stream)


def test_a_state_of_fewer_classes_is_refused_by_a_model_that_never_had_them(tools, scenario):
    few, many = routed(tools, classes=2), routed(tools, classes=6)
    with pytest.raises(RuntimeError, match="size mismatch"):
        many.load_state_dict(few.state_dict())
    s = strategy(tools, routed(tools, classes=2), grows=True)
    state = s.trained_state()
    train(s, scenario)
    with pytest.raises(ValueError, match=r"The saved state has 2 classes, and this model has 6\."):
        s.load_trained_state(state)


class Tempered(FrozenViT):
    """A user's model whose logits are not its head's."""

    def logits(self, features):
        return super().logits(features) / 3


@pytest.mark.parametrize("mask", ["none", "seen", "batch", "decoupled"])
def test_the_loss_is_of_the_logits_that_the_model_gives_under_every_mask(tools, mask):
    s = strategy(tools, Tempered(tools.vit(), 6, head="cosine"), mask=mask)
    y, f = torch.tensor([0, 1] * 4), torch.randn(8, 32, requires_grad=True)
    s.model.seen[:] = True
    columns = 2 if mask in ("batch", "decoupled") else 6

    def loss(n):
        return nn.functional.cross_entropy(s.model.head(f)[:, :n] / 3, y)

    expected = loss(columns) + (loss(6) if mask == "decoupled" else 0)
    torch.testing.assert_close(s.classification_loss(f, y), expected)


def test_mvp_refuses_a_head_without_a_linear_form_when_it_is_built(tools):
    class Own(LinearHead):
        def forward(self, features):
            return super().forward(features).tanh()

    model = MVPViT(tools.vit(), 6, expert_blocks="2,3", head=Own(32, 6))
    with pytest.raises(UsageError, match="Own has a forward and no linear_form"):
        MVPStrategy(model=model, evaluator=tools.silent())


def focal(z, y):
    """Written with one-hot rows, so that 0 times the masked columns is in it."""
    log_p = z.log_softmax(1)
    return -(F.one_hot(y, z.shape[1]) * (1 - log_p.exp()) ** 2 * log_p).sum(1).mean()


LOSSES = {
    "focal": focal,
    "label smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "weights": lambda z, y: F.cross_entropy(z, y, weight=torch.arange(1.0, 7.0)),
    "margin": nn.MultiMarginLoss(weight=torch.arange(1.0, 7.0)),
    "squared margin": nn.MultiMarginLoss(p=2),
    "sigmoid": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 6).to(z)),
    "cold": lambda z, y: F.cross_entropy(z / 0.01, y),
    "entropy": lambda z, y: -(z.softmax(1) * z.log_softmax(1)).sum(1).mean(),
}


# Each mask alone, and each other thing that changes the loss under the two masks most in use.
@pytest.mark.parametrize(
    ("mask", "options"),
    [
        *((mask, {}) for mask in ("none", "seen", "batch", "decoupled")),
        *((mask, {"replay": kind}) for kind in ("er", "der") for mask in ("seen", "decoupled")),
        *(("decoupled", {name: value}) for name, value in
          (("replay", "er-ace"), ("gradient_steps", 2), ("precision", "bf16"))),
    ],
    ids=str,
)  # fmt: skip
def test_a_users_loss_gets_all_columns_and_the_true_labels(tools, scenario, mask, options):
    asked = []

    def loss(z, y):
        asked.append((z.shape[1], set(y.tolist())))
        return focal(z, y)

    if "replay" in options:
        options = {"replay": Replay(6, options["replay"])}
    s = strategy(tools, criterion=loss, mask=mask, **options)
    met = set()
    for experience in scenario.train_stream:
        asked.clear()
        s.train(experience, eval_streams=[], shuffle=False)
        met |= {int(c) for c in experience.classes_in_this_experience}
        assert {columns for columns, _ in asked} == {6}
        assert set.union(*(classes for _, classes in asked)) <= met
    assert len(met) == 6
    s.eval(scenario.test_stream)


@pytest.mark.parametrize("mask", ["seen", "batch", "decoupled"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_users_loss_and_its_gradient_stay_finite_under_a_mask(tools, scenario, name, mask):
    s = strategy(tools, criterion=LOSSES[name], mask=mask)
    before = weights(s)
    train(s, scenario)  # raises where the loss or a gradient is not finite
    assert any(not torch.equal(p, before[key]) for key, p in s.model.named_parameters())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_loss_of_ones_own_equals_that_over_the_competing_classes(tools, kind):
    """And PyTorch's own cross-entropy is bit for bit what it is with -inf."""
    s = strategy(tools, criterion=focal)
    s.model.seen[torch.tensor([1, 2, 4])] = True
    z, y = torch.randn(5, 6, dtype=kind, requires_grad=True), torch.tensor([1, 4, 4, 2, 1])

    def gradient(loss):
        return loss.detach(), torch.autograd.grad(loss, z)[0]

    chosen, places = [1, 2, 4], torch.tensor([0, 2, 2, 1, 0])
    for a, b in zip(
        gradient(s.loss_of_logits(z, y, "seen")), gradient(focal(z[:, chosen], places)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    s._criterion = nn.CrossEntropyLoss()
    masked = z.where(s.model.seen, float("-inf"))
    for a, b in zip(
        gradient(s.loss_of_logits(z, y, "seen")), gradient(F.cross_entropy(masked, y)), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_for_classes_to_come_go_with_a_head_that_grows(tools, scenario, smoothing):
    w = torch.arange(1.0, 8.0)
    s = strategy(
        tools, routed(tools, classes=1), grows=True,
        criterion=nn.CrossEntropyLoss(weight=w, label_smoothing=smoothing),
    )
    train(s, scenario)
    s.eval(scenario.test_stream)
    assert s.model.num_classes == 6
    with pytest.raises(UsageError, match="a weight for each class, and it has 4 for 6 classes"):
        strategy(tools, criterion=nn.CrossEntropyLoss(weight=w[:4]))
    s = strategy(
        tools, routed(tools, classes=1), grows=True, criterion=nn.CrossEntropyLoss(weight=w[:4])
    )
    with pytest.raises(UsageError, match="criterion must have a weight for each class"):
        train(s, scenario)


@pytest.mark.parametrize("criterion", [lambda z, y: z.mean(1), lambda z, y: 1.0])
def test_a_loss_that_is_not_one_number_is_named(tools, scenario, criterion):
    s = strategy(tools, criterion=criterion)
    with pytest.raises(UsageError, match="criterion must give one number for a batch as a tensor"):
        train(s, scenario)


def test_mvp_whose_loss_is_its_own_takes_no_other(tools):
    loop = {"criterion": nn.CrossEntropyLoss(label_smoothing=0.1), "evaluator": tools.silent()}
    with pytest.raises(UsageError, match="criterion must be left out or be CrossEntropyLoss"):
        create_strategy("mvp", backbone=tools.vit(depth=5), num_classes=6, loop=loop)


@pytest.mark.parametrize("label", [50_000, 10**12])
def test_a_label_that_is_no_class_does_not_fill_the_memory(tools, label):
    s = strategy(tools, routed(tools, classes=1), grows=True)
    for training in (True, False):
        s.is_training, s._observed = training, False
        s.mbatch = [torch.randn(2, 3, 32, 32), torch.tensor([0, label])]
        with pytest.raises(ValueError, match=f"label of {label} does not fit: a head grows to 5"):
            s.forward()
    assert s.model.num_classes == 1


def test_a_plugin_may_call_the_model_between_forward_and_loss(tools, scenario):
    class Caller(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            strategy.model(strategy.mb_x.flip(0))

    ends = []
    for plugins in ([], [Caller()]):
        torch.manual_seed(0)
        loop = {"train_mb_size": 8, "evaluator": tools.silent(), "plugins": plugins}
        s = create_strategy("mvp", backbone=tools.vit(depth=5), num_classes=6, loop=loop)
        ends.append(weights(train(s, scenario)))
    assert all(torch.equal(p, ends[1][name]) for name, p in ends[0].items())


class Tokens(FrozenViT):
    """A user's prompt model in one file, as short as it can be."""

    def __init__(self, backbone, num_classes, **options):
        super().__init__(backbone, num_classes, **options)
        self.tokens = nn.Parameter(0.02 * torch.randn(1, 3, self.dim))

    def prompted_blocks(self):
        return [self.depth - 1]

    def prompt(self, block, tokens):
        return TokenPrompt(self.tokens)


@pytest.mark.parametrize("given", ["adam of the strategy", "an optimizer of the user"])
@pytest.mark.parametrize("head", HEADS)
def test_a_model_of_ones_own_learns_its_prompts_with_every_head(tools, scenario, head, given):
    model = Tokens(tools.vit(), 6, head=head)
    before, optimizer = model.tokens.detach().clone(), None
    if given == "an optimizer of the user":
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    s = strategy(tools, model, optimizer=optimizer)
    assert (model.training_head is not None) is model.head.closed_form
    learning = {id(p) for group in s.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.parameters() if p.requires_grad} <= learning
    trained_by = model.training_head or model.head
    rows = trained_by.weight.detach().clone()
    s.train(scenario.train_stream[0], eval_streams=[])
    assert not torch.equal(model.tokens, before) and not torch.equal(trained_by.weight, rows)


def test_steps_of_a_model_of_ones_own_that_are_forgotten_are_errors(tools, scenario):
    class NoBlocks(Tokens):
        prompted_blocks = FrozenViT.prompted_blocks

    class NoPrompt(Tokens):
        prompt = FrozenViT.prompt

    class LeftOut(Tokens):
        def prompt_groups(self):
            return {"prompt": []}

    class NoBuffer(Tokens):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.counts = torch.zeros(3)

    class InAList(Tokens):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.more = [nn.Parameter(torch.zeros(3))]

    class Beyond(Tokens):
        def prompted_blocks(self):
            return (0, 99)

    class TwoArguments(Tokens):
        def prompt(self, tokens):
            return None

    class Unseen(Tokens):
        def observe(self, features, targets):
            pass

    class OldLoss(Tokens):
        def prompt_loss(self):
            return self.tokens.square().mean()

    for kind, said in (
        (NoBlocks, "NoBlocks has prompt and no prompted_blocks"),
        (NoPrompt, "NoPrompt has prompted_blocks and no prompt"),
        (Beyond, "prompted_blocks of Beyond must be from 0 to [0-9]+, the blocks .* not 99"),
        (TwoArguments, "TwoArguments.prompt must take block, tokens"),
        (LeftOut, "prompt_groups of LeftOut must have every trained parameter, and 'tokens'"),
        (NoBuffer, "NoBuffer.counts is a tensor that is neither saved nor moved"),
        (InAList, "InAList.more is a tensor that is neither saved nor moved"),
        (OldLoss, "OldLoss.prompt_loss would never be called: it is auxiliary_loss"),
    ):
        with pytest.raises(UsageError, match=said):
            strategy(tools, kind(tools.vit(), 6))
    with pytest.raises(UsageError, match=r"observe of Unseen must call super\(\)\.observe"):
        strategy(tools, Unseen(tools.vit(), 6)).train(scenario.train_stream[0], eval_streams=[])
