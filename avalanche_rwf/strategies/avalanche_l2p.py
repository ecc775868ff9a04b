"""Avalanche's built-in Learning to Prompt, as shipped and repaired for online streams.

Both strategies are an ``avalanche.training.supervised.l2p.LearningToPrompt`` on Avalanche's own
``ViTWithPrompt`` and prompt pool. The network is built by Avalanche's factory on the installed
timm (:func:`avalanche_rwf.compat.timm_compat`) and given the modules of the backbone that every
other method of a comparison uses, so it has any backbone's size, architecture and weights:

* :class:`LearningToPromptAsShipped` (``avalanche-l2p-as-shipped``) changes the construction and
  nothing else. It knows where experiences begin and which classes they have.
* :class:`OnlineL2P` (``avalanche-l2p``) repairs what goes wrong on an online stream; its
  docstring lists each defect.

Either makes two full forward passes per image, one without prompts for the query and one with
them. In an evaluation on the CPU, :class:`OnlineL2P` looks a repeated test batch's query up.

Source of the method: Wang et al., "Learning to prompt for continual learning", CVPR 2022
(arXiv 2112.08654).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from avalanche.models.vit import create_model
from avalanche.training.supervised.l2p import LearningToPrompt
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_rwf.compat import timm_compat
from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.classifier import FrozenViT, Selection
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.common import CommonStrategy
from avalanche_rwf.strategies.description import Description
from avalanche_rwf.strategies.loop_arguments import LOOP
from avalanche_rwf.strategies.registry import register_method
from avalanche_rwf.utils.validation import By, Instance, Number, Whole, takes

__all__ = [
    "LearningToPromptAsShipped",
    "OnlineL2P",
    "PromptPoolViT",
    "build_online_l2p",
    "build_shipped_l2p",
    "prompted_vit",
]

_PAPER = "Wang et al., Learning to prompt for continual learning, CVPR 2022 (arXiv 2112.08654)"
# Any of Avalanche's factories: what they fix is overridden by the backbone's own sizes.
_FACTORY = "vit_base_patch16_224"
_READOUTS = ("prompt", "cls", "mean", "cls+mean")


def _check_backbone(name: str, backbone: Any) -> None:
    """Refuse a backbone that ``ViTWithPrompt`` would compute wrongly.

    It adds the position embedding after the class token and runs the blocks and ``norm``; of
    what else timm's own forward does, it knows nothing and says nothing.

    :raises UsageError: naming all that it would leave out.
    """
    if not isinstance(backbone, VisionTransformer):
        raise UsageError(
            f"{name} must be a timm VisionTransformer for Avalanche's L2P, not a "
            f"{type(backbone).__name__}."
        )
    pos_embed, norm_pre = backbone.pos_embed, getattr(backbone, "norm_pre", None)
    fc_norm, reg_token = getattr(backbone, "fc_norm", None), getattr(backbone, "reg_token", None)
    unknown = {
        "no class token": backbone.cls_token is None,
        "register tokens": reg_token is not None or backbone.num_prefix_tokens > 1,
        "norm_pre": not isinstance(norm_pre, nn.Identity | None),
        "fc_norm": not isinstance(fc_norm, nn.Identity | None),
        "no_embed_class": bool(getattr(backbone, "no_embed_class", False)),
        "no position embedding": pos_embed is None,
        "a dynamic image size": bool(getattr(backbone, "dynamic_img_size", False)),
    }
    found = [name for name, present in unknown.items() if present]
    if found:
        raise UsageError(
            f"{name} has {', '.join(found)}, which Avalanche's L2P does not know; it takes a "
            "VisionTransformer with a class token and a position embedding for every token, and "
            "without register tokens, norm_pre and fc_norm."
        )


POOL = {"pool_size": Whole(), "prompt_length": Whole(), "top_k": Whole(), "num_classes": Whole()}


def _check_top_k(top_k: int, pool_size: int) -> None:
    if top_k > pool_size:
        raise UsageError(f"top_k must be at most pool_size={pool_size}, not {top_k}.")


def _vit_arguments(backbone: VisionTransformer) -> dict[str, Any]:
    """Arguments with which ``ViTWithPrompt`` fits `backbone`.

    No blocks are built: :func:`_give_modules` hands it the backbone's own, which also carry what
    no argument of ``ViTWithPrompt`` could say (the norms' epsilon, LayerScale, other MLPs).
    """
    patch_embed = backbone.patch_embed
    return {
        "img_size": patch_embed.img_size,
        "patch_size": patch_embed.patch_size,
        "in_chans": patch_embed.proj.in_channels,
        "embed_dim": int(backbone.embed_dim),
        "num_heads": backbone.blocks[0].attn.num_heads,
        "depth": 0,
    }


def _give_modules(vit: VisionTransformer, backbone: VisionTransformer, prompts: int) -> None:
    """Put the backbone's modules into a ``ViTWithPrompt``, frozen.

    :param vit: built with :func:`_vit_arguments`.
    :param backbone: its modules and class token become the ViT's own, not copies.
    :param prompts: number T of prompt tokens. ``ViTWithPrompt`` adds a position embedding to
        each; with loaded weights Avalanche's ``resize_pos_embed`` makes it the class token's.
    """
    vit.patch_embed = backbone.patch_embed
    vit.cls_token = backbone.cls_token
    vit.blocks = backbone.blocks
    vit.norm = backbone.norm
    if prompts:
        with torch.no_grad():
            first = backbone.pos_embed[:, :1].expand(-1, 1 + prompts, -1)
            rows = torch.cat([first, backbone.pos_embed[:, 1:]], dim=1)
            vit.pos_embed = nn.Parameter(rows.clone())
    else:
        vit.pos_embed = backbone.pos_embed
    for part in (vit.patch_embed, vit.blocks, vit.norm):
        part.requires_grad_(False)
    vit.cls_token.requires_grad_(False)
    vit.pos_embed.requires_grad_(False)
    # The normalisation of the images that these weights were made for, not the factory's.
    vit.pretrained_cfg = vit.default_cfg = getattr(backbone, "pretrained_cfg", {})


@takes(
    backbone=By(_check_backbone),
    pool_size=Whole(least=0),
    prompt_length=Whole(),
    top_k=Whole(),
)
def prompted_vit(
    backbone: nn.Module,
    *,
    pool_size: int = 0,
    prompt_length: int = 5,
    top_k: int = 5,
) -> VisionTransformer:
    """Avalanche's ``ViTWithPrompt`` around a backbone, without a head.

    ``vit(images, cls_features=query)`` returns Avalanche's dictionary: ``"x"``, the normalised
    tokens [B, 1 + T + N, D] (class token, T = top_k * prompt_length prompt tokens, N patches);
    ``"logits"``, the mean prompt token [B, D] (there is no head); ``"reduce_sim"``, the mean over
    the batch of the summed cosines between the query [B, D] and the selected keys.

    :param backbone: its modules are used, not copied, and frozen.
    :param pool_size: 0 builds the network without prompts, whose ``"pre_logits"`` is the class
        token [B, D].
    :raises UsageError: for a backbone that Avalanche's class does not know.
    """
    pool: dict[str, Any] = {}
    if pool_size:
        pool = {
            "prompt_pool": True,
            "prompt_key": True,
            "pool_size": pool_size,
            "prompt_length": prompt_length,
            "top_k": top_k,
            "head_type": "prompt",
        }
    with timm_compat(**_vit_arguments(backbone)):
        vit = create_model(_FACTORY, pretrained=False, num_classes=0, **pool)
    _give_modules(vit, backbone, top_k * prompt_length if pool_size else 0)
    return vit


@dataclass(frozen=True)
class Selected(Selection):
    """The similarity of the batch's queries and selected keys: a scalar, with its graph."""

    similarity: Tensor


class PromptPoolViT(FrozenViT):
    """Avalanche's two vision transformers as one model whose forward returns logits.

    ``model(images)`` is a tensor [B, C], so that plugins and metrics that call the model work;
    Avalanche's own returns a dictionary. Both transformers share every module of the backbone:
    one copy in memory, on one device, in eval mode.

    :param backbone: a timm ``VisionTransformer``; it is frozen and used, not copied.
    :param num_classes: C.
    :param pool_size: number of prompts in the pool.
    :param prompt_length: tokens per prompt.
    :param top_k: prompts selected per image.
    :param head: a name of ``avalanche_rwf.models.heads.HEADS``. With a closed form the prompts
        learn through a second, trained head.
    :param readout: "prompt" (the method's own: the mean of the prompt tokens' outputs), "cls"
        (class token), "mean" (mean patch token) or "cls+mean" (both).
    :raises UsageError: naming the argument that does not fit.
    """

    readouts = _READOUTS

    @takes(**POOL)
    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        pool_size: int = 20,
        prompt_length: int = 5,
        top_k: int = 5,
        head: str = "linear",
        readout: str = "prompt",
    ) -> None:
        _check_top_k(top_k, pool_size)
        query = prompted_vit(backbone)
        vit = prompted_vit(backbone, pool_size=pool_size, prompt_length=prompt_length, top_k=top_k)
        super().__init__(backbone, num_classes, head=head, readout=readout)
        self.prompt_tokens = top_k * prompt_length
        self.pool: Any = vit.prompt
        # A tuple is not registered: these hold the backbone's and the pool's modules, which are.
        self._vits: tuple[Any, Any] = (vit.eval(), query.eval())

    @property
    def vit(self) -> nn.Module:
        """Avalanche's ``ViTWithPrompt`` with the prompt pool."""
        return self._vits[0]

    @property
    def original_vit(self) -> nn.Module:
        """Avalanche's ``ViTWithPrompt`` without prompts: the query's network."""
        return self._vits[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PromptPoolViT:
        super()._apply(fn, recurse)
        # The positions of the prompt tokens belong to no registered module.
        for vit in self._vits:
            vit._apply(fn, recurse)
        return self

    def prompt_groups(self) -> dict[str, list[nn.Parameter]]:
        """The pool's prompts and keys."""
        return {"prompt": [self.pool.prompt, self.pool.prompt_key]}

    def feature_width(self) -> int:
        """Width F of the features that the head gets."""
        return self.dim * (2 if self.readout == "cls+mean" else 1)

    def encode(self, images: Tensor) -> tuple[Tensor, Selected]:
        """Images [B, 3, H, W] -> features [B, F] for the head and the keys' similarity."""
        with torch.no_grad():
            query = self.cached(
                images, lambda x: self.original_vit(x)["pre_logits"], "cls of ViTWithPrompt"
            )
        result = self.vit(images, cls_features=query)
        tokens = result["x"]
        if self.readout == "prompt":
            features = result["logits"]
        elif self.readout == "cls":
            features = tokens[:, 0]
        else:
            features = tokens[:, 1 + self.prompt_tokens :].mean(1)
            if self.readout == "cls+mean":
                features = torch.cat([tokens[:, 0], features], dim=1)
        return features, Selected(result["reduce_sim"])


class _GivenModel(LearningToPrompt):
    """``LearningToPrompt`` for a model and an optimizer that are there already.

    Stands between :class:`FrozenBackboneStrategy` and ``LearningToPrompt``, whose constructor
    builds its own model and whose ``_before_training_exp`` makes a new Adam.
    """

    def __init__(self, **kwargs: Any) -> None:
        super(LearningToPrompt, self).__init__(**kwargs)

    def _before_training_exp(self, **kwargs: Any) -> None:
        super(LearningToPrompt, self)._before_training_exp(**kwargs)


class OnlineL2P(FrozenBackboneStrategy, _GivenModel):
    r"""Avalanche's L2P with its defects on online streams repaired.

    The network, the selection of prompts and the loss are Avalanche's; the constructor and the
    loop are not, they are the ones that all methods here share:

    .. math:: L = \mathrm{CE} - \lambda \, \frac{1}{B} \sum_b \sum_{j \in \mathrm{top}_k(b)}
              \cos(q_b, k_j)

    What was wrong in ``LearningToPrompt`` (numbers
    of Avalanche 0.6.0), and is right here:

    1. The head has 768 inputs whatever the ViT: here the ViT's width.
    2. The mask of an experience's classes hides *all* logits, and the loss is NaN, when the
       classes are a ``set``, as ``class_incremental_benchmark`` gives them; items without a task
       label and sub-experiences without classes raise. Here neither is read: training masks come
       from the labels of the batches alone (`mask`).
    3. That mask makes the loss infinite for a replayed class. Here a class in the batch always
       competes.
    4. Nothing is masked at test; here classes never seen in training are.
    5. Adam is made anew at each (sub-)experience, which orphans schedulers and makes every step
       of an online stream Adam's first; no optimizer can be given. Here it is kept, and can be.
    6. Frozen tensors are in the optimizer, ``fc_norm`` is trained by oversight: here it has the
       pool and the head, and a backbone with ``fc_norm`` is refused.
    7. Two copies of the ViT; the query's one is always in train mode and stays on its first
       device, the other one is in train mode in training (dropout, stochastic depth). Here both
       share the backbone's modules, in eval mode, and move with the model.
    8. The logged loss includes the key term in evaluation too: here it is the cross-entropy.
    9. ``self.res`` keeps the last graph, so that ``copy.deepcopy`` of the strategy fails.
    10. The model returns a dictionary, on which plugins that call it fail.
    11. No gradient clipping: here to norm 1 (`clip_norm`), prompts and head apart.
    """

    @takes(
        model=Instance(PromptPoolViT),
        lr=Number(above=0),
        lr_head=Number(above=0, optional=True),
        sim_coefficient=Number(least=0),
    )
    def __init__(
        self,
        *,
        model: PromptPoolViT,
        optimizer: Optimizer | None = None,
        lr: float = 0.03,
        lr_head: float | None = None,
        sim_coefficient: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Init.

        :param model: Avalanche's transformers on a backbone.
        :param optimizer: over ``model.pool`` and the head; None is Adam with `lr`.
        :param lr: Adam's rate.
        :param lr_head: Adam's rate for the head; None is `lr`, as in Avalanche.
        :param sim_coefficient: lambda, the weight with which keys are pulled to queries.
        :param kwargs: what else :class:`FrozenBackboneStrategy` takes.
        :raises UsageError: naming the argument that is out of range.
        """
        self.lr = lr
        self.sim_coefficient = sim_coefficient
        self.num_classes = model.num_classes
        rates = {"prompt": lr, "head": lr if lr_head is None else lr_head}
        super().__init__(model=model, optimizer=optimizer, learning_rates=rates, **kwargs)

    @property
    def original_vit(self) -> nn.Module:
        """The query's network; under Avalanche's name."""
        return self.model.original_vit

    def describe(self) -> Description:
        """As every strategy does; the query's network is no part of the model."""
        return replace(super().describe(), networks=(self.model, self.original_vit))

    def criterion(self) -> Tensor:
        """The loss under the mask, with the key term in training only."""
        loss = super().criterion()
        if self.is_training:
            loss = loss - self.sim_coefficient * self._selection.similarity  # type: ignore
        return loss


class LearningToPromptAsShipped(CommonStrategy, LearningToPrompt):
    """Avalanche's L2P with nothing changed but that it can be built.

    ``forward``, loss, mask, Adam made anew per experience and logging are Avalanche's, with the
    defects that :class:`OnlineL2P` lists. Only this differs from ``LearningToPrompt``:

    - it is built on the installed timm;
    - ``backbone`` instead of ``model_name`` and ``pretrained``: architecture and weights are
      copied from it, for the prompted ViT and for the query's;
    - the head has the ViT's width as its input, not 768;
    - labels of any kind of whole numbers are int64, and an evaluation leaves no trace in training.

    It needs experiences whose ``classes_in_this_experience`` is a list and items (x, y, task):
    what ``nc_benchmark`` and Avalanche's classic benchmarks give.
    """

    # For the record of a run: the training loss is over the classes of the present experience.
    mask = "experience"
    step = (*CommonStrategy.step, "res")
    # Model and optimizer are all that it keeps, so a run of it can go on from them.
    resumable = True

    @takes(
        backbone=By(_check_backbone),
        **POOL,
        lr=Number(above=0),
        sim_coefficient=Number(least=0),
        **LOOP,
    )
    def __init__(
        self,
        *,
        backbone: VisionTransformer,
        num_classes: int,
        pool_size: int = 20,
        prompt_length: int = 5,
        top_k: int = 5,
        lr: float = 0.03,
        sim_coefficient: float = 0.1,
        gradient_steps: int = 1,
        precision: str = "fp32",
        device: str | torch.device = "cpu",
        **kwargs: Any,
    ) -> None:
        """Init.

        :param backbone: a timm ``VisionTransformer``; it is copied twice and left as it is.
        :param num_classes: C.
        :param pool_size: number of prompts in the pool.
        :param prompt_length: tokens per prompt.
        :param top_k: prompts selected per image.
        :param lr: Adam's rate.
        :param sim_coefficient: weight with which keys are pulled to queries.
        :param gradient_steps: updates per mini-batch; Avalanche makes 1 and nothing else is taken.
        :param precision: "fp32" or "bf16" (autocast; logits are float32), as everywhere here.
        :param device: device to train on.
        :param kwargs: what else ``LearningToPrompt`` takes (``train_mb_size``, ``evaluator``, ...).
        :raises UsageError: naming the argument that does not fit.
        """
        _check_top_k(top_k, pool_size)
        if gradient_steps != 1:
            raise UsageError(
                "Avalanche's L2P as shipped makes 1 update per mini-batch, so gradient_steps must "
                f"be 1 for it, not {gradient_steps!r}."
            )
        if precision == "fp16":
            raise UsageError("precision must be 'fp32' or 'bf16' here, not 'fp16'.")
        self.precision = precision
        with timm_compat(**_vit_arguments(backbone)):
            super().__init__(
                model_name=_FACTORY,
                pretrained=False,
                num_classes=num_classes,
                pool_size=pool_size,
                prompt_length=prompt_length,
                top_k=top_k,
                lr=lr,
                sim_coefficient=sim_coefficient,
                device=device,
                **kwargs,
            )
        _give_modules(self.model, copy.deepcopy(backbone), top_k * prompt_length)
        _give_modules(self.original_vit, copy.deepcopy(backbone), 0)
        # As a new network is: Avalanche never puts the query's into eval mode.
        self.original_vit.train()
        self.model.head = nn.Linear(self.model.embed_dim, num_classes)
        self.model.to(self.device)
        self.original_vit.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, betas=(0.9, 0.999))

    def describe(self) -> Description:
        """As every strategy does."""
        networks = (self.model, self.original_vit)
        return replace(super().describe(), readout="prompt", networks=networks)

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))  # that it cannot be copied after training is one of the defects

    def forward(self) -> Tensor:
        """Avalanche's ``forward``; only the number format is a choice."""
        bf16 = self.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = super().forward()
        return logits.float()


