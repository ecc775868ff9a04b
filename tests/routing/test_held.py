import copy

import pytest
import torch
import torch.nn.functional as F

from avalanche_rwf.models.heads import SLDAHead
from avalanche_rwf.routing.held import HeldRoutedViT, lda_loss
from avalanche_rwf.routing.model import RoutedViT


def problem(n=30, m=12, width=20, classes=3):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    targets = torch.arange(m) % classes
    centres = torch.randn(classes, width, generator=g, dtype=torch.float64)
    train = centres[labels] + torch.randn(n, width, generator=g, dtype=torch.float64)
    test = centres[targets] + torch.randn(m, width, generator=g, dtype=torch.float64)
    return train, labels, test, targets


@pytest.mark.parametrize("width", [5, 60])
def test_the_loss_is_that_of_the_head(width):
    train, labels, test, targets = problem(width=width)
    head = SLDAHead(width, 3, shrinkage=0.3)
    head.observe(train, labels)
    scores = head(test).double()
    expected = F.cross_entropy(3 * scores / scores.std(), targets)
    loss = lda_loss(train, labels, test, targets, 0.3)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    train.requires_grad_(), test.requires_grad_()
    lda_loss(train, labels, test, targets, 0.3).backward()
    assert bool(train.grad.abs().sum() > 0) and bool(test.grad.abs().sum() > 0)


def held(vit, **options):
    torch.manual_seed(0)
    return HeldRoutedViT(vit, 3, **{
        "routed_blocks": "last 2", "num_prompts": 2, "queries": "principal", "hold_after": 12,
        "steps": 4, **options,
    }).train()


def batches(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(6) % 3
    return [(torch.randn(6, 3, 32, 32, generator=g) + y[:, None, None, None], y) for _ in range(n)]


def feed(model, stream):
    for x, y in stream:
        features, selection = model.encode(x)
        model.observe(features, y, selection)
    return model


def test_before_the_count_it_is_the_untrained_model(vit):
    stream = batches(2)
    model = feed(held(vit, hold_after=13), stream)
    torch.manual_seed(0)
    plain = RoutedViT(vit, 3, routed_blocks="last 2", num_prompts=2, queries="principal",
                      insert_prompts=False, readout="routes", head="slda")
    feed(plain.train(), stream)
    assert not model.held and len(model.kept_targets) == 12
    assert torch.equal(model.eval()(stream[0][0]), plain.eval()(stream[0][0]))


def test_queries_move_at_the_count_and_are_held_after(vit):
    stream = batches(4)
    model = feed(held(vit), stream[:1])
    before = [model.layer(i).queries.clone() for i in (2, 3)]
    feed(model, stream[1:2])
    after = [model.layer(i).queries.clone() for i in (2, 3)]
    assert model.held and len(model.kept_targets) == len(model.kept_tokens) == 0
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    feed(model, stream[2:])
    assert all(torch.equal(model.layer(i).queries, a) for i, a in zip((2, 3), after, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_statistics_are_exact_for_the_queries_that_are_held(vit):
    stream = batches(4)
    model = feed(held(vit), stream).eval()
    x, y = (torch.cat(parts) for parts in zip(*stream, strict=True))
    moments = model.head.moments
    features = model.features(x)
    assert moments.counts.tolist() == [8, 8, 8] and moments.samples == 24
    expected = torch.stack([features[y == c].double().mean(0) for c in range(3)])
    torch.testing.assert_close(moments.means(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.second_moment(), features.double().T @ features.double(),
                               rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("saved_after", [1, 2])
def test_a_saved_state_goes_on_as_if_never_saved(vit, saved_after):
    stream = batches(4)
    model = feed(held(vit), stream[:saved_after])
    twin = held(vit)
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    feed(model, stream[saved_after:])
    feed(twin, stream[saved_after:])
    x = stream[0][0]
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_where_nothing_can_be_told_apart_nothing_is_learned(vit):
    model = feed(held(vit), [(x, torch.zeros_like(y)) for x, y in batches(2)])
    assert model.held and bool(torch.isfinite(model.layer(2).queries).all())


def test_what_it_trains_is_reported(vit, images):
    model = HeldRoutedViT(vit, 5, routed_blocks="last 2", num_prompts=3, hold_after=6, steps=4)
    assert model.trainable_parameters() == 2 * 3 * 32 and model.own_gradient_steps() == 0
    features, selection = model.train().encode(images)
    model.observe(features, torch.tensor([0, 1, 0, 1, 0, 1]), selection)
    assert model.own_gradient_steps() == 4
