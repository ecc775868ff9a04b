"""pool-lda against its equations, one image and one patch at a time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_rwf.methods.pool_lda import PooledViT
from avalanche_rwf.models.blockwise import forward_blocks
from avalanche_rwf.routing.functional import free_energy


def slow_pool(tokens, beta, centre, contrast):
    """Of one image's patches [N, D], by loops."""
    patches = [F.layer_norm(t, t.shape) for t in tokens]
    side = math.isqrt(len(patches))
    weights = []
    for i in range(len(patches)):
        y, x = ((k - (side - 1) / 2) / (side / 2) for k in divmod(i, side))
        weights.append(math.exp(-(y * y + x * x) / (2 * centre**2)))
    prior = [w / sum(weights) for w in weights]
    query = sum(p * t for p, t in zip(prior, patches, strict=True)) - sum(patches) / len(patches)
    scores = [p * math.exp(beta / len(t) * float(query @ t) * contrast)
              for p, t in zip(prior, patches, strict=True)]  # fmt: skip
    found = sum(s * t for s, t in zip(scores, patches, strict=True)) / sum(scores)
    return F.layer_norm(found, found.shape)


@pytest.mark.parametrize("query", ["contrast", "none"])
def test_features_are_those_of_the_equations(vit, images, query):
    model = PooledViT(vit, 3, blocks="last 2", query=query, beta=7.0, centre=0.6).eval()
    forwarded = forward_blocks(vit, images, collect=(2, 3))
    expected = []
    for i in range(len(images)):
        stages = [forwarded.collected[2][i, 1:], forwarded.collected[3][i, 1:],
                  forwarded.tokens[i, 1:]]  # fmt: skip
        expected.append(torch.cat([slow_pool(t, 7.0, 0.6, query == "contrast") for t in stages]))
    torch.testing.assert_close(model.features(images), torch.stack(expected), atol=1e-5, rtol=1e-4)
    assert model.feature_width() == 3 * 32


def test_what_is_retrieved_minimises_the_free_energy(vit, images):
    model = PooledViT(vit, 3, query="contrast")
    tokens = forward_blocks(vit, images).tokens
    patches = F.layer_norm(tokens[:, 1:], (32,))
    query = (model.log_prior.exp() @ patches - patches.mean(1))[:, None]
    scores, beta = query @ patches.mT, 20 / 32
    best = (beta * scores + model.log_prior).softmax(-1)
    found = F.layer_norm((best @ patches)[:, 0], (32,))
    torch.testing.assert_close(found, model.pool(tokens), atol=1e-5, rtol=1e-4)
    lowest = free_energy(best, scores, beta, model.log_prior)
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        other = (best * torch.rand(best.shape, generator=draw).add(0.5)).clamp_min(1e-9)
        other = other / other.sum(-1, keepdim=True)
        assert (free_energy(other, scores, beta, model.log_prior) > lowest).all()


def test_the_class_token_is_left_out_unless_it_is_asked_for(vit, images):
    plain, more = PooledViT(vit, 3), PooledViT(vit, 3, class_token=True)
    assert more.feature_width() == 2 * plain.feature_width()
    found = more.features(images)
    torch.testing.assert_close(found[:, : plain.feature_width()], plain.features(images))
    torch.testing.assert_close(found[:, -32:], forward_blocks(vit, images).tokens[:, 0])


def test_an_even_image_has_nothing_to_ask_for(vit):
    """Where the centre is as the whole, what is retrieved is the pool."""
    tokens = torch.randn(1, 1, 32).expand(2, 17, -1)
    asks, control = (PooledViT(vit, 3, query=query) for query in ("contrast", "none"))
    torch.testing.assert_close(asks.pool(tokens), control.pool(tokens))
