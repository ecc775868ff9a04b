"""Checks of what every strategy's loop takes: batch sizes, device, plugins, evaluator, ...

Avalanche looks at hardly any of them: a batch size of 0 is an error of PyTorch's in the first
experience, a plugin that was forgotten to be made is silently never called.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import By, Choice, Constraint, Whole, is_number, is_whole

PRECISIONS = ("fp32", "bf16", "fp16")


def _check_norm(name: str, value: Any) -> None:
    if value is not None and not (is_number(value) and value > 0):  # infinity clips nothing
        raise UsageError(f"{name} must be positive or None, not {value!r}.")


def _check_criterion(name: str, value: Any) -> None:
    if value is not None and (not callable(value) or inspect.isclass(value)):
        raise UsageError(f"{name} must be a loss of logits and targets or None, not {value!r}.")
    if getattr(value, "reduction", None) == "none":
        raise UsageError(f"{name} must give one number for a batch, and its reduction is 'none'.")


def _check_device(name: str, value: Any) -> None:
    said = f"{name} must be one that PyTorch has here, such as 'cpu' or 'cuda', not {value!r}"
    if not (isinstance(value, (str, torch.device)) or is_whole(value)):
        raise UsageError(f"{said}.")
    if str(value).partition(":")[0] == "mps":
        raise UsageError(
            f"{name} must be 'cpu' or 'cuda', not {value!r}: statistics are float64, which it has "
            "not."
        )
    try:
        torch.empty(0, device=value)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().split("\n")[0][:150].rstrip(".")
        raise UsageError(f"{said} ({why})." if why else f"{said}.") from None


def _check_plugins(name: str, value: Any) -> None:
    if value is None:
        return
    takes = f"{name} must be a list of Avalanche plugins or None"
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{takes}, not {value!r}.")
    for plugin in value:
        hooks = (key for key in dir(plugin) if key.startswith(("before_", "after_")))
        if inspect.isclass(plugin):
            raise UsageError(f"{takes}, and {plugin.__name__} is a class: make an object of it.")
        if not any(callable(getattr(plugin, key, None)) for key in hooks):
            raise UsageError(f"{takes}, and {plugin!r} has nothing that a strategy would call.")


def _check_evaluator(name: str, value: Any) -> None:
    if value is None or callable(value):
        return
    if not hasattr(value, "before_eval"):
        raise UsageError(
            f"{name} must be an EvaluationPlugin, a function that makes one or None, not {value!r}."
        )


LOOP: Mapping[str, Constraint] = {
    "train_mb_size": Whole(),
    "train_epochs": Whole(),
    "eval_mb_size": Whole(),
    "gradient_steps": Whole(),
    "eval_every": Whole(least=-1),
    "peval_mode": Choice(("epoch", "experience", "iteration")),
    "precision": Choice(PRECISIONS),
    "clip_norm": By(_check_norm),
    "criterion": By(_check_criterion),
    "device": By(_check_device),
    "plugins": By(_check_plugins),
    "evaluator": By(_check_evaluator),
}
"""What every strategy's loop takes, for :func:`takes`."""


def check_loop(arguments: Mapping[str, Any]) -> None:
    """Check those of the loop's arguments that are in a dictionary; others are passed over.

    :raises UsageError: naming the argument, what it got and what it takes.
    """
    for name, constraint in LOOP.items():
        if name in arguments:
            constraint.check(name, arguments[name])
