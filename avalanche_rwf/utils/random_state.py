"""The states of all random generators that training draws from, taken and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position),
                  int(has_gauss), float(gauss)],
        "python": [version, list(numbers), gauss_next],
        # Asking for the state of a device that nothing has used would start it up.
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }  # fmt: skip


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(state["torch"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, gauss_next = state["python"]
    random.setstate((version, tuple(numbers), gauss_next))
    if state["cuda"] and torch.cuda.is_available():
        # A machine with fewer devices can go on, too.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if state.get("mps") is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the states back at the end.

    Even a plain evaluation draws: every iterator of a `DataLoader` takes a seed for its workers.
    """
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
