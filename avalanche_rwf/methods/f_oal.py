"""``f-oal``: ridge regression on a random map of the mean class token of all blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_rwf.models.class_tokens import ClassTokensViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method


@register_method(
    "f-oal",
    summary="frozen backbone, recursive least squares on a random map of all class tokens",
    paper="Zhuang et al., F-OAL, arXiv 2403.15751",
)
def f_oal(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    penalty: float = 1e-4,
    projections: int = 1000,
    balance: bool = False,
) -> FrozenBackboneStrategy:
    """Mean class token of all blocks, final norm, sigmoid(R f) to 1,000, least squares.

    One pass, no boundaries, no buffer; state 8 M^2 + 8 C M bytes and R. Deviations from the paper:
    the penalty is relative to G, which is solved when it is asked for (:class:`.FOALHead`), and R
    has entries of variance 1 / D.
    """
    options = {"penalty": penalty, "projections": projections, "balance": balance}
    model = ClassTokensViT(
        backbone, num_classes, blocks="all", fusion="mean", head="f-oal", head_options=options
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
