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
import hashlib
import importlib.resources
import inspect
import math
import pickle
import re
import socket
import sys
import urllib.parse
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
import safetensors.torch
import timm
import timm.data
import timm.models
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.models.families import ViT, form_of, forms_of, pooling, unsupported_because
from avalanche_rwf.models.preprocessing import (
    KEYS,
    cfg_config,
    configure,
    data_config,
    metadata_config,
    plain_name,
    tag_config,
)
from avalanche_rwf.utils.validation import (
    LARGEST_IMAGE,
    check_flag,
    check_text,
    check_whole,
    is_finite,
    is_number,
    is_whole,
)

__all__ = [
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

PACKAGED = "rwf_vit_mini_patch8_32"

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
# What create_backbone decides itself; letting them through would change the contract silently.
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
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".npz")
# Where a file has several models: averaged weights and teachers are what their authors evaluate.
_WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
# A classifier is no part of a backbone, nor is a pooling layer behind a class token.
_IGNORED_KEYS = ("head.", "head_dist.", "heads.", "fc.", "classifier.", "pre_logits.", "attn_pool.")
_ANCHOR = "patch_embed.proj.weight"
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
    reserved = [key for key in timm_kwargs if key in _RESERVED]
    if reserved:
        raise UsageError(
            f"backbone argument {reserved[0]!r} is set by create_backbone; it takes arguments of "
            "the timm model such "
            "as depth=9."
        )
    check_whole("image_size", image_size, most=LARGEST_IMAGE, optional=True)
    check_flag("pretrained", pretrained)
    path = None if weights is None else _check_path(weights)
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
    if source == "packaged":
        resource = importlib.resources.files("avalanche_rwf") / "data" / f"{PACKAGED}.safetensors"
        if not resource.is_file():
            raise UsageError(
                f"the packaged weights of {PACKAGED!r} are not installed; pass weights=FILE, or "
                "pretrained=False for "
                "random weights."
            )
        with importlib.resources.as_file(resource) as packaged:
            _load_file(model, name, packaged, timm_kwargs)
    elif path is not None:
        _load_file(model, name, path, timm_kwargs)
    elif source == "hub":
        _load_hub(model, name)

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


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 over the module's state: name, dtype, shape and raw bytes of every tensor, sorted by
    name.

    Parameters and persistent buffers count; the order in which they are registered, the device and
    the memory layout do not.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        # As bytes, because numpy has no bfloat16.
        digest.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def list_backbones(pattern: str = "*") -> list[str]:
    """Names that `create_backbone` takes and that match the wildcard `pattern`: the packaged one,
    then timm's tags.

    An architecture without published weights is listed by its bare name.
    """
    check_text("pattern", pattern)
    return [name for name in [PACKAGED, *_supported_names()] if fnmatch.fnmatch(name, pattern)]


def _label(name: str | None) -> str:
    return repr(name) if name is not None else "the given model"


def check_architecture(model: nn.Module, name: str | None = None) -> ViT:
    """Return `model` if methods can put their prompts into it, whatever its images' size.

    :raises UsageError: as :func:`check_backbone`, but for the sizes.
    """
    why = unsupported_because(model)
    if why:
        raise UsageError(f"backbone {_label(name)} {why}; {_SUPPORTED}.")
    return cast(ViT, model)


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
    label = _label(name)
    vit: Any = check_architecture(model, name)
    size, patch = vit.patch_embed.img_size, vit.patch_embed.patch_size
    if size is None or size[0] != size[1] or patch[0] != patch[1]:
        raise UsageError(
            f"backbone {label} takes images of {size} in patches of {patch}; both must be square."
        )
    if size[0] % patch[0]:
        raise UsageError(
            f"image_size={size[0]} is not a multiple of the patch size {patch[0]} of backbone "
            f"{label}; take "
            f"{max(1, size[0] // patch[0]) * patch[0]} or {(size[0] // patch[0] + 1) * patch[0]}."
        )
    return vit


