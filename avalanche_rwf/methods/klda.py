"""``klda`` and ``randumb``: LDA on random Fourier features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_rwf.models.blockwise import full_precision
from avalanche_rwf.models.classifier import FrozenViT, Selection
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method


@dataclass(frozen=True)
class Mirrored(Selection):
    """Features [B, F] of the mirror images."""

    features: Tensor


class FlippedViT(FrozenViT):
    """A frozen ViT whose head also learns from each training image's mirror image.

    :param options: of :class:`FrozenViT`.
    """

    def encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        """Features [B, F], and in training those of the mirror images."""
        features, _ = super().encode(images)
        if not self.training:
            return features, None
        with torch.no_grad():
            return features, Mirrored(full_precision(super().encode(images.flip(-1))[0]))

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor, selection: Any = None) -> None:
        """Give the head the batch and its mirror images."""
        super().observe(features, targets)
        if selection is not None:
            self.head.observe(selection.features, targets)


def _build(
    kind: type[FrozenViT],
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    readout: str,
    **options: Any,
) -> FrozenBackboneStrategy:
    model = kind(backbone, num_classes, head="klda", readout=readout, head_options=options)
    return FrozenBackboneStrategy(model=model, mask="none", **loop)


@register_method(
    "klda",
    summary="frozen backbone, LDA on random Fourier features, closed form",
    paper="Momeni et al., Continual learning using a kernel-based method over foundation models, "
    "arXiv 2412.15571",
)
def klda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    readout: str = "cls",
    projections: int = 5000,
    gamma: float | None = None,
    shrinkage: float | str = 0.05,
) -> FrozenBackboneStrategy:
    """D = 5,000 random Fourier features, one covariance for all classes, see ``KLDAHead``.

    One pass, no boundaries, no buffer; state 8 D^2 + 8 C D bytes. Deviations: features are
    layer-normed and gamma is 1 / F, where the authors tune it for each backbone; the covariance is
    shrunk, where they take a pseudo-inverse.
    """
    return _build(FrozenViT, **locals())


@register_method(
    "randumb",
    summary="as klda, from mirror images too, shrinkage found by OAS, closed form",
    paper="Prabhu et al., RanDumb, arXiv 2402.08823",
    # By a rule or as fixed numbers, as klda has them.
    grid=[
        {"shrinkage": share} for share in (0.05, 0.01, 0.25, 0.002, 0.1, 1.0, 0.025, 0.0004, 0.005)
    ],
)
def randumb(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    readout: str = "cls",
    projections: int = 5000,
    gamma: float | None = None,
    shrinkage: float | str = "oas",
) -> FrozenBackboneStrategy:
    """Random Fourier features of images and their mirror images, covariance shrunk by OAS.

    One pass, two forwards an image, no boundaries, no buffer; state as ``klda``. Deviations: D is
    5,000 in place of 25,000, features are layer-normed and gamma is 1 / F.
    """
    return _build(FlippedViT, **locals())
