"""A read-out of class tokens: after each of several blocks, side by side or their mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from avalanche_rwf.models.blockwise import Forwarded
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.families import ViT, final_norm, summary
from avalanche_rwf.utils.validation import Choice, takes


class ClassTokensViT(FrozenViT):
    """The class token after each block of some, as the head's features.

    Side by side, the last block's is normalised as the backbone does and the others are as they
    leave their blocks; in the mean, the mean is normalised. In a backbone without a class token the
    mean patch stands in its place, and after the last block its own pooling.

    :param backbone: a timm transformer of one of the :mod:`.families`.
    :param num_classes: C.
    :param blocks: after which the class token is read.
    :param fusion: "side by side" (F = blocks x D), or "mean" (F = D).
    :param options: of :class:`FrozenViT`.
    :raises UsageError: naming the argument that is out of range.
    """

    readouts = ("class tokens",)

    @takes(fusion=Choice(("side by side", "mean")))
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        blocks: str | Collection[int] = "last 6",
        fusion: str = "side by side",
        **options: Any,
    ) -> None:
        self.fusion = fusion
        options = {"readout": "class tokens", "readout_blocks": blocks, **options}
        super().__init__(backbone, num_classes, **options)

    def feature_width(self) -> int:
        """Blocks times D, or D."""
        return self.dim * (1 if self.fusion == "mean" else len(self.readout_blocks))

    def collected_blocks(self) -> Sequence[int]:
        """What leaves a block enters the next."""
        return [i + 1 for i in self.readout_blocks]

    def read(self, forwarded: Forwarded) -> Tensor:
        """Class tokens of a forward: [B, F]."""
        vit = self.backbone
        left = {i: summary(vit, tokens, inner=True) for i, tokens in forwarded.collected.items()}
        if self.fusion == "mean":
            return final_norm(vit, vit.norm(torch.stack(list(left.values())).mean(0)))
        if self.depth in left:
            left[self.depth] = summary(vit, forwarded.tokens)
        return torch.cat(list(left.values()), 1)