# -----------------------------------------------------------------------------------------------
# names
def _arch(name: str) -> str:
    return name.split(".", 1)[0]


def _timm_names() -> list[str]:
    """Every timm model in a module that builds one of the families (cheap: nothing is built)."""
    return [name for name in timm.list_models() if _makes_vits(name)]


def _makes_vits(arch: str) -> bool:
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
        known = list(dict.fromkeys([PACKAGED, *map(_arch, _supported_names())]))
        raise UsageError(f"unknown backbone {name!r}; {nearest(arch, known)}.")
    if name != arch and name not in _tags(arch):
        known = [tag for tag in _tags(arch) or [arch] if tag in _supported_names()]
        if not known:
            raise UsageError(f"backbone {arch!r} is not supported; {_SUPPORTED}.")
        raise UsageError(f"backbone {arch!r} has no tag {name!r}; {nearest(name, known)}.")
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
        "timm: here it is "
        f"{exact!r}; name that tag, or another one: {others}",
        UserWarning,
        stacklevel=3,
    )


def _warn_if_unprepared(name: str, given: Mapping[str, Any]) -> None:
    """Warn of weights of one's own where the tags of a bare name prepare images in several ways."""
    note = preparation_note(name, given)
    ways = {
        tuple(cfg_config(timm.models.get_pretrained_cfg(tag)).items())
        for tag in (_tags(name) if note else [])
    }
    if note and len(ways) > 1:
        warnings.warn(note.removesuffix("."), UserWarning, stacklevel=3)


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
                # Some sizes go together with the number of blocks: whole, but without memory.
                with torch.device("meta"):
                    model = timm.create_model(arch, pretrained=False, num_classes=0)
            found[arch] = unsupported_because(model)
    return found


# The width is the least that rotary positions can be split into sine and cosine over two axes with.
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
    check_text("pattern", pattern)
    return {
        name: why
        for arch, why in _survey().items()
        if why is not None
        for name in ([arch] if fnmatch.fnmatch(arch, pattern) else _tags(arch))
        if fnmatch.fnmatch(name, pattern)
    }


# -----------------------------------------------------------------------------------------------
# building
def _check_arguments(timm_kwargs: Mapping[str, Any]) -> None:
    """Check what timm itself takes as it comes: `qkv_bias="flase"` would be true, and -1 heads
    divide any width.

    :raises UsageError: an argument of `VisionTransformer` of another type than its default, or out
        of range; None leaves timm's own.
    """
    parameters = inspect.signature(VisionTransformer).parameters
    for key, value in timm_kwargs.items():
        default = parameters[key].default if key in parameters else None
        number = is_number(value)
        takes, fits = "", True
        if key == "init_values":
            takes, fits = "a finite number", is_finite(value)
        elif isinstance(default, bool):
            takes, fits = "True or False", isinstance(value, bool)
        elif key in ("depth", "num_heads", "embed_dim"):
            takes = "a whole number of at least 1"
            fits = is_whole(value) and value >= 1
        elif key == "reg_tokens":
            takes = "a whole number of at least 0"
            fits = is_whole(value) and value >= 0
        elif key.endswith("_rate") and isinstance(default, float):
            takes, fits = "a share from 0 to below 1", number and 0 <= value < 1
        elif key == "mlp_ratio":
            takes, fits = "a number above 0", number and 0 < value < math.inf
        elif isinstance(value, bool) and default is not None:  # to Python it is 1 or 0
            takes, fits = "no truth value", False
        if value is not None and not fits:
            raise UsageError(f"backbone argument {key}={value!r} is wrong: it takes {takes}.")