@register_method(
    "avalanche-l2p",
    summary="Avalanche's own L2P, repaired for online streams",
    paper=_PAPER,
    published={},
    default=True,
)
def build_online_l2p(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    pool_size: int = 20,
    prompt_length: int = 5,
    top_k: int = 5,
    lr: float = 0.03,
    lr_head: float = 0.03,
    sim_coefficient: float = 0.1,
    head: str = "linear",
    mask: str = "batch",
    readout: str = "prompt",
) -> OnlineL2P:
    """Build :class:`OnlineL2P`; the options are those of it and of :class:`PromptPoolViT`."""
    model = PromptPoolViT(
        backbone,
        num_classes,
        pool_size=pool_size,
        prompt_length=prompt_length,
        top_k=top_k,
        head=head,
        readout=readout,
    )
    return OnlineL2P(
        model=model,
        lr=lr,
        lr_head=lr_head,
        sim_coefficient=sim_coefficient,
        mask=mask,
        **loop,
    )


@register_method(
    "avalanche-l2p-as-shipped",
    summary="Avalanche's own L2P, unchanged but for its construction; reads task boundaries",
    paper=_PAPER,
    uses_boundaries=True,
)
def build_shipped_l2p(
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: dict[str, Any],
    pool_size: int = 20,
    prompt_length: int = 5,
    top_k: int = 5,
    lr: float = 0.03,
    sim_coefficient: float = 0.1,
) -> LearningToPromptAsShipped:
    """Build :class:`LearningToPromptAsShipped`; the options are its own."""
    return LearningToPromptAsShipped(
        backbone=backbone,
        num_classes=num_classes,
        pool_size=pool_size,
        prompt_length=prompt_length,
        top_k=top_k,
        lr=lr,
        sim_coefficient=sim_coefficient,
        **loop,
    )
