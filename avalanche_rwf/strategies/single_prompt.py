"""``single-prompt``: one learned prefix per block and a cosine head."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.models.prompts.single_prompt import SinglePromptViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, prompt_rates
from avalanche_rwf.strategies.registry import register_method

__all__: list[str] = []


@register_method(
    "single-prompt",
    summary="SinglePrompt: one learned prefix per block, cosine head; knows no boundaries",
    paper="SinglePrompt",
    published={},
)
def single_prompt(
    *,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "first 5",
    prompt_length: int = 20,
    insert: str = "prefix",
    head: str = "cosine",
    readout: str = "cls",
    mask: str = "batch",
    lr: float = 5e-3,
    lr_head: float = 5e-3,
) -> FrozenBackboneStrategy:
    """The options are those of :class:`SinglePromptViT`."""
    model = SinglePromptViT(
        backbone,
        num_classes,
        blocks=blocks,
        prompt_length=prompt_length,
        insert=insert,
        head=head,
        readout=readout,
    )
    return FrozenBackboneStrategy(
        model=model, mask=mask, learning_rates=prompt_rates(lr, lr_head), **loop
    )