def _build(name: str, timm_kwargs: dict[str, Any]) -> nn.Module:
    _check_arguments(timm_kwargs)
    try:
        if name == PACKAGED:
            return build_packaged_architecture(**timm_kwargs)
        return timm.create_model(name, pretrained=False, num_classes=0, **timm_kwargs)
    except Exception as error:  # whatever timm and torch make of an argument that they do not take
        shown = ", ".join(f"{key}={value!r}" for key, value in timm_kwargs.items()) or "none"
        raise UsageError(
            f"backbone {name!r} cannot be built with these arguments ({shown}): "
            f"{_first_line(error)}."
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


# -----------------------------------------------------------------------------------------------
# weights
def _check_path(weights: str | Path) -> Path:
    if not isinstance(weights, (str, Path)):
        raise UsageError(f"weights must be the path of a file or None, not {weights!r}.")
    path = Path(weights)
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"weights file {str(path)!r} is none of {', '.join(_SUFFIXES)}.")
    try:
        there = path.is_file()
    except OSError:  # a name that the system does not take
        there = False
    if not there:
        raise UsageError(f"weights file {str(path)!r} does not exist or is not a file.")
    return path


def _load_hub(model: Any, name: str) -> None:
    """Fetch the weights that timm's configuration names and load them, checked by `_fit`."""

    def fit(state: Mapping[str, Any], target: Any) -> dict[str, Tensor]:
        return _fit(state, target, name, "the hub's weights", hub=True)

    cfg = dict(model.pretrained_cfg)
    try:
        # num_classes as in the configuration: timm then leaves the classifier alone, which _fit has
        # dropped.
        with _no_vain_retries():
            timm.models.load_pretrained(
                model, cfg, num_classes=cfg.get("num_classes", 0), filter_fn=fit, strict=True
            )
    except UsageError:
        raise
    except (
        Exception
    ) as error:  # the hub's client has no common base for "offline", "not found", "cut off"
        raise UsageError(
            f"cannot get the weights of backbone {name!r} from the hub ({type(error).__name__}: "
            f"{_first_line(error)}); "
            "pass weights=FILE with a local copy, or pretrained=False for random weights."
        ) from error


@contextlib.contextmanager
def _no_vain_retries() -> Iterator[None]:
    """Tell the hub's client that it is offline where its host has no address (it retries for 45 s).

    Weights in the client's cache are still found. Behind a proxy the host need not resolve here.
    """
    try:
        from huggingface_hub import constants
    except ImportError:  # timm says what is missing
        yield
        return
    before = constants.HF_HUB_OFFLINE
    if not urllib.request.getproxies():
        try:
            socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, None)
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_file(
    model: Any, name: str, path: Path, timm_kwargs: Mapping[str, Any]
) -> None:
    """Load a local file into `model`; the packaged architecture takes mean and std from the file's
    metadata."""
    if path.suffix.lower() == ".npz":
        _load_npz(model, name, path)
        return
    if path.suffix.lower() == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _read_pickle(path), {}
    fitted = _fit(state, model, name, f"weights file {str(path)!r}", "patch_size" in timm_kwargs)
    model.load_state_dict(fitted, strict=True)
    if _arch(name) == PACKAGED:
        configure(model, metadata_config(metadata, path))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return safetensors.torch.load_file(str(path)), metadata
    except Exception as error:  # SafetensorError derives from Exception alone
        raise UsageError(
            f"weights file {str(path)!r} cannot be read as safetensors ({_first_line(error)})."
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"weights file {str(path)!r} holds more than tensors, or is no torch file, and "
            "nothing in it was executed; "
            "save its state_dict alone, best as .safetensors."
        ) from error
    except Exception as error:  # a damaged file leads PyTorch's reader anywhere
        raise UsageError(
            f"weights file {str(path)!r} cannot be read by torch.load ({_first_line(error)})."
        ) from error


