"""Heads in closed form: they keep sums only and do not depend on the order of the stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.heads.base import Head, fit_buffers, register_head, with_rows
from avalanche_rwf.utils.validation import check_number, check_whole

__all__ = [
    "ClosedFormHead",
    "NCMHead",
    "RandomRidgeHead",
    "RidgeHead",
    "SLDAHead",
    "StreamingMoments",
]

# Features are float32 as a rule: a variance below this share of their size is rounding.
_NO_SPREAD = 1e-12


class StreamingMoments(nn.Module):
    r"""Counts, sums and second moments of features by class, exact in float64.

    The second moment G = sum f f^T is F x F. Until F samples have been seen it has a smaller exact
    form, the features themselves (G = X^T X), in which solving costs n^2 F instead of F^3: wide
    read-outs are affordable on short streams. At F samples X is folded into G and gathered anew.
    Asking for a solution changes no bit of the state.

    :param in_features: width F.
    :param num_classes: C.
    """

    counts: Tensor
    sums: Tensor
    gram: Tensor
    rows: Tensor
    row_targets: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        double = torch.float64
        self.in_features = in_features
        self.register_buffer("counts", torch.zeros(num_classes, dtype=double))
        self.register_buffer("sums", torch.zeros(num_classes, in_features, dtype=double))
        # Empty until F samples have been seen.
        self.register_buffer("gram", torch.zeros(0, in_features, dtype=double))
        self.register_buffer("rows", torch.zeros(0, in_features))
        self.register_buffer("row_targets", torch.zeros(0, dtype=torch.long))
        self._parts: list[tuple[Tensor, Tensor]] = []
        self.samples = 0

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        fit_buffers(self, state_dict, prefix, "gram", "rows", "row_targets")
        self._parts = []
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.samples = int(self.counts.sum())

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._gather()
        super()._save_to_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> StreamingMoments:
        self._gather()  # what waits in a list would not move with the buffers
        return super()._apply(fn, recurse)

    def _gather(self) -> None:
        """Put the batches since the last look into one tensor; values do not change."""
        if self._parts:
            rows, targets = zip(*self._parts, strict=True)
            kept = [self.rows.to(rows[0])] if len(self.rows) else []
            self.rows = torch.cat([*kept, *rows])
            self.row_targets = torch.cat([self.row_targets.to(targets[0]), *targets])
            self._parts = []

    @torch.no_grad()
    def add(self, features: Tensor, targets: Tensor) -> None:
        """Add features [B, F] of classes targets [B]."""
        f = features.detach().clone()
        self.samples += len(f)
        self.counts.index_add_(0, targets, torch.ones_like(targets, dtype=self.counts.dtype))
        self.sums.index_add_(0, targets, f.to(self.sums.dtype))
        self._parts.append((f, targets.clone()))
        if self.samples % self.in_features < len(f):
            self._gather()
            if len(self.rows) >= self.in_features:
                self._fold()

    def _fold(self) -> None:
        x = self.rows.double()
        self.gram = x.T @ x if not len(self.gram) else self.gram.addmm_(x.T, x)
        self.rows, self.row_targets = self.rows[:0], self.row_targets[:0]

    def second_moment(self) -> Tensor:
        """Sum of f f^T over all samples: [F, F]."""
        self._gather()
        x = self.rows.double()
        return torch.addmm(self.gram, x.T, x) if len(self.gram) else x.T @ x

    def means(self) -> Tensor:
        """Class means [C, F]; zero for a class without samples."""
        return self.sums / self.counts.clamp_min(1).unsqueeze(1)

    @torch.no_grad()
    def solve(self, right: Tensor, weight: float, shift: float, within: bool) -> Tensor:
        """A^{-1} r for each row of `right`, with A = weight S + shift (tr S / F) I, by Cholesky.

        Where classes have no spread beyond rounding (tr S below 1e-12 of tr G, as with one image a
        class) S counts as zero and the shift is relative to tr G instead. What is added to the
        diagonal is at least the rounding of G, so A can always be solved. All of it is relative to
        the features' scale and the same in both forms.

        :param right: [C, F].
        :param within: S is the within-class scatter (about the class means), otherwise G.
        :returns: [C, F].
        """
        self._gather()
        x = self.rows.double()
        folded = bool(len(self.gram))
        if folded:
            scatter = self.second_moment()
            whole = scatter.diagonal().mean()
            if within:
                scatter -= (self.means() * self.counts.unsqueeze(1)).T @ self.means()
            spread = scatter.diagonal().mean()
        else:
            whole = x.square().sum() / self.in_features
            if within:
                x = x - self.means()[self.row_targets]
            spread = x.square().sum() / self.in_features
        some = spread > _NO_SPREAD * whole
        rounding = weight * torch.finfo(whole.dtype).eps * self.in_features**2 * whole
        ridge = torch.maximum(shift * torch.where(some, spread, whole), rounding)
        ridge = ridge.clamp_min(torch.finfo(ridge.dtype).tiny)  # features that are all zero
        if folded:
            scatter.mul_(weight).mul_(some)
            scatter.diagonal().add_(ridge)
            return torch.cholesky_solve(right.T, torch.linalg.cholesky(scatter)).T
        if weight == 0 or not len(x):
            return right / ridge
        # (w X^T X + r I)^{-1} = (I - X^T (X X^T + r / w I)^{-1} X) / r   (Woodbury)
        x = x * some
        inner = x @ x.T
        inner.diagonal().add_(ridge / weight)
        found = torch.cholesky_solve(x @ right.T, torch.linalg.cholesky(inner))
        return (right - found.T @ x) / ridge

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes."""
        self.counts = with_rows(self.counts, torch.zeros(num_classes))
        self.sums = with_rows(self.sums, torch.zeros(num_classes, self.in_features))


