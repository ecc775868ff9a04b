from contextlib import nullcontext

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import weights_sha256
from avalanche_rwf.models.lower import lowered
from avalanche_rwf.routing.layer import RoutingLayer
from avalanche_rwf.routing.model import RoutedViT


def routed(vit, **options):
    torch.manual_seed(0)
    return RoutedViT(vit, 5, **{"routed_blocks": "first 2", "num_prompts": 3, **options})


@pytest.mark.parametrize(
    "options", [{"num_prompts": 0}, {"routed_blocks": "none"}, {"insert_prompts": False}]
)
@pytest.mark.parametrize(
    "variant", [{}, {"reg_tokens": 2}, {"fc_norm": True}, {"pre_norm": True}], ids=str
)
def test_without_prompts_it_is_plain_timm_to_the_last_bit(tools, images, options, variant):
    vit = tools.vit(**variant)
    model = routed(vit, head="linear", readout="cls", **options)
    with torch.no_grad():
        plain = VisionTransformer.forward_features(vit, images)
        expected = vit.fc_norm(plain[:, 0])
        assert torch.equal(model.features(images), expected)
        # What timm itself gives for a class-token ViT.
        if vit.global_pool == "token":
            assert torch.equal(vit(images), expected)


def test_prompts_change_the_features(vit, images):
    plain = routed(vit, num_prompts=0).features(images)
    assert (routed(vit).features(images) - plain).abs().max() > 1e-3


def test_each_image_is_routed_by_itself(vit, images):
    model = routed(vit, readout="routes", head="linear").eval()
    together = model(images)
    for i in range(len(images)):
        torch.testing.assert_close(model(images[i : i + 1])[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("insert", ["token", "prefix"])
def test_gradients_reach_every_trained_parameter_and_nothing_else(vit, images, insert):
    model = routed(
        vit, insert=insert, head="linear", readout="cls",
        trainable=("queries", "q", "k", "v", "o", "beta", "scale"),
    )
    before = weights_sha256(model.backbone)
    model(images).square().sum().backward()
    for name, p in model.named_parameters():
        if name.startswith("backbone."):
            assert not p.requires_grad and p.grad is None, name
        else:
            assert p.requires_grad and bool((p.grad != 0).any()), name
    grouped = {id(p) for ps in model.parameter_groups().values() for p in ps}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
    trained = [p.numel() for p in model.parameters() if p.requires_grad]
    assert model.trainable_parameters() == sum(trained)
    torch.optim.Adam([p for p in model.parameters() if p.requires_grad]).step()
    assert weights_sha256(model.backbone) == before


@pytest.mark.parametrize("bf16", [False, True])
def test_what_is_computed_again_in_the_backward_pass_changes_no_gradient(
    vit, images, bf16, monkeypatch
):
    """Neither whole blocks nor the tokens' norm: compared with a pass that keeps all."""

    def gradients(**options):
        model = routed(vit, routed_blocks="all", head="linear", values="normed", **options)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16), lowered(vit):
            out = model(images)
        out.float().square().sum().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    found = gradients(), gradients(recompute=True)
    monkeypatch.setattr(RoutingLayer, "_normed_again", lambda *_: nullcontext())
    for again, lean, expected in zip(*found, gradients(), strict=True):
        assert torch.equal(again, expected) and torch.equal(lean, expected)
        assert bool(expected.any())


def test_read_outs_have_the_widths_and_contents_they_promise(vit, images):
    d, blocks, prompts = vit.embed_dim, 2, 3
    widths = {"cls": d, "cls+mean": 2 * d, "layers": 2 * d * (1 + blocks),
              "routes": 2 * d * (1 + blocks) + blocks * prompts * d}
    features = {}
    for readout, width in widths.items():
        model = routed(vit, readout=readout, insert_prompts=False)
        features[readout] = model.features(images)
        assert features[readout].shape == (len(images), width)
    torch.testing.assert_close(features["cls+mean"][:, :d], features["cls"])
    torch.testing.assert_close(features["layers"][:, : 2 * d], features["cls+mean"])
    torch.testing.assert_close(features["routes"][:, : widths["layers"]], features["layers"])
    with torch.no_grad():
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        entering = torch.nn.functional.layer_norm(vit.blocks[0](tokens), (d,))
    # Block 1's entering tokens: class token, then mean patch.
    part = features["layers"][:, 4 * d : 6 * d]
    torch.testing.assert_close(part, torch.cat([entering[:, 0], entering[:, 1:].mean(1)], 1))


def test_read_only_routing_trains_nothing(vit):
    model = routed(vit, insert_prompts=False, readout="routes", head="slda")
    assert model.parameter_groups() == {} and model.trainable_parameters() == 0
    assert not any(p.requires_grad for p in model.parameters())


def test_diagnostics_per_routed_block(vit, images):
    found = routed(vit).diagnose(images)
    assert list(found) == [0, 1]
    assert found[0].association.shape == (len(images), 1, 3, 17)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [("first 3", (0, 1, 2)), ("last 2", (2, 3)), ("all", (0, 1, 2, 3)), ("none", ()),
     ("0,2", (0, 2)), ([3, 1, 1], (1, 3)), ([-1], (3,)), ("first3", (0, 1, 2))],
)
def test_blocks_are_read_in_every_form(vit, blocks, expected):
    assert routed(vit, routed_blocks=blocks).routed_blocks() == expected


