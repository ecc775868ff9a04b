"""Routing without Forgetting for Avalanche: ``from avalanche_rwf import RwFStrategy``.

Names are imported when they are first used: Avalanche alone takes seconds, and the routing layer
does not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.lazy import import_later, lazy
from avalanche_rwf.version import __version__

if TYPE_CHECKING:
    from avalanche_rwf.benchmarks.registry import create_benchmark, list_benchmarks
    from avalanche_rwf.evaluation.dataframe_logger import DataFrameLogger
    from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
    from avalanche_rwf.experiments.checkpoint import CheckpointPlugin
    from avalanche_rwf.models.backbone import PACKAGED, create_backbone, list_backbones
    from avalanche_rwf.models.classifier import FrozenViT, Selection
    from avalanche_rwf.routing.layer import RoutingLayer
    from avalanche_rwf.routing.model import RoutedViT
    from avalanche_rwf.strategies.avalanche_checkpoint import avalanche_checkpoints
    from avalanche_rwf.strategies.avalanche_l2p import OnlineL2P
    from avalanche_rwf.strategies.base import FrozenBackboneStrategy
    from avalanche_rwf.strategies.registry import (
        create_strategy,
        list_methods,
        register_method,
        register_model,
    )
    from avalanche_rwf.strategies.rwf import RwFStrategy

_HOMES = {
    "create_benchmark": "benchmarks.registry",
    "list_benchmarks": "benchmarks.registry",
    "DataFrameLogger": "evaluation.dataframe_logger",
    "AnytimeEvaluation": "evaluation.recorder",
    "PredictionRecorder": "evaluation.recorder",
    "CheckpointPlugin": "experiments.checkpoint",
    "PACKAGED": "models.backbone",
    "create_backbone": "models.backbone",
    "list_backbones": "models.backbone",
    "FrozenViT": "models.classifier",
    "Selection": "models.classifier",
    "RoutingLayer": "routing.layer",
    "RoutedViT": "routing.model",
    "avalanche_checkpoints": "strategies.avalanche_checkpoint",
    "OnlineL2P": "strategies.avalanche_l2p",
    "FrozenBackboneStrategy": "strategies.base",
    "create_strategy": "strategies.registry",
    "list_methods": "strategies.registry",
    "register_method": "strategies.registry",
    "register_model": "strategies.registry",
    "RwFStrategy": "strategies.rwf",
}

__all__ = [
    "PACKAGED",
    "AnytimeEvaluation",
    "CheckpointPlugin",
    "DataFrameLogger",
    "FrozenBackboneStrategy",
    "FrozenViT",
    "OnlineL2P",
    "PredictionRecorder",
    "RoutedViT",
    "RoutingLayer",
    "RwFStrategy",
    "Selection",
    "UsageError",
    "__version__",
    "avalanche_checkpoints",
    "create_backbone",
    "create_benchmark",
    "create_strategy",
    "list_backbones",
    "list_benchmarks",
    "list_methods",
    "register_method",
    "register_model",
]


__getattr__, __dir__ = lazy(__name__, _HOMES)

# Avalanche imports it for GEM alone; it imports every solver that is installed, JAX among them,
# which takes as long as PyTorch.
import_later("qpsolvers")
