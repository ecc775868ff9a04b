r"""DualPrompt: general prompts for all images in early blocks, expert prompts by key in later ones.

.. math:: t = \arg\max_m \cos(q(x), k_m), \qquad
          K' = [p_K; K], \; V' = [p_V; V], \qquad
          L = \mathrm{CE} + \lambda (1 - \cos(q, k_t))

with (p_K, p_V) the general prompt in the first blocks and expert t's in the next ones. The query
is the class token of the plain backbone.

``slots`` says which expert a *training* image uses:

- ``"query"`` (default): the nearest key's, as at test. No boundaries; the form of online papers.
- ``"task"``: the original. Experience t trains expert t and pulls key t; a new expert starts as a
  copy of the one before. Reads where an experience begins. At test the nearest of the keys so far.

Forward passes per training image: 2.

Prompts and keys start from U[0, 0.01) as the authors' do; ``start="symmetric"`` is U(-1, 1), of the
PyTorch port and of online peers. Training images compete among the batch's classes by default: the
authors' are the present task's.

Source: Wang et al., ECCV 2022 (arXiv 2204.04799), from the equations. Online peers insert tokens
instead of prefixes (``insert="token"``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_rwf.methods.l2p import Chosen
from avalanche_rwf.methods.prompting import (
    INSERTS,
    STARTS,
    TaskViT,
    as_prompt,
    cosine_distance,
    starting,
)
from avalanche_rwf.models.backbone import A_BACKBONE
from avalanche_rwf.models.blocks import DefaultBlocks, parse_blocks
from avalanche_rwf.models.blockwise import Prompt
from avalanche_rwf.models.families import ViT, class_position
from avalanche_rwf.strategies.registry import register_model
from avalanche_rwf.utils.validation import Choice, Number, Whole, takes

# The first five blocks. On fewer than three an expert prompt, which is the method, comes first.
GENERAL = DefaultBlocks("0,1", {1: "none", 2: "0"})
EXPERT = DefaultBlocks("2,3,4", {1: "0", 2: "1"})


@register_model(
    "dualprompt",
    summary="DualPrompt: general and expert prefixes; boundary-free (slots=task: the original)",
    paper="Wang et al., DualPrompt, arXiv 2204.04799",
    published={"slots": "task"},
)
class DualPromptViT(TaskViT):
    """General and expert prompts on a frozen ViT.

    :param general_blocks: blocks with the general prompt.
    :param expert_blocks: blocks with the expert prompts.
    :param general_length: L of the general prompt.
    :param expert_length: L of the expert prompts.
    :param pool_size: experts M.
    :param insert: "prefix" (keys and values) or "token".
    :param pull: lambda, with which the chosen key is pulled to the query.
    :param slots: "query" or "task", see the module's text.
    :param start: of prompts and keys: "original", U[0, 0.01), "symmetric", U(-1, 1), or
        "normal", N(0, 1).
    :param options: of :class:`FrozenViT`.
    :raises ValueError: naming the argument that is out of range.
    """

    @takes(
        backbone=A_BACKBONE,
        general_length=Whole(),
        expert_length=Whole(),
        pool_size=Whole(),
        insert=Choice(INSERTS),
        pull=Number(least=0),
        slots=Choice(("query", "task")),
        start=Choice(STARTS),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        general_blocks: str | Collection[int] = GENERAL,
        expert_blocks: str | Collection[int] = EXPERT,
        general_length: int = 5,
        expert_length: int = 20,
        pool_size: int = 10,
        insert: str = "prefix",
        pull: float = 1.0,
        slots: str = "query",
        start: str = "original",
        **options: Any,
    ) -> None:
        depth = len(backbone.blocks)
        self._general = parse_blocks(general_blocks, depth, "general_blocks")
        self._expert = parse_blocks(expert_blocks, depth, "expert_blocks")
        if set(self._general) & set(self._expert):
            raise ValueError(
                f"expert_blocks must have no block of general_blocks {self._general}, "
                f"not {self._expert}."
            )
        if not self._expert:
            raise ValueError(f"expert_blocks must name a block, not {expert_blocks!r}.")
        super().__init__(backbone, num_classes, **options)
        self.insert = insert
        self.pull = pull
        self.uses_boundaries = slots == "task"
        parts = 2 if insert == "prefix" else 1
        if self._general:
            self.general = starting(
                len(self._general), parts, general_length, self.dim, start=start
            )
        shape = (len(self._expert), pool_size, parts, expert_length, self.dim)
        self.experts = starting(*shape, start=start)
        self.keys = starting(pool_size, self.dim, start=start)

    def prompted_blocks(self) -> Sequence[int]:
        """General and expert blocks."""
        return tuple(sorted((*self._general, *self._expert)))

    @torch.no_grad()
    def begin_experience(self) -> None:
        """With ``slots="task"``: go on to the next expert, a copy of the one before.

        :raises ValueError: if there are more experiences than experts.
        """
        super().begin_experience()
        now = self.current_experience
        if now > 0:
            self.experts[:, now] = self.experts[:, now - 1]

    def max_experiences(self) -> int:
        """As many as experts."""
        return len(self.keys)

    def optimizer_resets(self) -> list[nn.Parameter]:
        """Experts and keys: those of earlier experiences are held, and a new one starts afresh."""
        return [self.experts, self.keys]

    def weigh(self, distance: Tensor) -> Tensor:
        """What the choice minimises, from distances [B, M]: the distances themselves."""
        return distance

    def select(self, query: Tensor, training: bool) -> Chosen:
        """One expert for each query [B, D]."""
        distance, now = cosine_distance(query, self.keys), self.current_experience
        if self.uses_boundaries and training:
            indices = torch.full((len(query),), now, device=query.device)
        elif self.uses_boundaries:
            indices = distance[:, : now + 1].argmin(1)
        else:
            indices = self.weigh(distance).argmin(1)
        return Chosen(indices, distance.gather(1, indices.unsqueeze(1)).squeeze(1))

    def prompt(self, block: int, tokens: Tensor, selection: Chosen) -> Prompt:
        """The general prompt, or for each image its expert's: [1 or B, L, D]."""
        if block in self._general:
            parts = self.general[self._general.index(block)].unsqueeze(0)
        else:
            parts = self.experts[self._expert.index(block)][selection.indices]
        return as_prompt(parts, self.insert, class_position(self.backbone))

    def auxiliary_loss(self, selection: Chosen) -> Tensor:
        """lambda times the mean distance of the queries to their keys."""
        return self.pull * selection.pull.mean()