@pytest.mark.parametrize("blocks", ["first 5", "some", "0,x", [4], "last -1", ""])
def test_blocks_that_do_not_exist_are_named(vit, blocks):
    with pytest.raises(ValueError, match="routed_blocks must be 'first N', 'last N'"):
        routed(vit, routed_blocks=blocks)


def test_bad_read_outs_are_named(vit):
    with pytest.raises(ValueError, match="readout must be one of"):
        routed(vit, readout="max")
    with pytest.raises(ValueError, match="must include the routed ones"):
        routed(vit, readout="routes", readout_blocks="last 1")


def test_growing_keeps_what_was_there(vit, images):
    model = routed(vit, head="linear", readout="cls")
    model.seen[2] = True
    before = model(images)
    model.grow(9)
    assert model.num_classes == 9 and model.seen.tolist() == [False, False, True] + [False] * 6
    torch.testing.assert_close(model(images)[:, :5], before)


def test_state_without_the_backbone_restores_the_rest(vit, tools, images):
    model = routed(vit)
    model.observe(model.features(images), torch.tensor([0, 1, 2, 3, 4, 0]))
    state = model.state_without_backbone()
    assert not any(name.startswith("backbone.") for name in state)
    torch.manual_seed(9)
    twin = RoutedViT(tools.vit(), 5, routed_blocks="first 2", num_prompts=3)
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("backbone.") for name in missing)
    assert torch.equal(twin(images), model(images))


def test_any_image_and_patch_size(tools):
    vit = tools.vit(img_size=(48, 24), patch_size=6)
    assert routed(vit)(torch.randn(2, 3, 48, 24)).shape == (2, 5)


def test_remembered_features_are_those_of_a_fresh_model(tools, images):
    def fresh():
        return routed(tools.vit(), insert_prompts=False, readout="routes", head="slda",
                      queries="principal").eval()

    model = fresh()
    before = model.features(images)
    assert torch.equal(model.features(images.clone()), before)
    other = images.flip(0)
    torch.testing.assert_close(model.features(other), before.flip(0), rtol=1e-4, atol=1e-5)
    model.train().features(images)  # sets the queries: what was remembered is out of date
    after = model.eval().features(images)
    assert not torch.equal(after, before)
    twin = fresh()
    twin.features(images)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.features(images), after)


NONSENSE = {
    "readout_blocks": [0, 1.5, "first", [9], [True]],
    "log_prior": [torch.zeros(3)],
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_by_name(name, vit):
    for value in NONSENSE[name]:
        arguments = {"backbone": vit, "num_classes": 4, "routed_blocks": "all", name: value}
        with pytest.raises(UsageError, match=rf"^{name} must "):
            RoutedViT(**arguments)
