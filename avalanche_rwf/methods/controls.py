"""Controls on the same backbone: what a prompt method has to beat.

``fine-tune`` trains all of the backbone one sample after another, the usual lower bound. The others
leave it alone.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method


@register_method(
    "linear-probe",
    summary="control: frozen backbone, linear head trained by gradient",
    default=True,
)
def linear_probe(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    head: str = "linear",
    readout: str = "cls",
    mask: str = "batch",
    lr: float = 5e-3,
) -> FrozenBackboneStrategy:
    """Cross-entropy on the head alone."""
    model = FrozenViT(backbone, num_classes, head=head, readout=readout)
    return FrozenBackboneStrategy(model=model, mask=mask, learning_rates={"head": lr}, **loop)


@register_method(
    "fine-tune", summary="control: the whole backbone trained in sequence", default=True
)
def fine_tune(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    head: str = "linear",
    readout: str = "cls",
    mask: str = "batch",
    lr: float = 5e-3,
    lr_backbone: float = 1e-5,
) -> FrozenBackboneStrategy:
    """Cross-entropy on head and a copy of the backbone, which other strategies may hold frozen."""
    backbone = copy.deepcopy(backbone)
    model = FrozenViT(backbone, num_classes, head=head, readout=readout, frozen=False)
    rates = {"head": lr, "backbone": lr_backbone}
    return FrozenBackboneStrategy(model=model, mask=mask, learning_rates=rates, **loop)


def _closed_form(
    head: str,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    head_options: dict[str, Any] | None = None,
    **model: Any,
) -> FrozenBackboneStrategy:
    made = FrozenViT(backbone, num_classes, head=head, head_options=head_options, **model)
    return FrozenBackboneStrategy(model=made, mask="none", **loop)


@register_method(
    "ncm",
    summary="control: frozen backbone, nearest class mean by cosine, closed form",
    paper="SimpleCIL, arXiv 2303.07338",
    default=True,
)
def ncm(
    *, backbone: nn.Module, num_classes: int, loop: dict[str, Any], readout: str = "cls"
) -> FrozenBackboneStrategy:
    """argmax_c cos(f, mu_c)."""
    return _closed_form("ncm", backbone, num_classes, loop, readout=readout)


@register_method(
    "slda",
    summary="control: frozen backbone, streaming linear discriminant analysis, closed form",
    paper="Hayes & Kanan, arXiv 1909.01520",
    default=True,
)
def slda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    readout: str = "cls",
    shrinkage: float | str = 0.05,
) -> FrozenBackboneStrategy:
    """Exact LDA on the class token; the published shrinkage is 1e-4, absolute.

    ``shrinkage`` is a share above 0 and at most 1, or "oas" or "ledoit-wolf", which find it.
    """
    options = {"shrinkage": shrinkage}
    return _closed_form("slda", backbone, num_classes, loop, options, readout=readout)


@register_method(
    "rp-ridge",
    summary="control: frozen backbone, ridge regression on random projections, closed form",
    paper="RanPAC without its first phase, arXiv 2307.02251",
    young=("balance",),
)
def rp_ridge(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    readout: str = "cls",
    penalty: float = 0.1,
    projections: int = 2000,
    balance: bool = False,
) -> FrozenBackboneStrategy:
    """W = (H^T H + lambda I)^-1 H^T Y, h = relu(f R); see :class:`RandomRidgeHead`.

    With ``balance`` classes count alike however many images they have.
    """
    options = {"penalty": penalty, "projections": projections, "balance": balance}
    return _closed_form("rp-ridge", backbone, num_classes, loop, options, readout=readout)


@register_method(
    "layers-lda",
    summary="control of rwf-lda: the same head on mean-pooled tokens of the same blocks",
    default=True,
)
def layers_lda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "last 5",
    centre: float | None = None,
    shrinkage: float | str = 0.2,
) -> FrozenBackboneStrategy:
    """Exact LDA on class token and mean patch of several blocks, nothing retrieved.

    ``centre`` weighs the patches as rwf-lda's prior does, so that what the prior gives is not
    credited to routing.
    """
    model = {"readout": "layers", "readout_blocks": blocks, "mean_centre": centre}
    return _closed_form("slda", backbone, num_classes, loop, {"shrinkage": shrinkage}, **model)
