"""Backbones: timm's vision transformers (:mod:`.families`), or the packaged one, frozen.

The weights come from the hub, from a local file or from the wheel; they are checked key by key, so
a model that is only partly loaded cannot happen. The image mean, standard deviation and
interpolation come from the model's own data configuration, and the SHA-256 of the weights names
them in results: published rows of "ViT-B/16 21k" differ by checkpoint, therefore the exact timm tag
is asked for and recorded.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import importlib.resources
import inspect
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
import timm.data
import timm.models
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.models.families import ViT, forms_of, pooling, unsupported_because
from avalanche_rwf.models.names import PACKAGED, checked_path
from avalanche_rwf.models.preprocessing import (
    KEYS,
    cfg_config,
    configure,
    data_config,
    metadata_config,
    plain_name,
    tag_config,
)
from avalanche_rwf.models.weights import (
    first_line,
    load_file,
    load_hub,
    weights_sha256,
)
from avalanche_rwf.utils.known import known
from avalanche_rwf.utils.validation import (
    LARGEST_IMAGE,
    By,
    Flag,
    Number,
    Text,
    Whole,
    takes,
)

__all__ = [
    "A_BACKBONE",
    "PACKAGED",
    "BackboneInfo",
    "backbone_info",
    "build_packaged_architecture",
    "check_backbone",
    "create_backbone",
    "image_misfit",
    "image_preparation",
    "list_backbones",
    "preparation_note",
    "unsupported_backbones",
    "weights_sha256",
]


_PACKAGED_ARCHITECTURE: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 160,
    "depth": 6,
    "num_heads": 5,
}
_SUPPORTED = (
    "supported are timm's VisionTransformer, Eva and Beit models with a plain patch embedding and "
    "standard blocks, as `avalanche-rwf list backbones` names them"
)
# Arguments of timm that create_backbone sets itself.
_RESERVED = (
    "num_classes",
    "in_chans",
    "global_pool",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "features_only",
    "cache_dir",
)
_INFO_ATTRIBUTE = "rwf_backbone_info"


@dataclass(frozen=True)
class BackboneInfo:
    """What a backbone is, as recorded with every result.

    :param name: exact timm tag for hub weights (`arch.tag`), else the name that was asked for.
    :param source: "packaged", "hub", "random", "file", or "given" for a model that create_backbone
        did not make.
    :param weights_file: base name of the local weight file, else None.
    :param sha256: `weights_sha256` of the model as loaded (float32, position embedding at
        `image_size`).
    :param image_size: side of the square input in pixels.
    :param patch_size: side of a patch in pixels.
    :param embed_dim: width D of the tokens.
    :param depth: number of blocks.
    :param num_prefix_tokens: class token, if there is one, plus register tokens.
    :param mean: per channel, of images scaled to [0, 1].
    :param std: per channel, of images scaled to [0, 1].
    :param interpolation: how images are resized, one of `INTERPOLATIONS`: "bicubic", or
        "bicubic-squash" where timm's crop mode of the tag is "squash".
    :param crop_pct: share of the resized image that the centre crop keeps, per side.
    """

    name: str
    source: str
    weights_file: str | None
    sha256: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_prefix_tokens: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float


@takes(image_size=Whole(most=LARGEST_IMAGE, optional=True), pretrained=Flag())
def create_backbone(
    name: str,
    weights: str | Path | None = None,
    image_size: int | None = None,
    pretrained: bool = True,
    data_config: str | Mapping[str, Any] | None = None,
    **timm_kwargs: Any,
) -> ViT:
    """Make a frozen backbone: head removed, eval mode, no parameter requires a gradient.

    `model(x)` maps images [B, 3, image_size, image_size] to the normalised class token [B, D]; a
    model without one keeps its own pooling.

    :param name: timm model name, best with its tag (`vit_base_patch16_224.augreg_in21k`), or
        `PACKAGED`. With hub weights a bare name that can stand for several sets of weights gives a
        warning that says which tag it means. `timm/` or `hf-hub:timm/` before it is left out.
    :param weights: local file that replaces the hub's or the packaged weights: `.safetensors`;
        `.pth`, `.pt`, `.bin` (read with `weights_only=True`: nothing in the file is executed); or
        `.npz` in the original ViT format. Half-precision files become float32.
    :param image_size: side of the input; the position embedding is resampled. Default: the model's
        own.
    :param pretrained: False gives random weights from torch's global generator (ignored when
        `weights` is given).
    :param data_config: how images are prepared, where the weights were trained otherwise than those
        of `name`: the tag of another timm model, or `mean`, `std`, `interpolation`, `crop_pct`.
    :param timm_kwargs: passed to timm, such as `depth=9`.
    :raises UsageError: unknown or unsupported model, weights that cannot be read or do not fit,
        image size that is not a multiple of the patch size, hub out of reach.
    """
    name = plain_name(name) if isinstance(name, str) else name
    arch = _check_name(name)
    if isinstance(data_config, str):
        data_config = tag_config(data_config)
    if "img_size" in timm_kwargs:
        if image_size is not None:
            raise UsageError("give the image size once, as image_size, not also as img_size.")
        image_size = timm_kwargs.pop("img_size")
    _check_arguments(timm_kwargs)
    path = None if weights is None else checked_path(weights)
    source = "file" if path else "random"
    if path is None and pretrained:
        source = "packaged" if arch == PACKAGED else "hub"
    if source == "hub":
        _warn_if_bare(name)
    if source == "file":
        _warn_if_unprepared(name, data_config or {})

    if image_size is not None:
        timm_kwargs["img_size"] = image_size
    # Loaded weights replace every random one, so building must not move the caller's random stream.
    with torch.random.fork_rng(devices=[], enabled=source != "random"):
        model = _build(name, timm_kwargs)
    vit: Any = check_backbone(model, name)
    metadata: Mapping[str, str] = {}
    if source == "hub":
        load_hub(model, name)
    elif source != "random":
        with contextlib.nullcontext(path) if path else _packaged_weights() as file:
            metadata = load_file(model, name, file, "patch_size" in timm_kwargs)
    if metadata and arch == PACKAGED:
        configure(model, metadata_config(metadata, path or Path(PACKAGED)))
    # Token pooling where there is a class token: methods read it, also of models that timm pools by
    # the mean.
    vit.reset_classifier(0, pooling(vit))
    model.requires_grad_(False)
    model.eval()
    if data_config is not None:
        configure(model, data_config)
    info = _describe(model, _exact_tag(model, name) if source == "hub" else name, source, path)
    setattr(model, _INFO_ATTRIBUTE, info)
    return model


def _packaged_weights() -> contextlib.AbstractContextManager[Path]:
    resource = importlib.resources.files("avalanche_rwf") / "data" / f"{PACKAGED}.safetensors"
    if not resource.is_file():
        raise UsageError(
            f"the packaged weights of {PACKAGED!r} are not installed; pass weights=FILE, or "
            "pretrained=False for random weights."
        )
    return importlib.resources.as_file(resource)


def build_packaged_architecture(**timm_kwargs: Any) -> VisionTransformer:
    """Build the packaged architecture with random weights, trainable: 32x32 RGB, patch 8, width
    160, 6 blocks, 5 heads.

    `model(x)` maps [B, 3, 32, 32] to the class token [B, 160]. `timm_kwargs` override single
    arguments of `VisionTransformer`, such as `depth=2` or `drop_path_rate=0.1`.
    """
    arguments = {**_PACKAGED_ARCHITECTURE, "num_classes": 0, "global_pool": "token", **timm_kwargs}
    model = VisionTransformer(**arguments)
    size = _PACKAGED_ARCHITECTURE["img_size"]
    model.pretrained_cfg = {
        "architecture": PACKAGED,
        "input_size": (3, size, size),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "num_classes": 0,
    }
    model.default_cfg = model.pretrained_cfg
    return model


def backbone_info(model: nn.Module) -> BackboneInfo:
    """Return what `create_backbone` recorded, or describe any supported timm model (source
    "given").

    :raises UsageError: the model is not a supported vision transformer.
    """
    info = getattr(model, _INFO_ATTRIBUTE, None)
    if isinstance(info, BackboneInfo):
        return info
    vit = check_backbone(model)
    return _describe(vit, _exact_tag(vit, type(vit).__name__), "given", None)


def image_preparation(name: str) -> dict[str, Any]:
    """How the backbone `name` wants its images: `image_size` and `preprocessing.KEYS`.

    No weights are fetched; of a timm model nothing is built.

    :raises UsageError: no such backbone.
    """
    name = plain_name(name) if isinstance(name, str) else name
    if _check_name(name) == PACKAGED:
        info = backbone_info(create_backbone(PACKAGED))
        return {key: getattr(info, key) for key in ("image_size", *KEYS)}
    cfg = timm.models.get_pretrained_cfg(name)
    return {"image_size": cfg.input_size[1], **cfg_config(cfg)}


@takes(pattern=Text())
def list_backbones(pattern: str = "*") -> list[str]:
    """Names that `create_backbone` takes and that match the wildcard `pattern`: the packaged one,
    then timm's tags.

    An architecture without published weights is listed by its bare name.
    """
    return [name for name in [PACKAGED, *_supported_names()] if fnmatch.fnmatch(name, pattern)]


def check_architecture(label: str, model: Any) -> ViT:
    """Return `model` if methods can put their prompts into it, whatever its images' size.

    :param label: begins the sentence of an error.
    :raises UsageError: as :func:`check_backbone`, but for the sizes.
    """
    if why := unsupported_because(model):
        raise UsageError(f"{label} {why}; {_SUPPORTED}.")
    return cast(ViT, model)


A_BACKBONE = By(check_architecture)
"""What a model takes as its backbone."""


def image_misfit(model: nn.Module, images: Tensor) -> str | None:
    """Why a backbone does not take images, in one sentence; None if it should.

    :param images: what was given as [B, 3, H, W].
    """
    embed = cast(Any, model.patch_embed)
    weight, kinds = embed.proj.weight, (torch.float16, torch.bfloat16)  # autocast takes both
    sides = list(embed.img_size) if embed.img_size and embed.strict_img_size else ["H", "W"]
    shape = list(images.shape)
    fits = len(shape) == 4 and shape[1] == weight.shape[1] and sides in (["H", "W"], shape[2:])
    if fits and images.dtype in (weight.dtype, *kinds):
        return None
    takes = f"{str(weight.dtype).removeprefix('torch.')} [B, {weight.shape[1]}, "
    takes += f"{sides[0]}, {sides[1]}]"
    kind = str(images.dtype).removeprefix("torch.")
    return f"images must be {takes} as the backbone takes them, not {kind} {shape}."


def check_backbone(model: nn.Module, name: str | None = None) -> ViT:
    """Return `model` if the package supports it, otherwise raise.

    :raises UsageError: not exactly one of timm's classes that :mod:`.families` knows, a patch
        embedding or blocks of another kind, an input that is not square RGB, or an image size that
        is not a multiple of the patch size.
    """
    label = "backbone" if name is None else f"backbone {name!r}"
    vit: Any = check_architecture(label, model)
    size, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if size is None or size[0] != size[1] or patch[0] != patch[1]:
        raise UsageError(
            f"{label} takes images of {size} in patches of {patch}; both must be square."
        )
    side, below = patch[0], size[0] // patch[0]
    if size[0] % side:
        raise UsageError(
            f"image_size={size[0]} is not a multiple of the patch size {side} of {label}; take "
            f"{max(1, below) * side} or {(below + 1) * side}."
        )
    return vit


# -----------------------------------------------------------------------------------------------
# names
def _arch(name: str) -> str:
    return name.split(".", 1)[0]


def _makes_vits(arch: str) -> bool:
    """Whether a model's module builds one of the families (cheap: nothing is built)."""
    module = vars(sys.modules[timm.models.model_entrypoint(arch).__module__])
    return any(forms_of(kind) for kind in module.values() if isinstance(kind, type))


