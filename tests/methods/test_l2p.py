"""L2P against loops over images, and against Avalanche's own network."""

import pytest
import torch

from avalanche_rwf.methods.l2p import L2PViT
from avalanche_rwf.strategies.avalanche_l2p import PromptPoolViT

POOL = {"pool_size": 6, "prompt_length": 2, "top_k": 3}


def by_hand(model, slow, cos, image, scale=None):
    """Feature, chosen prompts and key distance of one image."""
    vit = slow(model.backbone)
    q = vit.query(image)
    distance = [1 - cos(q, key) for key in model.keys]
    weighed = [d * (scale[m] if scale else 1) for m, d in enumerate(distance)]
    chosen = sorted(range(len(weighed)), key=lambda m: weighed[m])[: model.top_k]
    x = vit.embed(image)
    n = len(x)
    for m in chosen:
        for token in model.prompts[m]:
            x = torch.cat([x, (token + model.backbone.pos_embed[0, 0])[None]])
    for index in range(model.depth):
        x = vit.block(index, x)
    return vit.finish(x)[n:].mean(0), chosen, sum(distance[m] for m in chosen)


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
def test_forward_and_loss_against_loops(vit, images, slow, cos, training):
    torch.manual_seed(0)
    model = L2PViT(vit, 5, pull=0.7, diversify=True, start="symmetric", **POOL).train(training)
    model.counts += torch.tensor([3, 0, 1, 5, 0, 0])
    features, selection = model.encode(images)
    loss = float(model.auxiliary_loss(selection))
    scale = [4, 1, 2, 6, 1, 1] if training else None
    total = 0.0
    for b, image in enumerate(images):
        expected, chosen, distance = by_hand(model, slow, cos, image, scale)
        assert chosen == selection.indices[b].tolist()
        torch.testing.assert_close(features[b], expected, rtol=1e-4, atol=1e-5)
        total += distance
    assert loss == pytest.approx(0.7 * total / len(images), rel=1e-4)


@torch.no_grad()
def test_it_is_avalanches_network_where_the_definitions_agree(vit, images):
    """Same pool and no diversity; what differs is listed in ``methods/l2p.py``."""
    torch.manual_seed(0)
    theirs = PromptPoolViT(vit, 5, **POOL).eval()
    ours = L2PViT(vit, 5, **POOL).eval()
    ours.prompts.copy_(theirs.pool.prompt)
    ours.keys.copy_(theirs.pool.prompt_key)
    distance = float(ours.encode(images)[1].pull.mean())
    similarity = float(theirs.encode(images)[1].similarity)
    assert distance == pytest.approx(ours.top_k - similarity, rel=1e-5)
    for readout in ("prompt", "cls", "cls+mean"):
        theirs.readout = ours.readout = readout
        torch.testing.assert_close(
            ours.features(images), theirs.features(images), rtol=1e-5, atol=1e-5
        )


def test_counts_are_of_the_stream_and_spread_the_choice(vit, images):
    torch.manual_seed(0)
    model = L2PViT(vit, 5, diversify=True, start="symmetric", **POOL).train()
    chosen = set()
    for _ in range(6):
        features, selection = model.encode(images)
        chosen |= set(selection.indices.flatten().tolist())
        model.observe(features, torch.zeros(len(images), dtype=torch.long), selection)
    assert int(model.counts.sum()) == 6 * len(images) * 3
    assert chosen == set(range(6))
    plain = L2PViT(vit, 5, **POOL).train()
    plain.load_state_dict(model.state_dict())
    assert set(plain.encode(images)[1].indices.flatten().tolist()) < set(range(6))


@pytest.mark.parametrize(("start", "low", "high"), [("original", 0, 0.01), ("symmetric", -1, 1)])
def test_prompts_and_keys_start_as_asked_and_as_the_original_by_default(vit, start, low, high):
    torch.manual_seed(0)
    model = L2PViT(vit, 5, start=start, **POOL)
    for values in (model.prompts.detach(), model.keys.detach()):
        assert low <= float(values.min()) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < float(values.max()) <= high
    torch.manual_seed(0)
    plain = L2PViT(vit, 5, **POOL)
    assert (not plain.diversify) and torch.equal(plain.keys, model.keys) == (start == "original")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"pool_size": 3, "top_k": 4}, "top_k must be at most pool_size=3, not 4"),
        ({"readout": "max"}, "readout must be one of .*prompt, not 'max'"),
    ],
)
def test_bad_arguments_are_named(vit, options, text):
    with pytest.raises(ValueError, match=text):
        L2PViT(vit, 5, **options)
