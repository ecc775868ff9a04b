"""From a finished run's directory back to its trained routed model."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.run import WEIGHTS, build_strategy, load_backbone, routing_state
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.extensions import VARIABLE

__all__ = ["load_routed", "unnamed_code"]


def unnamed_code(method: str) -> str | None:
    """The module or file that looking this method up would import, if the user did not name it.

    A run directory or an entry may come from somebody else: a name in it runs nothing. What
    ``--import`` names, and Avalanche's own strategies, may be looked up.
    """
    module = method.rpartition(":")[0]
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    if not module or module == "avalanche" or {module, str(Path(module).resolve())} & {*named}:
        return None
    return module


def load_routed(folder: Path) -> tuple[RunConfig, RoutedViT]:
    """The configuration and the model, in eval mode on the CPU, of a finished run.

    The backbone is built from the configuration, its weights' hash checked; the routing layers come
    from ``weights.safetensors``. A closed-form head has no statistics: the model routes, but does
    not predict.

    :param folder: a run directory, ``OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>``.
    :raises UsageError: if it is none, if the run has no routing weights, or if the backbone's
        weights are others today.
    """
    content = read_json(folder / "config.json")
    values = (content or {}).get("config")
    if content is None or not isinstance(values, dict):
        raise UsageError(
            f"--run takes a run directory (OUT/runs/<benchmark>/<method>/<hash>/seed<k>), and "
            f"{str(folder)!r} has no config.json that can be read."
        )
    known = {field.name for field in dataclasses.fields(RunConfig)}
    try:
        config = RunConfig.from_dict({k: v for k, v in values.items() if k in known})
        code = unnamed_code(config.method)
        # A class may be in several experiences.
        num_classes = len(set().union(*content["data"]["classes_per_experience"]))
    except (TypeError, KeyError, AttributeError, ValueError):
        raise UsageError(
            f"--run takes the directory of a finished run, and config.json in {str(folder)!r} "
            "does not describe one."
        ) from None
    if not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"--run takes a finished run of a method with routing layers, and the one of "
            f"{config.method} in {str(folder)!r} has no {WEIGHTS}."
        )
    if code is not None:
        raise UsageError(
            f"--run takes a run of a known method, and that of {config.method} in {str(folder)!r} "
            f"would run code: name it with --import {code} if you would run it."
        )
    backbone = content.get("backbone")
    sha256 = backbone.get("sha256") if isinstance(backbone, dict) else None
    try:
        found = backbone_info(load_backbone(config)).sha256
        model = build_strategy(config, num_classes).model if sha256 == found else None
    except Exception as error:  # whatever timm or a method makes of values that are not a run's
        why = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise UsageError(
            f"--run takes a run that this version can build, and the one of {config.method} in "
            f"{str(folder)!r} cannot be ({why})."
        ) from error
    if model is None:
        raise UsageError(
            f"--run takes a run whose backbone is there, and the weights of {config.backbone} are "
            f"{found[:10]} here and were {str(sha256)[:10]} in {str(folder)!r}."
        )
    expected = routing_state(model)
    try:
        state = load_file(folder / WEIGHTS)
        fits = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
    except (SafetensorError, OSError):
        fits = False
    if not fits:
        raise UsageError(
            f"--run takes a run that this version can read, and {WEIGHTS} in {str(folder)!r} does "
            f"not fit {config.method}."
        )
    model.load_state_dict(state, strict=False)
    return config, model.eval()
