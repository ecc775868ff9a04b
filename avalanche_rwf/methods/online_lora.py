r"""Online-LoRA, a reading: LoRA that is merged where the loss has come to rest, then held.

**A recorded reading, not a reproduction.** It is written from the equations below as this project
has them (the abstract and the published settings: rank 4, rate 2e-4, batches of 64, one epoch, no
logit mask). It was checked against neither the paper's full text nor any code, and no published
number is expected to come out.

Each block's maps of queries and values are

.. math:: W_t = W_0 + \sum_{s < t} B_s A_s + B_t A_t ,

the backbone and the sum frozen, A_t and B_t (:mod:`.low_rank`) and the head trained on

.. math:: \mathrm{CE}(\text{mini-batch}) + \mathrm{CE}(\text{hard buffer})
          + \frac{\lambda}{2} \sum_j \Omega_j (\theta_j - \theta^*_j)^2 ,

theta being A_t and B_t.

- *Hard buffer*: of the mini-batch and the buffer, the 4 images with the largest cross-entropy in
  the step's forward, after each mini-batch.
- *Plateau*: mean and variance of the last losses of mini-batches are below thresholds, once after
  each peak; a peak is a mean above the last plateau's mean plus its standard deviation. At a
  plateau t goes on: the pair is added to the frozen sum, and a new one begins, its B zero.
- *Importance*: Omega is the mean over the buffer's images of the squared gradient of log p(y | x).

What these leave open is ours, each an option but for what is in brackets: the length of the window
and both thresholds; lambda; the head's rate; whether Omega is taken in the pair that has just been
trained or in the new one (in which that of A is 0, as B is); [theta* is the new pair's start, Omega
that of the last plateau alone; the first plateau needs no peak; Adam forgets the old pair; the
norm of gradients is clipped as for every method].

It reads no boundary. It keeps images: those of the hard buffer, as the model gets them, and they go
through the model with each mini-batch. The frozen sum is a D x D map for queries and one for values
in each block.

Source: Wei, Li and Marculescu, WACV 2025 (arXiv 2411.05663); LoRA: Hu et al. (arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import A_BACKBONE
from avalanche_rwf.models.blockwise import AttentionAdapter, Prompt, full_precision
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.families import ViT
from avalanche_rwf.models.heads.base import fit_buffers
from avalanche_rwf.models.low_rank import LowRank
from avalanche_rwf.models.masks import mask_logits, training_mask
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_model
from avalanche_rwf.utils.validation import Choice, Number, Whole, takes

IMPORTANCES = ("trained", "fresh")


class OnlineLoRAStrategy(FrozenBackboneStrategy):
    """The loss and the merging of Online-LoRA; all else is as for every method.

    :param importance: in which pair Omega is taken at a plateau: "trained", the one that is merged,
        or "fresh", the new one.
    :param kwargs: of :class:`FrozenBackboneStrategy`.
    :raises UsageError: naming the argument that is out of range.
    """

    model: OnlineLoRAViT
    step = (*FrozenBackboneStrategy.step, "_losses")

    @takes(importance=Choice(IMPORTANCES))
    def __init__(self, *, importance: str = "trained", **kwargs: Any) -> None:
        if kwargs.get("replay") is not None:
            raise UsageError("replay must be left out for online-lora, which has its own buffer.")
        self.importance = importance
        self._losses: Tensor | None = None  # of the images of the step's forward
        super().__init__(**kwargs)

    @property
    def _others(self) -> str:
        """The mask of the buffer's images, which may be of any class met."""
        return "none" if self.mask == "none" else "seen"

    def _extended(self, images: Tensor) -> Tensor:
        return torch.cat([images, self.model.hard_images.to(images)])

    def _step_loss(self, features: Tensor) -> Tensor:
        n, hard = len(self.mb_y), self.model.hard_targets
        loss = self.classification_loss(features[:n], self.mb_y)
        if len(hard):
            loss = loss + self.classification_loss(features[n:], hard, self._others)
        with torch.no_grad():
            self._losses = self._cross_entropies(features, torch.cat([self.mb_y, hard]))
        return loss

    def _cross_entropies(self, features: Tensor, targets: Tensor) -> Tensor:
        """-log p(y | x) of each image: [B]."""
        logits = full_precision(self.model.training_logits(features))
        allowed = training_mask(self._others, targets, self.model.seen)
        return F.cross_entropy(mask_logits(logits, allowed), targets, reduction="none")

    def _after_training_iteration(self, **kwargs: Any) -> None:
        """Note the mini-batch's losses, before anybody looks at what the step has left."""
        assert self._losses is not None
        self.model.keep_hardest(self.mb_x, self.mb_y, self._losses)
        if bool(self.model.at_plateau(self._losses[: len(self.mb_y)].mean())):
            trained = self._fisher() if self.importance == "trained" else None
            self.model.merge()
            self.model.hold(self._fisher() if trained is None else trained)
            for parameter in self.model.lora.parameters():
                self.optimizer.state.pop(parameter, None)
        super()._after_training_iteration(**kwargs)

    @torch.enable_grad()
    def _fisher(self) -> Tensor:
        """Omega of all of A and B, in their order: [P]."""
        model, parameters = self.model, list(self.model.lora.parameters())
        features, _ = model.encode(model.hard_images)
        losses = self._cross_entropies(features, model.hard_targets)
        found = torch.zeros_like(model.importance)
        for loss in losses:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            found += torch.cat([g.flatten() for g in gradients]).square()
        return found / len(losses)


