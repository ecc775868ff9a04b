r"""Ridge regression whose penalty follows from what has been seen.

LayUP (Ahrens et al., Read between the layers, arXiv 2312.08888) regresses the class tokens of the
last blocks and chooses lambda in each task on a part of its images. A stream has no tasks and keeps
no images: here lambda is the minimiser over a grid of the generalised cross-validation error (Golub
et al. 1979), which the sums give exactly,

.. math:: V(\lambda) = \frac{\frac{1}{n} \| Y - X W_\lambda \|^2}
                            {\big(1 - \frac{1}{n} \operatorname{tr} H_\lambda\big)^2}
          = n \, \frac{n - \sum_j v_j \frac{e_j + 2 \lambda}{(e_j + \lambda)^2}}
                 {\big(n - \sum_j \frac{e_j}{e_j + \lambda}\big)^2} , \qquad
          v_j = \| Q u_j \|^2 ,

with G = sum_j e_j u_j u_j^T and the class sums Q. It depends neither on the order nor on when it is
asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from avalanche_rwf.models.heads.base import register_head
from avalanche_rwf.models.heads.closed_form import RidgeHead
from avalanche_rwf.utils.device import to_device

__all__ = ["GCVRidgeHead"]


@register_head("gcv-ridge")
class GCVRidgeHead(RidgeHead):
    """Ridge with the penalty of least generalised cross-validation error: LayUP's head.

    State: 8 F^2 + 8 C F bytes; a solution costs an eigendecomposition of min(n, F)^2.

    :param in_features: width F.
    :param num_classes: C.
    :param balance: as in :class:`RidgeHead`; the penalty is chosen without it.

    >>> head, x = GCVRidgeHead(3, 2), torch.randn(40, 3)
    >>> head.observe(x, (x[:, 0] > 0).long())
    >>> head(torch.tensor([[2.0, 0, 0], [-2, 0, 0]])).argmax(1)
    tensor([1, 0])
    """

    grid = tuple(10.0**k for k in range(-4, 3))
    """Values of lambda over the mean of G's diagonal."""

    def __init__(self, in_features: int, num_classes: int, balance: bool = False) -> None:
        super().__init__(in_features, num_classes, balance=balance)

    @torch.no_grad()
    def solve(self) -> tuple[Tensor, Tensor]:
        """Choose the penalty, then solve."""
        if self.moments.samples:
            self.penalty = self.grid[int(self.errors().argmin())]
        return super().solve()

    def errors(self) -> Tensor:
        """V at each value of the grid."""
        values, weights = self.moments.spectrum()
        n = float(self.moments.samples)
        size = values.sum() / self.in_features
        grid = to_device(torch.tensor(self.grid, dtype=values.dtype), values.device)
        shifts = size * grid[:, None]
        shifts = shifts.clamp_min(torch.finfo(values.dtype).tiny)
        left = n - (weights * (values + 2 * shifts) / (values + shifts).square()).sum(1)
        free = n - (values / (values + shifts)).sum(1)
        return n * left / free.square().clamp_min(1e-12)
