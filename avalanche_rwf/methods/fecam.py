"""``fecam``: nearest class mean by a distance of each class's own."""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method


@register_method(
    "fecam",
    summary="frozen backbone, Mahalanobis distance with a covariance for each class, closed form",
    paper="Goswami et al., FeCAM, arXiv 2309.14062",
    grid=[
        {"diagonal": diagonal, "rest": rest}
        for diagonal, rest in (
            *((1.0, 1.0), (100.0, 100.0), (0.1, 0.1), (1.0, 10.0), (10.0, 1.0)),
            *((100.0, 10.0), (10.0, 100.0), (1.0, 100.0), (100.0, 1.0)),
        )
    ],
)
def fecam(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    readout: str = "cls",
    diagonal: float = 10.0,
    rest: float = 10.0,
) -> FrozenBackboneStrategy:
    """Class covariances with two shrinkages and correlation normalisation, see ``FeCAMHead``.

    One pass, no boundaries, no buffer; state 8 C F^2 bytes. A class with one image, which the paper
    does not have, is measured without a covariance.
    """
    options = {"diagonal": diagonal, "rest": rest}
    model = FrozenViT(
        backbone, num_classes, head="fecam", readout=readout, head_options=options
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
