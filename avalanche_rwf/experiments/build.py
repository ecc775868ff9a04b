"""From a configuration to its objects: backbone, benchmark, strategy, and the code they are of."""

from __future__ import annotations

import copy
import functools
import random
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from torch import nn

from avalanche_rwf.benchmarks import Benchmark, create_benchmark
from avalanche_rwf.benchmarks.registry import get_benchmark
from avalanche_rwf.benchmarks.stream_registry import get_stream
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.device import eval_batch_size
from avalanche_rwf.experiments.execution import current_execution
from avalanche_rwf.models.backbone import backbone_info, create_backbone
from avalanche_rwf.models.heads import HEADS
from avalanche_rwf.strategies.registry import create_strategy, get_method
from avalanche_rwf.utils.user_code import origin_of


@functools.lru_cache(maxsize=2)
def _backbone(
    name: str,
    weights: str | None,
    image_size: int | None,
    args: tuple[tuple[str, Any], ...],
    prepared: tuple[tuple[str, Any], ...],
) -> nn.Module:
    # Random weights (pretrained=False) are drawn from a seed of their own: the same in every
    # process, and not from whatever was drawn before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_backbone(
            name,
            weights=weights,
            image_size=image_size,
            data_config=dict(prepared) or None,
            **dict(args),
        )


def load_backbone(config: RunConfig) -> nn.Module:
    """The configuration's backbone; loaded once per process, so whoever trains it takes a copy."""
    # What was a tuple is a list in JSON.
    args, prepared = (
        tuple(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in sorted(values.items())
        )
        for values in (config.backbone_args, config.data_config)
    )
    return _backbone(config.backbone, config.weights, config.image_size, args, prepared)


def build_benchmark(config: RunConfig, normalised: bool = True) -> Benchmark:
    """The configuration's stream at its seed, with the transforms that the backbone wants.

    :param normalised: False leaves images uint8 where they are held so, for
        :class:`.data_loading.NormaliseOnDevice`.
    """
    info = backbone_info(load_backbone(config))
    return create_benchmark(
        config.benchmark,
        seed=config.seed,
        experiences=config.experiences,
        image_size=info.image_size,
        mean=info.mean,
        std=info.std,
        interpolation=info.interpolation,
        crop_pct=info.crop_pct,
        skip_corrupt=config.skip_corrupt,
        augment=config.augment,
        holdout=config.holdout,
        stream=config.stream,
        stream_options=config.stream_options,
        normalised=normalised,
        test_share=config.test_share,
        split_seed=config.split_seed,
    )


def build_strategy(
    config: RunConfig,
    num_classes: int,
    device: str = "cpu",
    plugins: list[SupervisedPlugin] | None = None,
    evaluator: EvaluationPlugin | None = None,
) -> Any:
    """The configuration's strategy, from the seed alone; by default it prints nothing."""
    _set_seed(config.seed)
    strategy = create_strategy(
        config.method,
        backbone=copy.deepcopy(load_backbone(config)),
        num_classes=num_classes,
        loop={
            "train_mb_size": config.batch_size,
            "train_epochs": 1,
            "eval_mb_size": eval_batch_size(config.batch_size),
            "device": device,
            "plugins": plugins or [],
            # Nothing to print: the recorder keeps what the metrics need.
            "evaluator": evaluator or _silent_evaluator(),
            "gradient_steps": config.gradient_steps,
            "precision": config.precision,
        },
        **config.options,
    )
    if current_execution().no_checks:
        strategy.checks = False
    return strategy


def _silent_evaluator() -> EvaluationPlugin:
    with warnings.catch_warnings():
        # Avalanche warns that nothing will be logged; here the recorder logs.
        warnings.simplefilter("ignore")
        return EvaluationPlugin(collect_all=False)


def _set_seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def origins_of(config: RunConfig) -> dict[str, dict[str, str]]:
    """Where the code that a run uses comes from, of what is not this package's.

    :returns: "method", "benchmark", "stream" or "head" -> :func:`.user_code.origin_of` it.
    """
    head = HEADS.get(str(config.options.get("head")))
    used = {
        "method": get_method(config.method).origin,
        "benchmark": get_benchmark(config.benchmark).origin,
        "stream": get_stream(config.stream).origin,
        "head": {} if head is None else origin_of(head),
    }
    return {kind: dict(origin) for kind, origin in used.items() if origin}


def with_code(config: RunConfig) -> RunConfig:
    """The configuration with the hashes of the files that it uses from outside."""
    hashes = {kind: origin.get("sha256", "") for kind, origin in origins_of(config).items()}
    code, head_code = hashes.pop("method", ""), hashes.pop("head", "")
    return replace(config, code=code, head_code=head_code, data_code=hashes)
