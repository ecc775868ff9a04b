r"""RanPAC: ridge regression on random projections, after an adaptation on the first session.

Phase 1 takes a few parameters into each block of the frozen backbone and trains them with a linear
head on the images of the first experience alone, by cross-entropy, in several passes. Then they are
held, the head is dropped, and phase 2 is ``rp-ridge`` on the adapted backbone's features: the
statistics of all images, the first session's included, are exact.

``tune`` says what is trained in phase 1, in every block:

- ``"adapter"`` (default, as published for most data sets): AdaptFormer's branch beside the MLP,

  .. math:: x' = x + \mathrm{Attn}(x), \qquad
            y = x' + \mathrm{MLP}(x') + s \, W_u \operatorname{relu}(W_d x' + b_d) + s \, b_u ,

  with W_u = 0 at the start and s = 0.1;
- ``"prompts"``: L tokens per block that are the same for every image (VPT-deep, another choice of
  the paper);
- ``"routes"``: L prompts per block that are retrieved from the block's own tokens (RwF's layer), so
  that what retrieval adds can be told from what adaptation adds. Not of the paper;
- ``"lora"``: maps of low rank beside those of queries and values (:mod:`.low_rank`), trained as
  the adapters are. Not of the paper.

What it costs, and what of the stream it reads: where an experience begins; the images of the first
session are kept (in 16 bits, part of the state until the second one begins) and passed ``epochs``
times. That the first session has ended is known when the second begins, so until then it predicts
as ``rp-ridge`` does. A stream of one experience is never adapted to.

Published: SGD with momentum, rate 0.01 on a cosine, batches of 48, 20 epochs, the images augmented,
M = 10,000 and a penalty chosen in each task. Here the images are those of the stream, not augmented
again; no dropout in the branch; head and penalty are ``rp-ridge``'s. Prompts and routes are trained
by Adam at this package's rates for them.

Source: McDonnell et al., NeurIPS 2023 (arXiv 2307.02251); Chen et al., AdaptFormer (arXiv
2205.13535); Jia et al., VPT (arXiv 2203.12119); Hu et al., LoRA (arXiv 2106.09685). From the
equations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.errors import NonFiniteLossError, UsageError
from avalanche_rwf.methods.prompting import TaskViT
from avalanche_rwf.models.blockwise import Adapter, Prompt, forward_blocks
from avalanche_rwf.models.classifier import Selection
from avalanche_rwf.models.families import ViT
from avalanche_rwf.models.heads import ClosedFormHead
from avalanche_rwf.models.heads.base import fit_buffers
from avalanche_rwf.models.low_rank import LowRank
from avalanche_rwf.routing.layer import RoutingLayer
from avalanche_rwf.strategies.base import DEFAULT_RATES, FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.utils.validation import Choice, Number, Whole, takes

__all__ = ["AdaptedViT"]

TUNES = ("adapter", "prompts", "routes", "lora")


class _Branch(nn.Module):
    """AdaptFormer's branch: tokens [B, N, D] -> what is added to them."""

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: Tensor) -> Tensor:
        return 0.1 * self.up(F.relu(self.down(tokens)))

    def prompt(self, tokens: Tensor) -> Adapter:
        """For the block's MLP, whatever the tokens."""
        return Adapter(self)


@dataclass(frozen=True)
class Session(Selection):
    """The images [B, 3, H, W] of a batch of the first session."""

    images: Tensor


