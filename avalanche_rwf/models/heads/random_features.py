r"""Heads on random features: LDA and ridge on a fixed nonlinear map of what the backbone gives.

Random Fourier features of the Gaussian kernel exp(-gamma |x - y|^2),

.. math:: \phi(x) = \sqrt{2 / D} \, \cos(\Omega x + b), \qquad
          \Omega_{ij} \sim N(0, 2 \gamma), \quad b_i \sim U[0, 2 \pi) ,

have inner products that are the kernel's in expectation (Rahimi and Recht 2007). LDA on them with
one covariance for all classes is KLDA (Momeni et al., Continual learning using a kernel-based
method over foundation models, arXiv 2412.15571) and, with shrinkage that is found, RanDumb (Prabhu
et al., RanDumb, arXiv 2402.08823). F-OAL (Zhuang et al., arXiv 2403.15751) is ridge regression on
sigmoid(R x) by recursive least squares, whose solution is that of the sums kept here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from avalanche_rwf.models.blockwise import full_precision
from avalanche_rwf.models.heads.base import register_head
from avalanche_rwf.models.heads.closed_form import RidgeHead, SLDAHead
from avalanche_rwf.utils.validation import Number, Whole, takes

__all__ = ["FOALHead", "KLDAHead"]


def _unit(x: Tensor) -> Tensor:
    """Rows [B, F] with a mean square of one; their scale, however small, is gone."""
    size = x.square().mean(-1, keepdim=True).sqrt()
    return x / size.clamp_min(torch.finfo(x.dtype).tiny)


@register_head("klda")
class KLDAHead(SLDAHead):
    """LDA on random Fourier features: KLDA (arXiv 2412.15571), RanDumb (arXiv 2402.08823).

    Features are centred and scaled first, as in a layer norm, so that one gamma suits every
    backbone: the papers tune it for each. State: 8 D^2 + 8 C D bytes and the map's 4 F D, whatever
    the stream's length.

    :param in_features: width F.
    :param num_classes: C.
    :param shrinkage: as in :class:`SLDAHead`.
    :param projections: number D of random features.
    :param gamma: of the kernel, > 0; None is 1 / F.
    :raises UsageError: if an option is out of range.

    >>> head, x = KLDAHead(8, 2, projections=64), torch.randn(6, 8)
    >>> head.observe(x, torch.arange(6) % 2)
    >>> head(x).shape
    torch.Size([6, 2])
    """

    frequencies: Tensor
    phases: Tensor

    @takes(in_features=Whole(), projections=Whole(), gamma=Number(above=0, optional=True))
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        shrinkage: float | str = 0.05,
        projections: int = 5000,
        gamma: float | None = None,
    ) -> None:
        super().__init__(projections, num_classes, shrinkage)
        spread = math.sqrt(2 * (1 / in_features if gamma is None else gamma))
        self.register_buffer("frequencies", spread * torch.randn(in_features, projections))
        self.register_buffer("phases", 2 * math.pi * torch.rand(projections))

    def _map(self, features: Tensor) -> Tensor:
        x = full_precision(features)
        x = _unit(x - x.mean(-1, keepdim=True))
        angle = x @ self.frequencies.to(x.dtype) + self.phases.to(x.dtype)
        return angle.cos() * math.sqrt(2 / len(self.phases))


@register_head("f-oal")
class FOALHead(RidgeHead):
    """Ridge on sigmoid(R f), f at a mean square of one: F-OAL (arXiv 2403.15751).

    The recursion R <- R - R x^T (I + x R x^T)^{-1} x R, W <- W + R x^T (y - x W) has the solution
    (G + lambda I)^{-1} Q of the sums, which is computed here when it is asked for: it does not
    gather the recursion's rounding. State: 8 M^2 + 8 C M bytes and the map's 4 F M.

    :param in_features: width F.
    :param num_classes: C.
    :param penalty: lambda relative to the mean of G's diagonal. The paper's lambda is 1 (absolute),
        of a G that grows with the stream; 1e-4 is that after about 40,000 samples.
    :param projections: width M of the random map.
    :param balance: as in :class:`RidgeHead`.
    :raises UsageError: if an option is out of range.

    >>> head, x = FOALHead(8, 2, projections=64), torch.randn(6, 8)
    >>> head.observe(x, torch.arange(6) % 2)
    >>> head(x).argmax(1)
    tensor([0, 1, 0, 1, 0, 1])
    """

    random: Tensor

    @takes(projections=Whole())
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        penalty: float = 1e-4,
        projections: int = 1000,
        balance: bool = False,
    ) -> None:
        super().__init__(in_features, num_classes, penalty, projections, balance)
        # R x has the variance of a unit's input, so that the sigmoid is neither flat nor linear.
        self.random /= math.sqrt(in_features)

    def _map(self, features: Tensor) -> Tensor:
        x = _unit(full_precision(features))
        return torch.sigmoid(x @ self.random.to(x.dtype))
