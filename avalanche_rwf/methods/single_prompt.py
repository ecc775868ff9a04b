"""SinglePrompt: one learned prefix in each of the first blocks, the same for every image.

K' = [P_K; K], V' = [P_V; V] in blocks 0 to 4; prompts start at U(-1, 1) plus the class token's
position embedding. No pool, no key, no query: one forward pass per training image. The published
classifier is a cosine head (tau 0.1) under the mask of the batch's classes.

Uses: no task identity, no boundary. The published code takes the argmax over all classes at test;
here, as for every method, classes not seen yet cannot win.

Source: the SinglePrompt paper's equations as listed by this project; nothing of its code is used.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from avalanche_rwf.methods.prompting import INSERTS, as_prompt, named_blocks, starting
from avalanche_rwf.models.backbone import A_BACKBONE
from avalanche_rwf.models.blocks import DefaultBlocks
from avalanche_rwf.models.blockwise import Prompt
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.families import ViT, class_position
from avalanche_rwf.strategies.registry import register_model
from avalanche_rwf.utils.validation import Choice, Whole, takes


@register_model(
    "single-prompt",
    summary="SinglePrompt: one learned prefix per block, cosine head; knows no boundaries",
    paper="SinglePrompt",
    published={},
    head="cosine",
)
class SinglePromptViT(FrozenViT):
    """One prompt per block on a frozen ViT.

    :param blocks: blocks with a prompt.
    :param prompt_length: L.
    :param insert: "prefix" or "token".
    :param options: of :class:`FrozenViT`.
    :raises ValueError: naming the argument that is out of range.
    """

    @takes(backbone=A_BACKBONE, prompt_length=Whole(), insert=Choice(INSERTS))
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        blocks: str | Collection[int] = DefaultBlocks("first 5"),
        prompt_length: int = 20,
        insert: str = "prefix",
        **options: Any,
    ) -> None:
        self._blocks = named_blocks(blocks, backbone)
        super().__init__(backbone, num_classes, **options)
        self.insert = insert
        parts = 2 if insert == "prefix" else 1
        self.prompts = starting(len(self._blocks), parts, prompt_length, self.dim)
        if insert == "prefix":  # inserted tokens get it at each use
            self.prompts.data += class_position(backbone)

    def prompted_blocks(self) -> Sequence[int]:
        """The blocks with a prompt."""
        return self._blocks

    def prompt(self, block: int, tokens: Tensor) -> Prompt:
        """The block's prompt, [1, L, D]."""
        parts = self.prompts[self._blocks.index(block)].unsqueeze(0)
        return as_prompt(parts, self.insert, class_position(self.backbone))
