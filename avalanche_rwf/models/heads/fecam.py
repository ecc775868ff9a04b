r"""FeCAM: a covariance for each class, and the distance that it gives.

.. math:: \Sigma_c' = \Sigma_c + \gamma_1 \bar v_1 I + \gamma_2 \bar v_2 (1 1^T - I), \qquad
          N_{ij} = \frac{\Sigma'_{ij}}{\sqrt{\Sigma'_{ii} \Sigma'_{jj}}}, \qquad
          z_c = - (\tilde f - \tilde \mu_c)^T N_c^{-1} (\tilde f - \tilde \mu_c)

with the means v_1 of the diagonal and v_2 of the rest, and ~ at length one. Source: Goswami et al.,
FeCAM, arXiv 2309.14062; without Tukey's transformation, which the paper leaves out for ViTs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_rwf.models.heads.base import register_head, with_rows
from avalanche_rwf.models.heads.closed_form import ClosedFormHead
from avalanche_rwf.utils.device import on_host, to_device
from avalanche_rwf.utils.validation import Number, takes

__all__ = ["FeCAMHead"]


@register_head("fecam")
class FeCAMHead(ClosedFormHead):
    """Mahalanobis distance with a covariance for each class: FeCAM (arXiv 2309.14062).

    The sums of f f^T of each class are exact and do not depend on the order. State: 8 C F^2 bytes,
    C times that of one covariance: 0.5 GB for 100 classes of a ViT-B.

    :param in_features: width F.
    :param num_classes: C.
    :param diagonal: gamma_1, at least 0.
    :param rest: gamma_2, at least 0.
    :raises UsageError: if an option is out of range.

    >>> head, x = FeCAMHead(2, 2), torch.tensor([[1.0, 0.1], [1, -0.1], [0.1, 1], [-0.1, 1]])
    >>> head.observe(x, torch.tensor([0, 0, 1, 1]))
    >>> head(torch.tensor([[5.0, 1.0], [1.0, 5.0]])).argmax(1)
    tensor([0, 1])
    """

    squares: Tensor

    @takes(diagonal=Number(least=0), rest=Number(least=0))
    def __init__(
        self, in_features: int, num_classes: int, diagonal: float = 10.0, rest: float = 10.0
    ) -> None:
        super().__init__(in_features, num_classes, second=False)
        self.diagonal, self.rest = diagonal, rest
        squares = torch.zeros(num_classes, in_features, in_features, dtype=torch.float64)
        self.register_buffer("squares", squares)

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Add the batch to its classes' sums: features [B, F], targets [B]."""
        super().observe(features, targets)
        labels = on_host(targets)
        for c in sorted(set(labels)):
            mine = torch.tensor([i for i, label in enumerate(labels) if label == c])
            x = features[to_device(mine, features.device)].double()
            self.squares[c].addmm_(x.T, x)

    def solve(self) -> tuple[Tensor, Tensor]:
        """N_c^{-1} [C, F, F], and the class means at length one [C, F]."""
        means = self.moments.means()
        counts = self.moments.counts.tolist()
        found = [self._precision(c, n, means[c]) for c, n in enumerate(counts)]
        return torch.stack(found), F.normalize(means, dim=1)

    def _precision(self, c: int, n: float, mean: Tensor) -> Tensor:
        eye = torch.eye(self.in_features, dtype=mean.dtype, device=mean.device)
        if n < 2:
            return eye  # nothing is known of its shape
        covariance = self.squares[c] / n - torch.outer(mean, mean)
        whole = self.squares[c].diagonal().mean() / n
        variance = covariance.diagonal().mean()
        if variance <= 1e-12 * whole:  # equal images: what is left is rounding
            return eye
        others = self.in_features * max(self.in_features - 1, 1)
        between = (covariance.sum() - covariance.diagonal().sum()) / others
        covariance = covariance + self.diagonal * variance * eye + self.rest * between * (1 - eye)
        size = covariance.diagonal().clamp_min(1e-12 * variance).sqrt()
        # A pseudo-inverse, as published: the second shrinkage may leave directions of no spread.
        return torch.linalg.pinv(covariance / torch.outer(size, size), hermitian=True)

    def _solution(self) -> Any:
        if self._solved is None:
            self._solved = *self.solve(), None
        return self._solved

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> minus the squared distances [B, C], -inf of a class without samples.

        """
        precisions, means, _ = self._solution()
        x = F.normalize(features.double(), dim=-1)
        columns = []
        for precision, mean in zip(precisions, means, strict=True):
            apart = x - mean
            columns.append(-((apart @ precision) * apart).sum(1))
        logits = torch.stack(columns, 1)
        return logits.masked_fill(self.moments.counts == 0, float("-inf")).float()

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes."""
        fresh = self.squares.new_zeros(num_classes, self.in_features, self.in_features)
        if num_classes > self.num_classes:
            self.squares = with_rows(self.squares, fresh)
        super().grow(num_classes)
