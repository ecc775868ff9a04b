r"""Classifier heads: any head with any method.

Trained by gradient: :class:`LinearHead`, :class:`CosineHead`, :class:`WhiteHead`. Closed forms,
which keep sums only and do not depend on the order of the stream: :class:`NCMHead`,
:class:`SLDAHead`, :class:`RidgeHead`, :class:`RandomRidgeHead`.

A head of one's own is a :class:`Head` with a ``forward`` (features to logits) or, better, a
``linear_form``, from which the forward and a closed-form gradient (MVP's) follow. It may also have
``observe(features, targets)``, which takes in a training batch's statistics, and, for a strategy
that grows, ``grow(num_classes)``. :func:`register_head` gives it a name.

Sources: cosine head as in SinglePrompt; NCM as SimpleCIL (arXiv 2303.07338); streaming LDA (Hayes
& Kanan, arXiv 1909.01520); ridge on random projections (RanPAC, arXiv 2307.02251); the whitened
cosine head with imprinted rows (imprinting: Qi et al., arXiv 1712.07136) is this project's.
Written from the equations.
"""

from __future__ import annotations

from avalanche_rwf.models.heads.base import (
    HEADS,
    Head,
    create_head,
    held,
    list_heads,
    register_head,
)
from avalanche_rwf.models.heads.closed_form import (
    ClosedFormHead,
    NCMHead,
    RandomRidgeHead,
    RidgeHead,
    SLDAHead,
    StreamingMoments,
)
from avalanche_rwf.models.heads.trained import CosineHead, LinearHead, WhiteHead

__all__ = [
    "HEADS",
    "ClosedFormHead",
    "CosineHead",
    "Head",
    "LinearHead",
    "NCMHead",
    "RandomRidgeHead",
    "RidgeHead",
    "SLDAHead",
    "StreamingMoments",
    "WhiteHead",
    "create_head",
    "held",
    "list_heads",
    "register_head",
]
