"""Weights from files of every format and from the hub. Nothing here touches the network."""

from __future__ import annotations

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

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import (
    backbone_info,
    create_backbone,
    weights_sha256,
)

from .tiny import SMALL, TINY, load, normal, same


@pytest.fixture(scope="module")
def reference():
    return normal()


# ---------------------------------------------- weight files
def test_a_safetensors_file_gives_its_weights(reference, tmp_path):
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


def test_unreadable_files_are_refused(tmp_path):
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


def test_no_network_says_what_to_do(monkeypatch):
    def fetch(*args, **kwargs):
        raise ConnectionError("name or service not known\nmore")

    monkeypatch.setattr(timm.models, "load_pretrained", fetch)
    with pytest.raises(UsageError, match=r"from the hub \(ConnectionError: .*weights=FILE"):
        create_backbone(f"{TINY}.augreg_in21k", image_size=32, **SMALL)


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
