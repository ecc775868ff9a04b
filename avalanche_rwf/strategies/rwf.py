"""Routing without Forgetting as an Avalanche strategy.

Source: arXiv 2603.09576. The paper leaves head, mask, rates, L, heads and beta open; the defaults
of the preset ``rwf`` are this project's, chosen on images held out of the training stream
(``examples/tune.py``), and every one is an option.
"""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.backbone import PACKAGED, create_backbone
from avalanche_rwf.models.blocks import DefaultBlocks
from avalanche_rwf.routing.model import RoutedViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy
from avalanche_rwf.strategies.hub import OnHub
from avalanche_rwf.strategies.loop_arguments import LOOP
from avalanche_rwf.strategies.replay import POLICIES, REPLAY_LOSSES, Replay
from avalanche_rwf.strategies.saving import read_saved
from avalanche_rwf.utils.validation import (
    LARGEST_IMAGE,
    Choice,
    Flag,
    Instance,
    Number,
    Options,
    Whole,
    takes,
)

__all__ = ["RwFStrategy"]


class RwFStrategy(OnHub, FrozenBackboneStrategy):
    """Routing without Forgetting: a drop-in for Avalanche's ``LearningToPrompt``.

    Each block in `routed_blocks` of a frozen ViT gets prompts that a routing layer retrieves from
    the tokens of the very image in one closed-form step. No task identity and no boundary is used.
    """

    @takes(
        model=Instance(RoutedViT, optional=True),
        num_classes=Whole(optional=True),
        pretrained=Flag(),
        image_size=Whole(most=LARGEST_IMAGE, optional=True),
        backbone_kwargs=Options(optional=True),
        num_prompts=Whole(least=0),
        routing_kwargs=Options(optional=True),
        buffer=Whole(least=0),
        replay=Choice(REPLAY_LOSSES),
        buffer_policy=Choice(POLICIES),
        lr=Number(least=0),
        lr_queries=Number(least=0),
        lr_maps=Number(least=0),
        learning_rates=Options(optional=True),
        **LOOP,
    )
    def __init__(
        self,
        *,
        model_name: str | None = None,
        model: RoutedViT | None = None,
        optimizer: Optimizer | None = None,
        criterion: nn.Module | None = None,
        num_classes: int | None = None,
        pretrained: bool = True,
        weights: str | None = None,
        image_size: int | None = None,
        backbone_kwargs: Mapping[str, Any] | None = None,
        routed_blocks: str | Collection[int] = DefaultBlocks("first 5"),
        num_prompts: int = 10,
        head: str = "white",
        readout: str = "cls+mean",
        routing_kwargs: Mapping[str, Any] | None = None,
        mask: str = "decoupled",
        buffer: int = 0,
        replay: str = "er",
        buffer_policy: str = "reservoir",
        lr: float = 5e-3,
        lr_queries: float = 1e-3,
        lr_maps: float = 3e-6,
        learning_rates: Mapping[str, float] | None = None,
        gradient_steps: int = 1,
        clip_norm: float | None = 1.0,
        precision: str = "fp32",
        train_mb_size: int = 16,
        train_epochs: int = 1,
        eval_mb_size: int = 64,
        device: str | torch.device = "cpu",
        plugins: list[SupervisedPlugin] | None = None,
        evaluator: EvaluationPlugin | Callable[[], EvaluationPlugin] | None = default_evaluator,
        eval_every: int = -1,
        peval_mode: str = "epoch",
        **kwargs: Any,
    ) -> None:
        """Init.

        :param model_name: a timm ViT by its exact tag, or the packaged backbone's name; None is
            the packaged backbone. Not together with `model`.
        :param model: a :class:`RoutedViT` of one's own, instead of `model_name` and the options up
            to `routing_kwargs`.
        :param optimizer: None builds Adam with a rate per kind of parameter.
        :param criterion: loss of (logits, targets); None is cross-entropy.
        :param num_classes: classes of the stream; None starts with one and grows as labels come.
        :param pretrained: load pretrained weights.
        :param weights: a local ``.safetensors``, ``.pth`` or ``.npz`` instead of the hub's.
        :param image_size: side of the (square) images in pixels; None is the backbone's own.
        :param backbone_kwargs: passed on to timm, such as ``depth=9``.
        :param routed_blocks: blocks with a routing layer: "first 5", "last 3", "all", indices.
        :param num_prompts: prompts L per block.
        :param head: "linear", "cosine", "white", "ncm", "slda" or "ridge".
        :param readout: "cls", "cls+mean", "layers" or "routes".
        :param routing_kwargs: further options of :class:`RoutingLayer` (heads, beta, trainable...).
        :param mask: training logit mask: "none", "seen", "batch" or "decoupled".
        :param buffer: earlier images to keep and replay with each mini-batch; 0 replays none.
        :param replay: how, if there is a buffer: "er", "er-ace" or "der", see :class:`Replay`.
        :param buffer_policy: which images stay in the buffer: "reservoir" or "class-balanced".
        :param lr: rate of the head.
        :param lr_queries: rate of the queries.
        :param lr_maps: rate of the D x D maps (W_q, W_k, W_v, W_o); keep it hundreds of times
            below that of the queries.
        :param learning_rates: kind -> rate, over the three above.
        :param gradient_steps: updates per mini-batch.
        :param clip_norm: largest gradient norm per kind of parameter.
        :param precision: "fp32" or "bf16".
        :param train_mb_size: training mini-batch size.
        :param train_epochs: passes over an experience.
        :param eval_mb_size: evaluation mini-batch size.
        :param device: device to train on.
        :param plugins: Avalanche plugins.
        :param evaluator: Avalanche's evaluation plugin, a function that makes one, or None.
        :param eval_every: as in Avalanche.
        :param peval_mode: as in Avalanche.
        :raises UsageError: naming the argument that is wrong, before any work is done.
        """
        given = dict(locals())
        self._arguments = {name: given[name] for name in _ARGUMENTS}
        self._built_from = "model" if model is not None else "name"
        if model is not None and model_name is not None:
            raise ValueError("Give either model or model_name to RwFStrategy, not both.")
        grows = model is None and num_classes is None
        if model is None:
            model = _routed_vit(given)
        elif num_classes not in (None, model.num_classes):
            raise UsageError(
                f"num_classes must be left out where a model is given, or be its "
                f"{model.num_classes}, not {num_classes!r}."
            )
        maps = dict.fromkeys(("q", "k", "v", "o"), lr_maps)
        rates = {"head": lr, "queries": lr_queries, **maps, **(learning_rates or {})}
        super().__init__(
            model=model,
            optimizer=optimizer,
            criterion=criterion,
            mask=mask,
            replay=Replay(buffer, replay, buffer_policy=buffer_policy) if buffer else None,
            learning_rates=rates,
            grows=grows,
            **{name: given[name] for name in _LOOP},
            **kwargs,
        )

    def _saved_arguments(self, backbone: bool) -> dict[str, Any]:
        if self._built_from == "model":
            return {}
        given = dict(self._arguments)
        if isinstance(given["routed_blocks"], DefaultBlocks):  # a file knows no such text
            given["routed_blocks"] = given["routed_blocks"].on(self.model.depth)
        arguments = {name: _plain(name, value) for name, value in given.items()}
        fetched = arguments["pretrained"] or arguments["weights"] is not None
        if not (fetched or backbone) and self.model.frozen:
            raise UsageError(
                "backbone must be True for a strategy with pretrained=False to be saved, not "
                "False: load cannot get its random weights from anywhere else."
            )
        return arguments

    @classmethod
    def load(cls, path: str | os.PathLike[str], **arguments: Any) -> RwFStrategy:
        """The strategy that :meth:`save` wrote, to go on training or to predict with.

        It is built with the arguments that it was built with; objects (plugins, evaluator,
        criterion, an optimizer, or the model if it was built from one) and the device are those of
        `arguments`. Pretrained weights are got again from where they came from, unless the file
        has them, and checked.

        :param arguments: of the constructor, over the saved ones.
        :raises UsageError: if the file is damaged, none, or does not fit.
        """
        saved = read_saved(path)
        kwargs = dict(saved["arguments"])
        if not kwargs and "model" not in arguments:
            raise UsageError(
                f"model must be given to load a strategy that was built from one, as "
                f"{os.fspath(path)!r} was."
            )
        if "backbone" in saved:
            kwargs.update(pretrained=False, weights=None)
        if "model" in arguments:
            kwargs = {key: value for key, value in kwargs.items() if key not in _OF_THE_MODEL}
        strategy = cls(**{**kwargs, **arguments})
        groups = strategy.optimizer.param_groups
        built = {group.get("name"): group["lr"] for group in groups}
        strategy._restore(saved, path)
        # The optimizer's state has brought its old rates; those asked for here replace them.
        asked = {kind for name, kinds in _RATES.items() if name in arguments for kind in kinds}
        asked.update(arguments.get("learning_rates") or ())
        for group in strategy.optimizer.param_groups:
            if group.get("name") in asked and arguments.get("optimizer") is None:
                group["lr"] = built[group["name"]]
        return strategy


