"""``l2p``: Learning to Prompt on the frozen forward that all methods here share."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.models.prompts.l2p import L2PViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, prompt_rates
from avalanche_rwf.strategies.registry import register_method

__all__: list[str] = []


@register_method(
    "l2p",
    summary="L2P: a prompt pool chosen by key; knows no boundaries",
    paper="Wang et al., Learning to prompt for continual learning, arXiv 2112.08654",
    published={"lr": 0.015, "lr_head": 0.015},
)
def l2p(
    *,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    pool_size: int = 10,
    prompt_length: int = 5,
    top_k: int = 5,
    pull: float = 0.5,
    diversify: bool = False,
    start: str = "original",
    head: str = "linear",
    readout: str = "prompt",
    mask: str = "batch",
    lr: float = 5e-3,
    lr_head: float = 5e-3,
) -> FrozenBackboneStrategy:
    """Online L2P; the options are those of :class:`L2PViT`."""
    model = L2PViT(
        backbone,
        num_classes,
        pool_size=pool_size,
        prompt_length=prompt_length,
        top_k=top_k,
        pull=pull,
        diversify=diversify,
        start=start,
        head=head,
        readout=readout,
    )
    return FrozenBackboneStrategy(
        model=model, mask=mask, learning_rates=prompt_rates(lr, lr_head), **loop
    )
