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

import inspect
from collections.abc import Callable

from avalanche_rwf.models.heads.base import Head, held
from avalanche_rwf.models.heads.closed_form import (
    ClosedFormHead,
    NCMHead,
    RandomRidgeHead,
    RidgeHead,
    SLDAHead,
    StreamingMoments,
)
from avalanche_rwf.models.heads.trained import CosineHead, LinearHead, WhiteHead
from avalanche_rwf.utils.user_code import check_name, load_extensions
from avalanche_rwf.utils.validation import check_choice

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

HEADS: dict[str, type[Head]] = {
    "linear": LinearHead,
    "cosine": CosineHead,
    "white": WhiteHead,
    "ncm": NCMHead,
    "slda": SLDAHead,
    "ridge": RidgeHead,
    "rp-ridge": RandomRidgeHead,
}


def register_head(name: str) -> Callable[[type[Head]], type[Head]]:
    """Register a class made from :class:`Head` under `name` (decorator).

    It is made as ``kind(in_features, num_classes)``: further arguments are options, each with a
    default. Its docstring's first line is in the listing.

    :raises ValueError: if the name is taken, it is no such class, or an option has no default.
    """

    def register(kind: type[Head]) -> type[Head]:
        if not (isinstance(kind, type) and issubclass(kind, Head)):
            raise ValueError(f"The head {name!r} must be a class made from Head, not {kind!r}.")
        check_name("head", name, HEADS.get(name), kind)
        try:
            inspect.signature(kind).bind(768, 10)
        except TypeError as error:
            raise ValueError(
                f"The head {name!r} is made with (in_features, num_classes), and further arguments "
                f"need a default ({error})."
            ) from None
        HEADS[name] = kind
        return kind

    return register


def list_heads() -> list[str]:
    """Names of the heads: this package's, then those of ``--import`` and installed packages."""
    load_extensions("heads")
    return list(HEADS)


def create_head(name: str, in_features: int, num_classes: int, **options: float) -> Head:
    """A head by name, one of :func:`list_heads`.

    :raises UsageError: for an unknown name.
    """
    check_choice("head", name, list_heads())
    return HEADS[name](in_features, num_classes, **options)
