"""What every strategy has here, ours or Avalanche's own: int64 labels, evaluation without a trace.

Mixed into a strategy class before Avalanche's template:

- its constructor takes keyword arguments alone and says so (Avalanche would give positional ones to
  other arguments, by their order in the signature);
- labels are int64 [B] from where they enter, see :func:`class_numbers`;
- an evaluation leaves nothing behind: the random generators, the modules' modes and the step that
  is under way are as they were before. So training does not depend on when it is looked at, and
  plugins that are called after an evaluation still find the training batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.models.classifier import Selection
from avalanche_rwf.strategies.description import Description, of_model
from avalanche_rwf.utils.device import note_labels
from avalanche_rwf.utils.random_state import random_state, set_random_state

_CLASSES = "labels must be the numbers of classes, one whole number per image"


def class_numbers(labels: Any, images: int) -> Tensor:
    """Labels of any kind of whole numbers, [B] or [B, 1], as int64 [B].

    :param images: B.
    :raises UsageError: for anything else, such as one-hot rows, shares of classes or texts.
    """
    if not isinstance(labels, Tensor):
        try:
            labels = torch.as_tensor(labels)
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"{_CLASSES}, not a {type(labels).__name__}.") from None
    if labels.dtype == torch.int64 and labels.dim() == 1 and len(labels) == images:
        return labels
    kind = str(labels.dtype).removeprefix("torch.")
    if labels.numel() != images:
        hint = ""
        if labels.dim() == 2 and len(labels) == images:
            hint = "; of one-hot rows, argmax(1) is"
        raise UsageError(f"{_CLASSES}, not {kind} {list(labels.shape)} for {images} images{hint}.")
    whole = not labels.is_complex()
    if whole and labels.is_floating_point():
        whole = bool((labels == labels.round()).all() & torch.isfinite(labels).all())
    if not whole:
        raise UsageError(f"{_CLASSES}, not numbers of {kind} that are not whole.")
    return labels.reshape(-1).long()


def _detached(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _detached(one) for key, one in value.items()}
    return value.detach() if isinstance(value, Tensor | Selection) else value


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards each module's mode is as before."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class CommonStrategy:
    """See the module's text."""

    # Attributes of the present training step.
    step: ClassVar[tuple[str, ...]] = ("mbatch", "mb_output", "loss")

    # For the record of a run; a class or its objects say otherwise.
    mask: Any = None
    trains = True
    resumable = False

    model: Any
    mbatch: Any
    device: torch.device

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An object, unless positional arguments are given to a constructor that takes none.

        :raises TypeError: saying so.
        """
        parameters = list(inspect.signature(cls.__init__).parameters.values())[1:] if args else []
        if args and not any(p.kind <= inspect.Parameter.VAR_POSITIONAL for p in parameters):
            names = [p.name for p in parameters]
            usual = [name for name in ("model", "optimizer") if name in names] or names[:2]
            example = ", ".join(f"{name}=..." for name in usual)
            raise TypeError(
                f"{cls.__name__} takes keyword-only arguments, such as {cls.__name__}({example}), "
                f"and got {len(args)} without a name."
            )
        return super().__new__(cls)

    def describe(self) -> Description:
        """What is recorded of it, and what a runner needs to know."""
        mask = self.mask if self.trains else "none"
        return of_model(self.model, mask=mask, resumable=self.resumable)

    def __getstate__(self) -> dict[str, Any]:
        # A tensor with a graph cannot be copied, and a strategy may be, in the middle of training.
        own = vars(self)
        return {**own, **{name: _detached(own[name]) for name in self.step if name in own}}

    def _unpack_minibatch(self) -> None:
        self._convert_labels()
        labels = self.mbatch[1]
        super()._unpack_minibatch()  # type: ignore[misc]
        if labels.device.type == "cpu" and self.mbatch[1] is not labels:
            note_labels(self.mbatch[1], labels.tolist())

    def _convert_labels(self) -> None:
        images, labels, *rest = self.mbatch
        self.mbatch = [images, class_numbers(labels, len(images)), *rest]

    def _save_train_state(self) -> dict[str, Any]:
        state: dict[str, Any] = super()._save_train_state()  # type: ignore[misc]
        step = {name: getattr(self, name, None) for name in self.step}
        return {**state, "step": step, "generators": random_state()}

    def _load_train_state(self, prev_state: Mapping[str, Any]) -> None:
        super()._load_train_state(prev_state)  # type: ignore[misc]
        for name, value in prev_state["step"].items():
            setattr(self, name, value)
        set_random_state(prev_state["generators"])
