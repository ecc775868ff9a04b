"""Backbones: names, arguments, the packaged one, refusals. Nothing here touches the network."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import safetensors.torch
import timm
import timm.models
import torch
from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models import backbone as backbones
from avalanche_rwf.models.backbone import (
    PACKAGED,
    backbone_info,
    build_packaged_architecture,
    check_backbone,
    create_backbone,
    list_backbones,
    unsupported_backbones,
    weights_sha256,
)

from .tiny import SMALL, TINY, load, normal, same, tiny


@pytest.fixture(scope="module")
def reference():
    return normal()


# ---------------------------------------------- the result
def test_is_frozen_headless_and_equal_to_timm():
    model = tiny()
    assert isinstance(model, VisionTransformer) and model.num_classes == 0
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    torch.manual_seed(0)
    plain = timm.create_model(TINY, pretrained=False, num_classes=0, img_size=32, **SMALL).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), plain(images))


def test_info_of_random_weights():
    model = tiny()
    info = backbone_info(model)
    assert (info.name, info.source, info.weights_file) == (TINY, "random", None)
    assert (info.image_size, info.patch_size, info.embed_dim, info.depth) == (32, 16, 16, 2)
    assert info.num_prefix_tokens == 1
    assert info.mean == info.std == (0.5, 0.5, 0.5)
    assert info.interpolation == "bicubic" and info.crop_pct == pytest.approx(0.9)
    assert info.sha256 == weights_sha256(model)


def test_data_config_is_the_tags_own():
    half = tiny()
    torch.manual_seed(0)
    dino = create_backbone("vit_small_patch16_224.dino", pretrained=False, image_size=32, **SMALL)
    assert backbone_info(half).mean == (0.5, 0.5, 0.5)
    assert backbone_info(dino).mean == (0.485, 0.456, 0.406)


def test_info_of_a_model_of_ones_own():
    model = timm.create_model(TINY, pretrained=False, num_classes=0, img_size=32, **SMALL)
    info = backbone_info(model)
    assert info.source == "given" and info.name.startswith(TINY) and info.depth == 2


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit_small_patch14_reg4_dinov2", {"image_size": 28}),  # registers, LayerScale
        ("vit_base_patch16_clip_224", {"image_size": 32}),  # norm before the blocks
        ("deit3_small_patch16_224", {"image_size": 32}),  # no position embedding for the class
        ("eva_large_patch14_196", {"image_size": 28}),  # mean pooling and fc_norm
        ("deit_tiny_patch16_224", {"image_size": 32}),
    ],
)
def test_variants_read_the_class_token(name, kwargs):
    model = create_backbone(name, pretrained=False, **SMALL, **kwargs)
    images = torch.randn(2, 3, kwargs["image_size"], kwargs["image_size"])
    tokens = model.forward_features(images)
    torch.testing.assert_close(model(images), model.fc_norm(tokens[:, 0]), rtol=0, atol=0)


def test_random_weights_follow_the_global_seed_and_loading_does_not_move_it(reference, tmp_path):
    assert same(tiny(), tiny())
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(reference.state_dict(), file)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load(file)
    assert torch.equal(torch.rand(1), expected)


def test_a_bare_name_warns_only_when_it_decides(monkeypatch):
    monkeypatch.setattr(timm.models, "load_pretrained", lambda *a, **k: None)
    with pytest.warns(
        UserWarning, match=r"'vit_base_patch16_224\.augreg2_in21k_ft_in1k'.*orig_in21k"
    ):
        model = create_backbone("vit_base_patch16_224", image_size=32, **SMALL)
    assert backbone_info(model).name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_backbone("vit_base_patch16_224", image_size=32, pretrained=False, **SMALL)
        one_tag = create_backbone("vit_small_patch14_dinov2", image_size=28, **SMALL)
    assert backbone_info(one_tag).name == "vit_small_patch14_dinov2.lvd142m"


# ---------------------------------------------- refusals
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "not a timm VisionTransformer, Eva or Beit but of"),
        ("deit_tiny_distilled_patch16_224", "VisionTransformerDistilled; supported are"),
        ("vit_base_patch16_xp_224", "ParallelScalingBlock"),
        ("vit_base_patch16_rpn_224", "ResPostBlock"),
        ("vit_tiny_r_s16_p8_224", "HybridEmbed"),
        ("vit_tiny_patch16_22", "nearest names are 'vit_tiny_patch16_224'"),
        (f"{TINY}.augreg_in22k", f"nearest names are '{TINY}.augreg_in21k'"),
        (f"{PACKAGED}.v2", "no tag"),
        ("", "name of a timm model"),
    ],
)
def test_unsupported_and_unknown_names(name, message):
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        create_backbone(name, pretrained=False, **({} if "_r_" in name else SMALL))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 30}, "not a multiple of the patch size 16"),
        ({"image_size": 8}, "not a multiple"),
        ({"image_size": 0}, "whole number from 1 to 16384"),
        ({"image_size": -16}, "whole number from 1 to 16384"),
        ({"image_size": 10**6}, "whole number from 1 to 16384"),
        ({"init_values": 10**400}, "a finite number"),
        ({"patch_size": True}, "no truth value"),
        ({"image_size": 32.0}, "whole number from 1 to 16384"),
        ({"image_size": 32, "img_size": 32}, "give the image size once"),
        ({"num_classes": 3}, "'num_classes' is set by create_backbone"),
        ({"in_chans": 1}, "'in_chans'"),
        ({"class_token": False, "global_pool": "avg"}, "'global_pool'"),
        ({"colour": "red"}, "colour='red'"),
        ({"depth": "two"}, "depth='two'"),
        ({"num_heads": 7}, "cannot be built"),
    ],
)
def test_arguments_that_do_not_work(kwargs, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        create_backbone(TINY, pretrained=False, **kwargs)


def test_a_changed_attention_is_refused():
    model = timm.create_model(TINY, pretrained=False, num_classes=0, img_size=32, **SMALL)
    assert check_backbone(model) is model
    model.blocks[1].attn = torch.nn.Identity()
    with pytest.raises(UsageError, match="attention of type Identity"):
        check_backbone(model)


# ---------------------------------------------- packaged
def test_packaged_architecture():
    model = build_packaged_architecture()
    assert all(p.requires_grad for p in model.parameters()) and model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 160)
    assert sum(p.numel() for p in model.parameters()) * 2 < 4_000_000  # bytes in half precision
    assert build_packaged_architecture(depth=2, drop_path_rate=0.1).blocks[1] is not None
    assert create_backbone(PACKAGED, pretrained=False, image_size=64).pos_embed.shape[1] == 65


def test_packaged_weights_and_their_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(backbones.importlib.resources, "files", lambda package: tmp_path)
    with pytest.raises(UsageError, match=r"packaged weights .* are not installed"):
        create_backbone(PACKAGED)
    (tmp_path / "data").mkdir()
    torch.manual_seed(0)
    model = build_packaged_architecture()
    file = tmp_path / "data" / f"{PACKAGED}.safetensors"
    metadata = {"mean": json.dumps([0.1, 0.2, 0.3]), "std": "[0.4, 0.5, 0.6]", "crop_pct": "0.9"}
    metadata |= {"interpolation": "bilinear", "licence": "MIT"}
    halves = {key: value.half() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(halves, file, metadata=metadata)
    for weights, source in ((None, "packaged"), (file, "file")):
        loaded = create_backbone(PACKAGED, weights=weights)
        info = backbone_info(loaded)
        assert info.source == source and info.name == PACKAGED
        assert (info.mean, info.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert (info.interpolation, info.crop_pct) == ("bilinear", 0.9)
        assert torch.equal(loaded.norm.weight, halves["norm.weight"].float())


@pytest.mark.parametrize(
    "metadata",
    [
        {"mean": "red"}, {"mean": "5"}, {"mean": '"123"'}, {"mean": "[true, false, true]"},
        {"mean": "[1e39, 0, 0]"}, {"mean": "[" * 100_000}, {"mean": f"[{'9' * 400}, 0, 0]"},
        {"std": "[0, 0, 0]"}, {"std": "[-1, 1, 1]"}, {"std": "[1e-320, 1, 1]"},
        {"std": "[NaN, 1, 1]"}, {"std": "[1, 1]"}, {"std": '{"1": 1, "2": 2, "3": 3}'},
        {"crop_pct": "0"}, {"crop_pct": "nan"}, {"crop_pct": "-1"}, {"crop_pct": "2"},
        {"crop_pct": "1e-9"}, {"interpolation": ""}, {"interpolation": "\x1b[2J"},
    ],
)  # fmt: skip
def test_a_header_with_nonsense_is_refused(metadata, tmp_path):
    file = tmp_path / "w.safetensors"
    state = build_packaged_architecture().state_dict()
    safetensors.torch.save_file(state, file, metadata=metadata)
    with pytest.raises(UsageError, match="has unreadable metadata"):
        create_backbone(PACKAGED, weights=file)


def test_listing_starts_with_the_packaged_one_and_holds_supported_tags_only():
    names = list_backbones()
    assert names[0] == PACKAGED and len(names) == len(set(names)) > 100
    assert "vit_base_patch16_224.augreg_in21k" in names
    assert "vit_small_patch14_reg4_dinov2.lvd142m" in names
    assert {"vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_siglip_224.webli"} <= set(names)
    assert not [n for n in names if "distilled" in n or "_rpn_" in n or "_xp_" in n]
    assert list_backbones("rwf_*") == [PACKAGED]
    assert list_backbones("no such*") == []


def test_what_timm_has_and_is_not_supported_is_named_with_the_reason():
    others = unsupported_backbones("*dinov3*")
    assert others and all(name.startswith("convnext") for name in others)
    assert set(unsupported_backbones("vit_base_patch16_xp_224*").values()) == {
        "has blocks of type ParallelScalingBlock"
    }
    (why,) = unsupported_backbones("vit_large_patch16_sapiens2").values()
    assert why == "has attention with fewer heads of keys than of queries"
    assert not set(unsupported_backbones("*")) & set(list_backbones())