def _load_npz(model: Any, name: str, path: Path) -> None:
    """Load the original ViT's format through timm, after making sure that it is what timm
    expects."""
    if not hasattr(model, "load_pretrained"):
        raise UsageError(
            f"weights file {str(path)!r} is in the original ViT format, which backbone {name!r} "
            "has no reader for; give it as .safetensors or .pth."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = set(archive.files)
    # TypeError: of one array, as .npy, by another name.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UsageError(
            f"weights file {str(path)!r} cannot be read as an .npz archive of plain arrays "
            f"({_first_line(error)})."
        ) from error
    if not any(key.endswith("embedding/kernel") for key in keys):
        raise UsageError(
            f"weights file {str(path)!r} is not in the original ViT format: it has no "
            "'embedding/kernel'; its keys "
            f"begin {_some(sorted(keys))}."
        )
    numbers = [re.search(r"encoderblock_(\d+)/", key) for key in keys]
    blocks = len({match.group(1) for match in numbers if match})
    # timm reads as many blocks as the model has and would leave the rest of the file unused.
    if blocks and blocks != len(model.blocks):
        raise UsageError(
            f"weights file {str(path)!r} does not fit backbone {name!r}: it has {blocks} blocks, "
            "the model "
            f"{len(model.blocks)}."
        )
    with torch.no_grad():
        for parameter in model.parameters():  # whatever timm does not set stays visible
            parameter.fill_(float("nan"))
    try:
        model.load_pretrained(str(path))
    except KeyError as error:
        raise UsageError(
            f"weights file {str(path)!r} does not fit backbone {name!r}: 1 missing or more "
            f"({_first_line(error)})."
        ) from error
    except Exception as error:  # whatever NumPy, zipfile and timm make of the arrays
        raise UsageError(
            f"weights file {str(path)!r} does not fit backbone {name!r} ({_first_line(error)})."
        ) from error
    infinite = [key for key, value in model.named_parameters() if torch.isinf(value).any()]
    if infinite:
        raise UsageError(
            f"weights file {str(path)!r} holds numbers that are not finite ({_some(infinite)})."
        )
    unset = [key for key, value in model.named_parameters() if torch.isnan(value).any()]
    if unset:
        raise UsageError(
            f"weights file {str(path)!r} does not fit backbone {name!r}: {len(unset)} missing "
            f"({_some(unset)})."
        )


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, in memory, and has a value of its own for each place.

    A file of a few bytes can hold one that is expanded to any size.
    """
    return (
        tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _unwrap(state: Any, label: str) -> dict[str, Tensor]:
    """Take the tensors out of the usual wrappers ({"state_dict": ...}, "module." in front of every
    key)."""
    for _ in range(3):
        if not isinstance(state, Mapping) or _has_anchor(state):
            break
        models = {str(k): v for k, v in state.items() if _has_anchor(v, deep=True)}
        models = models or {k: state[k] for k in _WRAPPERS if isinstance(state.get(k), Mapping)}
        named = [k for k in _WRAPPERS if k in models]
        if len(models) > 1 and not named:
            raise UsageError(
                f"{label} holds several models, under {_some(list(models))}; save the one you mean "
                "alone."
            )
        if not models:
            break
        state = state[named[0]] if named else next(iter(models.values()))
    if not isinstance(state, Mapping):
        raise UsageError(f"{label} holds a {type(state).__name__}, not a dictionary of tensors.")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(
            f"{label} holds no tensors; its keys are {_some([str(k) for k in state])}."
        )
    prefixes = sorted({key[: -len(_ANCHOR)] for key in tensors if key.endswith(_ANCHOR)})
    if not prefixes or "" in prefixes:
        return tensors
    if len(prefixes) > 1:
        raise UsageError(
            f"{label} holds several models ({_some(prefixes)}); save the one you mean alone."
        )
    start = prefixes[0]
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def _has_anchor(state: Any, deep: bool = False) -> bool:
    """Whether a dictionary has a ViT's patch embedding, or one in it has."""
    if not isinstance(state, Mapping):
        return False
    here = any(isinstance(key, str) and key.endswith(_ANCHOR) for key in state)
    return here or (deep and any(_has_anchor(value) for value in state.values()))


