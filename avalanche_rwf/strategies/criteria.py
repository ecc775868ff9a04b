"""A user's loss under a logit mask: it always gets all columns and the true labels.

So a loss that knows the classes by number (a weight per class, margins, a focal loss) is right with
every mask, and what a mask does inside is not seen. Columns of classes that a mask leaves out are
at the lowest number of the logits' type over 2**24: -2.0e31 in float32. Their softmax is exactly 0,
as at -inf, and no gradient comes back through them. Unlike with -inf, 0 times a log-probability, a
sum over classes (label smoothing), a margin or a sigmoid stay finite.

Label smoothing written by hand spreads over the columns that are left out too: the loss is then a
huge number, of no use in a log, and its gradient is finite. PyTorch's own ``CrossEntropyLoss``
smooths among the classes that compete.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _WeightedLoss

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.masks import mask_logits

Criterion = Callable[[Tensor, Tensor], Any]


def is_cross_entropy(criterion: Criterion, plain: bool = False) -> bool:
    """Whether it is PyTorch's cross-entropy, without hooks that would see how it is called.

    :param plain: without weights and label smoothing too.
    """
    return (
        isinstance(criterion, nn.CrossEntropyLoss)
        and type(criterion).forward is nn.CrossEntropyLoss.forward
        and "forward" not in vars(criterion)
        and not criterion._forward_hooks
        and not criterion._forward_pre_hooks
        and not (plain and (criterion.label_smoothing or criterion.weight is not None))
    )


def check_weights(criterion: Criterion, num_classes: int) -> int:
    """How many classes more than `num_classes` PyTorch's loss has weights for.

    :raises UsageError: if it has weights for fewer.
    """
    weight = getattr(criterion, "weight", None)
    if not (isinstance(criterion, _WeightedLoss) and isinstance(weight, Tensor) and weight.dim()):
        return 0
    if len(weight) < num_classes:
        raise UsageError(
            f"criterion must have a weight for each class, and it has {len(weight)} for "
            f"{num_classes} classes."
        )
    return len(weight) - num_classes


def loss_under(
    criterion: Criterion, logits: Tensor, targets: Tensor, allowed: Tensor | None = None
) -> Tensor:
    """The criterion of logits [B, C] and classes [B], of which some compete.

    :param allowed: bool [C], all of `targets` among them; None is all.
    :returns: a scalar.
    :raises UsageError: if the criterion has too few weights, or gives anything but one number.
    """
    more = check_weights(criterion, logits.shape[1])
    if allowed is None:
        allowed = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device)
    if is_cross_entropy(criterion) and criterion.label_smoothing:  # type: ignore[attr-defined]
        return _smoothed(criterion, logits, targets, allowed)
    low = torch.finfo(logits.dtype).min / 2**24
    if more:
        logits, allowed = F.pad(logits, (0, more), value=low), F.pad(allowed, (0, more))
    loss = criterion(mask_logits(logits, allowed, low), targets)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise UsageError(f"criterion must give one number for a batch as a tensor, not {got}.")
    return loss.reshape(())


def _smoothed(criterion: Any, logits: Tensor, targets: Tensor, allowed: Tensor) -> Tensor:
    """PyTorch's cross-entropy with label smoothing among the classes that compete."""
    weight = criterion.weight
    return F.cross_entropy(
        logits[:, allowed],
        (allowed.cumsum(0) - 1)[targets].where(targets != criterion.ignore_index, -100),
        weight=None if weight is None else weight[: len(allowed)][allowed],
        ignore_index=-100,
        reduction=criterion.reduction,
        label_smoothing=criterion.label_smoothing,
    )
