"""What prompt methods have in common: a query from the plain backbone, distances to keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.blockwise import PrefixPrompt, Prompt, TokenPrompt, full_precision
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.families import class_position
from avalanche_rwf.utils.validation import check_choice, check_whole

__all__ = [
    "QueriedViT",
    "TaskViT",
    "as_prompt",
    "check_insert",
    "check_sizes",
    "check_start",
    "cosine_distance",
    "starting",
]

INSERTS = ("prefix", "token")
STARTS = ("original", "symmetric", "normal")


def check_sizes(**sizes: int) -> None:
    """Refuse a size below one.

    :raises UsageError: naming the argument.
    """
    for name, value in sizes.items():
        check_whole(name, value)


def check_insert(insert: str) -> None:
    """Refuse an unknown way of inserting prompts.

    :raises UsageError: if it is neither "prefix" nor "token".
    """
    check_choice("insert", insert, INSERTS)


def check_start(start: str) -> None:
    """Refuse an unknown start of prompts and keys.

    :raises UsageError: if it is none of ``STARTS``.
    """
    check_choice("start", start, STARTS)


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


class QueriedViT(FrozenViT, ABC):
    """A frozen ViT whose prompts are chosen by a query from the same backbone without prompts.

    Two forward passes per training image. Test images' queries are looked up
    (:mod:`avalanche_rwf.models.feature_cache`). A subclass says in :meth:`select` what it does
    with the query.
    """

    def query(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> queries [B, D], without gradient: the plain backbone's class
        token, or its own pooling where it has none."""
        return self.frozen_query(images)

    @abstractmethod
    def select(self, query: Tensor) -> None:
        """Choose or mix the prompts of this batch from its queries [B, D]."""

    def _features(self, images: Tensor) -> Tensor:
        query = full_precision(self.query(images))
        # Distances near 1 and counts above 256 are too fine for bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            self.select(query)
        return super()._features(images)

    def position(self) -> Tensor:
        """The class token's position embedding [D]."""
        return class_position(self.backbone)


class TaskViT(QueriedViT):
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
    def now(self) -> int:
        """Number of the present experience; 0 before the first one too."""
        return max(self._task, 0)

    @abstractmethod
    def max_experiences(self) -> int:
        """How many experiences there is room for."""

    def begins_anew(self) -> list[nn.Parameter]:
        """Parameters whose optimizer state an experience's beginning ends; none here.

        Where parts of a tensor are held, the momentum of earlier steps would go on moving them.
        """
        return []

    def begin_experience(self) -> None:
        """Go on to the next experience: call it where one begins, and nowhere else."""
        if self._task + 1 >= self.max_experiences():
            raise ValueError(
                f"{type(self).__name__} has room for {self.max_experiences()} experiences, and "
                f"experience {self._task + 1} began."
            )
        self._task += 1
        self.task.fill_(self._task)
