"""The training loop of every method here: single pass, masks, precision, clipping.

It is an Avalanche ``SupervisedTemplate``: plugins, evaluators, loggers, ``train(experience)`` and
``eval(stream)`` work as for any other. What it does otherwise, and why:

- it uses nothing but the mini-batch: no experience's classes, length or boundary. Trained on one
  experience per task or on a true sub-experience stream of the same order it ends with the same
  weights;
- the optimizer is built once and keeps its state over experiences (Avalanche's own
  ``update_optimizer`` would add every frozen parameter and does not allow two groups with a
  frozen backbone outside them);
- the seen classes are a buffer of the model, learned from the labels of training batches. Logits
  of classes not seen yet are -inf at test.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.plugins.evaluation import default_evaluator
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_rwf.errors import NonFiniteLossError, UsageError, nearest
from avalanche_rwf.models.backbone import backbone_info, image_misfit
from avalanche_rwf.models.blockwise import full_precision
from avalanche_rwf.models.classifier import FrozenViT, Selection, optional
from avalanche_rwf.models.lower import lowered
from avalanche_rwf.models.masks import MASKS, mask_logits, training_mask
from avalanche_rwf.models.preprocessing import evaluation_transform, range_note
from avalanche_rwf.strategies.common import CommonStrategy, evaluating
from avalanche_rwf.strategies.criteria import check_weights, loss_under
from avalanche_rwf.strategies.description import Description, of_model
from avalanche_rwf.strategies.loop_arguments import LOOP
from avalanche_rwf.strategies.replay import Replay
from avalanche_rwf.strategies.saving import Saved
from avalanche_rwf.utils.device import on_host
from avalanche_rwf.utils.validation import Choice, Flag, Instance, Number, Options, takes

__all__ = [
    "DEFAULT_RATES",
    "MOST_CLASSES",
    "FrozenBackboneStrategy",
    "NonFiniteLossError",
    "build_optimizer",
    "prompt_rates",
]

MOST_CLASSES = 50_000
"""The most classes that a head grows to: a larger label is more likely a mistake."""

DEFAULT_RATES: Mapping[str, float] = {
    "queries": 1e-3,
    "q": 3e-6,
    "k": 3e-6,
    "v": 3e-6,
    "o": 3e-6,
    "beta": 1e-3,
    "scale": 1e-3,
    "prompt": 5e-3,
    "head": 5e-3,
    "backbone": 1e-5,
}
"""Adam's rate per kind of parameter. Maps of D x D need one hundreds of times smaller."""


@takes(lr=Number(least=0), lr_head=Number(least=0))
def prompt_rates(lr: float, lr_head: float) -> dict[str, float]:
    """Rates of a prompt method: `lr` for prompts and keys, `lr_head` for the head.

    :raises UsageError: if one is negative or no finite number.
    """
    return {"prompt": lr, "head": lr_head}


def build_optimizer(
    model: FrozenViT, rates: Mapping[str, float], weight_decay: float = 0.0
) -> Optimizer | None:
    """Adam with one parameter group per kind, or None for a model that trains nothing.

    :param rates: kind -> learning rate; kinds that the model does not have are ignored.
    :raises UsageError: if a kind has no rate, or one that is negative, infinite or NaN.
    """
    groups = []
    for kind, parameters in model.parameter_groups().items():
        if kind not in rates:
            raise UsageError(f"learning_rates has no rate for the parameters of kind {kind!r}.")
        Number(least=0).check(f"The rate of {kind!r}", rates[kind])  # PyTorch checks no group's
        # A number of NumPy's would be in the optimizer's state, and so in files.
        lr = rates[kind] if type(rates[kind]) in (int, float) else float(rates[kind])
        groups.append({"params": parameters, "lr": lr, "name": kind})
    return torch.optim.Adam(groups, weight_decay=weight_decay) if groups else None


def _kinds(model: nn.Module) -> list[str]:
    """The kinds of numbers that a model's parameters are in, such as "float32"."""
    return sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})


def _check_optimizer(model: FrozenViT, optimizer: Optimizer) -> None:
    """Refuse an optimizer of one's own that would train nothing."""
    mine = {id(parameter) for parameter in model.parameters()}
    given = [p for group in optimizer.param_groups for p in group["params"]]
    if not mine & set(map(id, given)):
        raise UsageError("optimizer must have parameters of the model, and it has none of it.")
    if not any(p.requires_grad for p in given):
        raise UsageError(
            "optimizer must have parameters that are trained, and all that it has are frozen: "
            "leave it out for a model that trains nothing."
        )


