"""What a frozen ViT reads out of its tokens."""

import pytest
import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import LinearHead
from avalanche_rwf.routing.priors import centre_prior

from ..wrong_values import NO_COUNT, NO_FLAG, NO_NAME, NO_RATE, without


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
    with pytest.raises(ValueError, match="mean_centre must be a finite number above 0"):
        FrozenViT(vit, 5, readout="cls+mean", mean_centre=0.0)


NONSENSE = {
    "backbone": [None, "vit", 3, torch.nn.Linear(2, 2)],
    "num_classes": NO_COUNT,
    "head": NO_NAME,
    "readout": NO_NAME,
    "readout_blocks": [None, 0, 1.5, True, [True], [0.5], [9]],
    "head_options": [0, "x", [], {1: 2}],
    "frozen": NO_FLAG,
    "mean_centre": [0, *without(NO_RATE, None)],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_by_name(name, vit):
    said = "^backbone the given model is a " if name == "backbone" else f"^{name} must be "
    for value in NONSENSE[name]:
        with pytest.raises(UsageError, match=said):
            FrozenViT(**{"backbone": vit, "num_classes": 4, name: value})


def test_a_backbone_without_class_token_has_nothing_to_read(tools):
    vit = tools.vit(class_token=False, global_pool="avg")
    with pytest.raises(UsageError, match="has no class token"):
        FrozenViT(vit, 4)


def test_a_head_made_for_something_else_is_refused(vit):
    assert FrozenViT(vit, 4, head=LinearHead(32, 4)).num_classes == 4
    with pytest.raises(UsageError, match="head must take 64 features, and it takes 32"):
        FrozenViT(vit, 4, head=LinearHead(32, 4), readout="cls+mean")
    with pytest.raises(UsageError, match="head must have num_classes=4 classes, and it has 5"):
        FrozenViT(vit, 4, head=LinearHead(32, 5))
