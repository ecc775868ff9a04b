"""Heads that are trained by gradient: linear, cosine, and cosine after streaming whitening."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.heads.base import Head, fit_buffers, register_head, with_rows
from avalanche_rwf.utils.device import on_host, to_device
from avalanche_rwf.utils.validation import Number, takes

__all__ = ["CosineHead", "LinearHead", "WhiteHead"]


class _TrainedRows(Head):
    """One trained row for each class, from a truncated normal of 0.02 as in timm's heads.

    The first rows are drawn from PyTorch's generator. That of a class c that comes later is drawn
    from a seed of the head's own, which is saved with it, and c alone: it is the same in whatever
    steps the head grows, and whatever else draws in between.
    """

    seed: Tensor

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        with torch.random.fork_rng(devices=[]):
            self.register_buffer("seed", torch.randint(2**62, ()))
        self.weight = nn.Parameter(_drawn(torch.empty(num_classes, in_features)))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.setdefault(f"{prefix}seed", self.seed)  # older files have none
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes; old rows keep their values."""
        old = self.weight.detach()
        later, seed = range(len(old), num_classes), int(self.seed)
        if later:
            rows = [_drawn(torch.empty(self.in_features), f"row {seed} {c}") for c in later]
            self.weight = nn.Parameter(torch.cat([old, torch.stack(rows).to(old)]))
        super().grow(num_classes)


