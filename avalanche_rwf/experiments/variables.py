"""What changes no number of a run: environment variables, which worker processes inherit."""

from __future__ import annotations

import os
import re

from avalanche_rwf.errors import UsageError

__all__ = [
    "CHECKS",
    "DETERMINISTIC",
    "EVAL_BATCH",
    "EVERY",
    "FRESH",
    "NO_CACHE",
    "checkpoint_every",
    "read_every",
]

EVERY = "AVALANCHE_RWF_CHECKPOINT_EVERY"
"""Environment variable with the training steps between checkpoints; ``--checkpoint-every`` sets it.
"""

FRESH = "AVALANCHE_RWF_FRESH"
"""Environment variable: not empty, no run goes on from a checkpoint; ``--fresh`` sets it."""

EVAL_BATCH = "AVALANCHE_RWF_EVAL_BATCH"
"""Environment variable with the test images per step; ``--eval-batch-size`` sets it."""

CHECKS = "AVALANCHE_RWF_CHECKS"
"""Environment variable: "0" looks at no loss and gradient; ``--no-checks`` sets it."""

NO_CACHE = "AVALANCHE_RWF_NO_CACHE"
"""Environment variable: not empty, every feature is computed; ``--no-cache`` sets it."""

DETERMINISTIC = "AVALANCHE_RWF_DETERMINISTIC"
"""Environment variable: "1" takes deterministic kernels; ``--deterministic`` sets it."""


def checkpoint_every() -> int | None:
    """The setting of :data:`EVERY`; None spaces checkpoints by what they cost.

    :raises UsageError: for anything but "auto" and a whole number from 0.
    """
    return read_every(os.environ.get(EVERY) or "auto", EVERY)


def read_every(text: str, name: str) -> int | None:
    """:func:`checkpoint_every` of a text.

    :param name: of the setting, for the error.
    """
    if text == "auto":
        return None
    if not re.fullmatch("[0-9]{1,12}", text):
        raise UsageError(f"{name} takes auto or a whole number of at least 0, not {text!r}.")
    return int(text)
