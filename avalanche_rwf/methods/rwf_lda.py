"""rwf-lda, rwf-lda-held: what retrieval finds in several blocks, read by an exact streaming LDA.

Beyond the paper. The retrieved patterns are the read-out and not prompts: the statistics of a
closed-form head need features that stand still, so the queries are set in closed form from the
first training batch (its tokens' principal directions, no labels) and nothing is trained. Retrieval
is around the centre of the image (:mod:`avalanche_rwf.routing.priors`), worth more than any queries
that ``examples/route_study.py`` learns. The controls beside it are ``layers-lda``, the same head
without the patterns, and ``layers-lda`` with ``centre=0.5``, whose means have the same prior.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_rwf.routing.held import HeldRoutedViT
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.utils.registry import read_options


def build_lda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "last 5",
    num_prompts: int = 4,
    queries: str = "principal",
    beta: float = 0.025,
    centre: float | None = 0.5,
    shrinkage: float | str = 0.2,
    kind: type[RoutedViT] = RoutedViT,
    **learning: Any,
) -> FrozenBackboneStrategy:
    """Class token, mean patch and L patterns per block, retrieved around the centre -> LDA.

    ``centre`` is the prior's standard deviation in halves of a side; "none" is uniform.
    """
    if kind is RoutedViT:
        learning = {"insert_prompts": False, "readout": "routes", "head": "slda"}
    model = kind(
        backbone,
        num_classes,
        routed_blocks=blocks,
        num_prompts=num_prompts,
        beta=beta,
        queries=queries,
        centre=centre,
        head_options={"shrinkage": shrinkage},
        **learning,
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)


def build_held(
    *, hold_after: int = 160, steps: int = 40, lr_queries: float = 0.03, **options: Any
) -> FrozenBackboneStrategy:
    """As rwf-lda; after ``hold_after`` samples the queries learn from those, ``steps`` times."""
    learning: dict[str, Any] = {"hold_after": hold_after, "steps": steps, "lr": lr_queries}
    return build_lda(kind=HeldRoutedViT, **learning, **options)


_SKIP = ("backbone", "num_classes", "loop", "kind")
_OPTIONS = read_options("method", "rwf-lda", build_lda, _SKIP)
build_held.__annotations__.update(build_lda.__annotations__)

register_method(
    "rwf-lda",
    summary="routes of several blocks and exact streaming LDA; nothing trained (beyond the paper)",
    default=True,
    options=_OPTIONS,
)(build_lda)

register_method(
    "rwf-lda-held",
    summary="rwf-lda, its queries trained on the first samples and then held (beyond the paper)",
    options={**_OPTIONS, **read_options("method", "rwf-lda-held", build_held)},
)(build_held)
