"""``layup``: ridge regression on the class tokens of the last blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_rwf.models.class_tokens import ClassTokensViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method


@register_method(
    "layup",
    summary="frozen backbone, ridge regression on the last blocks' class tokens, closed form",
    paper="Ahrens et al., Read between the layers, arXiv 2312.08888",
)
def layup(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "last 6",
    balance: bool = False,
) -> FrozenBackboneStrategy:
    """Class tokens of the last k = 6 blocks side by side, ridge, no projection.

    One pass, no boundaries, no buffer; state 8 F^2 + 8 C F bytes with F = 6 D. The penalty is the
    one of least generalised cross-validation error on all that has been seen
    (:class:`.GCVRidgeHead`); the authors choose it in each task on a part of its images. Their
    adaptation on the first task, an option there, is not here.
    """
    model = ClassTokensViT(
        backbone, num_classes, blocks=blocks, head="gcv-ridge", head_options={"balance": balance}
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
