"""``er``, ``er-ace``, ``der``: replay with a frozen backbone and a trained head.

The losses are those of :mod:`avalanche_rwf.strategies.replay`, which any strategy can have.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.strategies.replay import Replay


def _build(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    head: str,
    readout: str,
    mask: str,
    lr: float,
    **options: Any,
) -> FrozenBackboneStrategy:
    """A frozen backbone and a trained head, as ``linear-probe``, with a buffer."""
    replay = Replay(**options)
    model = FrozenViT(backbone, num_classes, head=head, readout=readout)
    return FrozenBackboneStrategy(
        model=model, mask=mask, replay=replay, learning_rates={"head": lr}, **loop
    )


# Without prompts "decoupled" trains as "seen" does, and ER-ACE's masks are given.
_MASKS_AND_RATES = [
    {"mask": mask, "lr": lr}
    for lr in (5e-3, 1e-3, 2.5e-2, 2e-4, 2.5e-3)
    for mask in ("seen", "batch")
]
_RATES = [
    {"lr": lr} for lr in (5e-3, 1e-3, 2.5e-2, 2e-4, 2.5e-3, 1e-2, 0.125, 5e-4, 0.05, 4e-5)
]


@register_method(
    "er",
    grid=_MASKS_AND_RATES,
    summary="replay: frozen backbone, trained head, cross-entropy on batch and buffer",
    paper="Chaudhry et al., On tiny episodic memories in continual learning, arXiv 1902.10486",
)
def er(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    buffer: int = 500,
    replay_batch: int | None = None,
    buffer_policy: str = "reservoir",
    head: str = "linear",
    readout: str = "cls",
    mask: str = "seen",
    lr: float = 5e-3,
) -> FrozenBackboneStrategy:
    """Experience replay; the options are those of :class:`Replay` and ``linear-probe``."""
    return _build(**locals(), replay="er")


@register_method(
    "er-ace",
    grid=_RATES,
    summary="replay: as er, incoming images compete among the batch's and unseen classes alone",
    paper="Caccia et al., New insights on reducing abrupt representation change in online "
    "continual learning, arXiv 2104.05025",
)
def er_ace(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    buffer: int = 500,
    replay_batch: int | None = None,
    buffer_policy: str = "reservoir",
    head: str = "linear",
    readout: str = "cls",
    mask: str = "ace",
    lr: float = 5e-3,
) -> FrozenBackboneStrategy:
    """Asymmetric cross-entropy: its masks are the method, which ``mask`` says in results."""
    if mask not in ("ace", "decoupled"):
        raise ValueError(f"mask must be 'ace' or 'decoupled' for er-ace, not {mask!r}.")
    return _build(**locals(), replay="er-ace")


@register_method(
    "der",
    grid=_MASKS_AND_RATES,
    summary="replay: DER++, as er with the logits that replayed images had when they came",
    paper="Buzzega et al., Dark experience for general continual learning, arXiv 2004.07211",
)
def der(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    buffer: int = 500,
    replay_batch: int | None = None,
    buffer_policy: str = "reservoir",
    alpha: float = 0.2,
    beta: float = 0.5,
    head: str = "linear",
    readout: str = "cls",
    mask: str = "seen",
    lr: float = 5e-3,
) -> FrozenBackboneStrategy:
    """DER++ with alpha and beta as in MISA's online runs."""
    return _build(**locals(), replay="der")
