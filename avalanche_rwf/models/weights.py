"""Weights of backbones: from the hub or a local file, checked key by key.

A model that is only partly loaded cannot happen, and nothing in a file is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
import socket
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import timm.models
import torch
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.families import form_of, pooling

# Keys of a file with several models, the first that is there is taken: authors evaluate averaged
# weights and teachers.
_WRAPPERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
# A classifier is no part of a backbone, nor is a pooling layer behind a class token.
_IGNORED_KEYS = ("head.", "head_dist.", "heads.", "fc.", "classifier.", "pre_logits.", "attn_pool.")
_ANCHOR = "patch_embed.proj.weight"


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


def load_hub(model: Any, name: str) -> None:
    """Fetch the weights that timm's configuration names and load them, checked by `_fit`."""

    def fit(state: Mapping[str, Any], target: Any) -> dict[str, Tensor]:
        return _fit(state, target, name, "the hub's weights", hub=True)

    cfg = dict(model.pretrained_cfg)
    try:
        # With the configuration's num_classes timm leaves the classifier alone: _fit drops it.
        with _offline_if_unreachable():
            timm.models.load_pretrained(
                model, cfg, num_classes=cfg.get("num_classes", 0), filter_fn=fit, strict=True
            )
    except UsageError:
        raise
    except Exception as error:  # the hub's client raises anything when it is offline or cut off
        raise UsageError(
            f"cannot get the weights of backbone {name!r} from the hub ({type(error).__name__}: "
            f"{first_line(error)}); pass weights=FILE with a local copy, or pretrained=False for "
            "random weights."
        ) from error


@contextlib.contextmanager
def _offline_if_unreachable() -> Iterator[None]:
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


def load_file(
    model: Any, name: str, path: Path, resize_patches: bool = False
) -> Mapping[str, str]:
    """Load a local file into `model`.

    :param resize_patches: whether patches of another size are resampled.
    :returns: the file's metadata, of safetensors.
    :raises UsageError: a file that cannot be read or does not fit.
    """
    if path.suffix.lower() == ".npz":
        _load_npz(model, name, path)
        return {}
    if path.suffix.lower() == ".safetensors":
        state, metadata = _read_safetensors(path)
    else:
        state, metadata = _read_pickle(path), {}
    fitted = _fit(state, model, name, f"weights file {str(path)!r}", resize_patches)
    model.load_state_dict(fitted, strict=True)
    return metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return safetensors.torch.load_file(str(path)), metadata
    except Exception as error:  # SafetensorError derives from Exception alone
        raise UsageError(
            f"weights file {str(path)!r} cannot be read as safetensors ({first_line(error)})."
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"weights file {str(path)!r} holds more than tensors, or is no torch file, and "
            "nothing in it was executed; save its state_dict alone, best as .safetensors."
        ) from error
    except Exception as error:  # a damaged file leads PyTorch's reader anywhere
        raise UsageError(
            f"weights file {str(path)!r} cannot be read by torch.load ({first_line(error)})."
        ) from error


