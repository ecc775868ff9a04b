r"""pool-lda: the patches of several blocks, pooled around the centre, and an exact streaming LDA.

Beyond the paper: what a read-out has without routes, given the care that ``rwf-lda`` was given.
With X the layer-normed patches [N, D] of a block and p0 the prior around the image's centre
(:mod:`avalanche_rwf.routing.priors`), the features of a block are X^T p0, layer-normed; those of
several blocks and of the end stand side by side, without class tokens. Nothing is trained and
nothing is set from data, so the head's statistics are exact and do not depend on the order of the
stream.

``query="contrast"`` puts a retrieval in the pool's place, by a query of the image's own: what its
centre has and its whole has not,

.. math:: q = X^T p_0 - \tfrac{1}{N} X^T 1, \qquad
          r = X^T \operatorname{softmax}\big(\tfrac{b}{D} X q + \log p_0\big) ,

the minimiser of the free energy at beta = b / D (:mod:`avalanche_rwf.routing.functional`). With
``query="none"``, the default, q = 0. What each is worth on held-out training images:
``examples/route_study.py --part pools``; on test images: docs/results.md.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_rwf.models.blocks import DefaultBlocks
from avalanche_rwf.models.blockwise import Forwarded, full_precision
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.families import ViT, summary
from avalanche_rwf.routing.functional import retrieve
from avalanche_rwf.routing.priors import centre_prior
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.utils.validation import Choice, Flag, Number, takes


class PooledViT(FrozenViT):
    """A frozen ViT whose patches are pooled around the centre, in several blocks.

    :param backbone: a timm transformer of one of the :mod:`.families`.
    :param num_classes: C.
    :param blocks: whose entering patches are read, besides the final ones.
    :param query: "none", or "contrast" for a query of the image's own.
    :param beta: b of the module's text; the inverse temperature is b / D.
    :param centre: width of the prior in halves of a side.
    :param class_token: whether the class tokens are features too.
    :param options: of :class:`FrozenViT`.
    :raises UsageError: naming the argument that is out of range.
    """

    readouts = ("pool",)
    log_prior: Tensor

    @takes(
        query=Choice(("none", "contrast")),
        beta=Number(above=0),
        centre=Number(above=0),
        class_token=Flag(),
    )
    def __init__(
        self,
        backbone: ViT,
        num_classes: int,
        *,
        blocks: str | Collection[int] = DefaultBlocks("last 5"),
        query: str = "none",
        beta: float = 20.0,
        centre: float = 0.35,
        class_token: bool = False,
        **options: Any,
    ) -> None:
        self.asks, self.beta, self.class_token = query == "contrast", beta, class_token
        options = {"readout": "pool", "readout_blocks": blocks, **options}
        super().__init__(backbone, num_classes, **options)
        # Given by an option and the images' size, so it is not part of the state.
        prior = centre_prior(backbone.patch_embed.grid_size, centre, 0).log_softmax(0)
        self.register_buffer("log_prior", prior, persistent=False)

    def feature_width(self) -> int:
        """(1 + blocks) D; twice that with class tokens."""
        return self.dim * (1 + len(self.readout_blocks)) * (2 if self.class_token else 1)

    def collected_blocks(self) -> Sequence[int]:
        """The blocks that are read."""
        return self.readout_blocks

    def read(self, forwarded: Forwarded) -> Tensor:
        """The pools of the blocks' patches and of the final ones: [B, F]."""
        entering = [forwarded.collected[index] for index in self.readout_blocks]
        parts = [self.pool(tokens) for tokens in (*entering, forwarded.tokens)]
        if self.class_token:
            inner = (summary(self.backbone, tokens, inner=True) for tokens in entering)
            parts += [F.layer_norm(token, (self.dim,)) for token in inner]
            parts.append(summary(self.backbone, forwarded.tokens))
        return torch.cat(parts, 1)

    def pool(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D] -> [B, D]: the pool of the patches, or what the query retrieves."""
        patches = full_precision(tokens[:, self.num_prefix_tokens :])
        patches = F.layer_norm(patches, (self.dim,))
        pooled = self.log_prior.exp().to(patches) @ patches
        if self.asks:
            query, beta = pooled - patches.mean(1), self.beta / self.dim
            found = retrieve(query[:, None], patches, patches, beta, log_prior=self.log_prior)
            pooled = found[:, 0]
        return F.layer_norm(pooled, (self.dim,))


@register_method(
    "pool-lda",
    summary="patches of several blocks pooled around the centre, exact streaming LDA, closed form",
)
def pool_lda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "last 5",
    query: str = "none",
    beta: float = 20.0,
    centre: float = 0.35,
    class_token: bool = False,
    shrinkage: float | str = 0.6,
) -> FrozenBackboneStrategy:
    """One pass, no boundaries, no buffer; state as ``slda`` with F = 6 D.

    ``query=contrast`` retrieves by a query of the image's own; with it ``centre=0.5
    shrinkage=0.2`` were the best on held-out images.
    """
    model = PooledViT(
        backbone,
        num_classes,
        blocks=blocks,
        query=query,
        beta=beta,
        centre=centre,
        class_token=class_token,
        head="slda",
        head_options={"shrinkage": shrinkage},
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
