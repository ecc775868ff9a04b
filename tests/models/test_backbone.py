"""Backbones: names, weight files of every format, refusals. Nothing here touches the network."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import struct
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import timm
import timm.models
import torch
from timm.layers import resample_abs_pos_embed
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

TINY = "vit_tiny_patch16_224"
SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2}


def tiny(**kwargs):
    torch.manual_seed(0)
    return create_backbone(TINY, pretrained=False, image_size=32, **{**SMALL, **kwargs})


@pytest.fixture(scope="module")
def reference():
    model = tiny()
    with torch.no_grad():  # timm starts biases and the class token at (nearly) zero
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def load(path, **kwargs):
    return create_backbone(TINY, weights=path, image_size=32, **{**SMALL, **kwargs})


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


# ---------------------------------------------- weight files
def test_safetensors(reference, tmp_path):
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(reference.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a bare name is fine: its weights are not the hub's
        model = load(file)
    assert same(model, reference)
    info = backbone_info(model)
    assert (info.source, info.weights_file) == ("file", "w.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
def test_torch_files_with_wrappers_prefixes_and_heads(reference, tmp_path, suffix, prefix):
    state = {prefix + key: value for key, value in reference.state_dict().items()}
    state["head.weight"], state["fc.bias"] = torch.zeros(3, 16), torch.zeros(3)
    for number, content in enumerate(
        [state, {"state_dict": state, "epoch": 3}, {"model": {"state_dict": state}}]
    ):
        file = tmp_path / f"{number}{suffix}"
        torch.save(content, file)
        assert same(load(file), reference)


def test_npz_in_the_original_format(reference, tmp_path):
    file = tmp_path / "w.npz"
    np.savez(file, **original_format(reference))
    assert same(load(file), reference)
    with pytest.raises(UsageError, match="it has 2 blocks, the model 3"):
        load(file, depth=3)
    with pytest.raises(UsageError, match="does not fit"):
        load(file, embed_dim=32)
    broken = original_format(reference)
    del broken["Transformer/encoder_norm/scale"]
    np.savez(file, **broken)
    with pytest.raises(UsageError, match="encoder_norm"):
        load(file)
    np.savez(file, weights=np.zeros(3))
    with pytest.raises(UsageError, match="not in the original ViT format"):
        load(file)
    np.savez(file, **{"embedding/kernel": np.array([{}], dtype=object)})
    with pytest.raises(UsageError):
        load(file)
    file.write_bytes(b"no archive")
    with pytest.raises(UsageError, match="cannot be read"):
        load(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(reference, tmp_path, dtype):
    file = tmp_path / "w.safetensors"
    halves = {key: value.to(dtype) for key, value in reference.state_dict().items()}
    safetensors.torch.save_file(halves, file)
    state = load(file).state_dict()
    assert all(torch.equal(state[key], halves[key].float()) for key in halves)


def test_position_embedding_is_resampled(reference, tmp_path):
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(reference.state_dict(), file)
    model = create_backbone(TINY, weights=file, image_size=64, **SMALL)
    expected = resample_abs_pos_embed(reference.pos_embed, [4, 4], num_prefix_tokens=1)
    torch.testing.assert_close(model.pos_embed, expected)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, reference.blocks[1].mlp.fc1.weight)
    assert backbone_info(model).image_size == 64


def test_weights_that_do_not_fit_name_the_keys(reference, tmp_path):
    file = tmp_path / "w.safetensors"
    state = reference.state_dict()
    safetensors.torch.save_file(state, file)
    with pytest.raises(UsageError, match=r"12 missing \('blocks.2.norm1.weight', .*\.\.\.\)"):
        load(file, depth=3)
    with pytest.raises(UsageError, match=r"12 unexpected \('blocks.1"):
        load(file, depth=1)
    with pytest.raises(UsageError, match=r"of another shape \('\w+' is \[1, .*\], the model's"):
        load(file, embed_dim=32)
    with pytest.raises(UsageError, match=r"patch_embed.proj.weight' is \[16, 3, 16, 16\]"):
        create_backbone(
            "vit_small_patch14_dinov2", weights=file, image_size=28, init_values=None, **SMALL
        )
    del state["norm.weight"]
    state["extra"] = torch.zeros(2)
    safetensors.torch.save_file(state, file)
    with pytest.raises(UsageError, match=r"1 missing \('norm.weight'\); 1 unexpected \('extra'\)"):
        load(file)


def test_a_malicious_pickle_is_refused_unexecuted(tmp_path):
    trace = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    file = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, file)
    with pytest.raises(UsageError, match="nothing in it was executed"):
        load(file)
    file.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UsageError):
        load(file)
    assert not trace.exists()


def test_unreadable_files(tmp_path):
    cases = {
        "missing.pth": None,
        "w.txt": b"x",
        "w.safetensors": b"x",
        "w.pth": b"x",
        "empty.pth": b"",
        "empty.npz": b"",
        "empty.safetensors": b"",
    }
    for name, content in cases.items():
        file = tmp_path / name
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match=re.escape(name)):
            load(file)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="not a dictionary of tensors"):
        load(tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "no.pth")
    with pytest.raises(UsageError, match="holds no tensors"):
        load(tmp_path / "no.pth")
    two = {f"{p}.patch_embed.proj.weight": torch.zeros(1) for p in ("student", "teacher")}
    torch.save(two, tmp_path / "two.pth")
    with pytest.raises(UsageError, match=r"several models \('student.', 'teacher.'\)"):
        load(tmp_path / "two.pth")


KEY = "blocks.0.attn.qkv.weight"
ODD = {
    "nan": (lambda w: w * math.nan, rf"1 not finite \('{KEY}'\)"),
    "infinite": (lambda w: w / 0, "1 not finite"),
    "beyond float32": (lambda w: w.double() + 1e300, "1 not finite"),
    "whole": (lambda w: w.to(torch.int8), rf"1 of another type \('{KEY}' is torch.int8\)"),
    "flags": (lambda w: w > 0, "1 of another type"),
    "complex": (lambda w: w * 1j, "1 of another type"),
    "sparse": (lambda w: w.to_sparse(), "not dense and whole"),
    "nowhere": (lambda w: w.to("meta"), "not dense and whole"),
    "expanded": (lambda w: torch.zeros(1).expand(w.shape), "not dense and whole"),
    "huge": (lambda w: torch.zeros(1, dtype=torch.half).expand(2**40), "not dense and whole"),
}


@pytest.mark.parametrize(
    ("case", "suffix"),
    # The other format holds dense tensors alone.
    [(case, suffix) for case, (_, message) in ODD.items() for suffix in (".pth", ".safetensors")
     if suffix == ".pth" or "dense" not in message],
)  # fmt: skip
def test_tensors_that_are_no_weights_are_named(case, suffix, reference, tmp_path):
    change, message = ODD[case]
    state = {**reference.state_dict(), KEY: change(reference.state_dict()[KEY])}
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        safetensors.torch.save_file(state, file)
    with pytest.raises(UsageError, match=message):
        load(file)


@pytest.mark.parametrize("program", [b"\x80\x02.", b"\x80\x02K\x01K\x02R.", b"\x80\x02h\x05.", b""])
def test_a_torch_file_whose_pickle_is_nonsense_is_refused(program, tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "sound.pth")
    with (
        zipfile.ZipFile(tmp_path / "sound.pth") as sound,
        zipfile.ZipFile(tmp_path / "w.pth", "w") as spoilt,
    ):
        for name in sound.namelist():
            spoilt.writestr(name, program if name.endswith(".pkl") else sound.read(name))
    with pytest.raises(UsageError, match=r"w\.pth' (cannot be read|holds more than tensors)"):
        load(tmp_path / "w.pth")


def test_npz_archives_of_anything(reference, tmp_path):
    file = tmp_path / "w.npz"
    arrays = original_format(reference)
    for value, message in ((math.inf, "not finite"), (math.nan, "missing")):
        bias = np.full_like(arrays["embedding/bias"], value)
        np.savez(file, **{**arrays, "embedding/bias": bias})
        with pytest.raises(UsageError, match=message):
            load(file)
    np.savez(file, **{**arrays, "embedding/bias": np.array("text")})
    with pytest.raises(UsageError, match="does not fit"):
        load(file)
    with file.open("wb") as one:  # no archive but an array, under that name
        np.save(one, np.zeros(3))
    with pytest.raises(UsageError, match=r"cannot be read as an \.npz archive"):
        load(file)
    with zipfile.ZipFile(file, "w") as archive:  # a header that asks for an exabyte
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (288230376151711744,), }"
        header = header.ljust(118 - 1) + b"\n"
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        archive.writestr("embedding/kernel.npy", content)
    with pytest.raises(UsageError, match="does not fit"):
        load(file)


def test_a_name_that_the_system_does_not_take_is_no_file():
    with pytest.raises(UsageError, match="does not exist or is not a file"):
        load("a" * 5000 + ".pth")


# ---------------------------------------------- the hub
def test_hub_weights_are_checked_and_named(reference, monkeypatch):
    state = dict(reference.state_dict())
    state["head.weight"], state["head.bias"] = torch.zeros(1000, 16), torch.zeros(1000)

    def fetch(model, cfg, num_classes, filter_fn, strict):
        assert cfg["tag"] == "augreg_in21k"
        model.load_state_dict(filter_fn(state, model), strict=strict)

    monkeypatch.setattr(timm.models, "load_pretrained", fetch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = create_backbone(f"{TINY}.augreg_in21k", image_size=32, **SMALL)
    assert same(model, reference)
    assert backbone_info(model).source == "hub"
    assert backbone_info(model).name == f"{TINY}.augreg_in21k"
    with pytest.raises(UsageError, match="12 missing"):
        create_backbone(f"{TINY}.augreg_in21k", image_size=32, **{**SMALL, "depth": 3})


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


def test_no_network_says_what_to_do(monkeypatch):
    def fetch(*args, **kwargs):
        raise ConnectionError("name or service not known\nmore")

    monkeypatch.setattr(timm.models, "load_pretrained", fetch)
    with pytest.raises(UsageError, match=r"from the hub \(ConnectionError: .*weights=FILE"):
        create_backbone(f"{TINY}.augreg_in21k", image_size=32, **SMALL)


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


# ---------------------------------------------- hash, listing
def test_the_hash_ignores_order_and_layout_only():
    class Two(torch.nn.Module):
        def __init__(self, names, scale=1.0, dtype=torch.float32):
            super().__init__()
            for name in names:
                value = torch.arange(6.0).reshape(2, 3) * scale
                setattr(self, name, torch.nn.Parameter(value.to(dtype)))

    digest = weights_sha256(Two("ab"))
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert weights_sha256(Two("ba")) == digest
    strided = Two("ab")
    strided.a = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T.contiguous().T)
    assert weights_sha256(strided) == digest
    others = [Two("ac"), Two("ab", 2.0), Two("ab", dtype=torch.bfloat16), Two("a")]
    assert len({weights_sha256(other) for other in others} | {digest}) == 5


def test_listing_starts_with_the_packaged_one_and_holds_supported_tags_only():
    names = list_backbones()
    assert names[0] == PACKAGED and len(names) == len(set(names)) > 100
    assert "vit_base_patch16_224.augreg_in21k" in names
    assert "vit_small_patch14_reg4_dinov2.lvd142m" in names
    assert {"vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_siglip_224.webli"} <= set(names)
    assert not [n for n in names if "distilled" in n or "_rpn_" in n or "_xp_" in n]
    assert list_backbones("rwf_*") == [PACKAGED]
    assert list_backbones("no such*") == []


def original_format(model):
    """Write a timm ViT as the arrays of the original (flax) ViT checkpoint."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    out = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
    }
    for number in range(len(model.blocks)):
        source, target = f"blocks.{number}.", f"Transformer/encoderblock_{number}/"
        attention = target + "MultiHeadDotProductAttention_1/"
        qkv = state[source + "attn.qkv.weight"].reshape(3, heads, width // heads, width)
        bias = state[source + "attn.qkv.bias"].reshape(3, heads, width // heads)
        for index, key in enumerate(("query", "key", "value")):
            out[f"{attention}{key}/kernel"] = qkv[index].transpose(2, 0, 1)
            out[f"{attention}{key}/bias"] = bias[index]
        out[f"{attention}out/kernel"] = state[source + "attn.proj.weight"].T.reshape(
            heads, width // heads, width
        )
        out[f"{attention}out/bias"] = state[source + "attn.proj.bias"]
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{target}{theirs}/scale"] = state[f"{source}{ours}.weight"]
            out[f"{target}{theirs}/bias"] = state[f"{source}{ours}.bias"]
        for index in (0, 1):
            dense = f"{target}MlpBlock_3/Dense_{index}/"
            out[dense + "kernel"] = state[f"{source}mlp.fc{index + 1}.weight"].T
            out[dense + "bias"] = state[f"{source}mlp.fc{index + 1}.bias"]
    return out


def test_what_timm_has_and_is_not_supported_is_named_with_the_reason():
    others = unsupported_backbones("*dinov3*")
    assert others and all(name.startswith("convnext") for name in others)
    assert set(unsupported_backbones("vit_base_patch16_xp_224*").values()) == {
        "has blocks of type ParallelScalingBlock"
    }
    (why,) = unsupported_backbones("vit_large_patch16_sapiens2").values()
    assert why == "has attention with fewer heads of keys than of queries"
    assert not set(unsupported_backbones("*")) & set(list_backbones())
