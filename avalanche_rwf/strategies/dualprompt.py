"""``dualprompt``: general and expert prompts, with or without task boundaries."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.models.prompts.dualprompt import EXPERT, GENERAL, DualPromptViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, prompt_rates
from avalanche_rwf.strategies.boundaries import BoundaryAwareStrategy
from avalanche_rwf.strategies.registry import register_method

__all__: list[str] = []


@register_method(
    "dualprompt",
    summary="DualPrompt: general and expert prefixes; boundary-free (slots=task: the original)",
    paper="Wang et al., DualPrompt, arXiv 2204.04799",
    published={"slots": "task"},
)
def dualprompt(
    *,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    slots: str = "query",
    general_blocks: str = GENERAL,
    expert_blocks: str = EXPERT,
    general_length: int = 5,
    expert_length: int = 20,
    pool_size: int = 10,
    insert: str = "prefix",
    pull: float = 1.0,
    start: str = "original",
    head: str = "linear",
    readout: str = "cls",
    mask: str = "batch",
    lr: float = 5e-3,
    lr_head: float = 5e-3,
) -> FrozenBackboneStrategy:
    """The options are those of :class:`DualPromptViT`; ``slots="task"`` reads boundaries."""
    model = DualPromptViT(
        backbone,
        num_classes,
        slots=slots,
        general_blocks=general_blocks,
        expert_blocks=expert_blocks,
        general_length=general_length,
        expert_length=expert_length,
        pool_size=pool_size,
        insert=insert,
        pull=pull,
        start=start,
        head=head,
        readout=readout,
    )
    kind = BoundaryAwareStrategy if slots == "task" else FrozenBackboneStrategy
    return kind(model=model, mask=mask, learning_rates=prompt_rates(lr, lr_head), **loop)
