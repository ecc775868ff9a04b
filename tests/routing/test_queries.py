import copy

import pytest
import torch
import torch.nn.functional as F

from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.routing.queries import principal_queries


def test_directions_are_those_of_largest_variance():
    torch.manual_seed(0)
    tokens = torch.randn(40, 10, 16)
    tokens[..., 3] *= 30
    tokens[..., 7] *= 6
    queries = principal_queries(tokens, 4)
    assert queries.shape == (4, 16)
    torch.testing.assert_close(queries.norm(dim=1), torch.full((4,), 4.0))
    torch.testing.assert_close(queries[2:], -queries[:2])
    normed = F.layer_norm(tokens, (16,)).flatten(0, 1)
    normed = normed - normed.mean(0)
    expected = torch.linalg.svd(normed, full_matrices=False).Vh[:2]
    overlap = (F.normalize(queries[:2], dim=1) * expected).sum(1).abs()
    torch.testing.assert_close(overlap, torch.ones(2), rtol=0, atol=1e-4)


def test_order_of_images_and_tokens_does_not_matter():
    torch.manual_seed(0)
    tokens = torch.randn(6, 10, 16)
    mixed = tokens[torch.randperm(6)][:, torch.randperm(10)]
    torch.testing.assert_close(principal_queries(mixed, 3), principal_queries(tokens, 3))
    assert principal_queries(tokens, 3).shape == (3, 16)
    with pytest.raises(ValueError, match="at most 2 D = 32"):
        principal_queries(tokens, 33)


def test_the_first_training_batch_sets_the_queries_once(vit, images):
    model = RoutedViT(vit, 3, routed_blocks="last 2", num_prompts=4, queries="principal",
                      insert_prompts=False, readout="routes", head="slda")
    start = copy.deepcopy(model.layers.state_dict())
    model.eval().features(images)
    assert torch.equal(model.layer(2).queries, start["2.queries"])
    model.train().features(images)
    first = model.layer(2).queries.clone()
    assert not torch.equal(first, start["2.queries"])
    model.features(torch.randn_like(images))
    assert torch.equal(model.layer(2).queries, first)
    twin = RoutedViT(vit, 3, routed_blocks="last 2", num_prompts=4, queries="principal",
                     insert_prompts=False, readout="routes", head="slda")
    twin.load_state_dict(model.state_dict())
    twin.train().features(torch.randn_like(images))
    assert torch.equal(twin.layer(2).queries, first)


def test_one_token_is_no_batch_of_tokens():
    with pytest.raises(ValueError, match=r"tokens must be a tensor \[B, N, D\], not one \[3\]"):
        principal_queries(torch.zeros(3), 2)
