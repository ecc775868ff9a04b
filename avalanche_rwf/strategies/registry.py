"""The methods by name: one decorator makes a method listed, runnable, compared and tested.

A method is a builder function. Its keyword-only arguments with defaults *are* its options: the
command line's ``--set method.option=value``, the recorded configuration and the tests read them
from the signature, so there is no second list to keep in step.

A name with a colon is a class or method of another module: see :mod:`.adapter`.
"""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.models.blocks import as_default
from avalanche_rwf.utils.untrusted_io import MOST
from avalanche_rwf.utils.user_code import check_name, load_extensions, origin_of
from avalanche_rwf.utils.validation import (
    check_mapping,
    check_text,
    check_whole,
    is_finite,
    is_whole,
)

__all__ = [
    "MethodSpec",
    "create_strategy",
    "get_method",
    "list_methods",
    "option_types",
    "register_method",
    "registered_by",
    "resolve_options",
]

_RESERVED = ("backbone", "num_classes", "loop")
_METHODS: dict[str, MethodSpec] = {}


@dataclass(frozen=True)
class MethodSpec:
    """What the registry knows of one method.

    :param name: the name on the command line.
    :param build: the builder: ``build(backbone=..., num_classes=..., loop=..., **options)``.
    :param summary: one line for ``avalanche-rwf list methods``.
    :param paper: citation, or "" for a plain control.
    :param uses_boundaries: whether training reads where an experience begins or its classes.
    :param default: whether ``compare`` runs it when no method is named.
    :param options: option name -> default, from the builder's signature.
    :param types: option name -> annotated type.
    :param grid: the settings that ``--budget tuned`` tries, if not the usual ones.
    :param published: options with which the authors run it, where the defaults differ; None if
        nothing is published. ``profiling/first_updates.py`` compares the two.
    :param origin: where the code is, if not in this package: "module", "file" and its "sha256",
        "version".
    """

    name: str
    build: Callable[..., Any]
    summary: str
    paper: str = ""
    uses_boundaries: bool = False
    default: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[Mapping[str, Any], ...] | None = None
    published: Mapping[str, Any] | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