# What is passed on as it is.
_LOOP = (
    *("gradient_steps", "clip_norm", "precision", "train_mb_size", "train_epochs", "eval_mb_size"),
    *("device", "plugins", "evaluator", "eval_every", "peval_mode"),
)
# The kinds of parameters whose rate an argument is.
_RATES = {"lr": ("head",), "lr_queries": ("queries",), "lr_maps": ("q", "k", "v", "o")}
# What is saved of the constructor's arguments: plain values that say how to build it again.
_OF_THE_MODEL = (
    *("model_name", "num_classes", "pretrained", "weights", "image_size", "backbone_kwargs"),
    *("routed_blocks", "num_prompts", "head", "readout", "routing_kwargs"),
)
_ARGUMENTS = (
    *_OF_THE_MODEL,
    *("mask", "buffer", "replay", "buffer_policy", "lr", "lr_queries", "lr_maps", "learning_rates"),
    *_LOOP[:6],
)


def _routed_vit(given: Mapping[str, Any]) -> RoutedViT:
    """The model that the arguments of a strategy without one describe."""
    backbone = create_backbone(
        PACKAGED if given["model_name"] is None else given["model_name"],
        **{name: given[name] for name in ("weights", "image_size", "pretrained")},
        **dict(given["backbone_kwargs"] or {}),
    )
    return RoutedViT(
        backbone,
        given["num_classes"] or 1,
        **{name: given[name] for name in ("routed_blocks", "num_prompts", "head", "readout")},
        **dict(given["routing_kwargs"] or {}),
    )


def _plain(name: str, value: Any) -> Any:
    """An argument as a plain value.

    :raises UsageError: if it is none, such as a function in `backbone_kwargs`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Real):  # NumPy's too, of which no file is to know
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(name, one) for key, one in value.items()}
    # A single number of a tensor (log_prior is one) is itself a collection.
    if isinstance(value, Collection) and not isinstance(value, Tensor):
        return [_plain(name, one) for one in value]
    raise UsageError(
        f"{name} must be plain values for a strategy to be saved, not a {type(value).__name__}: "
        "build the model yourself and give it as model."
    )
