"""What prompt methods have in common: where prompts start, how they are inserted, tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.blocks import parse_blocks
from avalanche_rwf.models.blockwise import PrefixPrompt, Prompt, TokenPrompt
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.families import ViT

INSERTS = ("prefix", "token")
STARTS = ("original", "symmetric", "normal")


def named_blocks(blocks: str | Collection[int], backbone: ViT) -> tuple[int, ...]:
    """The indices of the blocks that get prompts.

    :raises UsageError: for unknown blocks.
    :raises ValueError: if no block is named.
    """
    found = parse_blocks(blocks, len(backbone.blocks))
    if not found:
        raise ValueError(f"blocks must name a block, not {blocks!r}.")
    return found


def starting(*shape: int, start: str = "symmetric") -> nn.Parameter:
    """A parameter with the start of prompts and keys.

    :param start: "original" is U[0, 0.01), as L2P's and DualPrompt's authors start them;
        "symmetric" is U(-1, 1), as their PyTorch ports and SinglePrompt do; "normal" is N(0, 1), as
        MVP's authors do.
    """
    values = torch.empty(shape)
    if start == "normal":
        return nn.Parameter(values.normal_())
    return nn.Parameter(values.uniform_(*((0, 0.01) if start == "original" else (-1, 1))))


def cosine_distance(query: Tensor, keys: Tensor) -> Tensor:
    """1 - cos: queries [B, D] and keys [M, D] -> [B, M], each in [0, 2]."""
    return 1 - F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T


def as_prompt(parts: Tensor, insert: str, position: Tensor) -> Prompt:
    """[B or 1, P, L, D] -> a prompt, P being 2 (keys, values) for prefixes and 1 for tokens.

    The part is indexed, never reshaped: a reshape of [B, 2, L, D] that skips the permutation gives
    an image its neighbours' prefixes, a defect that went from one public code base to the next.
    """
    if insert == "prefix":
        return PrefixPrompt(parts[:, 0], parts[:, 1])
    return TokenPrompt(parts[:, 0] + position)


class TaskViT(FrozenViT, ABC):
    """A model whose training may follow the experiences: it can be told that one begins."""

    task: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("task", torch.tensor(-1))  # -1 before the first experience
        self._task = -1  # on the host: a step must not wait for the device

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._task = int(self.task)

    @property
    def current_experience(self) -> int:
        """Number of the present experience; 0 before the first one too."""
        return max(self._task, 0)

    @abstractmethod
    def max_experiences(self) -> int | None:
        """How many experiences there is room for; None is any number."""

    def optimizer_resets(self) -> list[nn.Parameter]:
        """Parameters whose optimizer state is reset where an experience begins; none here.

        Without that, the momentum of earlier steps would go on moving parts of a tensor that are
        held.
        """
        return []

    def begin_experience(self) -> None:
        """Go on to the next experience: call it where one begins, and nowhere else."""
        most = self.max_experiences()
        if most is not None and self._task + 1 >= most:
            raise ValueError(
                f"{type(self).__name__} has room for {most} experiences, and "
                f"experience {self._task + 1} began."
            )
        self._task += 1
        self.task.fill_(self._task)