def _tags(arch: str) -> list[str]:
    return list(timm.list_models(f"{arch}.*", pretrained=True))


def _check_name(name: str) -> str:
    """Return the architecture part of a known name, else raise with the nearest names."""
    if not isinstance(name, str) or not name:
        raise UsageError(f"the backbone is the name of a timm model, not {name!r}.")
    arch = _arch(name)
    if arch == PACKAGED and name != PACKAGED:
        raise UsageError(f"backbone {PACKAGED!r} has no tag; got {name!r}.")
    if arch == PACKAGED:
        return arch
    if not timm.is_model(arch):
        # From the index where it can tell: building every model takes seconds.
        indexed = (known("backbones") or {}).get("supported")
        names = indexed or [PACKAGED, *_supported_names()]
        near = nearest(arch, list(dict.fromkeys(map(_arch, names))))
        raise UsageError(f"unknown backbone {name!r}; {near}.")
    if name != arch and name not in _tags(arch):
        tags = [tag for tag in _tags(arch) or [arch] if tag in _supported_names()]
        if not tags:
            raise UsageError(f"backbone {arch!r} is not supported; {_SUPPORTED}.")
        raise UsageError(f"backbone {arch!r} has no tag {name!r}; {nearest(name, tags)}.")
    # Deprecated names are shims of another module; they are resolved and checked after building.
    if arch in timm.list_models(arch) and not _makes_vits(arch):
        raise UsageError(f"backbone {name!r} {_of_another_module(arch)}; {_SUPPORTED}.")
    return arch


