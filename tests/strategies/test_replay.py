"""Replay: losses against loops over images and classes, and what the buffer holds."""

import copy
import gc
import math

import pytest
import torch
from avalanche.benchmarks import split_online_stream
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import SupervisedPlugin

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import held
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import create_strategy
from avalanche_rwf.strategies.replay import Replay, _squared_error
from avalanche_rwf.strategies.rwf import RwFStrategy

KINDS = ("er", "er-ace", "der")


def strategy(tools, replay, model=None, seed=0, **options):
    vit = tools.vit()
    torch.manual_seed(seed)
    model = FrozenViT(vit, 6) if model is None else model(vit)
    replay = Replay(20, replay, replay_batch=5) if isinstance(replay, str) else replay
    options = {"train_mb_size": 8, "evaluator": tools.silent(), **options}
    return FrozenBackboneStrategy(model=model, replay=replay, **options)


def train(s, scenario, first=0, upto=None):
    for experience in list(scenario.train_stream)[first:upto]:
        s.train(experience, eval_streams=[], shuffle=False)
    return s


def images_of(scenario):
    """All training images in the order of the stream: the numbers of the buffer."""
    return [(x, int(y)) for e in scenario.train_stream for x, y, *_ in e.dataset]


def step(s, scenario, x, y):
    """One training step's loss, without the update."""
    s.is_training, s.mbatch, s._observed = True, [x, y], False
    s.experience = scenario.train_stream[0]
    s.model.train()
    s.mb_output = s.forward()
    return s.criterion()


def cross_entropy(logits, target, allowed):
    """-log softmax over the allowed classes, in plain numbers."""
    return math.log(sum(math.exp(logits[c]) for c in allowed)) - logits[target]


class Spy(SupervisedPlugin):
    """Raw logits of every mini-batch before its step, image by image."""

    def __init__(self):
        super().__init__()
        self.logits = []

    @torch.no_grad()
    def after_forward(self, strategy, **kwargs):
        for image in strategy.mb_x:
            self.logits.append(strategy.model.head(strategy.model.features(image[None]))[0].clone())


@pytest.mark.parametrize(
    ("kind", "mask"),
    [(k, m) for k in ("er", "der") for m in ("none", "seen", "batch")] + [("er-ace", "ace")],
)
def test_losses_are_those_of_loops_over_images_and_classes(tools, scenario, kind, mask):
    spy = Spy()
    replay = Replay(20, kind, replay_batch=5, alpha=0.3, beta=0.7)
    s = train(strategy(tools, replay, mask=mask, plugins=[spy]), scenario, upto=1)
    assert s.mask == mask
    x, y = zip(*images_of(scenario)[24:32], strict=True)  # classes that were not met before
    before = set(torch.nonzero(s.model.seen).flatten().tolist())
    loss = float(step(s, scenario, torch.stack(x), torch.tensor(y)).detach())

    stream, drawn = images_of(scenario), s.replay._drawn
    assert [len(sample) for sample in drawn] == ([5, 5] if kind == "der" else [5])
    s.model.eval()

    def logits(image):
        with torch.no_grad():
            return s.model(image[None])[0].double().tolist()

    batch, seen, every = set(y), before | set(y), set(range(6))
    assert before and batch - before and every - seen
    own = {"none": every, "seen": seen, "batch": batch, "ace": batch | (every - seen)}[mask]
    old = every if mask == "none" else seen
    incoming = [cross_entropy(logits(i), c, own) for i, c in zip(x, y, strict=True)]
    replayed = [cross_entropy(logits(stream[n][0]), stream[n][1], old) for n in drawn[-1]]
    if kind == "er":
        expected = (sum(incoming) + sum(replayed)) / 13
    else:
        expected = sum(incoming) / 8 + (0.7 if kind == "der" else 1) * sum(replayed) / 5
    if kind == "der":
        total = 0.0
        for number in drawn[0]:
            now, then = logits(stream[number][0]), spy.logits[number].tolist()
            total += sum((a - b) ** 2 for a, b in zip(now, then, strict=True))
        expected += 0.3 * total / (5 * 6)
        assert total > 0
    assert loss == pytest.approx(expected, rel=1e-4)


