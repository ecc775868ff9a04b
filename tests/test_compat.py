"""The patch of Avalanche's vision transformer: narrow, undone, and loud when it no longer fits."""

import importlib
import sys
import warnings

import pytest
import torch
from avalanche.models import vit as av_vit
from avalanche.training.supervised.l2p import LearningToPrompt

from avalanche_rwf.compat import import_timm_vit, timm_compat

SMALL = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 2}


def build(**kwargs):
    return av_vit.create_model("vit_tiny_patch16_224", pretrained=False, **kwargs)


def test_raw_class_fails_on_installed_timm():
    """When this test fails, Avalanche or timm was repaired and the patch can go."""
    import_timm_vit()
    with pytest.raises(TypeError, match=r"PretrainedCfg|pretrained_custom_load"):
        LearningToPrompt(model_name="vit_tiny_patch16_224", pretrained=False, num_classes=4)


def test_builds_avalanches_own_class_at_any_size():
    with timm_compat(**SMALL) as module:
        model = build(num_classes=4, prompt_pool=True, pool_size=6, prompt_length=3, top_k=2)
    assert type(model) is module.ViTWithPrompt
    assert model.pos_embed.shape == (1, 4 + 1 + 3 * 2, 64)
    assert len(model.blocks) == 2 and model.head.out_features == 4
    out = model(torch.randn(2, 3, 32, 32), cls_features=torch.randn(2, 64))
    assert out["x"].shape == (2, 11, 64)


def test_factory_sizes_are_kept_without_overrides():
    with timm_compat(depth=1):
        model = build(num_classes=4)
    assert model.embed_dim == 192 and model.patch_embed.grid_size == (14, 14)


def test_local_checkpoint_loads_and_prompts_stay_new(tmp_path):
    with timm_compat(**SMALL):
        source = build(num_classes=1000)
        path = tmp_path / "weights.pth"
        torch.save(source.state_dict(), path)
        overlay = {"file": str(path), "custom_load": False}
        with timm_compat(**SMALL, pretrained_cfg_overlay=overlay):
            # 1000 classes is where timm's own default would insist on a strict load.
            model = av_vit.create_model(
                "vit_tiny_patch16_224", pretrained=True, num_classes=1000,
                prompt_pool=True, prompt_key=True, pool_size=4, prompt_length=1, top_k=2,
            )  # fmt: skip
    torch.testing.assert_close(
        model.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight, rtol=0, atol=0
    )
    assert model.prompt.prompt.abs().max() > 0


def test_touches_two_names_only_and_restores_them():
    module = import_timm_vit()
    before = dict(vars(module))
    with timm_compat(**SMALL):
        changed = {k for k, v in vars(module).items() if before.get(k) is not v}
    assert changed == {"resolve_pretrained_cfg", "build_model_with_cfg"}
    assert dict(vars(module)) == before


def test_restores_on_exception():
    module = import_timm_vit()
    before = dict(vars(module))
    with pytest.raises(KeyError), timm_compat(**SMALL):
        raise KeyError("inside")
    assert dict(vars(module)) == before


@pytest.mark.parametrize("name", ["resolve_pretrained_cfg", "build_model_with_cfg"])
def test_says_so_when_upstream_changes(monkeypatch, name):
    monkeypatch.delattr(import_timm_vit(), name)
    with pytest.raises(RuntimeError, match=rf"avalanche-lib [\d.]+ with timm [\d.]+.* no {name}"):
        timm_compat().__enter__()


OLD_NAMES = ("timm.models.helpers", "timm.models.layers")


def forget(monkeypatch, *names):
    """Make the next import of these modules a first import; what was loaded comes back after."""
    import avalanche.models

    module = import_timm_vit()
    monkeypatch.setattr(avalanche.models, "timm_vit", module)
    for name in (*names, module.__name__):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_says_so_when_timm_drops_its_old_module_names(monkeypatch):
    forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "timm.models.helpers", None)
    with pytest.raises(RuntimeError, match=r"avalanche-lib [\d.]+ with timm [\d.]+.*helpers"):
        import_timm_vit()


def test_silences_the_two_import_warnings_and_no_other(monkeypatch):
    forget(monkeypatch, *OLD_NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_timm_vit().__name__ == "avalanche.models.timm_vit"
    with pytest.warns(FutureWarning, match="another"):
        warnings.warn("another", FutureWarning, stacklevel=1)


def test_there_are_warnings_to_silence(monkeypatch):
    forget(monkeypatch, *OLD_NAMES)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        importlib.import_module("avalanche.models.timm_vit")
    assert {"helpers" in str(w.message) or "layers" in str(w.message) for w in seen} == {True}
    assert {w.category for w in seen} <= {FutureWarning, DeprecationWarning}
