"""Avalanche's logger for Weights & Biases, on a wandb of today.

Avalanche 0.6 calls ``wandb.util.generate_id`` and ``wandb.viz.CustomChart``. Both have moved, so
its ``WandBLogger`` fails while it is built. :class:`WandBLogger` gives it the two names and nothing
else; no module is changed.
"""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import Any

import avalanche.logging


class _Wandb:
    """The module ``wandb`` with the two names that Avalanche asks for."""

    def __init__(self, wandb: Any) -> None:
        self._wandb = wandb
        self.util = SimpleNamespace(generate_id=lambda: secrets.token_hex(4))
        self.viz = SimpleNamespace(CustomChart=wandb.plot.CustomChart)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wandb, name)  # such as `run`, which init sets later


class WandBLogger(avalanche.logging.WandBLogger):
    """Avalanche's ``WandBLogger``, with its arguments, for wandb with and without the old names.

    >>> WandBLogger(project_name="rwf", run_name="seed 0", dir="logs")  # doctest: +SKIP
    """

    def import_wandb(self) -> None:
        """Import wandb; Avalanche calls this before each of its uses.

        :raises ImportError: if it is not installed.
        """
        super().import_wandb()
        module = vars(self)["wandb"]
        if not (hasattr(module, "viz") and hasattr(module.util, "generate_id")):
            self.wandb = _Wandb(module)
