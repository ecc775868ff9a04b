r"""Learning to Prompt: a pool of prompts, the nearest keys' prompts go before the image's tokens.

.. math:: s = \mathrm{top}_N \cos(q(x), k_m), \quad
          x' = [x; P_{s_1}; ..; P_{s_N}], \quad
          L = \mathrm{CE} + \lambda \, \frac{1}{B} \sum_b \sum_{j \in s_b} (1 - \cos(q_b, k_j))

The prompts go through *all* blocks; the feature is the mean of what becomes of them
(``readout="prompt"``), not the class token. The query q is the class token of the plain backbone.

Prompts and keys start from U[0, 0.01), as the authors' code starts them (``start="original"``);
U(-1, 1), of its PyTorch port and the online descendants, is ``start="symmetric"``.

Diversified selection (``diversify=True``; the paper's section 4.2): in training the distance is
multiplied by how often the prompt has been chosen before, so that more than the first few prompts
are used. It is off by default: the public online codes never update their counts, so they select
the plain top N, and held-out images are for it (``docs/baselines.md``). The paper counts over
earlier tasks; here the counts are those of the stream so far, which needs no boundaries.

Uses: no task identity, no boundary. Forward passes per training image: 2.

With the same weights and pool, features and key distances equal those of Avalanche's
``LearningToPrompt`` to 1e-5 (tested). What differs from it:

- the start (Avalanche has U(-1, 1)); a pool of 10 (20); lambda 0.5 (0.1). Its loss subtracts
  lambda cos where this one adds lambda (1 - cos): the same gradient;
- it has no register tokens, ``norm_pre``, ``fc_norm`` or other widths, which are used here if the
  backbone has them;
- Adam at 5e-3, kept for the whole stream (3e-2, made anew in each experience), gradients clipped
  (not clipped), the batch's classes compete in training and the classes seen so far at test (the
  experience's in training, all at test).

Source: Wang et al., CVPR 2022 (arXiv 2112.08654), from the equations. The authors train with the
present task's classes; without boundaries the batch's are the nearest to that. Pool of 10, top 5,
lambda 0.5 and Adam 5e-3 are those of the online literature on Si-Blurry streams (arXiv 2308.09303).
Prompts are selected image by image: a vote of the batch, which some code bases take even at test,
makes a prediction depend on batch mates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_rwf.methods.prompting import STARTS, cosine_distance, starting
from avalanche_rwf.models.blockwise import Forwarded
from avalanche_rwf.models.classifier import READOUTS, FrozenViT, Selection
from avalanche_rwf.models.families import ViT, class_position, final_norm
from avalanche_rwf.strategies.registry import register_model
from avalanche_rwf.utils.validation import Choice, Flag, Number, Whole, takes


@dataclass(frozen=True)
class Chosen(Selection):
    """The prompts of each image.

    :param indices: of the chosen prompts, [B, N] or [B].
    :param pull: [B], what the keys' loss is the mean of.
    """

    indices: Tensor
    pull: Tensor


@register_model(
    "l2p",
    summary="L2P: a prompt pool chosen by key; knows no boundaries",
    paper="Wang et al., Learning to prompt for continual learning, arXiv 2112.08654",
    published={"lr": 0.015, "lr_head": 0.015},
)
class L2PViT(FrozenViT):
    """The prompt pool of L2P on a frozen ViT.

    :param pool_size: prompts M in the pool.
    :param prompt_length: tokens L per prompt.
    :param top_k: prompts N per image.
    :param pull: lambda, with which keys are pulled to the queries that chose them.
    :param diversify: whether training avoids prompts chosen often.
    :param start: of prompts and keys: "original", U[0, 0.01), "symmetric", U(-1, 1), or
        "normal", N(0, 1).
    :param options: of :class:`FrozenViT`; ``readout`` takes "prompt" too.
    :raises ValueError: naming the argument that is out of range.
    """

    readouts = (*READOUTS, "prompt")
    counts: Tensor

    @takes(
        pool_size=Whole(),
        prompt_length=Whole(),
        top_k=Whole(),
        pull=Number(least=0),
        diversify=Flag(),
        start=Choice(STARTS),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        pool_size: int = 10,
        prompt_length: int = 5,
        top_k: int = 5,
        pull: float = 0.5,
        diversify: bool = False,
        start: str = "original",
        readout: str = "prompt",
        **options: Any,
    ) -> None:
        if top_k > pool_size:
            raise ValueError(f"top_k must be at most pool_size={pool_size}, not {top_k}.")
        super().__init__(backbone, num_classes, readout=readout, **options)
        self.top_k = top_k
        self.pull = pull
        self.diversify = diversify
        self.prompts = starting(pool_size, prompt_length, self.dim, start=start)
        self.keys = starting(pool_size, self.dim, start=start)
        self.register_buffer("counts", torch.zeros(pool_size, dtype=torch.long))

    def feature_width(self) -> int:
        """D for the prompts' mean, otherwise as every model."""
        return self.dim if self.readout == "prompt" else super().feature_width()

    def select(self, query: Tensor, training: bool) -> Chosen:
        """The N nearest keys of each query [B, D]."""
        distance = cosine_distance(query, self.keys)
        weighed = distance * (self.counts + 1) if self.diversify and training else distance
        indices = weighed.topk(self.top_k, dim=1, largest=False).indices
        return Chosen(indices, distance.gather(1, indices).sum(1))

    def extra_tokens(self, selection: Chosen) -> Tensor:
        """The chosen prompts, one after another: [B, N L, D]."""
        return self.prompts[selection.indices].flatten(1, 2) + class_position(self.backbone)

    def read(self, forwarded: Forwarded) -> Tensor:
        """The mean of the prompts' outputs, or a common read-out: [B, F]."""
        if self.readout != "prompt":
            return super().read(forwarded)
        assert forwarded.extra is not None
        return final_norm(self.backbone, forwarded.extra.mean(1))

    def auxiliary_loss(self, selection: Chosen) -> Tensor:
        """lambda times the mean over the batch of the summed distances to the chosen keys."""
        return self.pull * selection.pull.mean()

    @torch.no_grad()
    def observe(self, features: Tensor, targets: Tensor, selection: Any = None) -> None:
        """Count the choices afterwards: an image's choice does not depend on its batch."""
        super().observe(features, targets)
        chosen = selection.indices.flatten()  # a bincount would wait for the device
        self.counts.index_add_(0, chosen, torch.ones_like(chosen))