class ClosedFormHead(Head):
    """A head that is solved from :class:`StreamingMoments` when it is first asked after training.

    Classes without a sample get -inf: a score of zero could win against negative ones.
    """

    closed_form = True

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.moments = StreamingMoments(in_features, num_classes)
        self._solved: tuple[Tensor, Tensor] | None = None
        self._late: tuple[int, Tensor, Tensor] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> ClosedFormHead:
        self._solved = self._late = None  # tensors that a move would leave behind
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._solved = self._late = None

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Add the batch to the sums."""
        self.moments.add(self._map(features.detach()), targets)
        self._solved = None

    @abstractmethod
    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights [C, F] and bias [C] in float64."""

    @torch.no_grad()
    def _weights(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._solved is None:
            weight, bias = self.solve()
            bias = bias.masked_fill(self.moments.counts == 0, float("-inf"))
            self._solved = weight, bias
        weight, bias = self._solved
        if weight.device != like.device:
            weight, bias = self._solved = weight.to(like.device), bias.to(like.device)
        return weight, bias

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The inputs, weights and bias of the solution, in float64."""
        return self._inputs(features), *self._weights(features)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C], computed in float64 and returned in float32."""
        return super().forward(features).float()

    def in_training(self, features: Tensor) -> Tensor:
        """Logits from a solution that is renewed when the samples double.

        They are for what is logged: a class that has come since then is at -inf. A solution for
        each new class would cost a wide head more than the backbone's forward.
        """
        if self._late is None or self.moments.samples >= 2 * self._late[0]:
            self._late = self.moments.samples, *self._weights(features)
        solved, self._solved = self._solved, self._late[1:]
        try:
            return self(features)
        finally:
            self._solved = solved

    def _map(self, features: Tensor) -> Tensor:
        """What is done to features before sums and logits; nothing here."""
        return features

    def _inputs(self, features: Tensor) -> Tensor:
        """What the weights are multiplied by, in float64."""
        return self._map(features).double()

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes."""
        if num_classes > self.num_classes:
            self.moments.grow(num_classes)
            self._solved = self._late = None
        super().grow(num_classes)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_solved": None, "_late": None}


@register_head("ncm")
class NCMHead(ClosedFormHead):
    """Nearest class mean by cosine: logits cos(f, mu_c)."""

    def solve(self) -> tuple[Tensor, Tensor]:
        """Unit class means and a zero bias."""
        means = F.normalize(self.moments.means(), dim=1)
        return means, torch.zeros_like(self.moments.counts)

    def _inputs(self, features: Tensor) -> Tensor:
        return F.normalize(features.double(), dim=-1)


@register_head("slda")
class SLDAHead(ClosedFormHead):
    r"""Streaming linear discriminant analysis, exact.

    .. math:: \Sigma = \frac{1}{n} \Big( \sum_i f_i f_i^T - \sum_c n_c \mu_c \mu_c^T \Big), \quad
              w_c = \Sigma_s^{-1} \mu_c, \quad b_c = - \tfrac{1}{2} \mu_c^T w_c,

    with Sigma_s = (1 - s) Sigma + s * mean variance * I. Unlike the published running update,
    the within-class scatter uses the final class means, so it does not depend on the order.

    :param shrinkage: s in (0, 1].
    """

    def __init__(self, in_features: int, num_classes: int, shrinkage: float = 0.05) -> None:
        super().__init__(in_features, num_classes)
        check_number("shrinkage", shrinkage, above=0, most=1)
        self.shrinkage = shrinkage

    def solve(self) -> tuple[Tensor, Tensor]:
        """Solve Sigma_s W^T = M^T by Cholesky."""
        m = self.moments
        means = m.means()
        n = float(m.counts.sum().clamp_min(1))
        # Seen from the mean of the means the solution is the same and loses fewer digits.
        seen = m.counts > 0
        centre = means[seen].mean(0) if bool(seen.any()) else means.mean(0)
        centred = means - centre
        weight = m.solve(centred, (1 - self.shrinkage) / n, self.shrinkage / n, within=True)
        bias = -0.5 * (centred * weight).sum(1) - weight @ centre
        return weight, bias


@register_head("ridge")
class RidgeHead(ClosedFormHead):
    r"""Ridge regression to one-hot targets, W = (G + lambda I)^{-1} Q, exact in one pass.

    With ``projections`` > 0 the features are first mapped by a fixed random layer,
    h = relu(f R), R ~ N(0, 1) (RanPAC, arXiv 2307.02251, without its first phase).

    :param penalty: lambda relative to the mean of G's diagonal, > 0, so that it does not depend on
        the features' scale.
    :param projections: width of the random layer, 0 for none.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        penalty: float = 0.01,
        projections: int = 0,
    ) -> None:
        check_whole("in_features", in_features)
        check_whole("projections", projections, least=0)
        check_number("penalty", penalty, above=0)
        super().__init__(projections or in_features, num_classes)
        self.penalty = penalty
        if projections:
            self.register_buffer("random", torch.randn(in_features, projections))

    def _map(self, features: Tensor) -> Tensor:
        random = getattr(self, "random", None)
        if random is None:
            return features
        kind = torch.float64 if features.dtype == torch.float64 else torch.float32
        return torch.relu(features.to(kind) @ random.to(kind))

    def solve(self) -> tuple[Tensor, Tensor]:
        """Solve (G + lambda I) W^T = Q by Cholesky; Q is the matrix of class sums."""
        weight = self.moments.solve(self.moments.sums, 1.0, self.penalty, within=False)
        return weight, torch.zeros_like(self.moments.counts)


@register_head("rp-ridge")
class RandomRidgeHead(RidgeHead):
    r"""Ridge regression on random projections: RanPAC (arXiv 2307.02251) without its first phase.

    W = (H^T H + lambda I)^{-1} H^T Y with h = relu(f R), R ~ N(0, 1) of F x M, exact in one pass.
    The paper has M = 10,000 on a ViT-B; here M = 2,000, at which taking a sample in costs below a
    tenth of a small ViT's forward. lambda is relative to the mean of the Gram matrix's diagonal:
    the paper chooses it per task, which needs boundaries.

    :param penalty: lambda over the mean of the diagonal, > 0.
    :param projections: M.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        penalty: float = 0.1,
        projections: int = 2000,
    ) -> None:
        check_whole("projections", projections)
        super().__init__(in_features, num_classes, penalty, projections)
