r"""LoRA: maps of low rank beside the frozen maps of queries and values.

With W the map of a block's queries (or values) and h what its attention gets,

.. math:: q = W h + \frac{\alpha}{r} B A h ,

A [r, D] uniform in +-1 / sqrt(D) (Kaiming's start of a linear layer) and B [width, r] zero at the
start, so that training begins at the plain backbone. Here alpha = r, so the factor is 1: it acts
as a rate does.

Source: Hu et al., LoRA, ICLR 2022 (arXiv 2106.09685), from the equation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.blockwise import AttentionAdapter
from avalanche_rwf.models.families import form_of


class LowRank(nn.Module):
    """A and B of one block, for queries (0) and values (1).

    :param block: of a timm transformer.
    :param rank: r.
    """

    def __init__(self, block: nn.Module, rank: int) -> None:
        super().__init__()
        attn: Any = block.attn
        width, dim = form_of(block).maps(attn)[0].shape
        self.down = nn.Parameter(torch.empty(2, rank, dim))
        self.up = nn.Parameter(torch.empty(2, width, rank))
        self.restart()

    @torch.no_grad()
    def restart(self, generator: torch.Generator | None = None) -> None:
        """Begin at the plain backbone, with another A.

        :param generator: of the CPU, from which A is drawn.
        """
        bound = 1 / math.sqrt(self.down.shape[2])
        self.down.copy_(torch.empty(self.down.shape).uniform_(-bound, bound, generator=generator))
        self.up.zero_()

    def added(self, h: Tensor, which: int) -> Tensor:
        """B A h: [B, N, D] -> [B, N, width]."""
        return F.linear(F.linear(h, self.down[which]), self.up[which])

    def prompt(self, tokens: Tensor | None = None) -> AttentionAdapter:
        """For the block's attention, whatever the tokens."""
        return AttentionAdapter(lambda h: self.added(h, 0), lambda h: self.added(h, 1))
