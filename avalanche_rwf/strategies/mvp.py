"""``mvp``: DualPrompt's network with instance-wise logit masks and weighed losses."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.heads import held
from avalanche_rwf.models.masks import training_mask
from avalanche_rwf.models.prompts.dualprompt import EXPERT, GENERAL
from avalanche_rwf.models.prompts.mvp import MVPViT, mvp_losses
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, prompt_rates
from avalanche_rwf.strategies.criteria import is_cross_entropy
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.utils.validation import check_number, shown

__all__ = ["MVPStrategy"]


class MVPStrategy(FrozenBackboneStrategy):
    """MVP's loss on MVP's model; all else is as for every method.

    :param margin: added to 1 - cos(W_y, f) in the feature scaling.
    :param share: a, the part of the loss that the gradient-based weights rule.
    :param power: g, their exponent.
    :param kwargs: of :class:`FrozenBackboneStrategy`.
    :raises ValueError: naming the argument that is out of range.
    """

    def __init__(
        self,
        *,
        model: MVPViT,
        margin: float = 0.5,
        share: float = 0.5,
        power: float = 2.0,
        **kwargs: Any,
    ) -> None:
        criterion = kwargs.get("criterion")
        if criterion is not None and not is_cross_entropy(criterion, plain=True):
            raise UsageError(
                f"criterion must be left out or be CrossEntropyLoss() for {type(self).__name__}, "
                f"whose loss is its own, not {shown(criterion)}."
            )
        check_number("margin", margin, above=0)
        check_number("share", share, least=0, most=1)
        check_number("power", power, least=0)
        self.margin, self.share, self.power = margin, share, power
        super().__init__(model=model, **kwargs)
        head = self.model.training_head or self.model.head
        if not head.is_linear():
            raise UsageError(
                f"MVP's loss needs the gradient of each row of the head, and {type(head).__name__} "
                "has a forward and no linear_form to have it from."
            )

    def masked_loss(
        self, features: Tensor, targets: Tensor, mask: str | Tensor, held_fixed: bool = False
    ) -> Tensor:
        """The mean of :func:`mvp_losses`; `features` are the last forward's."""
        head = self.model.training_head or self.model.head
        gate = self.model.gate
        if self.mask == "decoupled" and not held_fixed:
            # The instances' masks are the prompts' part.
            features, gate = features.detach(), gate.detach()
        if isinstance(mask, str):
            mask = training_mask(mask, targets, self.model.seen)
        with held(head) if held_fixed else nullcontext():
            inputs, weight, bias = head.linear_form(features)
            losses = mvp_losses(
                inputs, weight, bias, targets, gate, mask, self.margin, self.share, self.power
            )
        return losses.mean()


@register_method(
    "mvp",
    summary="MVP: DualPrompt with instance-wise logit masks and loss weights; no boundaries",
    paper="Moon et al., Online class incremental learning on stochastic blurry task boundary via "
    "mask and visual prompt tuning, arXiv 2308.09303",
    published={},
)
def mvp(
    *,
    backbone: VisionTransformer,
    num_classes: int,
    loop: dict[str, Any],
    general_blocks: str = GENERAL,
    expert_blocks: str = EXPERT,
    general_length: int = 5,
    expert_length: int = 20,
    pool_size: int = 10,
    insert: str = "token",
    pull: float = 1.0,
    start: str = "normal",
    margin: float = 0.5,
    share: float = 0.5,
    power: float = 2.0,
    head: str = "linear",
    readout: str = "cls",
    mask: str = "seen",
    lr: float = 5e-3,
    lr_head: float = 5e-3,
) -> MVPStrategy:
    """The options are those of :class:`MVPViT` and :class:`MVPStrategy`."""
    model = MVPViT(
        backbone,
        num_classes,
        general_blocks=general_blocks,
        expert_blocks=expert_blocks,
        general_length=general_length,
        expert_length=expert_length,
        pool_size=pool_size,
        insert=insert,
        pull=pull,
        start=start,
        head=head,
        readout=readout,
    )
    return MVPStrategy(
        model=model,
        margin=margin,
        share=share,
        power=power,
        mask=mask,
        learning_rates=prompt_rates(lr, lr_head),
        **loop,
    )
