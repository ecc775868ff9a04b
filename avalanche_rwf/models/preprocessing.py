"""How a backbone's images are prepared: timm's data configuration of its tag, or one that is given.

The configuration stays where timm keeps it, in the model's `pretrained_cfg`, so that timm's own
`resolve_model_data_config(model)` and this package never say two things.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import timm.data
import timm.models
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import PREPARATION as KEYS
from avalanche_rwf.utils.validation import checked_preparation


def data_config(model: nn.Module) -> dict[str, Any]:
    """`KEYS` as timm's evaluation uses them; the interpolation with timm's crop mode behind it,
    as in `INTERPOLATIONS`.

    :raises UsageError: timm's evaluation has no such interpolation ("random" is for training).
    """
    return _named(timm.data.resolve_model_data_config(model))


def _named(found: Mapping[str, Any]) -> dict[str, Any]:
    mode = found["crop_mode"]
    interpolation = found["interpolation"] + ("" if mode == "center" else f"-{mode}")
    return checked_preparation(
        {**{key: found[key] for key in KEYS}, "interpolation": interpolation},
        "the backbone's data configuration",
    )


def tag_config(tag: str) -> dict[str, Any]:
    """`KEYS` of a timm model with weights, by its exact tag; nothing is built or fetched.

    :raises UsageError: no such tag.
    """
    tags = timm.list_pretrained()
    name = plain_name(tag)
    if name not in tags:
        near = difflib.get_close_matches(name, tags, n=3)
        more = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
        raise UsageError(
            f"data_config (--data-config) takes the tag of a timm model such as "
            f"'vit_base_patch16_224.augreg_in21k', not {tag!r}{more}."
        )
    return cfg_config(timm.models.get_pretrained_cfg(name))


def cfg_config(cfg: Any) -> dict[str, Any]:
    """`KEYS` of timm's configuration of pretrained weights."""
    return _named(timm.data.resolve_data_config(pretrained_cfg=cfg.to_dict()))


def plain_name(name: str) -> str:
    """A timm name without the hub's prefixes: `hf-hub:timm/NAME` and `timm/NAME` are NAME."""
    for prefix in ("hf-hub:timm/", "hf_hub:timm/", "timm/"):
        name = name.removeprefix(prefix)
    return name


def configure(model: nn.Module, given: str | Mapping[str, Any]) -> None:
    """Give a model the data configuration of a tag, or some `KEYS` of its own.

    :raises UsageError: another key, or a value out of range.
    """
    if isinstance(given, str):
        given = tag_config(given)
    values = checked_preparation(given)
    if "interpolation" in values:
        name, _, mode = values["interpolation"].partition("-")
        values |= {"interpolation": name, "crop_mode": mode or "center"}
    config = {**(getattr(model, "pretrained_cfg", None) or {}), **values}
    model.pretrained_cfg = model.default_cfg = config  # type: ignore[assignment]


def metadata_config(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """`KEYS` that the header of a safetensors file has.

    :raises UsageError: a value that is none.
    """
    label = f"weights file {str(path)!r} has unreadable metadata"
    try:
        values: dict[str, Any] = {
            key: json.loads(metadata[key]) for key in ("mean", "std") if key in metadata
        }
        if "crop_pct" in metadata:
            values["crop_pct"] = float(metadata["crop_pct"])
        if "interpolation" in metadata:
            values["interpolation"] = metadata["interpolation"]
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{label} ({' '.join(str(error).split())[:100]}); mean and std are JSON lists of three "
            "numbers."
        ) from error
    return checked_preparation(values, label)


def evaluation_transform(model: nn.Module, image_size: int) -> Callable[[Any], Tensor]:
    """timm's transform for evaluation: a PIL image in RGB -> float32 [3, S, S], normalised.

    :param image_size: S, the side in pixels that the model was built for.
    """
    config = timm.data.resolve_model_data_config(model)
    return timm.data.create_transform(**{**config, "input_size": (3, image_size, image_size)})


def range_note(model: nn.Module, images: Tensor) -> str | None:
    """Why a mini-batch's values look like images that nobody normalised; None if they do not.

    :param images: [B, 3, H, W]; it is read once, which waits for its device.
    """
    low, high = (float(value) for value in images.detach().aminmax())
    config = data_config(model)
    shifted = min(config["mean"]) > 0  # then a normalised image has values below 0
    if high <= 20 and not (shifted and low >= 0 and 0 < high <= 1):
        return None
    mean, std = ([round(float(v), 4) for v in config[key]] for key in ("mean", "std"))
    return (
        f"The first mini-batch has values from {low:.2f} to {high:.2f}, as images that are not "
        f"normalised. The backbone takes (image - {mean}) / {std} of images from 0 to 1; "
        "strategy.transform does that."
    )
