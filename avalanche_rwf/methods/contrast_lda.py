r"""contrast-lda: each image asks its own patches; an exact streaming LDA reads the answers.

Beyond the paper. With X the layer-normed patches [N, D] of a block and p0 the prior around the
image's centre (:mod:`avalanche_rwf.routing.priors`), the query is what the centre has and the whole
has not,

.. math:: q = X^T p_0 - \tfrac{1}{N} X^T 1, \qquad
          r = X^T \operatorname{softmax}\big(\tfrac{b}{D} X q + \log p_0\big) ,

the minimiser of the free energy at beta = b / D (:mod:`avalanche_rwf.routing.functional`). r of
several blocks and of the end, each layer-normed, are the features. Nothing is trained and no query
is set from data, so the head's statistics are exact and do not depend on the order of the stream.

``query="none"`` is the control: q = 0, the patches under the prior alone. What each is worth on
held-out training images: ``examples/route_study.py --part pools``; on test images: docs/results.md.
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

__all__ = ["ContrastViT"]


class ContrastViT(FrozenViT):
    """A frozen ViT whose patches are pooled by a query of the image's own.

    :param backbone: a timm transformer of one of the :mod:`.families`.
    :param num_classes: C.
    :param blocks: whose entering patches are read, besides the final ones.
    :param query: "contrast", or "none" for the prior alone.
    :param beta: b of the module's text; the inverse temperature is b / D.
    :param centre: width of the prior in halves of a side.
    :param class_token: whether the class tokens are features too.
    :param options: of :class:`FrozenViT`.
    :raises UsageError: naming the argument that is out of range.
    """

    readouts = ("contrast",)
    log_prior: Tensor

    @takes(
        query=Choice(("contrast", "none")),
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
        query: str = "contrast",
        beta: float = 20.0,
        centre: float = 0.5,
        class_token: bool = False,
        **options: Any,
    ) -> None:
        self.asks, self.beta, self.class_token = query == "contrast", beta, class_token
        options = {"readout": "contrast", "readout_blocks": blocks, **options}
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
        """What the blocks' patches and the final ones answer: [B, F]."""
        entering = [forwarded.collected[index] for index in self.readout_blocks]
        parts = [self.answer(tokens) for tokens in (*entering, forwarded.tokens)]
        if self.class_token:
            inner = (summary(self.backbone, tokens, inner=True) for tokens in entering)
            parts += [F.layer_norm(token, (self.dim,)) for token in inner]
            parts.append(summary(self.backbone, forwarded.tokens))
        return torch.cat(parts, 1)

    def answer(self, tokens: Tensor) -> Tensor:
        """The pattern [B, D] that an image's own query retrieves from its tokens [B, N, D]."""
        patches = full_precision(tokens[:, self.num_prefix_tokens :])
        patches = F.layer_norm(patches, (self.dim,))
        mean = self.log_prior.exp().to(patches) @ patches
        query = mean - patches.mean(1) if self.asks else torch.zeros_like(mean)
        found = retrieve(
            query[:, None], patches, patches, self.beta / self.dim, log_prior=self.log_prior
        )
        return F.layer_norm(found[:, 0], (self.dim,))


@register_method(
    "contrast-lda",
    summary="patches that are like the centre and unlike the whole, exact streaming LDA; nothing "
    "trained (beyond the paper)",
)
def contrast_lda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "last 5",
    query: str = "contrast",
    beta: float = 20.0,
    centre: float = 0.5,
    class_token: bool = False,
    shrinkage: float | str = 0.2,
) -> FrozenBackboneStrategy:
    """One pass, no boundaries, no buffer; state as ``slda`` with F = 6 D.

    ``query=none`` is the control: the same prior, head and features without retrieval.
    """
    model = ContrastViT(
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
