"""Evaluation: what a run predicted, the metrics of it, and a tidy logger.

`metrics` needs numpy alone. The plugins need Avalanche, whose import takes seconds, so they are
loaded when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from avalanche_rwf.evaluation.metrics import (
    EvaluationPoint,
    TestStream,
    a_auc,
    a_avg,
    a_last,
    accuracy_exposed,
    accuracy_matrix,
    class_accuracy_matrix,
    experience_ends,
    forgetting_class,
    forgetting_experience,
    summarise,
)

if TYPE_CHECKING:
    from avalanche_rwf.evaluation.anytime import (
        AnytimeAUC,
        ExposedAccuracy,
        anytime_metrics,
    )
    from avalanche_rwf.evaluation.dataframe_logger import DataFrameLogger
    from avalanche_rwf.evaluation.recorder import AnytimeEvaluation, PredictionRecorder
    from avalanche_rwf.evaluation.routing import RoutingProbe, probe_images, routing_metrics
    from avalanche_rwf.evaluation.wandb_logger import WandBLogger

__all__ = [
    "AnytimeAUC",
    "AnytimeEvaluation",
    "DataFrameLogger",
    "EvaluationPoint",
    "ExposedAccuracy",
    "PredictionRecorder",
    "RoutingProbe",
    "TestStream",
    "WandBLogger",
    "a_auc",
    "a_avg",
    "a_last",
    "accuracy_exposed",
    "accuracy_matrix",
    "anytime_metrics",
    "class_accuracy_matrix",
    "experience_ends",
    "forgetting_class",
    "forgetting_experience",
    "probe_images",
    "routing_metrics",
    "summarise",
]

_LAZY = {
    "AnytimeAUC": "avalanche_rwf.evaluation.anytime",
    "ExposedAccuracy": "avalanche_rwf.evaluation.anytime",
    "anytime_metrics": "avalanche_rwf.evaluation.anytime",
    "AnytimeEvaluation": "avalanche_rwf.evaluation.recorder",
    "PredictionRecorder": "avalanche_rwf.evaluation.recorder",
    "DataFrameLogger": "avalanche_rwf.evaluation.dataframe_logger",
    "RoutingProbe": "avalanche_rwf.evaluation.routing",
    "probe_images": "avalanche_rwf.evaluation.routing",
    "routing_metrics": "avalanche_rwf.evaluation.routing",
    "WandBLogger": "avalanche_rwf.evaluation.wandb_logger",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
