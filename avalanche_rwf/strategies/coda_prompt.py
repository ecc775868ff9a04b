"""``coda-prompt``: prompts composed from components, with or without task boundaries."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import VisionTransformer

from avalanche_rwf.models.prompts.coda_prompt import CodaPromptViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, prompt_rates
from avalanche_rwf.strategies.boundaries import BoundaryAwareStrategy
from avalanche_rwf.strategies.registry import register_method

__all__: list[str] = []


@register_method(
    "coda-prompt",
    summary="CODA-Prompt: composed prefixes; boundary-free (slices=task: the original)",
    paper="Smith et al., CODA-Prompt, arXiv 2211.13218",
    published={"slices": "task", "lr_head": 1e-3},
)
def coda_prompt(
    *,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    slices: str = "all",
    tasks: int = 10,
    blocks: str = "first 5",
    prompt_length: int = 8,
    components: int | None = None,
    insert: str = "prefix",
    ortho: float = 0.0,
    head: str = "linear",
    readout: str = "cls",
    mask: str = "batch",
    lr: float = 1e-3,
    lr_head: float = 5e-3,
) -> FrozenBackboneStrategy:
    """The options are those of :class:`CodaPromptViT`; ``slices="task"`` reads boundaries."""
    model = CodaPromptViT(
        backbone,
        num_classes,
        slices=slices,
        tasks=tasks,
        blocks=blocks,
        prompt_length=prompt_length,
        components=components,
        insert=insert,
        ortho=ortho,
        head=head,
        readout=readout,
    )
    kind = BoundaryAwareStrategy if slices == "task" else FrozenBackboneStrategy
    return kind(model=model, mask=mask, learning_rates=prompt_rates(lr, lr_head), **loop)
