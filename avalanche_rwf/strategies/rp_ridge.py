"""``rp-ridge``: ridge regression on random projections of frozen features."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method

__all__: list[str] = []


@register_method(
    "rp-ridge",
    summary="control: frozen backbone, ridge regression on random projections, closed form",
    paper="RanPAC without its first phase, arXiv 2307.02251",
)
def rp_ridge(
    *,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    readout: str = "cls",
    penalty: float = 0.1,
    projections: int = 2000,
) -> FrozenBackboneStrategy:
    """W = (H^T H + lambda I)^-1 H^T Y, h = relu(f R); see :class:`RandomRidgeHead`."""
    model = FrozenViT(
        backbone,
        num_classes,
        head="rp-ridge",
        readout=readout,
        head_options={"penalty": penalty, "projections": projections},
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
