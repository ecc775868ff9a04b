"""Logit masks: which classes compete in the training loss, and at test.

A mask decides more than most methods' ideas do (``SinglePrompt`` falls by 20 points from "batch"
to "seen"), so it is a field of every result. Masked logits are set to -inf *before* the softmax
and the argmax: a mask that multiplies logits, or that is added after the argmax, can change the
winner among the classes that remain.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["MASKS", "batch_classes", "mask_logits", "training_mask"]

MASKS = ("none", "seen", "batch", "decoupled")


def batch_classes(targets: Tensor, num_classes: int) -> Tensor:
    """Which classes occur in the batch.

    :param targets: [B], values 0 to C - 1.
    :param num_classes: C.
    :returns: bool [C].

    >>> batch_classes(torch.tensor([2, 0, 2]), 4)
    tensor([ True, False,  True, False])
    """
    present = torch.zeros(num_classes, dtype=torch.bool, device=targets.device)
    present[targets] = True
    return present


def mask_logits(logits: Tensor, allowed: Tensor, low: float = float("-inf")) -> Tensor:
    """Logits with the classes that are not allowed at `low`.

    If no class is allowed (nothing has been seen yet) the logits are returned as they are.

    :param logits: [B, C].
    :param allowed: bool [C].
    :param low: what stands in the place of the other logits.
    :returns: [B, C].
    :raises ValueError: if the numbers of classes differ.

    >>> mask_logits(torch.tensor([[-1.0, -2.0, 5.0]]), torch.tensor([True, True, False]))
    tensor([[-1., -2., -inf]])
    """
    if logits.shape[-1] != allowed.shape[-1]:
        raise ValueError(
            f"A mask of {allowed.shape[-1]} classes does not fit logits of {logits.shape[-1]}."
        )
    return torch.where(allowed | ~allowed.any(), logits, low)


def training_mask(name: str, targets: Tensor, seen: Tensor) -> Tensor:
    """The classes that compete in the training loss.

    :param name: "none" (all), "seen" (met so far in the stream) or "batch" (in this batch).
    :param targets: [B].
    :param seen: bool [C], already including the batch's own classes.
    :returns: bool [C].
    :raises ValueError: for another name ("decoupled" is a combination, see the strategies).

    >>> seen = torch.tensor([True, True, False])
    >>> training_mask("batch", torch.tensor([1, 1]), seen)
    tensor([False,  True, False])
    >>> training_mask("seen", torch.tensor([1, 1]), seen)
    tensor([ True,  True, False])
    """
    if name == "none":
        return torch.ones_like(seen)
    if name == "seen":
        return seen
    if name == "batch":
        return batch_classes(targets, seen.shape[0])
    raise ValueError(f"mask must be 'none', 'seen' or 'batch' here, not {name!r}.")
