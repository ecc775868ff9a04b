"""How a run computes on its device: determinism, sizes that change no result."""

from __future__ import annotations

import os
from typing import Any

import torch

from avalanche_rwf.experiments.execution import current_execution


def eval_batch_size(batch_size: int) -> int:
    """Test images per step: as asked for, or 64 and at least as many as in training.

    No result depends on it, so it is no part of a run's configuration.
    """
    return current_execution().eval_batch_size or max(64, batch_size)


def set_arithmetic() -> None:
    """Compute in float32 what is float32, not in TF32; in a fixed order if that is asked for."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False  # convolutions: the patch embedding
    if current_execution().deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        # An operation without a deterministic kernel gives a warning, which goes to log.txt.
        torch.use_deterministic_algorithms(True, warn_only=True)


def arithmetic() -> dict[str, Any]:
    """The present settings, for a run's record."""
    return {
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
