r"""MVP: DualPrompt for blurred streams, with logits masked and losses weighed by instance.

On DualPrompt's network with inserted tokens:

1. Query: the class token that enters the last block, not normalised.
2. Expert by distance times use, :math:`t = \arg\min_m (1 - \cos(q, k_m)) (n_m + 1)`, n_m being how
   often m was chosen so far (in training; the counts stand still at test).
3. Instance-wise logit mask: logits times 2 sigmoid(M_t), M learned, -1 at the start.
4. Contrastive key loss for the chosen key, with mass m_t = n_t + 1, d the query's distance and
   kd_j the key's distances to the other keys:
   :math:`-\log \frac{\bar e}{e^{d / m_t} + \bar e}, \; \bar e = \mathrm{mean}_j \, e^{kd_j / m_t}`.
5. Feature scaling: :math:`f_i / (1 - \cos(W_{y_i}, f_i) + \mathrm{margin})` goes to the head.
6. Gradient-based weights: :math:`l_i ((1 - a) + a \, \mathrm{ign}_i^g)` with
   :math:`\mathrm{ign}_i = 1 - \cos(\partial l_i / \partial W_y, \partial L / \partial W_y)`,
   y the image's class.

For logits :math:`W h_i` the gradient in 6 has a closed form, so there is no loop over samples:
:math:`\partial l_i / \partial W_c = (p_{ic} - [c = y_i]) \, g_{ic} \, h_i` with g the mask of 3.

The weights of 6 multiply each image's own loss, as the paper's equation says; public code reduces
the loss to its mean first, which makes them one factor for the batch. Its key loss is another one
too, and it adds no position embedding to the prompts: ``docs/baselines.md`` lists what differs.
Prompts and keys start from N(0, 1), as the authors' do.

Uses: no task identity, no boundary. Forward passes per training image: 2 (the query's lacks the
last block).

Source: Moon et al., ICCV 2023 (arXiv 2308.09303), from the equations.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.methods.dualprompt import DualPromptViT
from avalanche_rwf.methods.l2p import Chosen
from avalanche_rwf.methods.prompting import cosine_distance
from avalanche_rwf.models.blockwise import tokens_entering
from avalanche_rwf.models.families import ViT, summary
from avalanche_rwf.models.heads import held
from avalanche_rwf.models.masks import mask_logits, training_mask
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.criteria import is_cross_entropy
from avalanche_rwf.strategies.registry import register_model
from avalanche_rwf.utils.validation import Number, shown, takes


def ignored(
    inputs: Tensor, logits: Tensor, targets: Tensor, gate: Tensor
) -> Tensor:
    """ign_i of 6 for each image: 0 where its gradient agrees with the batch's, up to 2.

    :param inputs: h [B, K], what the head multiplies by W.
    :param logits: [B, C], gated and masked (-inf).
    :param targets: [B].
    :param gate: g [B, C].
    :returns: [B].
    """
    rows = torch.arange(len(targets), device=targets.device)
    slope = F.softmax(logits, dim=1)
    slope[rows, targets] -= 1
    slope = slope * gate
    batch = slope.T @ inputs / len(inputs)  # dL/dW, [C, K]
    own = slope[rows, targets].unsqueeze(1) * inputs
    return 1 - F.cosine_similarity(own, batch[targets], dim=1)


def mvp_losses(
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    gate: Tensor,
    allowed: Tensor,
    margin: float,
    share: float,
    power: float,
) -> Tensor:
    """Each image's loss by 3, 5 and 6: [B].

    :param inputs: h [B, K].
    :param weight: W [C, K] with logits = h W^T + bias.
    :param targets: [B].
    :param gate: [B, C].
    :param allowed: classes that compete, bool [C].
    :param margin: of 5.
    :param share: a of 6; 0 weighs all images alike.
    :param power: g of 6.
    """
    with torch.no_grad():
        scale = 1 - F.cosine_similarity(weight[targets], inputs, dim=1) + margin
        plain = mask_logits(F.linear(inputs, weight, bias) * gate, allowed)
        ign = ignored(inputs, plain, targets, gate)
        weights = (1 - share) + share * ign.clamp_min(0) ** power
    logits = F.linear(inputs / scale.unsqueeze(1), weight, bias) * gate
    return weights * F.cross_entropy(mask_logits(logits, allowed), targets, reduction="none")


@dataclass(frozen=True)
class Gated(Chosen):
    """An image's expert and its logit mask, [B, C]."""

    gate: Tensor


