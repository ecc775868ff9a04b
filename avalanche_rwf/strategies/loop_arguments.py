"""Checks of what every strategy's loop takes: batch sizes, device, plugins, evaluator, ...

Avalanche looks at hardly any of them: a batch size of 0 is an error of PyTorch's in the first
experience, a plugin that was forgotten to be made is silently never called.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import check_choice, check_whole, is_number, is_whole

__all__ = ["PRECISIONS", "check_loop"]

PRECISIONS = ("fp32", "bf16", "fp16")


def check_loop(arguments: Mapping[str, Any]) -> None:
    """Check those of the loop's arguments that are there; others are passed over.

    :param arguments: name -> value.
    :raises UsageError: naming the argument, what it got and what it takes.
    """
    for name, check in _CHECKS.items():
        if name in arguments:
            check(name, arguments[name])


def _check_norm(name: str, value: Any) -> None:
    if value is not None and not (is_number(value) and value > 0):  # infinity clips nothing
        raise UsageError(f"{name} must be positive or None, not {value!r}.")


def _check_callable(name: str, value: Any) -> None:
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


_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "train_mb_size": check_whole,
    "train_epochs": check_whole,
    "eval_mb_size": check_whole,
    "gradient_steps": check_whole,
    "eval_every": functools.partial(check_whole, least=-1),
    "peval_mode": functools.partial(check_choice, choices=("epoch", "experience", "iteration")),
    "precision": functools.partial(check_choice, choices=PRECISIONS),
    "clip_norm": _check_norm,
    "criterion": _check_callable,
    "device": _check_device,
    "plugins": _check_plugins,
    "evaluator": _check_evaluator,
}
