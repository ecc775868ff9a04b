"""Heads in closed form: they keep sums only and do not depend on the order of the stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.heads.base import Head, fit_buffers, register_head, with_rows
from avalanche_rwf.utils.validation import Choice, Either, Flag, Number, Whole, takes

__all__ = [
    "SHRINKAGE",
    "ClosedFormHead",
    "NCMHead",
    "RandomRidgeHead",
    "RidgeHead",
    "SLDAHead",
    "StreamingMoments",
]

# Features are float32 as a rule: a variance below this share of their size is rounding.
_NO_SPREAD = 1e-12
# Inner products of rows are computed and kept in tiles of this size: so they have the same bits
# whenever somebody asked for them before.
_TILE = 256
SHRINKAGES = ("oas", "ledoit-wolf")


SHRINKAGE = Either(Number(above=0, most=1), Choice(SHRINKAGES))
"""A share, or the name of a rule that finds it."""


def _found_shrinkage(rule: str, n: int, p: int, trace: Tensor, squared: Tensor) -> Tensor:
    """The share that a rule finds from a covariance of n samples in p dimensions.

    :param trace: tr S.
    :param squared: tr S^2.
    """
    if rule == "oas":  # Chen et al. 2010, equation 23, with the constants of its limit
        above = squared / p**2 + (trace / p).square()
        below = (n + 1) * (squared / p**2 - trace.square() / p**3)
    else:  # its equation 17
        above = max(n - 2, 0) / n * squared + trace.square()
        below = (n + 2) * (squared - trace.square() / p)
    return torch.where(below > above, above / below, 1.0)


def _one_hot(group: Tensor, classes: int) -> Tensor:
    """1 where a sample is of a class, [K, n] in float64, for samples of classes `group` [n]."""
    rows = torch.zeros(classes, len(group), dtype=torch.float64, device=group.device)
    return rows.scatter_(0, group.unsqueeze(0), 1.0)


def _solve_(matrix: Tensor, right: Tensor) -> Tensor:
    """right matrix^{-1} [K, n], in the place of `right`; `matrix` [n, n] is overwritten too.

    No copy is made: of wide read-outs with many classes each would be hundreds of megabytes.

    :param matrix: symmetric and positive definite, contiguous.
    :param right: contiguous.
    """
    factor, columns = matrix.mT, right.mT  # as LAPACK wants them, column by column
    torch.linalg.cholesky(factor, out=factor)
    torch.linalg.solve_triangular(factor, columns, upper=False, out=columns)
    torch.linalg.solve_triangular(factor.mT, columns, upper=True, out=columns)
    return right


class StreamingMoments(nn.Module):
    r"""Counts, sums and second moments of features by class, exact in float64.

    The second moment G = sum f f^T is F x F. Until F samples have been seen it has a smaller exact
    form, the features themselves (G = X^T X), in which solving costs n^2 F + n^3 instead of F^3:
    wide read-outs are affordable on short streams. From F / 4 samples on each batch adds 4 / 3 of
    its own number of rows to G, so that all are there at F samples and no step is much longer.
    Asking for a solution changes no bit of the state; what it computed of earlier samples is used
    again.

    Cost of a batch of B: 2 B F^2 operations from F / 4 samples on. State: at most
    8 F^2 + 8 C F + 4 F^2 bytes.

    :param in_features: width F.
    :param num_classes: C.
    :param second: False keeps counts and sums alone.

    >>> moments = StreamingMoments(3, 2)
    >>> moments.add(torch.tensor([[1.0, 0, 0], [3, 0, 0]]), torch.tensor([1, 1]))
    >>> moments.means()[1].tolist(), float(moments.second_moment()[0, 0]), moments.samples
    ([2.0, 0.0, 0.0], 10.0, 2)
    """

    counts: Tensor
    sums: Tensor
    gram: Tensor
    rows: Tensor
    row_targets: Tensor

    def __init__(self, in_features: int, num_classes: int, second: bool = True) -> None:
        super().__init__()
        double = torch.float64
        self.in_features, self.second = in_features, second
        self.register_buffer("counts", torch.zeros(num_classes, dtype=double))
        # Sums and second moment are empty while all rows are here.
        sums = torch.zeros(0 if second else num_classes, in_features, dtype=double)
        self.register_buffer("sums", sums)
        self.register_buffer("gram", torch.zeros(0, in_features, dtype=double))
        self.register_buffer("rows", torch.zeros(0, in_features))
        self.register_buffer("row_targets", torch.zeros(0, dtype=torch.long))
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._inner: Tensor | None = None  # X X^T of whole tiles, from the last solution
        self._room: Tensor | None = None  # for the second moment, before it is there
        self.samples = 0
        self._folded = 0  # rows that are in the second moment

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        names = ("sums", "gram", "rows", "row_targets")
        if not self.second:  # older files have them of every head
            state_dict.update({prefix + n: getattr(self, n) for n in names[1:]})
        fit_buffers(self, state_dict, prefix, *names)
        self._parts, self._inner, self._room = [], None, None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.samples = int(self.counts.sum())
        self._folded = self._due() if len(self.gram) and self.samples < self.in_features else 0
        if len(self.gram) and self.samples >= self.in_features and len(self.rows):
            self._fold(len(self.rows))  # an older file

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._gather()
        super()._save_to_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> StreamingMoments:
        self._gather()  # rows in the list would not move with the buffers
        self._inner = self._room = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_inner": None, "_room": None}

    @property
    def by_samples(self) -> bool:
        """Whether all rows are here, and solutions are found in their space."""
        return self.second and self.samples < self.in_features

    def _due(self) -> int:
        """How many of the rows are to be in the second moment after so many samples."""
        return min(max((4 * self.samples - self.in_features) // 3, 0), self.samples)

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
        f = features.detach()
        whole = self.samples >= self.in_features and not len(self.rows) and not self._parts
        self.samples += len(f)
        self.counts.index_add_(0, targets, torch.ones_like(targets, dtype=self.counts.dtype))
        if len(self.sums):
            self.sums.index_add_(0, targets, f.double())
        if not self.second:
            return
        if whole:
            x = f.double()
            self.gram.addmm_(x.T, x)
            return
        self._parts.append((f.clone(), targets.clone()))
        due = self._due()
        if due > self._folded:
            self._fold(due)
        elif not len(self.gram) and 4 * self.samples > self.in_features - self.in_features // 8:
            self._make_room(len(f))

    def _make_room(self, samples: int) -> Tensor:
        """Write zeros where the second moment will be, 32 rows a sample: just before it is needed.

        The system gives memory when it is first written to, which takes three times as long as to
        add a batch to what is there.
        """
        width = self.in_features
        if self._room is None:
            self._room, self._ready = self.counts.new_empty(width, width), 0
        self._room[self._ready : self._ready + 32 * samples] = 0
        self._ready = min(self._ready + 32 * samples, width)
        return self._room

    def _fold(self, due: int) -> None:
        """Have the first `due` rows in the second moment, and drop the rows when all are."""
        if not len(self.sums):
            self.sums = self.class_sums()
        x = self._rows_between(self._folded, due)
        if not len(self.gram):
            self.gram, self._room = self._make_room(self.in_features), None
        self.gram.addmm_(x.T, x)
        self._folded = due
        if self.samples >= self.in_features:
            self.rows, self.row_targets = self.rows[:0].clone(), self.row_targets[:0].clone()
            self._parts, self._folded, self._inner = [], 0, None

    def _rows_between(self, start: int, stop: int) -> Tensor:
        """Some of the rows in float64, without a copy of all that are kept."""
        found, first = [], 0
        for rows in (self.rows, *(rows for rows, _ in self._parts)):
            if start < first + len(rows) and first < stop:
                found.append(rows[max(start - first, 0) : stop - first].double())
            first += len(rows)
        return torch.cat(found)

    def second_moment(self) -> Tensor:
        """Sum of f f^T over all samples: [F, F], a tensor of the caller's own."""
        self._gather()
        x = self.rows[self._folded :].double()
        if not len(self.gram):
            return x.T @ x
        return torch.addmm(self.gram, x.T, x) if len(x) else self.gram.clone()

    def class_sums(self) -> Tensor:
        """Sums of the features by class [C, F]."""
        if len(self.sums):
            return self.sums
        sums = self.counts.new_zeros(len(self.counts), self.in_features)
        tiles = zip(self.rows.split(_TILE), self.row_targets.split(_TILE), strict=True)
        for rows, targets in [*tiles, *self._parts]:
            sums.index_add_(0, targets, rows.double())
        return sums

    def means(self) -> Tensor:
        """Class means [C, F]; zero for a class without samples."""
        return self.class_sums() / self.counts.clamp_min(1).unsqueeze(1)

    @torch.no_grad()
    def lda(self, shrinkage: float | str) -> tuple[Tensor, Tensor]:
        r"""Weights [C, F] and bias [C] of LDA with equal priors, see :class:`SLDAHead`.

        Where classes have no spread beyond rounding (tr S below 1e-12 of tr G, as with one image a
        class) S counts as zero and the shrinkage is relative to tr G instead. What is added to the
        diagonal is at least the rounding of G, so it can always be solved. All of it is relative
        to the features' scale and the same in both forms.

        :param shrinkage: a share above 0 and at most 1, "oas" or "ledoit-wolf".
        """
        if self.by_samples:
            return self._lda_by_samples(shrinkage)
        scatter, present = self.second_moment(), self.counts.nonzero().flatten()
        whole = scatter.diagonal().mean()
        means, count = self.means()[present], self.counts[present].unsqueeze(1)
        scatter.addmm_((means * count).T, means, alpha=-1)
        # Seen from the mean of the means the solution is the same and loses fewer digits.
        centred = means - means.mean(0)
        s = self._share(shrinkage, scatter)
        weight, some, ridge = self._ridge(1 - s, s, scatter.diagonal().mean(), whole)
        scatter.mul_(weight * some).diagonal().add_(ridge)
        return self._with_bias(present, means, _solve_(scatter, centred) * self.samples)

    def _with_bias(self, present: Tensor, means: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias of all classes from the weights [K, F] of those that are present."""
        centre = means.mean(0)
        bias = -0.5 * ((means - centre) * found).sum(1) - found @ centre
        return self._for_all_classes(present, found), self._for_all_classes(present, bias)

    def _for_all_classes(self, present: Tensor, found: Tensor) -> Tensor:
        """Rows of the classes that are present, and zeros for the others."""
        if len(present) == len(self.counts):
            return found
        zeros = found.new_zeros(len(self.counts), *found.shape[1:])
        return zeros.index_copy_(0, present, found)

    @torch.no_grad()
    def ridge(self, penalty: float, balance: bool = False, combined: bool = True) -> Tensor:
        """Weights [C, F] of ridge regression to one-hot targets, see :class:`RidgeHead`.

        :param penalty: relative to the mean of the diagonal, > 0.
        :param balance: whether classes count alike.
        :param combined: False, in the samples' space, gives coefficients [C, n] of the rows.
        """
        if balance:
            return self._balanced(penalty)
        if not self.by_samples:
            gram, present = self.second_moment(), self.counts.nonzero().flatten()
            _, _, ridge = self._ridge(1.0, penalty, gram.diagonal().mean(), gram.diagonal().mean())
            gram.diagonal().add_(ridge)
            return self._for_all_classes(present, _solve_(gram, self.class_sums()[present]))
        inner = self._products()
        size = inner.diagonal().sum() / self.in_features
        inner.diagonal().add_(self._ridge(1.0, penalty, size, size)[2])
        present, group = self.row_targets.unique(return_inverse=True)
        # (X^T X + r I)^{-1} X^T = X^T (X X^T + r I)^{-1}
        found = _solve_(inner, _one_hot(group, len(present)))
        return self._for_all_classes(present, self._times_rows(found) if combined else found)

    @torch.no_grad()
    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues e_j [K] of G, and |Q u_j|^2 [K] of the class sums Q; K is min(n, F)."""
        if self.by_samples:
            values, vectors = torch.linalg.eigh(self._products())
            values = values.clamp_min(0)
            onto = vectors.new_zeros(len(self.counts), len(vectors))
            onto.index_add_(0, self.row_targets, vectors)
            return values, onto.square().sum(0) * values
        values, vectors = torch.linalg.eigh(self.second_moment())
        return values.clamp_min(0), (self.class_sums() @ vectors).square().sum(0)

    def _share(self, shrinkage: float | str, scatter: Tensor) -> Tensor:
        """The shrinkage, by name from the scatter S = n Sigma or from X X^T of the same rows."""
        n = max(self.samples, 1)
        if isinstance(shrinkage, str):
            trace, squared = scatter.diagonal().sum() / n, scatter.square().sum() / n**2
            return _found_shrinkage(shrinkage, n, self.in_features, trace, squared)
        return scatter.new_full((), shrinkage)  # on the device, without a copy

    def _ridge(
        self, weight: float | Tensor, shift: float | Tensor, spread: Tensor, whole: Tensor
    ) -> tuple[float | Tensor, Tensor, Tensor]:
        """For weight S + ridge I: the weight, whether S is more than rounding, and the ridge.

        :param spread: mean of S's diagonal.
        :param whole: mean of G's.
        """
        some = spread > _NO_SPREAD * whole
        rounding = weight * torch.finfo(whole.dtype).eps * self.in_features**2 * whole
        ridge = torch.maximum(shift * torch.where(some, spread, whole), rounding)
        return weight, some, ridge.clamp_min(torch.finfo(whole.dtype).tiny)  # all may be zero

    def _lda_by_samples(self, shrinkage: float | str) -> tuple[Tensor, Tensor]:
        """:meth:`lda` from the inner products K of the rows alone.

        With the rows about their class means, H X, and the class means about their mean, B^T X,
        the weights are B^T X (w X^T H X + r I)^{-1} = (B - H (H K H + r / w I)^{-1} H K B)^T X / r.
        """
        inner = self._products()
        present, group = self.row_targets.unique(return_inverse=True)
        count = self.counts[present].unsqueeze(1)
        zeros = inner.new_zeros(len(present), len(inner))
        whole = inner.diagonal().sum() / self.in_features
        inner -= (zeros.index_add(0, group, inner) / count)[group]  # H K
        by_class = zeros.index_add(0, group, inner.T) / count  # B^T K H
        within = inner.sub_(by_class.T[:, group])  # H K H
        s = self._share(shrinkage, within)
        spread = within.diagonal().sum() / self.in_features
        weight, some, ridge = self._ridge(1 - s, s, spread, whole)
        own = _one_hot(group, len(present)) / count
        alpha = own - own.mean(0)  # B^T
        if bool((weight > 0) & some):
            within.diagonal().add_(ridge / weight)
            found = _solve_(within, by_class - by_class.mean(0))
            classes = zeros.new_zeros(len(present), len(present)).index_add_(1, group, found)
            alpha -= found - (classes / count.T)[:, group]
        parts = self._times_rows(torch.cat([alpha, own]))
        found, means = parts[: len(present)] / ridge * self.samples, parts[len(present) :]
        return self._with_bias(present, means, found)

    def _balanced(self, penalty: float) -> Tensor:
        """:meth:`ridge` of classes that count alike: G = c / n S + M^T M and the means as sums."""
        present = self.counts.nonzero().flatten()
        means, share = self.means()[present], len(present) / max(self.samples, 1)
        if self.by_samples:
            self._gather()
            x = self.rows.double() - self.means()[self.row_targets]
            x = torch.cat([share**0.5 * x, means])
            size = x.square().sum() / self.in_features
            ridge = self._ridge(1.0, penalty, size, size)[2]
            inner = x @ x.T
            inner.diagonal().add_(ridge)
            return self._for_all_classes(present, (means - _solve_(inner, means @ x.T) @ x) / ridge)
        gram = self.second_moment()
        gram.addmm_((means * self.counts[present].unsqueeze(1)).T, means, alpha=-1)
        gram.addmm_(means.T, means, beta=share)
        size = gram.diagonal().mean()
        gram.diagonal().add_(self._ridge(1.0, penalty, size, size)[2])
        return self._for_all_classes(present, _solve_(gram, means))

    def _products(self) -> Tensor:
        """X X^T [n, n] in float64, the caller's own; that of earlier rows is not computed again."""
        self._gather()
        n, known = len(self.rows), 0 if self._inner is None else len(self._inner)
        full = torch.empty(n, n, dtype=torch.float64, device=self.rows.device)
        if self._inner is not None:
            full[:known, :known] = self._inner
        for start in range(known, n, _TILE):
            part = self.rows[start : start + _TILE].double()
            stop = start + len(part)
            for other in range(0, stop, _TILE):
                tile = part @ self.rows[other : min(other + _TILE, stop)].double().T
                full[start:stop, other : other + tile.shape[1]] = tile
                full[other : other + tile.shape[1], start:stop] = tile.T
        whole = n - n % _TILE
        if whole > known:
            self._inner = full[:whole, :whole].clone()
        return full

    def _times_rows(self, found: Tensor) -> Tensor:
        """[K, n] times the rows X: [K, F]; all rows in float64 at once would be large."""
        total = found.new_zeros(len(found), self.in_features)
        for start in range(0, len(self.rows), _TILE):
            stop = start + _TILE
            total.addmm_(found[:, start:stop], self.rows[start:stop].double())
        return total

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes."""
        self.counts = with_rows(self.counts, torch.zeros(num_classes))
        if len(self.sums):
            self.sums = with_rows(self.sums, torch.zeros(num_classes, self.in_features))


class ClosedFormHead(Head):
    """A head that is solved from :class:`StreamingMoments` when it is first asked after training.

    Classes without a sample get -inf: a score of zero could win against negative ones.

    :param in_features: width F of what the moments are of.
    :param num_classes: C.
    :param second: whether the solution needs second moments.

    >>> issubclass(SLDAHead, ClosedFormHead) and SLDAHead.closed_form
    True
    """

    closed_form = True

    def __init__(self, in_features: int, num_classes: int, second: bool = True) -> None:
        super().__init__(in_features, num_classes)
        self.moments = StreamingMoments(in_features, num_classes, second)
        self._solved: tuple[Tensor, Tensor, Tensor | None] | None = None
        self._late: tuple[int, tuple[Tensor, Tensor, Tensor | None]] | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> ClosedFormHead:
        self._solved = self._late = None  # tensors that a move would leave behind
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._solved = self._late = None

    def observe(self, features: Tensor, targets: Tensor) -> None:
        """Add the batch to the sums: features [B, F], targets [B]."""
        self.moments.add(self._map(features.detach()), targets)
        self._solved = None

    def clear(self) -> None:
        """Be as before the first sample; a random map stays."""
        old = self.moments
        fresh = StreamingMoments(old.in_features, self.num_classes, old.second)
        self.moments = fresh.to(old.counts.device)
        self._solved = self._late = None

    @abstractmethod
    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights [C, K] and bias [C] in float64; K is F, or n of :meth:`basis`."""

    def basis(self) -> Tensor | None:
        """Rows [n, F] whose inner products with the features the weights are for; None: none."""
        return None

    @torch.no_grad()
    def _solution(self) -> tuple[Tensor, Tensor, Tensor | None]:
        if self._solved is None:
            weight, bias = self.solve()
            bias = bias.masked_fill(self.moments.counts == 0, float("-inf"))
            self._solved = weight, bias, self.basis()
        return self._solved

    def linear_form(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The inputs, weights and bias of the solution, in float64."""
        weight, bias, basis = self._solution()
        inputs = self._inputs(features)
        return inputs if basis is None else inputs @ basis.T, weight, bias

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, F] -> logits [B, C], computed in float64 and returned in float32."""
        return super().forward(features).float()

    def in_training(self, features: Tensor) -> Tensor:
        """Logits from a solution that is renewed when the samples double.

        They are for what is logged: a class that has come since then is at -inf. A solution for
        each new class would cost a wide head more than the backbone's forward.
        """
        if self._late is None or self.moments.samples >= 2 * self._late[0]:
            self._late = self.moments.samples, self._solution()
        solved, self._solved = self._solved, self._late[1]
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
    """Nearest class mean by cosine: logits cos(f, mu_c).

    Source: SimpleCIL, arXiv 2303.07338. State: 8 C F bytes.

    >>> head = NCMHead(2, 2)
    >>> head.observe(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 1]))
    >>> head(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__(in_features, num_classes, second=False)

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
    the within-class scatter uses the final class means, so it does not depend on the order. All
    classes have the same prior, however many samples they have.

    Source: Hayes & Kanan, arXiv 1909.01520; shrinkage that is found: Chen et al., Shrinkage
    algorithms for MMSE covariance estimation, 2010. "ledoit-wolf" is their Rao-Blackwell form of
    the Ledoit-Wolf estimate: Ledoit and Wolf's own needs fourth moments about the class means,
    which no sums of a stream give.

    :param shrinkage: s in (0, 1], or "oas" or "ledoit-wolf".
    :raises UsageError: for another one.

    >>> head, x = SLDAHead(2, 2), torch.tensor([[1.0, 0.0], [3, 0], [1, 1], [3, 1]])
    >>> head.observe(x, torch.tensor([0, 0, 1, 1]))
    >>> head(torch.tensor([[9.0, 0.1], [-9.0, 0.9]])).argmax(1)
    tensor([0, 1])
    """

    @takes(shrinkage=SHRINKAGE)
    def __init__(self, in_features: int, num_classes: int, shrinkage: float | str = 0.05) -> None:
        super().__init__(in_features, num_classes)
        self.shrinkage = shrinkage

    def solve(self) -> tuple[Tensor, Tensor]:
        """Solve Sigma_s W^T = M^T by Cholesky."""
        return self.moments.lda(self.shrinkage)


@register_head("ridge")
class RidgeHead(ClosedFormHead):
    r"""Ridge regression to one-hot targets, W = (G + lambda I)^{-1} Q, exact in one pass.

    With ``projections`` > 0 the features are first mapped by a fixed random layer,
    h = relu(f R), R ~ N(0, 1) (RanPAC, arXiv 2307.02251, without its first phase).

    With ``balance`` a sample of class c counts 1 / n_c, for streams whose classes have different
    numbers of samples: Q holds the class means and G = C Sigma + sum_c mu_c mu_c^T. That is the
    weighted sum of f f^T if classes share their covariance Sigma; without that assumption it would
    take a second moment for each class.

    :param penalty: lambda relative to the mean of G's diagonal, > 0, so that it does not depend on
        the features' scale.
    :param projections: width of the random layer, 0 for none.
    :param balance: whether classes count alike.
    :raises UsageError: if an option is out of range.

    >>> head, x = RidgeHead(2, 2, penalty=1e-6), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    >>> head.observe(x, torch.tensor([0, 1]))
    >>> head(x).round(decimals=3)
    tensor([[1., 0.],
            [0., 1.]])
    """

    @takes(
        in_features=Whole(),
        penalty=Number(above=0),
        projections=Whole(least=0),
        balance=Flag(),
    )
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        penalty: float = 0.01,
        projections: int = 0,
        balance: bool = False,
    ) -> None:
        super().__init__(projections or in_features, num_classes)
        self.penalty, self.balance = penalty, balance
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
        combined = self.basis() is None
        weight = self.moments.ridge(self.penalty, self.balance, combined)
        return weight, torch.zeros_like(self.moments.counts)

    def basis(self) -> Tensor | None:
        """The rows themselves while they are fewer than classes and features."""
        few = self.moments.by_samples and self.moments.samples < self.num_classes
        if not few or self.balance:
            return None
        self.moments._gather()
        return self.moments.rows.double()


@register_head("rp-ridge")
class RandomRidgeHead(RidgeHead):
    r"""Ridge regression on random projections: RanPAC (arXiv 2307.02251) without its first phase.

    W = (H^T H + lambda I)^{-1} H^T Y with h = relu(f R), R ~ N(0, 1) of F x M, exact in one pass.
    The paper has M = 10,000 on a ViT-B; here M = 2,000, at which taking a sample in costs below a
    tenth of a small ViT's forward. lambda is relative to the mean of the Gram matrix's diagonal:
    the paper chooses it per task, which needs boundaries.

    :param penalty: lambda over the mean of the diagonal, > 0.
    :param projections: M.
    :param balance: as in :class:`RidgeHead`.
    :raises UsageError: if an option is out of range.

    >>> head = RandomRidgeHead(4, 2, projections=16)
    >>> head.observe(torch.randn(8, 4), torch.arange(8) % 2)
    >>> head(torch.randn(3, 4)).shape
    torch.Size([3, 2])
    """

    @takes(projections=Whole())
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        penalty: float = 0.1,
        projections: int = 2000,
        balance: bool = False,
    ) -> None:
        super().__init__(in_features, num_classes, penalty, projections, balance)
