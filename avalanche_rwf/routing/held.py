r"""Queries trained on the first samples of the stream, then held: features that stand still after.

The tokens of the first `hold_after` samples that are seen are kept. Then the queries take a number
of Adam steps on the loss that the closed-form head itself would have: half of the kept samples
(drawn anew in each step) gives an LDA solution, the other half's cross-entropy under it is the
loss,

.. math::

    \ell(S) = - \frac{1}{|B|} \sum_{i \in B} \log \operatorname{softmax}\big(3 \, z_i / \sigma_z
              \big)_{y_i} , \qquad z = \mathrm{LDA}_{A}(f_S(x_i)) ,

with sigma_z the spread of the scores, held fixed. The head's statistics of the kept samples are
taken again from their tokens with the final queries, so that they are exact for the whole stream;
then the tokens are dropped. Keeping the early statistics as they were, or shifting them by the mean
change of the features, loses what was learned (``examples/route_study.py``).

It counts samples and knows nothing of experiences; before the count is reached it is what it would
be without training. This is this project's; LDA as in :class:`SLDAHead`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_rwf.models.blockwise import full_precision
from avalanche_rwf.models.classifier import Selection
from avalanche_rwf.models.heads import SLDAHead
from avalanche_rwf.models.heads.base import fit_buffers
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.utils.validation import Number, Whole, takes

__all__ = ["HeldRoutedViT", "lda_loss"]

# At most so many of the kept samples are drawn in a step.
_DRAWN = 200


def lda_loss(
    train: Tensor, labels: Tensor, test: Tensor, targets: Tensor, shrinkage: float
) -> Tensor:
    """Cross-entropy of `test` under the LDA of `train`, solved in its dual form.

    :param train: features [n, F]; the cost is n^3 + n^2 F.
    :param labels: [n], values 0 to C - 1, all present.
    :param test: features [m, F].
    :param targets: [m], values 0 to C - 1.
    :param shrinkage: as in :class:`SLDAHead`.
    :returns: a scalar with gradients to `train` and `test`, in nats.

    >>> x, y = torch.tensor([[1.0, 0], [2, 0], [1, 9], [2, 9]]), torch.tensor([0, 0, 1, 1])
    >>> bool(lda_loss(x, y, x, y, 0.1) < lda_loss(x, y, x, 1 - y, 0.1))
    True
    """
    one_hot = F.one_hot(labels).to(train.dtype)
    means = (one_hot / one_hot.sum(0)).T @ train
    centre = means.mean(0)
    within, centred = train - means[labels], means - centre
    inner = within @ within.T
    # Without spread, as with one sample a class, the floor counts; it is relative to their size.
    floor = 1e-12 * train.detach().square().sum().clamp_min(1e-12)
    ridge = shrinkage * torch.maximum(inner.diagonal().sum(), floor) / train.shape[1]
    inner = inner + ridge / (1 - shrinkage) * torch.eye(len(train)).to(train)
    weight = (centred - torch.linalg.solve(inner, within @ centred.T).T @ within) / ridge
    scores = test @ weight.T - 0.5 * (centred * weight).sum(1) - weight @ centre
    # Scores grow with F / ridge; at one scale the loss does not saturate.
    return F.cross_entropy(3 * scores / scores.detach().std().clamp_min(1e-12), targets)


@dataclass(frozen=True)
class Entering(Selection):
    """The tokens [B, routed blocks, N, D] that entered the routed blocks."""

    tokens: Tensor


class HeldRoutedViT(RoutedViT):
    """A routed ViT for the read-out only, whose queries learn once and are then held.

    :param hold_after: number of first samples to learn from; the batch that reaches it counts
        whole. Their tokens take blocks x N x D floats each until then.
    :param steps: Adam steps, all taken when the count is reached.
    :param lr: their rate; a query's entries have a size of one.
    :param options: of :class:`RoutedViT`, with ``insert_prompts=False``, ``readout="routes"`` and
        ``head="slda"``.
    :raises UsageError: if ``hold_after`` or ``steps`` is below 1, or ``lr`` is not positive.

    >>> from avalanche_rwf import PACKAGED, create_backbone
    >>> model = HeldRoutedViT(create_backbone(PACKAGED), 10, routed_blocks="0", hold_after=4)
    >>> features, selection = model.train().encode(torch.rand(4, 3, 32, 32))
    >>> model.observe(features, torch.tensor([0, 0, 1, 1]), selection)
    >>> model.own_gradient_steps()
    40
    """

    held: Tensor
    kept_tokens: Tensor
    kept_features: Tensor
    kept_targets: Tensor

    @takes(hold_after=Whole(), steps=Whole(), lr=Number(above=0))
    def __init__(
        self,
        *args: Any,
        hold_after: int = 160,
        steps: int = 40,
        lr: float = 0.03,
        **options: Any,
    ) -> None:
        super().__init__(*args, insert_prompts=False, readout="routes", head="slda", **options)
        assert isinstance(self.head, SLDAHead)
        Number().check("shrinkage", self.head.shrinkage)  # a number, no rule, for the loss
        self.hold_after, self.steps, self.lr = hold_after, steps, lr
        self.register_buffer("held", torch.zeros((), dtype=torch.bool))
        self._held = False  # on the host: a step must not wait for the device
        self._drop()

    def trainable_parameters(self) -> int:
        """Number of trained scalars: the queries, although no strategy's optimizer has them."""
        return sum(self.layer(i).queries.numel() for i in self._routed)

    def own_gradient_steps(self) -> int:
        """Gradient steps taken here and not by the strategy."""
        return self.steps if self._held else 0

    def _drop(self) -> None:
        like = next(self.layers.parameters(), torch.zeros(())).detach()
        tokens = torch.zeros(0, len(self._routed), 0, self.dim).to(like)
        self.register_buffer("kept_tokens", tokens)
        self.register_buffer("kept_features", torch.zeros(0, 0).to(like))
        self.register_buffer("kept_targets", torch.zeros(0, dtype=torch.long, device=like.device))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        fit_buffers(self, state_dict, prefix, "kept_tokens", "kept_features", "kept_targets")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._held = bool(self.held)

    def _encode(self, images: Tensor) -> tuple[Tensor, Entering | None]:
        if not self.training or self._held or not self._routed:
            return super()._encode(images)[0], None
        forwarded = self._forward_blocks(images, None)
        tokens = torch.stack([forwarded.collected[i].detach() for i in self._routed], 1)
        return self.read(forwarded), Entering(tokens)

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor, selection: Any = None) -> None:
        """Give the head its statistics; the batch that reaches the count sets and holds the
        queries."""
        super().observe(features, targets)
        if self._held or not self._routed:
            return
        tokens = full_precision(selection.tokens)
        plain = full_precision(features[:, : features.shape[1] - self.route_width()])
        first = not len(self.kept_targets)
        self.kept_tokens = tokens if first else torch.cat([self.kept_tokens, tokens])
        self.kept_features = plain if first else torch.cat([self.kept_features, plain])
        self.kept_targets = torch.cat([self.kept_targets, targets])
        if len(self.kept_targets) >= self.hold_after:
            self._learn()
            self._read_again()
            self.held.fill_(True)
            self._held = True
            self._drop()
            self.invalidate_cache()

    def _kept(self, at: Tensor) -> Tensor:
        """Features [B, F] of kept samples with the queries as they are."""
        parts = [self.kept_features[at]]
        for place, block in enumerate(self._routed):
            found = self.layer(block).patterns(self.kept_tokens[at, place])
            parts.append(F.layer_norm(found, (self.dim,)).flatten(1))
        return torch.cat(parts, 1)

    @torch.enable_grad()
    def _learn(self) -> None:
        assert isinstance(self.head, SLDAHead)
        queries = [self.layer(i).queries for i in self._routed]
        before = [q.detach().clone() for q in queries]
        for q in queries:
            q.requires_grad_(True)
        optimizer = torch.optim.Adam(queries, lr=self.lr)
        draw = torch.Generator().manual_seed(0)
        n = len(self.kept_targets)
        for _ in range(self.steps):
            at = torch.randperm(n, generator=draw)[:_DRAWN].to(self.kept_targets.device)
            half = len(at) // 2
            known, labels = self.kept_targets[at[:half]].unique(return_inverse=True)
            rest = at[half:]
            rest = rest[torch.isin(self.kept_targets[rest], known)]
            if len(known) < 2 or len(rest) < 2:
                continue  # nothing to tell apart
            train, test = self._kept(at[:half]), self._kept(rest)
            targets = torch.searchsorted(known, self.kept_targets[rest])
            optimizer.zero_grad()
            lda_loss(train, labels, test, targets, float(self.head.shrinkage)).backward()
            optimizer.step()
        finite = all(bool(torch.isfinite(q).all()) for q in queries)
        for q, start in zip(queries, before, strict=True):
            q.requires_grad_(False).grad = None
            if not finite:
                q.data.copy_(start)

    def _read_again(self) -> None:
        """Compute the head's statistics of the kept samples again, with the final queries."""
        assert isinstance(self.head, SLDAHead)
        self.head.clear()
        for at in torch.arange(len(self.kept_targets), device=self.held.device).split(64):
            self.head.observe(self._kept(at), self.kept_targets[at])