def test_stored_logits_are_raw_and_those_of_the_image_when_it_came(tools, scenario):
    spy = Spy()
    s = train(strategy(tools, "der", plugins=[spy]), scenario)
    stream = images_of(scenario)
    assert len(s.replay) == 20
    for number in s.replay.numbers:
        image, target, logits = s.replay._store[number]
        assert torch.equal(image, stream[number][0]) and target == stream[number][1]
        assert logits.shape == (6,) and torch.isfinite(logits).all()
        torch.testing.assert_close(logits, spy.logits[number], rtol=1e-4, atol=1e-5)


def routed(vit):
    return RoutedViT(vit, 6, routed_blocks="first 2", num_prompts=3, head="cosine", readout="cls")


@pytest.mark.parametrize("kind", ["er", "er-ace"])
def test_decoupled_prompts_learn_under_the_classes_of_each_sample(tools, scenario, kind):
    s = strategy(tools, kind, model=routed, mask="decoupled", clip_norm=None)
    assert train(s, scenario, upto=1).mask == "decoupled"
    s.optimizer.zero_grad()
    stream = images_of(scenario)
    x, y = zip(*stream[24:32], strict=True)
    before = set(torch.nonzero(s.model.seen).flatten().tolist())
    step(s, scenario, torch.stack(x), torch.tensor(y)).backward()
    got = {n: p.grad.clone() for n, p in s.model.named_parameters() if p.grad is not None}
    s.model.zero_grad()

    def loss(logits, targets, columns):
        columns = sorted(columns)
        return torch.nn.functional.cross_entropy(
            logits[:, columns], torch.tensor([columns.index(t) for t in targets])
        )

    old_x, old_y = zip(*(stream[n] for n in s.replay._drawn[0]), strict=True)
    seen, total = before | set(y), 0.0
    own = set(y) | (set(range(6)) - seen) if kind == "er-ace" else seen
    for part, targets, allowed, n in ((x, y, own, 8), (old_x, old_y, seen, 5)):
        features = s.model.features(torch.stack(part))
        weight = n / 13 if kind == "er" else 1
        total += weight * loss(s.model.head(features.detach()), targets, allowed)
        with held(s.model.head):
            total += weight * loss(s.model.head(features), targets, set(targets))
    total.backward()
    for name, p in s.model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, got[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("storage", ["reservoir", "class-balanced"])
def test_the_buffer_does_not_grow_with_the_stream(storage):
    torch.manual_seed(0)
    replay = Replay(7, "der", buffer_policy=storage)
    counts = []
    for number in range(200):
        x, y = torch.randn(4, 3, 2, 2), torch.randint(0, 3, (4,))
        replay.extend(x)
        replay._logits = torch.randn(4, 3)
        replay.take_in(x, y)
        assert len(replay) == len(set(replay.numbers)) == len(replay._store) == len(replay.targets)
        assert len(replay) <= 7
        for image, _, logits in replay._store.values():  # no row that keeps its batch alive
            assert image.untyped_storage().nbytes() == 4 * 12
            assert logits.untyped_storage().nbytes() == 4 * 3
        if number in (50, 199):
            gc.collect()
            counts.append(sum(AvalancheDataset in type(o).__mro__ for o in gc.get_objects()))
        for group in replay._groups().values():
            assert len(group.buffer._flat_data._datasets) == 1
    assert counts[0] == counts[1]
    assert len(replay) == 7
    if storage == "class-balanced":
        assert sorted(replay.targets.count(c) for c in range(3)) == [2, 2, 3]


def test_more_classes_than_places_leave_some_without():
    torch.manual_seed(0)
    replay = Replay(3, buffer_policy="class-balanced")
    for c in (4, 1, 3, 0, 2):
        replay.take_in(torch.randn(2, 3, 2, 2), torch.full((2,), c))
    assert sorted(replay.targets) == [0, 1, 2]
    again = Replay(3, buffer_policy="class-balanced")
    again.load_state_dict(replay.state_dict())
    for r in (replay, again):
        r.take_in(torch.ones(2, 3, 2, 2), torch.tensor([3, 1]))
    assert replay.numbers == again.numbers and replay.targets == again.targets


def test_each_image_of_the_stream_stays_with_the_same_probability():
    torch.manual_seed(0)
    held = torch.zeros(40)
    for _ in range(200):
        replay = Replay(8)
        for first in range(0, 40, 10):
            torch.rand(1)  # what gives the next buffer another start
            replay.take_in(torch.zeros(10, 3, 1, 1), torch.arange(first, first + 10))
        assert len(replay) == 8
        held[replay.numbers] += 1
    # 200 draws of 8 out of 40: mean 40 and variance 32 for each; chi-squared of 39 degrees.
    assert 15 < ((held - 40) ** 2 / 32).sum() < 73
    quarters = held.reshape(4, 10).sum(1)  # neither early nor late images are favoured
    assert ((quarters - 400).abs() < 4 * 240**0.5).all()


def test_a_sample_is_drawn_evenly_and_without_replacement():
    torch.manual_seed(0)
    replay = Replay(10, "der", replay_batch=4)
    replay.take_in(torch.arange(10.0).reshape(10, 1, 1, 1).expand(10, 3, 1, 1), torch.zeros(10))
    drawn = torch.zeros(10)
    for _ in range(200):
        found = replay.extend(torch.zeros(2, 3, 1, 1))[2:, 0, 0, 0].long().reshape(2, 4)
        for sample in found.tolist():
            assert len(set(sample)) == 4
            drawn[sample] += 1
    assert ((drawn - 160).abs() < 4 * 96**0.5).all()


def test_an_empty_buffer_replays_nothing(tools, scenario):
    s = strategy(tools, "er")
    x, y = zip(*images_of(scenario)[:8], strict=True)
    plain = strategy(tools, None)
    args = scenario, torch.stack(x), torch.tensor(y)
    assert torch.equal(step(s, *args), step(plain, *args))


@pytest.mark.parametrize(("kind", "passes"), [("er", 13), ("er-ace", 13), ("der", 18)])
def test_one_forward_whose_output_is_that_of_the_batch(tools, scenario, kind, passes):
    s = train(strategy(tools, kind), scenario, upto=1)
    sizes, outputs = [], []
    s.model.backbone.patch_embed.register_forward_hook(lambda m, a, o: sizes.append(len(a[0])))

    class Look(SupervisedPlugin):
        def after_forward(self, strategy, **kwargs):
            outputs.append(len(strategy.mb_output))

    s.plugins.append(Look())
    train(s, scenario, 1, 2)
    assert sizes == [passes] * 3 and outputs == [8] * 3


def test_every_gradient_step_draws_anew_and_images_come_in_once(tools, scenario):
    s = strategy(tools, Replay(50, "der", replay_batch=4), gradient_steps=3)
    draws, extend = [], s.replay.extend

    def noted(images):
        found = extend(images)
        draws.append([tuple(sample) for sample in s.replay._drawn])
        return found

    s.replay.extend = noted
    train(s, scenario, upto=1)
    assert s.replay._came == 24 == len(s.replay)
    assert len(draws) == 9 and draws[:3] == [[], [], []]
    assert len({sample for step in draws[3:] for sample in step}) == 12


def test_replayed_images_enter_no_statistics(tools, scenario):
    def white(vit):
        return FrozenViT(vit, 6, head="white", readout="cls+mean")

    s = train(strategy(tools, "er", model=white, gradient_steps=2), scenario)
    plain = train(strategy(tools, None, model=white), scenario)
    assert int(s.model.head.count) == 72
    # Other batch sizes round float32 features in another way; one image twice would show at 0.1.
    torch.testing.assert_close(s.model.head.gram, plain.model.head.gram, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "chosen"), [("l2p", 5), ("mvp", 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_prompt_methods_replay_too(tools, scenario, name, chosen, kind):
    """Pools count the choices of the stream's images alone; MVP's masks go by image."""
    vit = tools.vit(depth=5)
    torch.manual_seed(0)
    s = create_strategy(
        name, backbone=vit, num_classes=6, loop={"train_mb_size": 8, "evaluator": tools.silent()}
    )
    s.replay, s.mask = Replay(20, kind, replay_batch=5), "ace" if kind == "er-ace" else "seen"
    train(s, scenario)
    assert int(s.model.counts.sum()) == 72 * chosen
    assert all(torch.isfinite(p).all() for p in s.model.parameters())


def test_experiences_and_a_true_online_stream_give_equal_weights(tools, scenario):
    a = train(strategy(tools, "der", model=routed), scenario)
    b = strategy(tools, "der", model=routed)
    for experience in scenario.train_stream:
        for sub in split_online_stream([experience], 8, shuffle=False):
            b.train(sub, eval_streams=[], shuffle=False)
    assert_same(a, b)


def assert_same(a, b):
    for (name, p), q in zip(a.model.state_dict().items(), b.model.state_dict().values(),
                            strict=True):
        assert torch.equal(p, q), name
    assert a.replay.numbers == b.replay.numbers and a.replay.targets == b.replay.targets
    assert torch.equal(a.replay._random, b.replay._random)


@pytest.mark.parametrize("storage", ["reservoir", "class-balanced"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_strategy_and_a_copy_go_on_as_the_first(
    tools, scenario, kind, storage, tmp_path
):
    def make(seed):
        return strategy(tools, Replay(5, kind, buffer_policy=storage), model=routed, seed=seed)

    whole = train(make(0), scenario, upto=2)
    torch.save(whole.trained_state(), tmp_path / "state.pt")
    again, twin = make(9), copy.deepcopy(whole)
    again.load_trained_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert_same(whole, again)
    for s in (whole, again, twin):
        torch.rand(3)  # the buffer has a random state of its own
        train(s, scenario, 2)
    assert_same(whole, again)
    assert_same(whole, twin)
    assert len(whole.replay) == 5


def test_the_rest_of_the_training_sees_the_same_random_numbers(tools, scenario):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    replay = Replay(5, "der")
    replay.take_in(torch.randn(8, 3, 2, 2, generator=torch.Generator()), torch.arange(8))
    replay.extend(torch.zeros(4, 3, 2, 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_head_that_grows_keeps_shorter_logits(tools, scenario):
    torch.manual_seed(0)
    s = RwFStrategy(
        model=RoutedViT(tools.vit(), 1, routed_blocks="first 2", num_prompts=3),
        buffer=40, replay="der", train_mb_size=8, evaluator=tools.silent(),
    )
    s.grows = True
    train(s, scenario)
    widths = {len(logits) for _, _, logits in s.replay._store.values()}
    assert max(widths) == 6 and len(widths) > 1
    state = s.trained_state()
    s.load_trained_state(state)
    assert {len(logits) for _, _, logits in s.replay._store.values()} == widths
    now, then = torch.randn(2, 3), [torch.randn(2), torch.randn(3)]
    expected = sum(
        (float(now[i, c]) - float(then[i][c])) ** 2 for i in range(2) for c in range(len(then[i]))
    )
    assert float(_squared_error(now, then)) == pytest.approx(expected / 5, rel=1e-5)


def test_rwf_trains_its_routing_through_replayed_images(tools, scenario):
    torch.manual_seed(0)
    s = create_strategy(
        "rwf", backbone=tools.vit(depth=5), num_classes=6, buffer=20,
        loop={"train_mb_size": 8, "evaluator": tools.silent()},
    )
    train(s, scenario, upto=1)
    s.optimizer.zero_grad()
    x, y = zip(*images_of(scenario)[24:32], strict=True)
    step(s, scenario, torch.stack(x), torch.tensor(y))
    features = torch.cat([s._features[:8].detach(), s._features[8:]])
    # The batch mask's gradient reaches the prompts through the replayed images alone.
    s.replay.loss(s, features, torch.tensor(y)).backward()
    moved = {name for name, p in s.model.named_parameters()
             if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(name.endswith("queries") for name in moved), moved
    assert s.replay.buffer == 20 and s.mask == "decoupled"


def test_no_buffer_is_rwf_as_it_was(tools):
    s = create_strategy(
        "rwf", backbone=tools.vit(depth=5), num_classes=6, loop={"evaluator": tools.silent()}
    )
    assert s.replay is None and "replay" not in s.trained_state()


def test_a_strategy_that_trains_nothing_replays_nothing(tools, scenario):
    s = strategy(tools, "er", model=lambda vit: FrozenViT(vit, 6, head="ncm"))
    assert train(s, scenario).replay is None


@pytest.mark.parametrize("mask", ["batch", "none", "typo"])
def test_er_ace_has_its_own_masks(tools, mask):
    assert strategy(tools, "er-ace").mask == "ace"
    with pytest.raises(ValueError, match=f"mask must be 'ace' or 'decoupled'.*not '{mask}'"):
        strategy(tools, "er-ace", mask=mask)
    with pytest.raises(ValueError, match=r"mask must be one of none, seen.*not 'ace'"):
        strategy(tools, "er", mask="ace")


def test_a_buffer_of_other_settings_is_refused(tools, scenario):
    s = train(strategy(tools, "der"), scenario, upto=1)
    with pytest.raises(ValueError, match=r"saved buffer is of \[20, 'der', 'reservoir'\]"):
        strategy(tools, "er").load_trained_state(s.trained_state())
    with pytest.raises(ValueError, match="saved state has no buffer"):
        s.load_trained_state(strategy(tools, None).trained_state())
    strategy(tools, None).load_trained_state(s.trained_state())  # to predict, none is needed
