"""rwf-lda: what the routing layers retrieve in several blocks, read by an exact streaming LDA.

Beyond the paper. The retrieved patterns are the read-out and not prompts: the statistics of a
closed-form head need features that stand still, so the queries are set in closed form from the
first training batch (its tokens' principal directions, no labels) and nothing is trained. The
control beside it is ``layers-lda``, the same head without the patterns.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.registry import register_method

__all__: list[str] = []


@register_method(
    "rwf-lda",
    summary="routes of several blocks and exact streaming LDA; nothing trained (beyond the paper)",
    default=True,
)
def rwf_lda(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    blocks: str = "last 5",
    num_prompts: int = 4,
    queries: str = "principal",
    beta: float = 0.025,
    shrinkage: float = 0.2,
) -> FrozenBackboneStrategy:
    """Class token, mean patch and L retrieved patterns per block -> LDA."""
    model = RoutedViT(
        backbone,
        num_classes,
        routed_blocks=blocks,
        num_prompts=num_prompts,
        beta=beta,
        queries=queries,
        insert_prompts=False,
        readout="routes",
        head="slda",
        head_options={"shrinkage": shrinkage},
    )
    return FrozenBackboneStrategy(model=model, mask="none", **loop)