@register_model(
    "online-lora",
    summary="Online-LoRA, a reading of its equations checked against neither text nor code: LoRA "
    "merged at plateaus of the loss; keeps 4 images; no boundaries",
    paper="Wei et al., Online-LoRA, arXiv 2411.05663",
    strategy=OnlineLoRAStrategy,
    mask="none",
    lr=2e-4,
    lr_head=0.001,
)
class OnlineLoRAViT(FrozenViT):
    """LoRA on queries and values of a frozen ViT, and what earlier pairs have left.

    :param rank: r of A and B.
    :param window: losses of mini-batches that a plateau is looked for in.
    :param plateau_mean: their mean is below it at a plateau.
    :param plateau_variance: their variance is, too.
    :param strength: lambda, what moving an important parameter costs.
    :param buffer: images of the hard buffer.
    :param options: of :class:`FrozenViT`.
    :raises UsageError: naming the argument that is out of range.
    """

    merged: Tensor
    merges: Tensor
    seed: Tensor
    importance: Tensor
    anchor: Tensor
    losses: Tensor
    armed: Tensor
    peak: Tensor
    hard_images: Tensor
    hard_targets: Tensor

    @takes(
        backbone=A_BACKBONE,
        rank=Whole(),
        window=Whole(),
        plateau_mean=Number(above=0),
        plateau_variance=Number(above=0),
        strength=Number(least=0),
        buffer=Whole(),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        rank: int = 4,
        window: int = 5,
        plateau_mean: float = 1.0,
        plateau_variance: float = 0.05,
        strength: float = 1000.0,
        buffer: int = 4,
        **options: Any,
    ) -> None:
        super().__init__(backbone, num_classes, **options)
        self.plateau_mean, self.plateau_variance = plateau_mean, plateau_variance
        self.strength, self.buffer = strength, buffer
        self.lora = nn.ModuleList(LowRank(block, rank) for block in backbone.blocks)
        self.register_buffer("merged", torch.zeros_like(self._maps()))
        self.register_buffer("merges", torch.zeros((), dtype=torch.long))
        # New pairs are drawn from a generator of their own.
        self.register_buffer("seed", torch.randint(2**31, ()))
        self._merges, self._seed = 0, int(self.seed)  # on the host: a step must not wait for them
        start = self._parameters_in_a_row()
        self.register_buffer("importance", torch.zeros_like(start))
        self.register_buffer("anchor", start)
        self.register_buffer("losses", torch.full((window,), float("inf")))
        self.register_buffer("armed", torch.ones((), dtype=torch.bool))
        self.register_buffer("peak", torch.tensor(float("inf")))  # a mean above it is one
        self.register_buffer("hard_images", torch.zeros(0))
        self.register_buffer("hard_targets", torch.zeros(0, dtype=torch.long))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        fit_buffers(self, state_dict, prefix, "hard_images", "hard_targets")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._merges, self._seed = int(self.merges), int(self.seed)

    @property
    def pairs(self) -> list[LowRank]:
        """A and B of each block."""
        return cast("list[LowRank]", list(self.lora))

    @torch.no_grad()
    def _maps(self) -> Tensor:
        """B A of all blocks, for queries and values: [blocks, 2, width, D]."""
        return torch.stack([pair.up @ pair.down for pair in self.pairs])

    def _parameters_in_a_row(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.lora.parameters()])

    def prompted_blocks(self) -> Sequence[int]:
        """All blocks."""
        return range(self.depth)

    def prompt(self, block: int, tokens: Tensor) -> Prompt:
        """What the block's pair and the frozen sum add to queries and values."""
        pair = self.pairs[block].prompt(tokens)
        if not self._merges:
            return pair
        queries, values = self.merged[block]
        return AttentionAdapter(
            lambda h: pair.queries(h) + F.linear(h, queries),
            lambda h: pair.values(h) + F.linear(h, values),
        )

    def auxiliary_loss(self, selection: Any) -> Tensor | None:
        """What moving important parameters costs; None before the first plateau."""
        if not self._merges or not self.strength:
            return None
        now = torch.cat([p.flatten() for p in self.lora.parameters()])
        return self.strength / 2 * (self.importance * (now - self.anchor).square()).sum()

    @torch.no_grad()
    def keep_hardest(self, images: Tensor, targets: Tensor, losses: Tensor) -> None:
        """Keep those of the largest loss, of a mini-batch's images and the buffer's.

        :param images: [B, 3, H, W].
        :param targets: [B].
        :param losses: [B + R], those of the buffer's last.
        """
        kept = losses.topk(min(self.buffer, len(losses))).indices
        self.hard_images = torch.cat([images, self.hard_images.to(images)])[kept]
        self.hard_targets = torch.cat([targets, self.hard_targets])[kept]

    @torch.no_grad()
    def at_plateau(self, loss: Tensor) -> Tensor:
        """Note a mini-batch's loss, a scalar; whether a plateau was reached, a bool."""
        self.losses = torch.cat([self.losses[1:], loss.reshape(1).to(self.losses)])
        mean, variance = self.losses.mean(), self.losses.var(correction=0)
        armed = self.armed | (mean > self.peak)
        found = armed & (mean < self.plateau_mean) & (variance < self.plateau_variance)
        self.armed = armed & ~found
        self.peak = torch.where(found, mean + variance.sqrt(), self.peak)
        return found

    @torch.no_grad()
    def merge(self) -> None:
        """Add the pairs to the frozen sum and begin new ones."""
        self.merged += self._maps()
        self._merges += 1
        self.merges.fill_(self._merges)
        draw = torch.Generator().manual_seed(self._seed + self._merges)
        for pair in self.pairs:
            pair.restart(draw)

    @torch.no_grad()
    def hold(self, importance: Tensor) -> None:
        """Hold the pairs as they are from here on, by importances [P] in their order."""
        self.importance.copy_(importance)
        self.anchor.copy_(self._parameters_in_a_row())