def _warn_if_bare(name: str) -> None:
    """Warn when a bare name leaves the choice among several sets of weights to the timm version."""
    tags = _tags(name) if name == _arch(name) else []
    if len(tags) < 2:
        return
    cfg = timm.models.get_pretrained_cfg(name)
    exact = f"{name}.{cfg.tag}" if cfg is not None and cfg.tag else tags[0]
    others = ", ".join(repr(tag) for tag in tags if tag != exact)
    warnings.warn(
        f"the bare backbone name {name!r} stands for different weights in different versions of "
        f"timm: here it is {exact!r}; name that tag, or another one: {others}",
        UserWarning,
        stacklevel=4,
    )


def _warn_if_unprepared(name: str, given: Mapping[str, Any]) -> None:
    """Warn of weights of one's own where the tags of a bare name prepare images in several ways."""
    note = preparation_note(name, given)
    ways = {
        tuple(cfg_config(timm.models.get_pretrained_cfg(tag)).items())
        for tag in (_tags(name) if note else [])
    }
    if note and len(ways) > 1:
        warnings.warn(note.removesuffix("."), UserWarning, stacklevel=4)


def preparation_note(name: str, given: Mapping[str, Any]) -> str | None:
    """What to know of weights of one's own under a bare name, which does not say what images they
    were trained on; None for a tag, the packaged backbone, and where `given` has mean and std."""
    if {"mean", "std"} <= set(given):
        return None
    cfg = None if name == PACKAGED else timm.models.get_pretrained_cfg(name)
    if cfg is None or name != _arch(name):
        return None
    of = f"{name}.{cfg.tag}" if cfg.tag else name
    return (
        f"The images for weights of your own (--weights) are prepared as for {of!r}: mean "
        f"{tuple(cfg.mean)}, std {tuple(cfg.std)}. If the weights were trained otherwise, name "
        "their tag as the backbone, or give data_config (--data-config TAG, or --mean and --std)."
    )


