"""What a frozen ViT reads out of its tokens."""

import warnings

import pytest
import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.methods.l2p import L2PViT
from avalanche_rwf.models.blocks import FitWarning
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.heads import LinearHead
from avalanche_rwf.routing.priors import centre_prior

from ..families import FAMILIES
from ..wrong_values import NO_NAME


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


NONSENSE = {
    "head": NO_NAME,
    "readout": NO_NAME,
    "readout_blocks": [None, 0, 1.5, True, [True], [0.5], [9]],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_by_name(name, vit):
    for value in NONSENSE[name]:
        with pytest.raises(UsageError, match=rf"^{name} must be "):
            FrozenViT(**{"backbone": vit, "num_classes": 4, name: value})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::avalanche_rwf.models.blocks.FitWarning")
def test_read_outs_are_what_timm_gives(tools, images, family):
    """Pooled, then normed: what stands for the image and the mean patch alike."""
    vit = tools.vit(**FAMILIES[family])
    with torch.no_grad():
        tokens = vit.forward_features(images)
        mean = vit.fc_norm(tokens[:, vit.num_prefix_tokens :].mean(1))
        if vit.cls_token is not None:  # timm's own head, pooling by the class token
            vit.reset_classifier(0, "token")
        own = vit(images)
        read = {r: FrozenViT(vit, 4, readout=r).eval().features(images)
                for r in ("cls", "mean", "cls+mean")}  # fmt: skip
        query = FrozenViT(vit, 4).eval().frozen_query(images)
    assert torch.equal(read["cls"], own) and torch.equal(query, own)
    torch.testing.assert_close(read["mean"], mean, rtol=1e-5, atol=1e-6)
    once = vit.cls_token is None and torch.allclose(own, mean, atol=1e-5)
    parts = [mean] if once else [own, mean]
    torch.testing.assert_close(read["cls+mean"], torch.cat(parts, 1), rtol=1e-5, atol=1e-5)
    for readout in ("layers", "cls+mean"):
        model = FrozenViT(vit, 4, readout=readout, readout_blocks="last 2").eval()
        assert model.features(images).shape[1] == model.feature_width()


def test_the_read_out_of_a_backbone_that_pools_before_its_norm_is_normed(tools, images):
    """timm gives ``fc_norm(mean)``; its ``norm`` is the identity."""
    vit = tools.vit(global_pool="avg")
    assert isinstance(vit.norm, torch.nn.Identity)
    for model in (FrozenViT(vit, 4, readout="cls+mean"), L2PViT(vit, 4)):
        features = model.eval().features(images).unflatten(1, (-1, vit.embed_dim))
        plain = (features - vit.fc_norm.bias) / vit.fc_norm.weight
        torch.testing.assert_close(plain.std(-1, correction=0), torch.ones(6, features.shape[1]),
                                   rtol=1e-3, atol=1e-3)  # fmt: skip


def test_a_backbone_without_class_token_says_what_stands_in_its_place(tools):
    vit = tools.vit(**FAMILIES["siglip"])
    with pytest.warns(FitWarning, match="no class token: .* its attention pooling stands"):
        assert FrozenViT(vit, 4).pooling == "map"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FrozenViT(vit, 4, readout="mean")


def test_a_head_made_for_something_else_is_refused(vit):
    assert FrozenViT(vit, 4, head=LinearHead(32, 4)).num_classes == 4
    with pytest.raises(UsageError, match="head must take 64 features, and it takes 32"):
        FrozenViT(vit, 4, head=LinearHead(32, 4), readout="cls+mean")
    with pytest.raises(UsageError, match="head must have num_classes=4 classes, and it has 5"):
        FrozenViT(vit, 4, head=LinearHead(32, 5))


def test_what_a_training_loop_asks_for_each_experience_touches_no_tensor(vit, images):
    """Avalanche calls train() and to() each time; a closed form's solution stays."""
    model = FrozenViT(vit, 2, head="slda").train()
    model.observe(model.features(images[:2]).detach(), torch.tensor([0, 1]))
    solved = model.head._solution()
    before = dict(model.named_buffers()) | dict(model.named_parameters())
    vit.blocks[0].mlp.train()  # somebody else's doing
    assert model.to("cpu") is model and model.train() is model
    assert not any(module.training for module in vit.modules())
    assert model.training and model.head.training and model.head.moments.training
    assert model.head._solution() is solved
    after = dict(model.named_buffers()) | dict(model.named_parameters())
    assert all(after[name] is tensor for name, tensor in before.items())
    assert not model.eval().head.moments.training
    with pytest.raises(ValueError, match="boolean"):
        model.train("yes")
    # Another type, or a part that is elsewhere, is moved as ever.
    model.head.register_buffer("elsewhere", torch.zeros(1, device="meta"))
    with pytest.raises(NotImplementedError, match="meta"):
        model.to("cpu")
    del model.head.elsewhere
    assert model.to(torch.float64).backbone.norm.weight.dtype == torch.float64
    assert model.to("cpu", torch.float32).backbone.norm.weight.dtype == torch.float32
