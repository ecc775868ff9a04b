import math

import pytest
import torch

from avalanche_rwf.routing.layer import RoutingLayer
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.routing.priors import centre_prior


def test_patches_weigh_by_their_distance_from_the_centre():
    a = centre_prior((3, 5), 0.5, num_prefix_tokens=2)
    assert a.shape == (2 + 15,) and bool((a[:2] == float("-inf")).all())
    grid = a[2:].reshape(3, 5)
    assert grid[1, 2] == 0 and grid.argmax() == 7
    # One row up is 2/3 of half a side, one column 2/5.
    assert math.isclose(grid[0, 2], -((2 / 3) ** 2) / (2 * 0.25), rel_tol=1e-6)
    assert math.isclose(grid[0, 3], -((2 / 3) ** 2 + (2 / 5) ** 2) / (2 * 0.25), rel_tol=1e-6)
    torch.testing.assert_close(grid, grid.flip(0))
    torch.testing.assert_close(grid, grid.flip(1))


def test_a_wide_prior_is_uniform_over_the_patches():
    weights = centre_prior((4, 4), 1e4).softmax(0)
    torch.testing.assert_close(weights[1:], torch.full((16,), 1 / 16))
    assert weights[0] == 0


def test_a_routed_model_retrieves_around_the_centre(vit, images):
    def model(centre):
        torch.manual_seed(0)
        return RoutedViT(vit, 3, routed_blocks="last 2", num_prompts=2, insert_prompts=False,
                         readout="routes", head="slda", centre=centre)

    narrow, plain = model(0.4), model(None)
    p = narrow.diagnose(images)[2].association
    assert bool((p[..., 0] == 0).all())  # the class token is no patch
    grid = p[..., 1:].unflatten(-1, (4, 4))
    assert bool((grid[..., 1:3, 1:3].sum((-2, -1)) > plain.diagnose(images)[2]
                 .association[..., 1:].unflatten(-1, (4, 4))[..., 1:3, 1:3].sum((-2, -1))).all())
    assert plain.layer(2).log_prior is None
    width = narrow.route_width()
    assert not torch.allclose(narrow.features(images)[:, -width:],
                              plain.features(images)[:, -width:])
    # It follows from the options: states with and without it have the same tensors.
    assert narrow.state_dict().keys() == plain.state_dict().keys()


def test_a_control_that_retrieves_nothing_takes_no_prior():
    with pytest.raises(ValueError, match="source='mean' retrieves nothing that log_prior"):
        RoutingLayer(8, 2, source="mean", trainable=("queries",), log_prior=torch.zeros(5))
