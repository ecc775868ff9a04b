r"""Classifier heads: any head with any method.

Trained by gradient: :class:`LinearHead`, :class:`CosineHead`, :class:`WhiteHead`. Closed forms,
which keep sums only and do not depend on the order of the stream: :class:`NCMHead`,
:class:`SLDAHead`, :class:`RidgeHead`, :class:`RandomRidgeHead`.

All share four calls: ``head(features)`` gives logits; ``head.observe(features, targets)`` takes in
a training batch's statistics (no gradient); ``head.held_fixed(features)`` gives logits through
which gradients reach the features but not the head; ``head.grow(n)`` makes room for more classes.

Sources: cosine head as in SinglePrompt; NCM as SimpleCIL (arXiv 2303.07338); streaming LDA (Hayes
& Kanan, arXiv 1909.01520); ridge on random projections (RanPAC, arXiv 2307.02251); the whitened
cosine head with imprinted rows (imprinting: Qi et al., arXiv 1712.07136) is this project's.
Written from the equations.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.checks import check_choice, check_number, check_whole

__all__ = [
    "HEADS",
    "CosineHead",
    "Head",
    "LinearHead",
    "NCMHead",
    "RandomRidgeHead",
    "RidgeHead",
    "SLDAHead",
    "StreamingMoments",
    "WhiteHead",
    "create_head",
]


class Head(nn.Module, ABC):
    """What every head has.

    :param in_features: width F of the features.
    :param num_classes: number of classes C to begin with.
    """

    closed_form: ClassVar[bool] = False

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        check_whole("in_features", in_features)
        check_whole("num_classes", num_classes)
        self.in_features = in_features
        self.num_classes = num_classes

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C]."""

    def in_training(self, features: Tensor) -> Tensor:
        """Logits [B, C] for what is logged during training; closed forms may answer late."""
        return self(features)

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Take in a batch: features [B, F], targets [B]. Linear and cosine heads ignore it."""

    @abstractmethod
    def held_fixed(self, features: Tensor) -> Tensor:
        """Logits [B, C] whose gradient reaches the features and not the head."""

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs h [B, K], weights W [C, K] and bias [C] with logits = h W^T + bias.

        For what needs a gradient by class in closed form (MVP): dl/dW_c = (dl/dlogit_c) h.

        :raises NotImplementedError: for a closed-form head.
        """
        raise NotImplementedError(f"{type(self).__name__} is not trained by gradient.")

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes in all; fewer than now is ignored."""
        self.num_classes = max(self.num_classes, num_classes)


def _grown(old: Tensor, fresh: Tensor) -> Tensor:
    fresh[: old.shape[0]] = old
    return fresh


class LinearHead(Head):
    """Logits W f + b; W from a truncated normal of 0.02 as timm's heads, b = 0."""

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.weight = nn.Parameter(self._fresh(num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def _fresh(self, n: int) -> Tensor:
        return nn.init.trunc_normal_(torch.empty(n, self.in_features), std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C]."""
        return F.linear(features, self.weight, self.bias)

    def held_fixed(self, features: Tensor) -> Tensor:
        """Logits [B, C] whose gradient reaches the features and not the head."""
        return F.linear(features, self.weight.detach(), self.bias.detach())

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """h = f, and weight and bias as they are."""
        return features, self.weight, self.bias

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes; old rows keep their values."""
        if num_classes > self.num_classes:
            fresh = self._fresh(num_classes).to(self.weight)
            self.weight = nn.Parameter(_grown(self.weight.detach(), fresh))
            self.bias = nn.Parameter(
                _grown(self.bias.detach(), torch.zeros(num_classes).to(self.bias))
            )
        super().grow(num_classes)


class CosineHead(Head):
    """Logits <w / |w|, f / |f|> / tau, no bias.

    :param tau: temperature, > 0.
    """

    def __init__(self, in_features: int, num_classes: int, tau: float = 0.1) -> None:
        super().__init__(in_features, num_classes)
        check_number("tau", tau, above=0)
        self.tau = tau
        self.weight = nn.Parameter(self._fresh(num_classes))

    def _fresh(self, n: int) -> Tensor:
        return nn.init.trunc_normal_(torch.empty(n, self.in_features), std=0.02)

    def _cosine(self, features: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(weight, dim=-1)) / self.tau

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C], within [-1 / tau, 1 / tau]."""
        return self._cosine(features, self.weight)

    def held_fixed(self, features: Tensor) -> Tensor:
        """Logits [B, C] whose gradient reaches the features and not the head."""
        return self._cosine(features, self.weight.detach())

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """h = f / |f|, W = w / |w| / tau, no bias."""
        return F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1) / self.tau, None

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes; old rows keep their values."""
        if num_classes > self.num_classes:
            fresh = self._fresh(num_classes).to(self.weight)
            self.weight = nn.Parameter(_grown(self.weight.detach(), fresh))
        super().grow(num_classes)


class WhiteHead(CosineHead):
    r"""Cosine head after streaming whitening, with imprinted rows for new classes.

    Features are whitened with the running mean and covariance of the stream,

    .. math:: f' = T (f - \mu), \quad
              T = ((1 - s) \Sigma + s \, \overline{\mathrm{var}} \, I)^{-1/2} ,

    and a class met for the first time gets its batch's mean whitened feature as its row (of norm
    0.4, which sets how fast Adam turns it). T is renewed each time the number of samples has grown
    by `refresh`; rows are kept as prototypes, that is carried over to the new coordinates:
    w <- T_new (T_old^{-1} w + mu_old - mu_new).

    :param tau: temperature.
    :param shrinkage: s, the share of the mean variance on the diagonal.
    :param refresh: growth of the number of samples after which T is renewed.
    """

    count: Tensor
    fitted: Tensor
    total: Tensor
    gram: Tensor
    mean: Tensor
    transform: Tensor
    inverse: Tensor
    known: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        tau: float = 0.1,
        shrinkage: float = 0.1,
        refresh: float = 1.2,
    ) -> None:
        super().__init__(in_features, num_classes, tau)
        check_number("shrinkage", shrinkage, above=0, most=1)
        check_number("refresh", refresh, least=1)
        self.shrinkage = shrinkage
        self.refresh = refresh
        double = torch.float64
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros(in_features, dtype=double))
        self.register_buffer("gram", torch.zeros(in_features, in_features, dtype=double))
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("transform", torch.eye(in_features))
        self.register_buffer("inverse", torch.eye(in_features))
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))
        # The count on the host, so that a step does not wait for the device to read it.
        self._n = 0
        self._n_fitted = 0

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._n, self._n_fitted = int(self.count), int(self.fitted)

    def whiten(self, features: Tensor) -> Tensor:
        """Features [B, F] -> whitened features [B, F]."""
        return (features.float() - self.mean) @ self.transform

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C]."""
        return super().forward(self.whiten(features))

    def held_fixed(self, features: Tensor) -> Tensor:
        """Logits [B, C] whose gradient reaches the features and not the head."""
        return super().held_fixed(self.whiten(features))

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The cosine head's form, of whitened features."""
        return super().linear_form(self.whiten(features))

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Add the batch to the statistics, renew T if it is due, imprint classes met first here."""
        f = features.detach().double()
        self.total += f.sum(0)
        self.gram.addmm_(f.T, f)
        self.count += len(f)
        self._n += len(f)
        if self._n >= self.refresh * self._n_fitted:
            self._renew()
        new = torch.unique(targets)
        new = new[~self.known[new]]
        if len(new):
            white = self.whiten(features.detach())
            for c in new.tolist():
                row = white[targets == c].mean(0)
                self.weight[c] = 0.4 * F.normalize(row, dim=0)
            self.known[new] = True

    def _renew(self) -> None:
        n = self._n
        mean = self.total / n
        covariance = self.gram / n - torch.outer(mean, mean)
        variance = covariance.diagonal().mean().clamp_min(1e-12)
        covariance = (1 - self.shrinkage) * covariance
        covariance.diagonal().add_(self.shrinkage * variance)
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        # The shrunk matrix is positive definite; the floor guards against rounding alone.
        eigenvalues = eigenvalues.clamp_min(1e-6 * float(variance))
        transform = (vectors * eigenvalues.rsqrt()) @ vectors.T
        inverse = (vectors * eigenvalues.sqrt()) @ vectors.T
        if self._n_fitted and bool(self.known.any()):
            rows = self.weight[self.known].double()
            norms = rows.norm(dim=1, keepdim=True)
            # A row is a direction; as a prototype it stands at the norm of a whitened feature.
            rows = rows / norms.clamp_min(1e-12) * math.sqrt(self.in_features)
            shift = self.mean.double() - mean
            moved = (rows @ self.inverse.double() + shift) @ transform
            self.weight[self.known] = (norms * F.normalize(moved, dim=1)).to(self.weight)
        self.mean.copy_(mean)
        self.transform.copy_(transform)
        self.inverse.copy_(inverse)
        self.fitted.fill_(n)
        self._n_fitted = n

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes; statistics and old rows stay."""
        if num_classes > self.num_classes:
            fresh = torch.zeros(num_classes, dtype=torch.bool, device=self.known.device)
            self.known = _grown(self.known, fresh)
        super().grow(num_classes)


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
        for name in ("gram", "rows", "row_targets"):  # their lengths depend on the stream
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor):
                buffer = getattr(self, name)
                setattr(self, name, torch.empty_like(value, device=buffer.device))
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

        :param right: [C, F].
        :param within: S is the within-class scatter (about the class means), otherwise G.
        :returns: [C, F].
        """
        self._gather()
        if len(self.gram):
            scatter = self.second_moment()
            if within:
                scatter -= (self.means() * self.counts.unsqueeze(1)).T @ self.means()
            ridge = shift * scatter.diagonal().mean().clamp_min(1e-12)
            scatter *= weight
            scatter.diagonal().add_(ridge)
            return torch.cholesky_solve(right.T, torch.linalg.cholesky(scatter)).T
        x = self.rows.double()
        if within:
            x = x - self.means()[self.row_targets]
        ridge = shift * (x.square().sum() / self.in_features).clamp_min(1e-12)
        if weight == 0 or not len(x):
            return right / ridge
        # (w X^T X + r I)^{-1} = (I - X^T (X X^T + r / w I)^{-1} X) / r   (Woodbury)
        inner = x @ x.T
        inner.diagonal().add_(ridge / weight)
        found = torch.cholesky_solve(x @ right.T, torch.linalg.cholesky(inner))
        return (right - found.T @ x) / ridge

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes."""
        counts = torch.zeros(num_classes).to(self.counts)
        self.counts = _grown(self.counts, counts)
        sums = torch.zeros(num_classes, self.sums.shape[1]).to(self.sums)
        self.sums = _grown(self.sums, sums)


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

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C], computed in float64 and returned in float32."""
        return self._scores(features, *self._weights(features))

    @torch.no_grad()
    def in_training(self, features: Tensor) -> Tensor:
        """Logits from a solution that is renewed when the samples double.

        They are for what is logged: a class that has come since then is at -inf. A solution for
        each new class would cost a wide head more than the backbone's forward.
        """
        if self._late is None or self.moments.samples >= 2 * self._late[0]:
            self._late = self.moments.samples, *self._weights(features)
        return self._scores(features, *self._late[1:])

    def _scores(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(self._map(features).double(), weight, bias).float()

    def _map(self, features: Tensor) -> Tensor:
        """What is done to features before sums and scores; nothing here."""
        return features

    def held_fixed(self, features: Tensor) -> Tensor:
        """The same as ``forward``: a closed form has no parameter that a gradient could move."""
        return self(features)

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes."""
        if num_classes > self.num_classes:
            self.moments.grow(num_classes)
            self._solved = self._late = None
        super().grow(num_classes)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_solved": None, "_late": None}


class NCMHead(ClosedFormHead):
    """Nearest class mean by cosine: logits cos(f, mu_c)."""

    def solve(self) -> tuple[Tensor, Tensor]:
        """Unit class means and a zero bias."""
        means = F.normalize(self.moments.means(), dim=1)
        return means, torch.zeros_like(self.moments.counts)

    def _scores(self, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return super()._scores(F.normalize(features.double(), dim=-1), weight, bias)


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


HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "cosine": CosineHead,
    "white": WhiteHead,
    "ncm": NCMHead,
    "slda": SLDAHead,
    "ridge": RidgeHead,
    "rp-ridge": RandomRidgeHead,
}


def create_head(name: str, in_features: int, num_classes: int, **options: float) -> Head:
    """A head by name, one of ``HEADS``.

    :raises UsageError: for an unknown name.
    """
    check_choice("head", name, HEADS)
    return HEADS[name](in_features, num_classes, **options)
