"""What a backbone sees of an image, against timm's own transform for evaluation."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from avalanche_rwf.benchmarks import images
from avalanche_rwf.benchmarks.images import Geometry, Normalisation, load_pixels
from avalanche_rwf.benchmarks.registry import create_benchmark
from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import (
    PACKAGED,
    backbone_info,
    create_backbone,
    list_backbones,
    preparation_note,
)
from avalanche_rwf.models.preprocessing import cfg_config, data_config, plain_name

TINY = {"pretrained": False, "depth": 1, "embed_dim": 16, "num_heads": 2}


def config_of(tag):
    cfg = timm.models.get_pretrained_cfg(tag).to_dict()
    found = timm.data.resolve_data_config(pretrained_cfg=cfg)
    return tuple(sorted(found.items()))


def by_config():
    """One tag of each data configuration that a listed tag has; inputs that are not square are
    refused by `create_backbone`."""
    tags = {config_of(tag): tag for tag in list_backbones() if tag != PACKAGED}
    return {c: tag for c, tag in tags.items() if len(set(dict(c)["input_size"][1:])) == 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    for number, (width, height) in enumerate([(300, 100), (97, 211), (640, 481), (30, 20)]):
        coarse = random.randint(0, 256, (7, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def test_every_listed_tag_sees_what_timm_shows_it(files):
    configs = by_config()
    assert {dict(config)["crop_mode"] for config in configs} >= {"center", "squash"}
    for config, tag in configs.items():
        known = dict(config)
        theirs = timm.data.create_transform(**known, is_training=False)
        # The configuration alone decides, so that nothing large is built.
        ours = cfg_config(timm.models.get_pretrained_cfg(tag))
        size = known["input_size"][1]
        seen = dataclasses.make_dataclass("Seen", ["image_size", *ours])(size, **ours)
        pixels, bad, _ = load_pixels(files, Geometry.of(seen), 10**9)
        unkept, _, _ = load_pixels(files, Geometry.of(seen), 0)
        assert not bad
        for number, path in enumerate(files):
            expected = theirs(Image.open(path).convert("RGB"))
            assert torch.equal(pixels[number], unkept[number])
            got = Normalisation(seen.mean, seen.std)(pixels[number])
            torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5, msg=tag)
            levels = expected * torch.tensor(seen.std)[:, None, None]
            levels = (levels + torch.tensor(seen.mean)[:, None, None]) * 255
            assert torch.equal(levels.round().to(torch.uint8), pixels[number]), tag


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("size", [32, 50])
def test_crop_modes_and_other_sizes_are_timms(files, mode, crop_pct, size):
    mean = (0.48, 0.45, 0.4)
    theirs = timm.data.create_transform(
        (3, size, size), interpolation="bicubic", crop_pct=crop_pct, crop_mode=mode, mean=mean,
        std=(1, 1, 1),
    )  # fmt: skip
    name = "bicubic" if mode == "center" else f"bicubic-{mode}"
    fields = {"image_size": size, "crop_pct": crop_pct, "interpolation": name, "mean": mean}
    seen = dataclasses.make_dataclass("Seen", list(fields))(**fields)
    for path in files:
        image = Image.open(path)
        expected = (theirs(image) + torch.tensor(mean)[:, None, None]) * 255
        assert np.array_equal(Geometry.of(seen)(image), expected.round().to(torch.uint8).numpy())


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (3, 1), (2, 2), (1, 90), (700, 3)])
def test_images_of_a_few_pixels_and_lines_are_timms(sides, mode):
    theirs = timm.data.create_transform((3, 24, 24), crop_mode=mode, mean=(0, 0, 0), std=(1, 1, 1))
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (*sides, 3), dtype=np.uint8))
    ours = Geometry(24, 0.875, "bilinear" if mode == "center" else f"bilinear-{mode}")
    if mode == "border" and max(sides) > 24 * min(sides):
        for transform in (ours, theirs):  # its short side would have no pixel
            with pytest.raises(ValueError, match="must be > 0"):
                transform(image)
        return
    assert np.array_equal(ours(image), (theirs(image) * 255).round().to(torch.uint8).numpy())


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos"])
@pytest.mark.parametrize("sides", [(1, 150), (151, 1), (5, 333), (700, 3), (9, 100)])
def test_a_line_that_would_fill_the_memory_is_timms_to_a_grey_level(
    sides, interpolation, monkeypatch
):
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (*sides, 3), dtype=np.uint8))
    for size, crop_pct in ((32, 1.0), (33, 0.9)):
        geometry = Geometry(size, crop_pct, interpolation)
        whole = geometry(image)
        with monkeypatch.context() as patch:
            patch.setattr(images, "_MOST_PIXELS", 0)
            middle = geometry(image)
        assert middle.shape == whole.shape
        assert np.abs(middle.astype(int) - whole.astype(int)).max() <= 1
    line = Image.new("L", (1, 60_000), 7)
    assert (Geometry(224)(line) == 7).all()


def test_a_squashed_image_keeps_its_edges_from_the_tag_to_the_stream(tmp_path):
    tag = "vit_base_patch16_clip_384.openai_ft_in12k_in1k"
    backbone = create_backbone(tag, **TINY, image_size=32)
    info = backbone_info(backbone)
    assert info.interpolation == "bicubic-squash"
    for split in ("train", "test"):
        for name, edge in (("left", slice(0, 90)), ("right", slice(210, 300))):
            values = np.full((100, 300, 3), 128, np.uint8)
            values[:, edge] = (255, 0, 0)
            (tmp_path / split / name).mkdir(parents=True)
            Image.fromarray(values).save(tmp_path / split / name / "0.png")
    theirs = timm.data.create_transform(
        **timm.data.resolve_model_data_config(backbone, {"input_size": (3, 32, 32)})
    )
    copied = {key: getattr(info, key) for key in ("mean", "std", "interpolation", "crop_pct")}
    for given in ({"backbone": backbone}, {"image_size": 32, **copied}):
        benchmark = create_benchmark(f"folder:{tmp_path}", seed=0, **given)
        for experience in benchmark.test_stream:
            image, label, _ = experience.dataset[0]
            path = tmp_path / "test" / benchmark.class_names[label] / "0.png"
            torch.testing.assert_close(image, theirs(Image.open(path)), atol=2e-6, rtol=1e-5)


def test_what_is_given_is_what_timm_says_of_the_model(tmp_path):
    own = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bilinear-squash"}
    model = create_backbone("vit_tiny_patch16_224", **TINY, data_config=own)
    resolved = timm.data.resolve_model_data_config(model)
    assert (resolved["mean"], resolved["std"]) == (own["mean"], own["std"])
    assert (resolved["interpolation"], resolved["crop_mode"]) == ("bilinear", "squash")
    assert data_config(model) == {**own, "crop_pct": 0.9}
    dino = create_backbone(
        "vit_tiny_patch16_224", **TINY, data_config="hf-hub:timm/vit_small_patch16_224.dino"
    )
    assert backbone_info(dino).mean == (0.485, 0.456, 0.406)
    for wrong in ({"means": 1}, {"mean": (1, 2)}, {"interpolation": "random"}, "vit_none.x"):
        with pytest.raises(UsageError, match="data_config"):
            create_backbone("vit_tiny_patch16_224", **TINY, data_config=wrong)


def test_a_bare_name_for_weights_of_ones_own_says_how_images_are_prepared(tmp_path):
    name, tag = "vit_tiny_patch16_224", "vit_tiny_patch16_224.augreg_in21k"
    said = preparation_note(name, {"mean": (0, 0, 0)})
    assert said is not None and "mean (0.5, 0.5, 0.5)" in said and "--data-config TAG" in said
    assert preparation_note(tag, {}) is None and preparation_note(PACKAGED, {}) is None
    # In Python, where the tags of the name differ: those of "tiny" do not.
    several, small = "vit_small_patch16_224", {k: v for k, v in TINY.items() if k != "pretrained"}
    torch.save(create_backbone(several, **TINY).state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"prepared as for 'vit_small_patch16_224\.augreg"):
        create_backbone(several, weights=tmp_path / "w.pth", **small)
    known = {"mean": (0.4, 0.4, 0.4), "std": (0.2, 0.2, 0.2)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create_backbone(name, weights=tmp_path / "w.pth", **small)
        create_backbone(f"{several}.dino", weights=tmp_path / "w.pth", **small)
        for given in (known, f"{several}.dino"):
            create_backbone(several, weights=tmp_path / "w.pth", data_config=given, **small)


def test_names_with_the_hubs_prefix():
    for prefix in ("timm/", "hf-hub:timm/", "hf_hub:timm/", ""):
        name = f"{prefix}vit_tiny_patch16_224.augreg_in21k"
        assert plain_name(name) == "vit_tiny_patch16_224.augreg_in21k"
        assert backbone_info(create_backbone(name, **TINY)).name == plain_name(name)


@pytest.mark.parametrize("key", ["teacher", "state_dict", "model", "net", "module", None])
def test_checkpoints_of_others_load_or_say_which_key_to_save(key, tmp_path):
    state = create_backbone("vit_tiny_patch16_224", **TINY).state_dict()
    small = {k: v for k, v in TINY.items() if k != "pretrained"}
    build = {"name": "vit_tiny_patch16_224", "data_config": {"mean": [0.5] * 3}, **small}
    file = tmp_path / "w.pth"
    wrapped = {f"module.backbone.{k}": v for k, v in state.items()}
    if key is None:
        torch.save({"a": state, "b": state, "epoch": 3}, file)
        with pytest.raises(UsageError, match=r"several models, under 'a', 'b'; save the one"):
            create_backbone(weights=file, **build)
        return
    other = {"student": wrapped} if key == "teacher" else {"optimizer": {"state": {}}}
    torch.save({**other, "epoch": 3, key: wrapped}, file)
    loaded = create_backbone(weights=file, **build)
    assert torch.equal(loaded.norm.weight, state["norm.weight"])


@pytest.mark.parametrize("name", ["vit_smal_patch14_dinov2", "vit_bas_patch16_siglip_224", "beit"])
def test_suggested_names_are_taken(name):
    with pytest.raises(UsageError, match=r"nearest names|known names") as error:
        create_backbone(name, pretrained=False)
    suggested = str(error.value).split("'")[3::2]
    assert suggested
    supported = set(list_backbones())
    for one in suggested:
        assert any(known.split(".")[0] == one.split(".")[0] for known in supported)