class AdaptedViT(TaskViT):
    """A frozen ViT that takes in a few parameters on the first session, read by a closed form.

    :param backbone: a timm transformer of one of the :mod:`~avalanche_rwf.models.families`.
    :param num_classes: C.
    :param tune: what is trained in every block: "adapter" (a branch beside the MLP), "prompts" (the
        same for every image), "routes" (prompts retrieved from the block's tokens) or "lora" (maps
        of low rank beside those of queries and values).
    :param bottleneck: width of the adapter's inner layer.
    :param num_prompts: L of prompts and routes.
    :param rank: of LoRA's maps.
    :param epochs: passes over the first session.
    :param session_batch: images in a step of phase 1.
    :param lr: SGD's rate of adapters, of LoRA's maps and of the head of phase 1, falling to 0 on a
        cosine.
    :param lr_queries: Adam's rate of prompts and of routes' queries, falling likewise.
    :param options: of :class:`FrozenViT`; the head is a closed form.
    :raises UsageError: naming the argument that is out of range.
    """

    uses_boundaries = True
    adapted: Tensor
    steps: Tensor
    session_images: Tensor
    session_targets: Tensor

    @takes(
        tune=Choice(TUNES),
        bottleneck=Whole(),
        num_prompts=Whole(least=0),
        rank=Whole(),
        epochs=Whole(),
        session_batch=Whole(),
        lr=Number(above=0),
        lr_queries=Number(least=0),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        tune: str = "adapter",
        bottleneck: int = 64,
        num_prompts: int = 10,
        rank: int = 4,
        epochs: int = 20,
        session_batch: int = 48,
        lr: float = 0.01,
        lr_queries: float = 1e-3,
        **options: Any,
    ) -> None:
        self._blocks = range(len(backbone.blocks))
        super().__init__(backbone, num_classes, **options)
        if not isinstance(self.head, ClosedFormHead):
            raise UsageError(
                f"head must be a closed form, not {type(self.head).__name__}: nothing is trained "
                "after phase 1."
            )
        self.tune, self.epochs, self.session_batch = tune, epochs, session_batch
        self.lr, self.lr_queries = lr, lr_queries
        self.parts = nn.ModuleDict()
        for block in self._blocks:
            if tune == "adapter":
                part: nn.Module = _Branch(self.dim, bottleneck)
            elif tune == "lora":
                part = LowRank(backbone.blocks[block], rank)
            elif tune == "prompts":
                part = RoutingLayer(
                    self.dim, num_prompts, source="static", trainable=("queries",)
                )
            else:
                part = RoutingLayer(self.dim, num_prompts)
            self.parts[str(block)] = part
        # The strategy trains nothing: phase 1 is here.
        self.parts.requires_grad_(False)
        self.register_buffer("adapted", torch.zeros((), dtype=torch.bool))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._adapted, self._steps = False, 0  # on the host: a step must not wait for the device
        self._drop()

    def _drop(self) -> None:
        like = self.seen.device
        self.register_buffer("session_images", torch.zeros(0, 0, 0, 0, device=like).half())
        self.register_buffer("session_targets", torch.zeros(0, dtype=torch.long, device=like))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        fit_buffers(self, state_dict, prefix, "session_images", "session_targets")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._adapted, self._steps = bool(self.adapted), int(self.steps)

    @property
    def prompts_held(self) -> bool:  # type: ignore[override]
        """After phase 1 features of test images may be looked up."""
        return self._adapted

    def max_experiences(self) -> None:
        """Any number."""

    def trainable_parameters(self) -> int:
        """Number of scalars that phase 1 trains, its head not counted."""
        trained = [p for group in self._groups().values() for p in group]
        return sum(p.numel() for p in trained)

    def own_gradient_steps(self) -> int:
        """Gradient steps of phase 1."""
        return self._steps

    def prompted_blocks(self) -> Sequence[int]:
        """All blocks, once there is something in them."""
        return self._blocks if self._adapted else ()

    def prompt(self, block: int, tokens: Tensor, *args: Any, **kwargs: Any) -> Prompt:
        """The block's own branches, or its prompts."""
        part: Any = self.parts[str(block)]
        found: Prompt = part.prompt(tokens)
        return found

    def encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        """Images [B, 3, H, W] -> features [B, F], and in the first session the images too."""
        features, _ = super().encode(images)
        return features, Session(images) if self.training and self._in_first_session() else None

    def _in_first_session(self) -> bool:
        return self._task <= 0

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor, selection: Any = None) -> None:
        """Give the head its statistics; keep the images of the first session."""
        super().observe(features, targets)
        if not self._in_first_session():
            return
        images, first = selection.images.half(), not len(self.session_targets)
        self.session_images = images if first else torch.cat([self.session_images, images])
        self.session_targets = torch.cat([self.session_targets, targets])

    def begin_experience(self) -> None:
        """Where the second experience begins: phase 1 on what the first has left."""
        super().begin_experience()
        if self._task != 1 or not len(self.session_targets):
            return
        if len(self.session_targets.unique()) > 1:  # of one class there is nothing to tell apart
            self._adapt()
        self._drop()

    def _groups(self) -> dict[str, list[nn.Parameter]]:
        """What phase 1 trains, by kind."""
        if self.tune in ("adapter", "lora"):
            return {"branches": list(self.parts.parameters())}
        groups: dict[str, list[nn.Parameter]] = {}
        for part in self.parts.values():
            assert isinstance(part, RoutingLayer)
            for kind, parameters in part.parameter_groups(trained_only=False).items():
                if kind in part.trainable:
                    groups.setdefault(kind, []).extend(parameters)
        return groups

    def _images(self, at: Tensor) -> Tensor:
        return self.session_images[at].to(next(self.backbone.parameters()).dtype)

    @torch.enable_grad()
    def _adapt(self) -> None:
        """Phase 1, then the statistics of the first session with what it has found."""
        targets = self.session_targets
        known, labels = targets.unique(return_inverse=True)
        if self.tune == "prompts":
            first = self._images(torch.arange(min(len(targets), 64), device=targets.device))
            entering = forward_blocks(self.backbone, first, collect=self._blocks).collected
            for block in self._blocks:
                part = self.parts[str(block)]
                assert isinstance(part, RoutingLayer)
                part.start_at(entering[block])
        head = nn.Linear(self.feature_width(), len(known)).to(next(self.backbone.parameters()))
        nn.init.zeros_(head.weight), nn.init.zeros_(head.bias)
        groups = self._groups()
        trained = [p for group in groups.values() for p in group]
        for parameter in trained:
            parameter.requires_grad_(True)
        by_sgd = [*groups.pop("branches", []), *head.parameters()]
        optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(by_sgd, lr=self.lr, momentum=0.9, weight_decay=5e-4)
        ]
        if groups:
            scale = self.lr_queries / DEFAULT_RATES["queries"]
            rates = {kind: scale * DEFAULT_RATES[kind] for kind in groups}
            optimizers.append(
                torch.optim.Adam([{"params": groups[k], "lr": rates[k]} for k in groups])
            )
        schedules = [
            torch.optim.lr_scheduler.CosineAnnealingLR(one, self.epochs) for one in optimizers
        ]
        self.adapted.fill_(True)
        self._adapted = True
        draw = torch.Generator().manual_seed(0)
        for _ in range(self.epochs):
            order = torch.randperm(len(targets), generator=draw).to(targets.device)
            for at in order.split(self.session_batch):
                features, _ = self._encode(self._images(at))
                loss = F.cross_entropy(head(features), labels[at])
                for one in optimizers:
                    one.zero_grad()
                loss.backward()
                for one in optimizers:
                    one.step()
                self._steps += 1
            for schedule in schedules:
                schedule.step()
        self.steps.fill_(self._steps)
        for parameter in trained:
            parameter.requires_grad_(False).grad = None
        if not all(bool(torch.isfinite(p).all()) for p in trained):
            raise NonFiniteLossError(
                "The adaptation on the first session gives numbers that are not finite: lower lr "
                "or lr_queries."
            )
        self.invalidate_cache()
        self._read_again()

    @torch.no_grad()
    def _read_again(self) -> None:
        assert isinstance(self.head, ClosedFormHead)
        self.head.clear()
        for at in torch.arange(len(self.session_targets), device=self.seen.device).split(64):
            features, _ = self._encode(self._images(at))
            self.head.observe(features, self.session_targets[at])