def _exact_tag(model: nn.Module, default: str) -> str:
    cfg = getattr(model, "pretrained_cfg", None) or {}
    arch, tag = cfg.get("architecture"), cfg.get("tag")
    if not arch:
        return default
    return f"{arch}.{tag}" if tag else str(arch)


def _of_another_module(arch: str) -> str:
    module = timm.models.model_entrypoint(arch).__module__.rpartition(".")[2]
    return f"is not a timm VisionTransformer, Eva or Beit but of its module {module!r}"


@functools.lru_cache(maxsize=1)
def _survey() -> dict[str, str | None]:
    """Every model of timm's: why it is not supported, or None (about two seconds, once).

    Candidates are built with one tiny block.
    """
    found: dict[str, str | None] = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for arch in timm.list_models():
            module = timm.models.model_entrypoint(arch).__module__
            # The convolutional stems of these two are never supported and slow to build.
            stem = module.endswith(("vision_transformer_hybrid", "vitamin"))
            if stem or not _makes_vits(arch):
                found[arch] = _of_another_module(arch)
                continue
            try:
                model = timm.create_model(arch, **_TINY)
            except (TypeError, ValueError, AssertionError, RuntimeError):
                # Some sizes go with the number of blocks: the whole model, but without memory.
                with torch.device("meta"):
                    model = timm.create_model(arch, pretrained=False, num_classes=0)
            found[arch] = unsupported_because(model)
    return found