class MVPStrategy(FrozenBackboneStrategy):
    """MVP's loss on MVP's model; all else is as for every method.

    :param margin: added to 1 - cos(W_y, f) in the feature scaling.
    :param share: a, the part of the loss that the gradient-based weights rule.
    :param power: g, their exponent.
    :param kwargs: of :class:`FrozenBackboneStrategy`.
    :raises ValueError: naming the argument that is out of range.
    """

    @takes(margin=Number(above=0), share=Number(least=0, most=1), power=Number(least=0))
    def __init__(
        self, *, margin: float = 0.5, share: float = 0.5, power: float = 2.0, **kwargs: Any
    ) -> None:
        criterion = kwargs.get("criterion")
        if criterion is not None and not is_cross_entropy(criterion, plain=True):
            raise UsageError(
                f"criterion must be left out or be CrossEntropyLoss() for {type(self).__name__}, "
                f"whose loss is its own, not {shown(criterion)}."
            )
        self.margin, self.share, self.power = margin, share, power
        super().__init__(**kwargs)
        head = self.model.training_head or self.model.head
        if not head.is_linear():
            raise UsageError(
                f"MVP's loss needs the gradient of each row of the head, and {type(head).__name__} "
                "has a forward and no linear_form to have it from."
            )

    def masked_loss(
        self,
        features: Tensor,
        targets: Tensor,
        mask: str | Tensor,
        freeze_head: bool = False,
        selection: Any = None,
    ) -> Tensor:
        """The mean of :func:`mvp_losses`."""
        head = self.model.training_head or self.model.head
        gate = selection.gate
        if self.mask == "decoupled" and not freeze_head:
            # The instances' masks are the prompts' part.
            features, gate = features.detach(), gate.detach()
        if isinstance(mask, str):
            mask = training_mask(mask, targets, self.model.seen)
        with held(head) if freeze_head else nullcontext():
            inputs, weight, bias = head.linear_form(features)
            losses = mvp_losses(
                inputs, weight, bias, targets, gate, mask, self.margin, self.share, self.power
            )
        return losses.mean()


@register_model(
    "mvp",
    summary="MVP: DualPrompt with instance-wise logit masks and loss weights; no boundaries",
    paper="Moon et al., Online class incremental learning on stochastic blurry task boundary via "
    "mask and visual prompt tuning, arXiv 2308.09303",
    published={},
    strategy=MVPStrategy,
    without=("slots",),
    mask="seen",
)
class MVPViT(DualPromptViT):
    """MVP's prompts, keys and logit masks on a frozen ViT.

    :param options: of :class:`DualPromptViT` and :class:`FrozenViT`.
    """

    counts: Tensor

    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        pool_size: int = 10,
        insert: str = "token",
        start: str = "normal",
        **options: Any,
    ) -> None:
        options.update(pool_size=pool_size, insert=insert, start=start)
        super().__init__(backbone, num_classes, **options)
        # Classes first: a head that grows adds rows, and the optimizer's state follows.
        self.gates = nn.Parameter(torch.full((num_classes, pool_size), -1.0))
        self.register_buffer("counts", torch.zeros(pool_size, dtype=torch.long))

    def query(self, images: Tensor) -> Tensor:
        """The class token [B, D] that enters the last block; the mean patch if there is none."""
        last = self.depth - 1

        def entering(x: Tensor) -> Tensor:
            return summary(self.backbone, tokens_entering(self.backbone, x, last), inner=True)

        return self.cached(images, entering, f"entering {last}")

    def weigh(self, distance: Tensor) -> Tensor:
        """Distances [B, M] times uses."""
        return distance * (self.counts + 1)

    def select(self, query: Tensor, training: bool) -> Gated:
        """The expert of each query, its logit mask [B, C] and its key's loss."""
        chosen = super().select(query, training)
        gate = 2 * torch.sigmoid(self.gates.T[chosen.indices])
        gated = Gated(chosen.indices, chosen.pull, gate)
        if len(self.keys) < 2 or not training:
            return gated
        mass = (self.counts[chosen.indices] + 1).float()
        between = cosine_distance(self.keys[chosen.indices], self.keys.detach())
        others = torch.ones_like(between).scatter(1, chosen.indices.unsqueeze(1), 0.0)
        far = ((between / mass.unsqueeze(1)).exp() * others).sum(1) / others.sum(1)
        near = (chosen.pull / mass).exp()
        return replace(gated, pull=-(far / (near + far)).log())

    def logits(self, features: Tensor, selection: Gated | None = None) -> Tensor:
        """Features [B, F] -> masked logits [B, C].

        A closed-form head is not trained through the masks and is read without them.
        """
        logits = self.head(features)
        if selection is None or self.head.closed_form:
            return logits
        return logits * selection.gate

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor, selection: Any = None) -> None:
        """Count the choices, after they were made."""
        super().observe(features, targets)
        chosen = selection.indices
        self.counts.index_add_(0, chosen, torch.ones_like(chosen))

    def grow(self, num_classes: int) -> None:
        """Make room for `num_classes` classes in all."""
        old = self.gates
        super().grow(num_classes)
        if num_classes > len(old):
            fresh = torch.full((num_classes - len(old), old.shape[1]), -1.0).to(old)
            self.gates = nn.Parameter(torch.cat([old.detach(), fresh]))
