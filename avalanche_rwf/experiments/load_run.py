"""From a finished run's directory back to its trained routed model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from avalanche_rwf.errors import UsageError, reason
from avalanche_rwf.experiments.build import build_strategy, load_backbone
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.run import WEIGHTS, routing_state
from avalanche_rwf.experiments.store import read_json
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.utils.user_code import may_import


def load_routed(folder: Path) -> tuple[RunConfig, RoutedViT]:
    """The configuration and the model, in eval mode on the CPU, of a finished run.

    The backbone is built from the configuration, its weights' hash checked; the routing layers come
    from ``weights.safetensors``. A closed-form head has no statistics: the model routes, but does
    not predict.

    :param folder: a run directory, ``OUT/runs/<benchmark>/<method>/<config-hash>/seed<k>``.
    :raises UsageError: if it is none, if the run has no routing weights, if the backbone's weights
        are others today, or if its method is code that was not named here: a file of somebody's
        does not decide what is imported.
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
        known_here = may_import(config.method)
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
    if not known_here:
        raise UsageError(
            f"--run takes the run of a method that is here, and config.json in {str(folder)!r} "
            f"names {config.method!r}, which is other code: --import it if you trust it."
        )
    try:
        found = backbone_info(load_backbone(config)).sha256
        model = build_strategy(config, num_classes).model
        expected = routing_state(model)
        sha256 = content["backbone"]["sha256"]
    except Exception as error:  # a changed file can lead to any error of what builds a model
        raise UsageError(
            f"--run takes a run that can be built again, and config.json in {str(folder)!r} does "
            f"not say how ({reason(error)})."
        ) from None
    if sha256 != found:
        raise UsageError(
            f"--run takes a run whose backbone is there, and the weights of {config.backbone} are "
            f"{found[:10]} here and were {str(sha256)[:10]} in {str(folder)!r}."
        )
    try:
        state = load_file(folder / WEIGHTS)
        kinds = [{k: (v.shape, v.dtype) for k, v in one.items()} for one in (state, expected)]
        fits = kinds[0] == kinds[1] and all(bool(torch.isfinite(v).all()) for v in state.values())
    except (SafetensorError, OSError):
        fits = False
    if not fits:
        raise UsageError(
            f"--run takes a run that this version can read, and {WEIGHTS} in {str(folder)!r} does "
            f"not fit {config.method}."
        )
    model.load_state_dict(state, strict=False)
    return config, model.eval()
