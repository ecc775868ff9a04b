"""Features of test images that several methods share: computed once in a comparison.

A frozen backbone without prompts maps a test batch to the same features in every evaluation of a
run and in every run of a comparison: the query of L2P, DualPrompt, CODA-Prompt and MVP, and all
that a linear probe, NCM, SLDA or ridge regression reads. They are kept in this process's memory
and, while a comparison shares a folder, in files that its worker processes read.

A stored answer is what the computation on this very batch, with these very weights, gave: looking
it up changes no bit of a result. Training batches are never remembered, so that training times stay
comparable: only evaluation looks here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["MEMORY", "FeatureMemory"]


class FeatureMemory:
    """Tensors by key, oldest forgotten first.

    :param limit: bytes kept in memory.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        self.limit = limit
        self._answers: dict[str, Tensor] = {}
        self._size = 0
        self._folder: Path | None = None

    def share(self, folder: Path | None) -> None:
        """Use `folder` together with other processes; None uses this process's memory alone.

        The folder must be made for one comparison and trusted by it: what is found there is taken
        for the features of the images.
        """
        self._folder = folder

    def clear(self) -> None:
        """Forget what is in memory."""
        self._answers, self._size = {}, 0

    def get(self, key: str, compute: Callable[[], Tensor], shared: bool = True) -> Tensor:
        """What is kept under `key` (hexadecimal digits), or ``compute()``, kept from now on.

        :param shared: whether other processes may have it too.
        """
        if key not in self._answers:
            answer = self._read(key) if shared else None
            if answer is None:
                answer = compute().clone()  # of a view, the whole would be kept
                if shared:
                    self._write(key, answer)
            size = answer.numel() * answer.element_size()
            while self._answers and self._size + size > self.limit:
                oldest = self._answers.pop(next(iter(self._answers)))
                self._size -= oldest.numel() * oldest.element_size()
            self._answers[key] = answer
            self._size += size
        return self._answers[key].clone()  # the caller may write into its own

    def _read(self, key: str) -> Tensor | None:
        if self._folder is None:
            return None
        try:
            return torch.from_numpy(np.load(self._folder / f"{key}.npy", allow_pickle=False))
        except (OSError, ValueError, EOFError):
            return None

    def _write(self, key: str, answer: Tensor) -> None:
        if self._folder is None:
            return
        part = self._folder / f"{key}.{os.getpid()}.part"
        try:
            with part.open("wb") as file:
                np.save(file, answer.numpy(), allow_pickle=False)
            part.replace(self._folder / f"{key}.npy")
        except OSError:  # a full disk: other processes compute it for themselves
            part.unlink(missing_ok=True)


MEMORY = FeatureMemory()
"""The one of this process."""
