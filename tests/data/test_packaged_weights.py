"""The packaged weights file, its model card, and the promise that no digit was drawn for it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import unicodedata
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import avalanche_rwf
from avalanche_rwf.models.backbone import PACKAGED, build_packaged_architecture

WEIGHTS = Path(avalanche_rwf.__file__).parent / "data" / f"{PACKAGED}.safetensors"
CARD = WEIGHTS.with_suffix(".md")
SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "pretrain_backbone.py"


@pytest.fixture(scope="module")
def script():
    """The pretraining script, imported by its path: examples are no part of the package."""
    spec = importlib.util.spec_from_file_location("pretrain_backbone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_file_is_small_enough_for_the_wheel():
    assert WEIGHTS.is_file()
    assert WEIGHTS.stat().st_size < 4_000_000


def test_every_tensor_is_finite_and_half_precision():
    tensors = load_file(str(WEIGHTS))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_metadata_says_what_loading_needs():
    with safe_open(str(WEIGHTS), "pt") as handle:
        metadata = handle.metadata()
    assert metadata["name"] == PACKAGED
    assert metadata["status"] == "final"
    assert json.loads(metadata["mean"]) == json.loads(metadata["std"]) == [0.5, 0.5, 0.5]
    assert metadata["interpolation"] == "bilinear"
    assert metadata["image_size"] == "32"
    assert float(metadata["crop_pct"]) == 1.0
    assert metadata["licence"] == "MIT"
    for key in ("architecture", "data", "recipe", "created_by"):
        assert metadata[key]


def test_weights_load_strictly_and_differ_from_random_ones():
    torch.manual_seed(0)
    model = build_packaged_architecture().eval()
    images = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        before = model(images)
        model.load_state_dict({k: v.float() for k, v in load_file(str(WEIGHTS)).items()})
        after = model(images)
    assert after.shape == (4, 160)
    assert bool(after.isfinite().all())
    assert not torch.allclose(before, after, atol=0.1)


def test_card_states_hash_and_size_of_this_file():
    card = CARD.read_text(encoding="utf-8")
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    assert f"{WEIGHTS.stat().st_size:,} bytes" in card


def test_card_states_licence_data_recipe_accuracy_and_command():
    card = CARD.read_text(encoding="utf-8")
    with safe_open(str(WEIGHTS), "pt") as handle:
        metadata = handle.metadata()
    for part in (metadata["data"], metadata["recipe"], metadata["created_by"]):
        assert part in card
    for heading in ("## Data", "## Recipe", "## Accuracy", "## Limits"):
        assert heading in card
    assert "MIT" in card
    assert "CIFAR-10, 10,000 test images" in card
    assert "random weights" in card


def test_no_glyph_is_a_digit(script: ModuleType):
    for glyph in script.GLYPHS:
        for point in glyph + unicodedata.normalize("NFKD", glyph):
            assert unicodedata.numeric(point, None) is None, glyph
    assert len(set(script.GLYPHS)) == len(script.GLYPHS)


@pytest.mark.parametrize("text", ["7", "²", "½", "①", "Ⅳ", "٣", "㎡", "⒈"])
def test_digits_in_any_form_are_recognised(script: ModuleType, text: str):
    assert script.is_digit_like(text)


def test_drawing_refuses_a_digit(script: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(script, "GLYPHS", "A7")
    with pytest.raises(ValueError, match="digits must not be drawn"):
        script.build_glyph_bank(("DejaVuSans.ttf",))


def test_glyph_batches_repeat_and_are_normalised(script: ModuleType):
    bank = script.build_glyph_bank(("DejaVuSans.ttf",))
    assert int(bank.counts.min()) >= 1
    first, second = (
        script.glyph_batch(bank, 20, torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[0].shape == (20, 3, 32, 32)
    assert float(first[0].min()) >= -1
    assert float(first[0].max()) <= 1


def test_held_out_fonts_are_not_trained_on_and_exist(script: ModuleType):
    assert set(script.HELD_OUT_FONTS) < set(script.FONTS)
    assert script.build_glyph_bank(script.HELD_OUT_FONTS).counts.min() >= 1
