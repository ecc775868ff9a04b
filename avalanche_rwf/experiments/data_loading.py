"""How images get from a stream into a training loop: worker processes, uint8 batches, and the
normalisation on the device.

None of it changes a number: images are decoded and normalised by the same operations wherever that
is done, and processes that load give out batches in order. So neither is part of a run's
configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin

from avalanche_rwf.benchmarks import Benchmark
from avalanche_rwf.benchmarks.images import Normalisation
from avalanche_rwf.experiments.build import build_benchmark, load_backbone
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import current_execution
from avalanche_rwf.models.backbone import backbone_info
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import get_method


class NormaliseOnDevice(SupervisedPlugin):
    """Normalises a mini-batch of uint8 images on the device that it was moved to.

    It does so before any other plugin, the forward or a replay buffer sees the mini-batch, in
    training and in evaluation; images that are normalised already stay as they are.

    :param mean: per channel, of values in [0, 1].
    :param std: per channel, of values in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.images = Normalisation(mean, std)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Normalise, once for all gradient steps on the mini-batch."""
        if strategy.mbatch[0].dtype == torch.uint8:
            strategy.mbatch[0] = self.images(strategy.mbatch[0])

    def before_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Normalise."""
        self.before_training_iteration(strategy, **kwargs)


def normalises(method: str) -> bool:
    """Whether :class:`NormaliseOnDevice` covers everything that a method does with images.

    It does for the methods of this package. A class of Avalanche's or a user's may read the
    experience's data set by itself (EWC's importances, a buffer's logits): it gets normalised
    images.
    """
    return ":" not in method and not get_method(method).origin


def run_images(config: RunConfig) -> tuple[Benchmark, NormaliseOnDevice]:
    """A run's stream, and the plugin that normalises what the stream gives as uint8."""
    info = backbone_info(load_backbone(config))
    benchmark = build_benchmark(config, normalised=not normalises(config.method))
    return benchmark, NormaliseOnDevice(info.mean, info.std)


def loader_workers(benchmark: Benchmark) -> int:
    """Processes that load images: as ``--workers`` says, or none where all images are in memory
    and else as many as the run has threads."""
    given = current_execution().workers
    if given is not None:
        return given
    return 0 if benchmark.in_memory else max(1, torch.get_num_threads())


def training_workers(strategy: Any, workers: int) -> int:
    """How many of them serve the training stream.

    None for strategies with loaders of their own: samplers that draw from PyTorch's generator
    would run ahead of the training by as many batches as there are workers, and other images would
    be replayed.
    """
    return workers if isinstance(strategy, FrozenBackboneStrategy) else 0