def _fit(
    state: Any,
    model: Any,
    name: str,
    label: str,
    resize_patches: bool = False,
    hub: bool = False,
) -> dict[str, Tensor]:
    """Convert a state dictionary to the model's own keys, shapes and float32, or say what does not
    fit."""
    found = _unwrap(state, label)
    odd = [key for key, value in found.items() if not _is_plain(value)]
    if odd:
        raise UsageError(
            f"{label} holds tensors that are not dense and whole ({_some(odd)}); save its "
            "state_dict as .safetensors."
        )
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in found.items()
    }
    wanted = model.state_dict()
    problems: list[str] = []
    patches = tensors.get(_ANCHOR)
    # timm would resample the patches silently; only somebody who asks for another patch size wants
    # that.
    if (
        patches is not None
        and patches.ndim == 4
        and not (resize_patches or hub)
        and patches.shape[2:] != wanted[_ANCHOR].shape[2:]
    ):
        problems.append(f"1 of another shape ({_shapes(_ANCHOR, patches, wanted)})")
    else:
        try:
            form = form_of(model.blocks[0])
            tensors = form.convert(tensors, model, **form.convert_options)
        except (RuntimeError, ValueError, AssertionError, KeyError, IndexError, TypeError) as error:
            problems.append(
                f"its position or patch embedding cannot be resampled ({_first_line(error)})"
            )
    tensors = {
        key: value
        for key, value in tensors.items()
        if key in wanted or not key.startswith(_IGNORED_KEYS)
    }
    # Behind a class token it is dropped below and keeps its random start.
    dropped = ("attn_pool.",) if pooling(model) == "token" else ()
    missing = [key for key in wanted if key not in tensors and not key.startswith(dropped)]
    unexpected = [key for key in tensors if key not in wanted]
    if hub:  # timm vouches for its own files, but a block too many means another depth
        unexpected = [key for key in unexpected if key.startswith("blocks.")]
    if not problems:
        misfits = [k for k in wanted if k in tensors and tensors[k].shape != wanted[k].shape]
        if misfits:
            shown = _some([_shapes(key, tensors[key], wanted) for key in misfits], quote=False)
            problems.append(f"{len(misfits)} of another shape ({shown})")
    if not problems:
        # Loading would turn whole numbers of a quantised file, or real parts, into weights.
        kinds = [
            f"{key!r} is {tensors[key].dtype}"
            for key in wanted
            if key in tensors
            and tensors[key].is_floating_point() != wanted[key].is_floating_point()
        ]
        infinite = [
            key
            for key in wanted
            if key in tensors and not bool(torch.isfinite(tensors[key]).all())
        ]
        if kinds:
            problems.append(f"{len(kinds)} of another type ({_some(kinds, quote=False)})")
        elif infinite:
            problems.append(f"{len(infinite)} not finite ({_some(infinite)})")
    if unexpected:
        problems.insert(0, f"{len(unexpected)} unexpected ({_some(unexpected)})")
    if missing:
        problems.insert(0, f"{len(missing)} missing ({_some(missing)})")
    if problems:
        raise UsageError(f"{label} does not fit backbone {name!r}: {'; '.join(problems)}.")
    return {key: tensors.get(key, value) for key, value in wanted.items()}


def _shapes(key: str, found: Tensor, wanted: Mapping[str, Tensor]) -> str:
    return f"{key!r} is {list(found.shape)}, the model's {list(wanted[key].shape)}"


def _some(names: list[str], quote: bool = True, limit: int = 3) -> str:
    shown = ", ".join(repr(n) if quote else n for n in names[:limit])
    return shown + (", ..." if len(names) > limit else "")


def _first_line(error: BaseException) -> str:
    """Return the first sentence of somebody else's error, to stand in brackets in one of ours."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.split(r"(?<=[.!?])\s", lines[0])[0].rstrip(".")[:200]