def _drawn(rows: Tensor, name: str | None = None) -> Tensor:
    """Fill rows from a truncated normal, by PyTorch's generator or by one that a name seeds."""
    generator = None
    if name is not None:
        digest = hashlib.blake2b(name.encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    return nn.init.trunc_normal_(rows, std=0.02, generator=generator)


@register_head("linear")
class LinearHead(_TrainedRows):
    """Logits W f + b; W from a truncated normal of 0.02 as timm's heads, b = 0.

    :param in_features: F.
    :param num_classes: C.

    >>> head = LinearHead(4, 2)
    >>> head.grow(3)
    >>> head(torch.randn(5, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """h = f, and weight and bias as they are."""
        return features, self.weight, self.bias

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes; old rows keep their values."""
        if num_classes > self.num_classes:
            zeros = torch.zeros(num_classes)
            self.bias = nn.Parameter(with_rows(self.bias.detach(), zeros))
        super().grow(num_classes)


@register_head("cosine")
class CosineHead(_TrainedRows):
    """Logits <w / |w|, f / |f|> / tau, no bias.

    :param tau: temperature, > 0.
    :raises UsageError: if it is not.

    Source: as in SinglePrompt.

    >>> head, x = CosineHead(4, 2, tau=0.5), torch.randn(5, 4)
    >>> torch.allclose(head(100 * x), head(x)) and bool((head(x).abs() <= 2).all())
    True
    """

    @takes(tau=Number(above=0))
    def __init__(self, in_features: int, num_classes: int, tau: float = 0.1) -> None:
        super().__init__(in_features, num_classes)
        self.tau = tau

    def _directions(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features and rows at length 1."""
        return F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C], within [-1 / tau, 1 / tau]."""
        return F.linear(*self._directions(features)) / self.tau

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """h = f / |f|, W = w / |w| / tau, no bias."""
        inputs, rows = self._directions(features)
        return inputs, rows / self.tau, None


@register_head("white")
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
    :raises UsageError: if an option is out of range.

    Source: this project's; imprinting: Qi et al., arXiv 1712.07136.

    >>> head, x = WhiteHead(2, 2), torch.tensor([[9.0, 0.1], [9.2, -0.1], [9.4, 0.1], [9, -0.1]])
    >>> head.observe(x, torch.tensor([0, 1, 0, 1]))  # classes differ where features vary least
    >>> head(x).argmax(1)
    tensor([0, 1, 0, 1])
    """

    count: Tensor
    fitted: Tensor
    total: Tensor
    rows: Tensor
    gram: Tensor
    mean: Tensor
    transform: Tensor
    known: Tensor

    @takes(shrinkage=Number(above=0, most=1), refresh=Number(least=1))
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        tau: float = 0.1,
        shrinkage: float = 0.1,
        refresh: float = 1.2,
    ) -> None:
        super().__init__(in_features, num_classes, tau)
        self.shrinkage = shrinkage
        self.refresh = refresh
        double = torch.float64
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.long))
        self.register_buffer("total", torch.zeros(in_features, dtype=double))
        # Until 0.7 F samples have been seen, the features themselves; then their second moment.
        self.register_buffer("rows", torch.zeros(0, in_features))
        self.register_buffer("gram", torch.zeros(0, in_features, dtype=double))
        self.register_buffer("mean", torch.zeros(in_features))
        self.register_buffer("transform", torch.eye(in_features))
        self.register_buffer("known", torch.zeros(num_classes, dtype=torch.bool))
        # What of it is on the host, so that a step does not wait for the device to read it.
        self._n = 0
        self._n_fitted = 0
        self._known: set[int] = set()
        self._parts: list[Tensor] = []

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if state_dict.pop(f"{prefix}inverse", None) is not None:  # an older file
            state_dict[f"{prefix}rows"] = self.rows[:0]
        fit_buffers(self, state_dict, prefix, "rows", "gram")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._n, self._n_fitted, self._parts = int(self.count), int(self.fitted), []
        self._known = set(self.known.nonzero().flatten().tolist())

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._gather()
        super()._save_to_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> WhiteHead:
        self._gather()  # rows in the list would not move with the buffers
        return super()._apply(fn, recurse)

    def _gather(self) -> None:
        if self._parts:
            kept = [self.rows.to(self._parts[0])] if len(self.rows) else []
            self.rows, self._parts = torch.cat([*kept, *self._parts]), []

    def whiten(self, features: Tensor) -> Tensor:
        """Features [B, F] -> whitened features [B, F]."""
        return (features.float() - self.mean) @ self.transform

    def _directions(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return super()._directions(self.whiten(features))

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Add the batch to the statistics, renew T if it is due, imprint classes met first here."""
        f = features.detach().double()
        self.total += f.sum(0)
        self.count += len(f)
        self._n += len(f)
        if len(self.gram):
            self.gram.addmm_(f.T, f)
        else:
            self._parts.append(features.detach().clone())
            if self._n > 0.7 * self.in_features:
                self._gather()
                x = self.rows.double()
                self.gram, self.rows = x.T @ x, self.rows[:0].clone()
        if self._n >= self.refresh * self._n_fitted:
            self._renew()
        labels = on_host(targets)
        new = sorted(set(labels) - self._known)
        if new:
            white = self.whiten(features.detach())
            for c in new:
                mine = torch.tensor([i for i, label in enumerate(labels) if label == c])
                row = white[to_device(mine, white.device)].mean(0)
                self.weight[c] = 0.4 * F.normalize(row, dim=0)
            self.known.index_fill_(0, to_device(torch.tensor(new), self.known.device), True)
            self._known.update(new)

    def _spectrum(self, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues [K] and vectors [F, K] of the covariance, and its mean variance.

        K is min(n, F) and vectors of no variance may be zero: there the covariance is zero.
        """
        n = self._n
        if len(self.gram):
            covariance = self.gram / n - torch.outer(mean, mean)
            return (*torch.linalg.eigh(covariance), covariance.diagonal().mean())
        # X^T X and X X^T have the same eigenvalues other than zero: n^3 operations, not F^3.
        self._gather()
        x = self.rows.double() - mean
        inner = x @ x.T / n
        values, vectors = torch.linalg.eigh(inner)
        tiny = torch.finfo(values.dtype).tiny
        some = values > 1e-12 * values[-1]
        size = torch.where(some, values * n, 1.0).clamp_min(tiny).sqrt()
        return values * some, x.T @ vectors * some / size, inner.diagonal().sum() / self.in_features

    def _renew(self) -> None:
        n = self._n
        mean = self.total / n
        values, vectors, variance = self._spectrum(mean)
        variance = variance.clamp_min(1e-12)
        # The shrunk matrix is positive definite; the floor guards against rounding alone.
        shift, least = self.shrinkage * variance, 1e-6 * variance
        roots = torch.maximum((1 - self.shrinkage) * values + shift, least).rsqrt()
        rest = torch.maximum(shift, least).rsqrt()
        transform = (vectors * (roots - rest)) @ vectors.T
        transform.diagonal().add_(rest)
        if self._n_fitted and self._known:
            known = to_device(torch.tensor(sorted(self._known)), self.weight.device)
            rows = self.weight[known].double()
            norms = rows.norm(dim=1, keepdim=True)
            # A row is a direction; as a prototype it stands at the norm of a whitened feature.
            rows = rows / norms.clamp_min(1e-12) * math.sqrt(self.in_features)
            shift = self.mean.double() - mean
            # T is positive definite: nothing to check, which would wait for the device.
            before = torch.linalg.solve_ex(self.transform.double(), rows, left=False).result
            moved = (before + shift) @ transform
            self.weight[known] = (norms * F.normalize(moved, dim=1)).to(self.weight)
        self.mean.copy_(mean)
        self.transform.copy_(transform)
        self.fitted.fill_(n)
        self._n_fitted = n

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes; statistics and old rows stay."""
        if num_classes > self.num_classes:
            fresh = torch.zeros(num_classes, dtype=torch.bool)
            self.known = with_rows(self.known, fresh)
        super().grow(num_classes)