def _check_parts(model: FrozenViT, learning_rates: Mapping[str, float]) -> None:
    """Refuse a model in two kinds of numbers, and rates of kinds that there are not."""
    found = _kinds(model)
    if "float64" in found and len(found) > 1:
        raise UsageError(
            f"model must be in one kind of numbers, not in {' and '.join(found)}: "
            "model.double() puts all of it in float64."
        )
    kinds = {*DEFAULT_RATES, *model.parameter_groups()}
    for kind in learning_rates:
        if kind not in kinds:
            raise UsageError(
                f"learning_rates takes kinds of parameters, and {kind!r} is none; "
                f"{nearest(kind, sorted(kinds))}."
            )


def _add_training_head(model: FrozenViT, optimizer: Optimizer) -> None:
    """Add to a user's optimizer the head that was made after it."""
    if model.training_head is not None:
        has = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [p for p in model.training_head.parameters() if id(p) not in has]
        if new:
            optimizer.add_param_group({"params": new, "name": "training head"})


class _NoOptimizer(torch.optim.SGD):
    """Stands where a strategy trains nothing: plugins expect an optimizer to be there."""

    def __init__(self) -> None:
        super().__init__([nn.Parameter(torch.zeros(0))], lr=0.0)


class FrozenBackboneStrategy(Saved, CommonStrategy, SupervisedTemplate):
    """Online class-incremental training of a :class:`FrozenViT`.

    Keyword-only, in Avalanche's order.
    """

    resumable = True
    step: ClassVar[tuple[str, ...]] = (
        *(*CommonStrategy.step, "_features", "_selection", "_raw", "_asked"),
    )
    checks = True
    """Whether features, loss and gradients are looked at in each step: the one time that a step
    waits for a GPU. Without it a run that diverges goes on."""

    @takes(
        **LOOP,
        model=Instance(FrozenViT),
        optimizer=Instance(Optimizer, "an optimizer of PyTorch's", optional=True),
        replay=Instance(Replay, optional=True),
        learning_rates=Options(optional=True),
        grows=Flag(),
    )
    def __init__(
        self,
        *,
        model: FrozenViT,
        optimizer: Optimizer | None = None,
        criterion: nn.Module | None = None,
        mask: str = "seen",
        replay: Replay | None = None,
        gradient_steps: int = 1,
        learning_rates: Mapping[str, float] | None = None,
        clip_norm: float | None = 1.0,
        precision: str = "fp32",
        grows: bool = False,
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

        :param model: a frozen ViT with its head.
        :param optimizer: None builds Adam with one group per kind of parameter.
        :param criterion: loss of (logits [B, C], classes [B]), a function or a module; None is
            cross-entropy. It gets all classes' columns and the true labels with every mask; what a
            mask leaves out is at -2.0e31 (see :mod:`.criteria`). With "decoupled" and in replay it
            is called for each part of the loss.
        :param mask: which classes compete in the training loss: "none", "seen", "batch" or
            "decoupled" (prompts learn from the batch-masked loss through the head held fixed, the
            head from the seen-masked loss on detached features).
        :param replay: a buffer of earlier images to learn from with each mini-batch, or None. A
            model that trains nothing replays nothing.
        :param gradient_steps: updates per mini-batch. More than one still sees each sample once.
        :param learning_rates: kind -> rate, over ``DEFAULT_RATES``.
        :param clip_norm: largest norm of the gradient, per kind of parameter; None clips nothing.
        :param precision: "fp32", "bf16" or "fp16" (autocast; the head's logits are float32; the
            loss is scaled for fp16, and a step whose gradient overflows is left out).
        :param grows: whether a label beyond the model's classes widens the head, to 50,000 classes
            at most; otherwise it is an error.
        :param train_mb_size: training mini-batch size.
        :param train_epochs: passes over an experience; 1 is online.
        :param eval_mb_size: evaluation mini-batch size.
        :param device: device to train on.
        :param plugins: Avalanche plugins.
        :param evaluator: Avalanche's evaluation plugin, a function that makes one, or None.
        :param eval_every: as in Avalanche.
        :param peval_mode: as in Avalanche.
        :raises UsageError: naming the argument that is out of range.
        """
        _check_parts(model, learning_rates or {})
        if optimizer is not None:
            _check_optimizer(model, optimizer)
        if replay is not None and replay.replay == "er-ace":
            mask = replay.mask(mask)
        else:
            Choice(MASKS).check("mask", mask)
        if criterion is not None and not grows:
            check_weights(criterion, model.num_classes)
        model.add_training_head()
        model.check_method()
        if isinstance(criterion, nn.Module):
            criterion.to(device)  # weights of classes
        model.to(device)  # before the optimizer: its groups hold the tensors on the device
        rates = {**DEFAULT_RATES, **(learning_rates or {})}
        built = build_optimizer(model, rates) if optimizer is None else optimizer
        if optimizer is not None:
            _add_training_head(model, optimizer)
        self.trains = built is not None
        self.mask = mask
        self.replay = replay if self.trains else None
        self.gradient_steps = gradient_steps
        self.clip_norm = clip_norm
        self.grows = grows
        self.precision = precision
        self._at_once = sys.maxsize  # test images: fewer where a GPU's memory was short
        self._scaler = None
        if precision == "fp16" and self.trains:
            # Small gradients would be 0 in float16: the loss is scaled, they are scaled back.
            self._scaler = torch.amp.GradScaler(torch.device(device).type)
        self._features: Tensor | None = None
        self._selection: Selection | None = None
        self._raw: Tensor | None = None
        self._asked: dict[bool, Tensor] = {}  # the step's logits for the loss, by freeze_head
        self._experience: int | None = None  # of a model that follows the experiences
        self._unsure: tuple[Tensor, dict[str, Tensor]] | None = None  # finite? if not: the state
        self._observed = False
        self._checked = False  # whether the first batch and the model's observe were looked at
        super().__init__(
            model=model,
            optimizer=built if built is not None else _NoOptimizer(),
            criterion=criterion if criterion is not None else nn.CrossEntropyLoss(),
            train_mb_size=train_mb_size,
            train_epochs=train_epochs,
            eval_mb_size=eval_mb_size,
            device=device,
            plugins=plugins,
            evaluator=evaluator,
            eval_every=eval_every,
            peval_mode=peval_mode,
            **kwargs,
        )

    # -- Avalanche's extension points ---------------------------------------------------------

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Nothing adapts to an experience: the model, which is on its device already."""
        return self.model if model is None else model

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Keep the optimizer and its groups; forget its state only when asked to."""
        self.optimized_param_id: dict[str, Any] = {}
        if reset_optimizer_state:
            self.optimizer.state.clear()

    def check_model_and_optimizer(
        self, reset_optimizer_state: bool = False, **kwargs: Any
    ) -> None:
        """Called before each (sub-)experience; cheap, as nothing depends on the experience."""
        self.make_optimizer(reset_optimizer_state=reset_optimizer_state, **kwargs)

    def _autocast(self) -> Any:
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(torch.device(self.device).type, dtype=dtype)

    def forward(self) -> Tensor:
        """Logits [B, C] of the mini-batch with the classes not seen at -inf, in float32.

        In training, the batch's labels are noted first: its classes are seen from here on. Replayed
        images go through the model after the batch's own, for the loss alone. A head that grows
        does so in training alone: in evaluation, a label beyond it gets a column of -inf.
        """
        self._convert_labels()  # a plugin may have changed them
        n = len(self.mb_x)
        if not self.is_training:
            return self._test_forward(self.mb_x)
        features, self._selection = self._encode(self._extended(self.mb_x))
        if not self._observed:
            self._check_features(features)
            self._make_room(self.mb_y)
            # Replayed images enter no statistics a second time.
            own = self._selection and self._selection.rows(0, n)
            try:
                self.model.observe(features[:n].detach(), self.mb_y, *optional(own))
            except RuntimeError:  # of NaN there is no eigendecomposition
                self._check_finite([])
                raise
            if not self._checked:
                self._checked = True
                if note := range_note(self.model.backbone, self.mb_x):
                    warnings.warn(note, stacklevel=2)
                if not bool(self.model.seen[self.mb_y].all()):
                    raise UsageError(
                        f"observe of {type(self.model).__name__} must call super().observe: "
                        "without it no class counts as seen."
                    )
            self._observed = True
        self._features = features
        self._raw = self._ask_head(features, n)
        return mask_logits(self._raw, self.model.seen)

    def _extended(self, images: Tensor) -> Tensor:
        """A step's images: the mini-batch's [B, 3, H, W] and, behind them, what is replayed."""
        return images if self.replay is None else self.replay.extend(images)

    def _test_forward(self, images: Tensor) -> Tensor:
        """:meth:`forward` of test images."""
        self._raw = self._test_logits(images)
        more = self._missing_classes(self.mb_y)
        logits = mask_logits(self._raw, self.model.seen)
        if not more:
            return logits
        # No head has these classes yet. For the loss they get what a new row gives on average.
        later = float("-inf") if self.model.head.closed_form else 0.0
        self._raw = nn.functional.pad(self._raw, (0, more), value=later)
        return nn.functional.pad(logits, (0, more), value=float("-inf"))

    def _test_logits(self, images: Tensor) -> Tensor:
        """Raw logits [B, C] of images, in as many at a time as a GPU's memory is enough for."""
        found: list[Tensor] = []
        while (done := sum(map(len, found))) < len(images):
            part = images[done : done + self._at_once]
            try:
                features, selection = self._encode(part)
                found.append(full_precision(self.model.logits(features, *optional(selection))))
            except torch.cuda.OutOfMemoryError:
                if len(part) == 1:
                    raise
                self._at_once = len(part) // 2
        return found[0] if len(found) == 1 else torch.cat(found)

    def _check_features(self, features: Tensor) -> None:
        """Make sure that features that are not finite change nothing.

        If the step has a second check (:meth:`optimizer_step`), this one does not wait for the
        device: what the batch may change is copied, to be restored then. Statistics of closed forms
        are too large for a copy.

        :raises NonFiniteLossError: if it can be said now.
        """
        self._unsure = None
        if not self.checks:
            return
        finite = torch.isfinite(features).all()
        later = self.trains and finite.device.type != "cpu" and not self.model.head.closed_form
        before = {}
        if later and not self._missing_classes(self.mb_y):
            state = self.model.state_dict().items()
            before = {n: t.clone() for n, t in state if not n.startswith("backbone.")}
        self._unsure = finite, before
        if not before:
            self._check_finite([])

    def _check_finite(self, numbers: list[Tensor]) -> None:
        """Check that numbers, and those not checked yet, are finite: the step's one wait for a GPU.

        :raises NonFiniteLossError: naming the step.
        """
        checked = [torch.isfinite(torch.stack(numbers)).all()] if numbers else []
        if self._unsure is not None:
            checked.append(self._unsure[0])
        finite = torch.stack(checked).tolist() if checked else [True]
        if all(finite):
            self._unsure = None
            return
        step = self.clock.train_iterations
        if self._unsure is not None and not finite[-1]:
            if self._unsure[1]:
                self.model.load_state_dict(self._unsure[1], strict=False)
            raise NonFiniteLossError(
                f"The features are not finite at training step {step}; nothing was changed by this "
                "batch."
            )
        raise NonFiniteLossError(
            f"The loss or its gradient is not finite at training step {step} (loss "
            f"{float(self.loss.detach()):g}); the weights are those before this step: lower the "
            "learning rates."
        )

    def _ask_head(self, features: Tensor, n: int) -> Tensor:
        """Logits [n, C] of the mini-batch; they, or their two parts, serve the loss as well."""
        model, self._asked = self.model, {}
        same = not model.head.closed_form and type(model).logits is FrozenViT.logits
        if not same or n < len(features):
            return full_precision(model.head.in_training(features[:n]))
        self._asked[False] = logits = self._loss_logits(features)
        if self.mask != "decoupled" or not features.requires_grad:
            return logits
        self._asked[True] = of_prompts = self._loss_logits(features, freeze_head=True)
        return of_prompts + (logits - logits.detach())  # its gradient reaches both

    def _loss_logits(
        self, features: Tensor, freeze_head: bool = False, selection: Selection | None = None
    ) -> Tensor:
        """Logits [B, C] that a loss is taken of; those of the step are computed once."""
        if features is self._features and freeze_head in self._asked:
            return self._asked[freeze_head]
        if self.mask == "decoupled" and not freeze_head:
            features = features.detach()
        return full_precision(self.model.training_logits(features, freeze_head, selection))

    def _encode(self, images: Tensor) -> tuple[Tensor, Selection | None]:
        """Features [B, F] of images, in float32 or, of a model in float64, float64.

        :raises UsageError: for images that the backbone does not take.
        """
        try:
            with self._autocast(), lowered(self.model.backbone):
                features, selection = self.model.encode(images)
                return full_precision(features), selection
        except (RuntimeError, AssertionError, ValueError) as error:
            why = image_misfit(self.model.backbone, images)
            kinds = _kinds(self.model)
            if why is None and len(kinds) > 1:
                why = (
                    f"model must be in one kind of numbers, not in {' and '.join(kinds)}: "
                    "precision='bf16' is what computes in less than float32."
                )
            if why is None:
                raise
            raise UsageError(why) from error

    def criterion(self) -> Tensor:
        """The training loss under the mask; in evaluation the plain loss over all classes.

        The evaluation's loss is taken before the mask: a test class that has not been seen would
        make it infinite.
        """
        assert self._raw is not None
        if not self.is_training:
            # A closed form gives -inf to a class it has no sample of.
            return loss_under(self._criterion, self._raw.clamp_min(-1e4), self.mb_y)
        if not self.trains:
            return self._make_empty_loss()
        assert self._features is not None
        loss = self._step_loss(self._features)
        more = self.model.auxiliary_loss(self._selection)
        return loss if more is None else loss + more

    def _step_loss(self, features: Tensor) -> Tensor:
        """The loss of the features of :meth:`_extended`'s images, what the model adds left out."""
        take = self.classification_loss if self.replay is None else self.replay.loss_of(self)
        return take(features, self.mb_y, selection=self._selection)

    def classification_loss(
        self,
        features: Tensor,
        targets: Tensor,
        mask: str | Tensor | None = None,
        selection: Selection | None = None,
    ) -> Tensor:
        """The loss of features [B, F] and their classes [B] under the strategy's mask.

        :param mask: another one in its place (of "decoupled": in place of the head's part).
        :param selection: what the model's ``encode`` gave with the features.
        """
        more: dict[str, Any] = {"selection": selection}
        if self.mask != "decoupled":
            return self.masked_loss(features, targets, self.mask if mask is None else mask, **more)
        loss = self.masked_loss(features, targets, "seen" if mask is None else mask, **more)
        if features.requires_grad:
            loss = loss + self.masked_loss(features, targets, "batch", freeze_head=True, **more)
        return loss

    def masked_loss(
        self,
        features: Tensor,
        targets: Tensor,
        mask: str | Tensor,
        freeze_head: bool = False,
        selection: Selection | None = None,
    ) -> Tensor:
        """The loss over the classes that a mask allows.

        :param mask: "none", "seen", "batch", or the allowed classes themselves, bool [C].
        :param freeze_head: whether the head gets no gradient. With "decoupled" the features get
            none otherwise.
        :param selection: what the model's ``encode`` gave with the features.
        """
        logits = self._loss_logits(features, freeze_head, selection)
        return self.loss_of_logits(logits, targets, mask)

    def loss_of_logits(self, logits: Tensor, targets: Tensor, mask: str | Tensor) -> Tensor:
        """The criterion of logits [B, C] over the allowed classes, see :meth:`masked_loss`."""
        if isinstance(mask, str):
            mask = training_mask(mask, targets, self.model.seen)
        return loss_under(self._criterion, logits, targets, mask)

    @property
    def uses_boundaries(self) -> bool:
        """Whether the model is told where an experience begins, as some original methods are."""
        return bool(self.model.uses_boundaries)

    def _before_training_exp(self, **kwargs: Any) -> None:
        """Tell a model that follows the experiences when training reaches another one.

        Sub-experiences of one experience count as that one. Nothing else of an experience is read.
        """
        super()._before_training_exp(**kwargs)
        if not self.model.uses_boundaries:
            return
        origin = getattr(self.experience, "origin_experience", None)
        index = int((self.experience if origin is None else origin).current_experience)
        if index != self._experience:
            self._experience = index
            self.model.begin_experience()
            # Old momentum would go on moving what the model holds from here on.
            for parameter in self.model.optimizer_resets():
                self.optimizer.state.pop(parameter, None)

    def training_epoch(self, **kwargs: Any) -> None:
        """Avalanche's loop, with several updates per mini-batch and none for closed forms."""
        for self.mbatch in self.dataloader:  # noqa: B020  (Avalanche's hooks read it there)
            if self._stop_training:
                break
            self._unpack_minibatch()
            self._before_training_iteration(**kwargs)
            self._observed = False
            for _ in range(self.gradient_steps if self.trains else 1):
                self._training_step(**kwargs)
            if self.replay is not None:
                self.replay.take_in(self.mb_x, self.mb_y)
            self._after_training_iteration(**kwargs)

    def _training_step(self, **kwargs: Any) -> None:
        if self.trains:
            self.optimizer.zero_grad()
        self.loss = self._make_empty_loss()
        self._before_forward(**kwargs)
        self.mb_output = self.forward()
        self._after_forward(**kwargs)
        self.loss = self.loss + self.criterion()
        self._before_backward(**kwargs)
        if self.trains:
            self.backward()
        self._after_backward(**kwargs)
        self._before_update(**kwargs)
        if self.trains:
            self.optimizer_step()
        self._after_update(**kwargs)

    def optimizer_step(self) -> None:
        """Clip each kind's gradient and step; a non-finite loss or gradient stops before the step.

        :raises NonFiniteLossError: naming the step; the weights are those before it.
        """
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        norms = []
        for group in self.optimizer.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                limit = float("inf") if self.clip_norm is None else self.clip_norm
                norms.append(nn.utils.clip_grad_norm_(parameters, limit))
        if self.checks:
            if self.replay is not None:
                self.replay.fetch(self.mb_x)
            # The scaler sees to gradients that overflow: it leaves the step out.
            numbers = (self.loss,) if self._scaler is not None else (self.loss, *norms)
            self._check_finite([x.detach().reshape(()).to(self.device) for x in numbers])
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()

    def backward(self) -> None:
        """The loss's gradient; in float16 that of the scaled loss."""
        if self._scaler is None:
            super().backward()
        else:
            self._scaler.scale(self.loss).backward(retain_graph=self.retain_graph)

    def _missing_classes(self, targets: Tensor) -> int:
        """How many classes the labels have beyond the model's: 0 unless the strategy grows.

        :raises ValueError: for a label that does not fit.
        """
        labels = on_host(targets)
        lowest, highest = min(labels), max(labels)
        more = max(0, highest + 1 - self.model.num_classes)
        if lowest < 0 or (more and not self.grows):
            raise ValueError(
                f"A label of {lowest if lowest < 0 else highest} does not fit "
                f"num_classes={self.model.num_classes}; labels run from 0 to num_classes - 1."
            )
        if highest >= MOST_CLASSES and more:
            raise ValueError(
                f"A label of {highest} does not fit: a head grows to {MOST_CLASSES} classes, so "
                f"labels run from 0 to {MOST_CLASSES - 1}."
            )
        return more

    def _make_room(self, targets: Tensor) -> None:
        """Refuse a label outside the classes, or grow the head where the strategy may."""
        more = self._missing_classes(targets)
        if not more:
            return
        before = dict(self.model.named_parameters())
        self.model.grow(self.model.num_classes + more)
        after = dict(self.model.named_parameters())
        for name, old in before.items():
            new = after[name]
            if new is not old:
                self._replace_parameter(old, new)

    def _replace_parameter(self, old: nn.Parameter, new: nn.Parameter) -> None:
        """Let the optimizer go on with a parameter that has more rows; new rows start at zero."""
        for group in self.optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        state = self.optimizer.state.pop(old, None)
        if state is None:
            return
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == old.shape:
                grown = torch.zeros_like(new)
                grown[: len(value)] = value
                state[key] = grown
        self.optimizer.state[new] = state

    def describe(self) -> Description:
        """What is recorded of it, and what a runner needs to know."""
        mask = self.mask if self.trains else "none"
        if mask == "decoupled" and self.model.frozen and not self.model.prompt_groups():
            mask = "seen"  # nothing but a head is trained: that is its part of "decoupled"
        follows = self.uses_boundaries
        return of_model(
            self.model,
            mask=mask,
            clip_norm=self.clip_norm,
            uses_boundaries=follows,
            max_experiences=self.model.max_experiences() if follows else None,
            resumable=self.resumable,
        )

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Class predictions [B] for images [B, 3, H, W], among the classes seen.

        It may be called at any time, in the middle of training too, and changes nothing.

        :raises UsageError: for images that the backbone does not take.
        """
        if not isinstance(images, Tensor):
            raise UsageError(f"images must be a tensor, not a {type(images).__name__}.")
        if not len(images):
            return torch.zeros(0, dtype=torch.long, device=self.device)
        with evaluating(self.model):
            logits = self._test_logits(images.to(self.device))
            return mask_logits(logits, self.model.seen).argmax(1)

    def _train_cleanup(self) -> None:
        super()._train_cleanup()
        self._features = self._selection = self._raw = None
        self._asked = {}

    def _eval_cleanup(self) -> None:
        super()._eval_cleanup()
        self._features = self._selection = self._raw = None
        self._asked = {}

    @property
    def transform(self) -> Callable[[Any], Tensor]:
        """What the backbone wants: a PIL image in RGB -> float32 [3, S, S], resized, cropped and
        normalised by timm's transform of its weights."""
        backbone = self.model.backbone
        return evaluation_transform(backbone, backbone_info(backbone).image_size)