def register_method(
    name: str,
    *,
    summary: str,
    paper: str = "",
    uses_boundaries: bool = False,
    default: bool = False,
    grid: Sequence[Mapping[str, Any]] | None = None,
    published: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a builder function under `name` (decorator).

    The builder takes keyword-only ``backbone`` (a timm ViT), ``num_classes``, ``loop`` (what every
    Avalanche strategy takes: batch sizes, device, plugins, evaluator, ...) and its own options,
    each with a default, and returns an Avalanche ``SupervisedTemplate``.

    :raises ValueError: if the name is taken or an option has no default.
    """

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        origin = origin_of(build)
        if origin:
            _load_own()  # whose names are taken
        known = _METHODS.get(name)
        check_name("method", name, known and known.build, build)
        if ":" in name:
            raise ValueError(f"A registered name has no colon, and {name!r} has one.")
        options: dict[str, Any] = {}
        for key, parameter in inspect.signature(build).parameters.items():
            if key in _RESERVED:
                continue
            if parameter.default is inspect.Parameter.empty:
                raise ValueError(f"The option {key!r} of method {name!r} needs a default.")
            options[key] = as_default(parameter.default)
        _METHODS[name] = MethodSpec(
            name=name,
            build=build,
            summary=summary,
            paper=paper,
            uses_boundaries=uses_boundaries,
            default=default,
            options=options,
            types=option_types(build, options),
            grid=None if grid is None else tuple(grid),
            published=published,
            origin=origin,
        )
        return build

    return register


def option_types(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The type of each option: its annotation, or else what its default is."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name that exists for type checkers only
        hints = {}
    return {key: hints.get(key, _kind(default)) for key, default in options.items()}


def _kind(default: Any) -> Any:
    if default is None:
        return int | float | str | None
    if isinstance(default, bool):
        return bool
    # Such as a strength of 1, which may be 0.5.
    return int | float if isinstance(default, (int, float)) else str


def registered_by(module: ModuleType) -> dict[str, MethodSpec]:
    """The methods that a module registers, by their registered names."""
    _load()
    file = getattr(module, "__file__", None)
    return {
        name: spec
        for name, spec in _METHODS.items()
        if spec.build.__module__ == module.__name__
        or (file is not None and spec.origin.get("file") == str(Path(file).resolve()))
    }


def _load() -> None:
    """Import every module of this package once, so that their methods are registered.

    Then what ``--import`` and installed packages add.
    """
    _load_own()
    load_extensions("methods")


@functools.cache
def _load_own() -> None:
    package = importlib.import_module("avalanche_rwf.strategies")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"avalanche_rwf.strategies.{module.name}")


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the registered methods that match a shell pattern, sorted.

    A pattern with a colon, such as ``"avalanche:*"``, matches Avalanche's own strategies.

    >>> "rwf" in list_methods("rwf*")
    True
    """
    check_text("pattern", pattern)
    _load()
    if ":" in pattern:
        return _adapter().list_adapted(pattern)
    return sorted(fnmatch.filter(_METHODS, pattern))


def _adapter() -> Any:
    # It imports this module.
    return importlib.import_module("avalanche_rwf.strategies.adapter")


def get_method(name: str) -> MethodSpec:
    """Look one method up by name.

    :param name: a registered name, or ``avalanche:NAME`` or ``MODULE:NAME``.
    :raises UsageError: if there is none, with the nearest names.
    """
    check_text("The method's name", name)
    _load()
    if ":" in name:
        return _adapter().resolve(name)
    if name not in _METHODS:
        raise UsageError(f"There is no method {name!r}; {nearest(name, sorted(_METHODS))}.")
    return _METHODS[name]


def _whole(text: str) -> int:
    number = int(text)
    if abs(number) >= MOST:
        raise ValueError
    return number


def _convert(spec: MethodSpec, key: str, value: Any) -> Any:
    """Turn the text of ``--set`` into the option's type; what is not text must be of it."""
    kind, default = spec.types.get(key, str), spec.options[key]
    names = {k.__name__ for k in typing.get_args(kind) if isinstance(k, type)} or {
        getattr(kind, "__name__", "str")
    }
    try:
        if not isinstance(value, str):
            if value is not default and not _fits(value, names):
                raise ValueError
            return value
        if value.lower() in ("none", "null") and "NoneType" in names:
            return None
        if isinstance(default, bool) or names == {"bool"}:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                value.lower()
            ]
        if "int" in names and "float" not in names and "str" not in names:
            return _whole(value)
        if "float" in names and "str" not in names:
            if "int" in names and value.lstrip("+-").isdecimal():
                return _whole(value)
            number = float(value)
            if not math.isfinite(number):
                raise ValueError
            return number
    except (ValueError, KeyError):
        wanted = " or ".join(sorted(names - {"NoneType"}))
        raise UsageError(
            f"The option {spec.name}.{key} takes {wanted}, not {value!r}."
        ) from None
    return value


def _fits(value: Any, names: set[str]) -> bool:
    """Whether a value is of one of the types; of others than numbers the method knows more."""
    if not names <= {"int", "float", "bool", "NoneType"}:
        return True
    return (
        ("NoneType" in names and value is None)
        or ("bool" in names and isinstance(value, bool))
        # Whole numbers from MOST on are no size, and no float of PyTorch's takes them.
        or ("int" in names and is_whole(value) and -MOST < value < MOST)
        or ("float" in names and is_finite(value) and not (is_whole(value) and abs(value) >= MOST))
    )


def resolve_options(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options with `overrides` applied; text values are converted.

    :raises UsageError: if the method has no such option or the value is not of its type.
    """
    spec = get_method(name)
    options = dict(spec.options)
    for key, value in overrides.items():
        if key not in options:
            raise UsageError(
                f"The method {name!r} has no option {key!r}; {nearest(key, sorted(options))}."
            )
        options[key] = _convert(spec, key, value)
    return options


def create_strategy(
    name: str,
    /,  # an option may be called so
    *,
    backbone: nn.Module,
    num_classes: int,
    loop: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Build the strategy `name` on a frozen timm ViT.

    :param backbone: what :func:`avalanche_rwf.models.backbone.create_backbone` returns.
    :param num_classes: classes of the whole stream.
    :param loop: passed on to the Avalanche strategy (``train_mb_size``, ``device``, ...).
    :param options: overrides of the method's own options.
    :raises UsageError: for an unknown method or option.
    """
    spec = get_method(name)
    if not isinstance(backbone, nn.Module):
        raise UsageError(f"backbone must be a timm ViT, not a {type(backbone).__name__}.")
    check_whole("num_classes", num_classes, most=MOST)
    check_mapping("loop", loop)
    return spec.build(
        backbone=backbone,
        num_classes=num_classes,
        loop=dict(loop or {}),
        **resolve_options(name, options),
    )