@register_method(
    "ranpac",
    summary="RanPAC: adapters trained on the first session, then rp-ridge; reads a boundary",
    paper="McDonnell et al., RanPAC, arXiv 2307.02251",
    uses_boundaries=True,
    young=("rank",),
    grid=[
        {"lr": lr, "lr_queries": lr_queries, "penalty": penalty}
        for lr, lr_queries in ((0.01, 1e-3), (0.002, 2e-4), (0.05, 5e-3))
        for penalty in (0.1, 0.02, 0.5)
    ]
    + [{"penalty": 0.004}],
)
def ranpac(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    tune: str = "adapter",
    num_prompts: int = 10,
    rank: int = 4,
    epochs: int = 20,
    lr: float = 0.01,
    lr_queries: float = 1e-3,
    readout: str = "cls",
    penalty: float = 0.1,
    projections: int = 2000,
    balance: bool = False,
) -> FrozenBackboneStrategy:
    """Several passes over the first session, whose images are kept until it ends; one afterwards.

    State as ``rp-ridge``, the adapters and, in the first session, its images.
    """
    model = AdaptedViT(
        backbone,
        num_classes,
        tune=tune,
        num_prompts=num_prompts,
        rank=rank,
        epochs=epochs,
        lr=lr,
        lr_queries=lr_queries,
        readout=readout,
        head="rp-ridge",
        head_options={"penalty": penalty, "projections": projections, "balance": balance},
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
