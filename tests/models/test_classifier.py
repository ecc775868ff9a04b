"""What a frozen ViT reads out of its tokens."""

import pytest
import torch

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.routing.priors import centre_prior


@torch.no_grad()
def test_the_mean_patch_may_be_weighed_around_the_centre(vit, images):
    plain = FrozenViT(vit, 5, readout="layers", readout_blocks="last 1").eval()
    tokens = vit.forward_features(images)
    for width, expected in ((0.5, None), (1e3, tokens[:, 1:].mean(1))):
        model = FrozenViT(
            vit, 5, readout="layers", readout_blocks="last 1", mean_centre=width
        ).eval()
        if expected is None:
            weights = centre_prior((4, 4), width, 0).exp()
            expected = sum(w * tokens[:, 1 + i] for i, w in enumerate(weights)) / weights.sum()
        got = model.features(images)
        torch.testing.assert_close(got[:, 32:64], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(got[:, :32], plain.features(images)[:, :32])
    assert not torch.equal(model.features(images), plain.features(images))  # nor remembered as it


def test_a_width_that_is_not_positive_is_refused(vit):
    with pytest.raises(ValueError, match="width must be positive, not 0"):
        FrozenViT(vit, 5, readout="cls+mean", mean_centre=0.0)