# 8 is the least width that rotary positions split into sine and cosine over two axes.
_TINY: Mapping[str, Any] = {
    "pretrained": False, "num_classes": 0, "depth": 1, "embed_dim": 8, "num_heads": 1,
}  # fmt: skip


def _supported_names() -> list[str]:
    return [
        name for arch, why in _survey().items() if why is None for name in _tags(arch) or [arch]
    ]


def unsupported_backbones(pattern: str) -> dict[str, str]:
    """timm's models that match the wildcard `pattern` and cannot be backbones: name -> why not.

    A pattern with a dot is of tags, one without matches architectures and their tags.
    """
    return {
        name: why
        for arch, why in _survey().items()
        if why is not None
        for name in ([arch] if fnmatch.fnmatch(arch, pattern) else _tags(arch))
        if fnmatch.fnmatch(name, pattern)
    }


# -----------------------------------------------------------------------------------------------
# building
_TIMM_TAKES: Mapping[str, Flag | Number | Whole] = {
    "init_values": Number(),
    "depth": Whole(),
    "num_heads": Whole(),
    "embed_dim": Whole(),
    "reg_tokens": Whole(least=0),
    "mlp_ratio": Number(above=0),
}


def _check_arguments(timm_kwargs: Mapping[str, Any]) -> None:
    """Check what timm itself takes as it comes: `qkv_bias="flase"` would be true, and -1 heads
    divide any width.

    :raises UsageError: one that `create_backbone` sets, or an argument of `VisionTransformer` of
        another type than its default, or out of range; None leaves timm's own.
    """
    reserved = [key for key in timm_kwargs if key in _RESERVED]
    if reserved:
        raise UsageError(
            f"backbone argument {reserved[0]!r} is set by create_backbone; it takes arguments of "
            "the timm model such as depth=9."
        )
    parameters = inspect.signature(VisionTransformer).parameters
    for key, value in timm_kwargs.items():
        default = parameters[key].default if key in parameters else None
        constraint = _TIMM_TAKES.get(key)
        if isinstance(default, bool):
            constraint = Flag()
        elif key.endswith("_rate") and isinstance(default, float):
            constraint = Number(least=0, below=1)
        wanted = ""
        if constraint is not None:
            wanted = "" if constraint.fits(value) else constraint.said()
        elif isinstance(value, bool) and default is not None:  # to Python it is 1 or 0
            wanted = "no truth value"
        if value is not None and wanted:
            raise UsageError(f"backbone argument {key}={value!r} is wrong: it takes {wanted}.")


def _build(name: str, timm_kwargs: dict[str, Any]) -> nn.Module:
    try:
        if name == PACKAGED:
            return build_packaged_architecture(**timm_kwargs)
        return timm.create_model(name, pretrained=False, num_classes=0, **timm_kwargs)
    except Exception as error:  # whatever timm and torch make of an argument that they do not take
        shown = ", ".join(f"{key}={value!r}" for key, value in timm_kwargs.items()) or "none"
        raise UsageError(
            f"backbone {name!r} cannot be built with these arguments ({shown}): "
            f"{first_line(error)}."
        ) from error


def _describe(model: Any, name: str, source: str, path: Path | None) -> BackboneInfo:
    return BackboneInfo(
        name=name,
        source=source,
        weights_file=None if path is None else path.name,
        sha256=weights_sha256(model),
        image_size=int(model.patch_embed.img_size[0]),
        patch_size=int(model.patch_embed.patch_size[0]),
        embed_dim=int(model.embed_dim),
        depth=len(model.blocks),
        num_prefix_tokens=int(model.num_prefix_tokens),
        **data_config(model),
    )