def _load_npz(model: Any, name: str, path: Path) -> None:
    """Load the original ViT's format through timm, after making sure that it is what timm
    expects."""
    file = f"weights file {str(path)!r}"
    misfit = f"{file} does not fit backbone {name!r}"
    if not hasattr(model, "load_pretrained"):
        raise UsageError(
            f"{file} is in the original ViT format, which backbone {name!r} has no reader for; "
            "give it as .safetensors or .pth."
        )
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = set(archive.files)
    # TypeError: of one array, as .npy, by another name.
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UsageError(
            f"{file} cannot be read as an .npz archive of plain arrays ({first_line(error)})."
        ) from error
    if not any(key.endswith("embedding/kernel") for key in keys):
        raise UsageError(
            f"{file} is not in the original ViT format: it has no 'embedding/kernel'; its keys "
            f"begin {_some(sorted(keys))}."
        )
    numbers = [re.search(r"encoderblock_(\d+)/", key) for key in keys]
    blocks = len({match.group(1) for match in numbers if match})
    # timm reads as many blocks as the model has and would leave the rest of the file unused.
    if blocks and blocks != len(model.blocks):
        raise UsageError(f"{misfit}: it has {blocks} blocks, the model {len(model.blocks)}.")
    with torch.no_grad():
        for parameter in model.parameters():  # whatever timm does not set stays visible
            parameter.fill_(float("nan"))
    try:
        model.load_pretrained(str(path))
    except KeyError as error:
        raise UsageError(f"{misfit}: 1 missing or more ({first_line(error)}).") from error
    except Exception as error:  # whatever NumPy, zipfile and timm make of the arrays
        raise UsageError(f"{misfit} ({first_line(error)}).") from error
    infinite = [key for key, value in model.named_parameters() if torch.isinf(value).any()]
    if infinite:
        raise UsageError(f"{file} holds numbers that are not finite ({_some(infinite)}).")
    unset = [key for key, value in model.named_parameters() if torch.isnan(value).any()]
    if unset:
        raise UsageError(f"{misfit}: {len(unset)} missing ({_some(unset)}).")


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
    # timm would resample the patches silently: only where another patch size is asked for.
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
                f"its position or patch embedding cannot be resampled ({first_line(error)})"
            )
    tensors = {k: v for k, v in tensors.items() if k in wanted or not k.startswith(_IGNORED_KEYS)}
    # Behind a class token it is dropped below and keeps its random start.
    dropped = ("attn_pool.",) if pooling(model) == "token" else ()
    missing = [key for key in wanted if key not in tensors and not key.startswith(dropped)]
    unexpected = [key for key in tensors if key not in wanted]
    if hub:  # timm vouches for its own files, but a block too many means another depth
        unexpected = [key for key in unexpected if key.startswith("blocks.")]
    problems = problems or _misfits(tensors, wanted)
    for keys, what in ((unexpected, "unexpected"), (missing, "missing")):
        if keys:
            problems.insert(0, f"{len(keys)} {what} ({_some(keys)})")
    if problems:
        raise UsageError(f"{label} does not fit backbone {name!r}: {'; '.join(problems)}.")
    return {key: tensors.get(key, value) for key, value in wanted.items()}


def _misfits(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the tensors that the model has too: shapes, else types, else values."""
    pairs = {key: (tensors[key], wanted[key]) for key in wanted if key in tensors}
    shapes = [_shapes(k, found, wanted) for k, (found, own) in pairs.items()
              if found.shape != own.shape]  # fmt: skip
    if shapes:
        return [f"{len(shapes)} of another shape ({_some(shapes, quote=False)})"]
    # Loading would turn whole numbers of a quantised file, or real parts, into weights.
    kinds = [f"{k!r} is {found.dtype}" for k, (found, own) in pairs.items()
             if found.is_floating_point() != own.is_floating_point()]  # fmt: skip
    if kinds:
        return [f"{len(kinds)} of another type ({_some(kinds, quote=False)})"]
    infinite = [k for k, (found, _) in pairs.items() if not bool(torch.isfinite(found).all())]
    return [f"{len(infinite)} not finite ({_some(infinite)})"] if infinite else []


def _shapes(key: str, found: Tensor, wanted: Mapping[str, Tensor]) -> str:
    return f"{key!r} is {list(found.shape)}, the model's {list(wanted[key].shape)}"


def _some(names: list[str], quote: bool = True) -> str:
    shown = ", ".join(repr(n) if quote else n for n in names[:3])
    return shown + (", ..." if len(names) > 3 else "")


def first_line(error: BaseException) -> str:
    """Return the first sentence of somebody else's error, to stand in brackets in one of ours."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return re.split(r"(?<=[.!?])\s", lines[0])[0].rstrip(".")[:200]
