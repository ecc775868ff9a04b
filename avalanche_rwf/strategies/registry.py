"""The methods by name: one decorator makes a method listed, runnable, compared and tested.

A method is a model class (:func:`register_model`) or a builder function (:func:`register_method`).
Its keyword-only arguments with defaults *are* its options: the command line's
``--set method.option=value``, the recorded configuration and the tests read them from the
signature, so there is no second list to keep in step.

A name with a colon is a class or method of another module: see :mod:`.adapter`.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.models.blocks import as_default
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.strategies.base import FrozenBackboneStrategy, prompt_rates
from avalanche_rwf.utils.registry import (
    Registry,
    check_defaults,
    convert_option,
    option_types,
    read_options,
)
from avalanche_rwf.utils.untrusted_io import MOST
from avalanche_rwf.utils.user_code import origin_of
from avalanche_rwf.utils.validation import Instance, Options, Whole, takes

__all__ = [
    "METHODS",
    "MethodSpec",
    "create_strategy",
    "get_method",
    "list_methods",
    "register_method",
    "register_model",
    "resolve_options",
]

_Model = TypeVar("_Model", bound=type[FrozenViT])
_RESERVED = ("backbone", "num_classes", "loop")


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
    :param young: options that earlier versions did not have: at their defaults they are in no
        configuration, so that earlier runs keep their hash.
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
    young: Collection[str] = ()
    origin: Mapping[str, str] = field(default_factory=dict)


METHODS: Registry[MethodSpec] = Registry(
    "method", "avalanche_rwf.strategies", "avalanche_rwf.methods"
)


def register_method(
    name: str,
    *,
    summary: str,
    paper: str = "",
    uses_boundaries: bool = False,
    default: bool = False,
    grid: Sequence[Mapping[str, Any]] | None = None,
    published: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    young: Collection[str] = (),
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a builder function under `name` (decorator).

    The builder takes keyword-only ``backbone`` (a timm ViT), ``num_classes``, ``loop`` (what every
    Avalanche strategy takes: batch sizes, device, plugins, evaluator, ...) and its own options,
    each with a default, and returns an Avalanche ``SupervisedTemplate``.

    :param options: name -> default, for a builder that several methods share; None reads them from
        its signature.
    :param fixed: what the builder always gets besides.
    :param young: options that the method did not always have, see :class:`MethodSpec`; the builder
        has the same defaults.
    :raises ValueError: if the name is taken or an option has no default.
    """

    def register(build: Callable[..., Any]) -> Callable[..., Any]:
        found = read_options("method", name, build, _RESERVED) if options is None else options
        made = build
        if fixed:
            made = functools.update_wrapper(functools.partial(build, **fixed), build)
        spec = MethodSpec(
            name=name,
            build=made,
            summary=summary,
            paper=paper,
            uses_boundaries=uses_boundaries,
            default=default,
            options={key: as_default(default) for key, default in found.items()},
            types=option_types(build, found),
            grid=None if grid is None else tuple(grid),
            published=published,
            young=tuple(young),
            origin=origin_of(build),
        )
        METHODS.add(name, spec, build)
        return build

    return register


def register_model(
    name: str,
    *,
    summary: str,
    paper: str = "",
    published: Mapping[str, Any] | None = None,
    strategy: type[FrozenBackboneStrategy] = FrozenBackboneStrategy,
    without: Collection[str] = (),
    **defaults: Any,
) -> Callable[[_Model], _Model]:
    """Register a prompt method by its model class (decorator), for the usual loss and loop.

    The method's options are the keyword arguments of the class and, if it is another strategy, of
    the strategy; ``head``, ``readout``, ``mask``, ``lr`` (of prompts and keys) and ``lr_head``.

    :param strategy: trains the model; its own keyword arguments are options too.
    :param without: arguments that are no options.
    :param defaults: of options, in place of those in the signatures.
    :raises ValueError: if the name is taken.
    """

    def register(model: _Model) -> _Model:
        of_model = _keywords(model, FrozenViT)
        of_strategy = _keywords(strategy, FrozenBackboneStrategy)
        usual = {"head": "linear", "readout": "cls", "mask": "batch", "lr": 5e-3, "lr_head": 5e-3}
        found = {**usual, **of_model, **of_strategy, **defaults}
        check_defaults("method", name, found)
        options = sorted(found.items(), key=lambda item: item[0] in usual)  # its own come first

        def build(
            *,
            backbone: nn.Module,
            num_classes: int,
            loop: Mapping[str, Any],
            mask: str,
            lr: float,
            lr_head: float,
            **options: Any,
        ) -> FrozenBackboneStrategy:
            own = {key: options.pop(key) for key in of_strategy}
            return strategy(
                model=model(backbone, num_classes, **options),
                mask=mask,
                learning_rates=prompt_rates(lr, lr_head),
                **own,
                **loop,
            )

        build.__module__, build.__qualname__ = model.__module__, model.__qualname__
        build.__doc__ = model.__doc__
        rates = dict.fromkeys(("lr", "lr_head"), float)
        build.__annotations__ = {**_hints(strategy), **_hints(model), "mask": str, **rates}
        register_method(
            name,
            summary=summary,
            paper=paper,
            published=published,
            options={key: value for key, value in options if key not in without},
        )(build)
        return model

    return register


def _keywords(cls: type, base: type) -> dict[str, Any]:
    """The keyword arguments with defaults of a class's constructor and its bases' below `base`."""
    found: dict[str, Any] = {}
    for one in reversed(cls.__mro__[: cls.__mro__.index(base)]):
        if "__init__" in vars(one):
            parameters = inspect.signature(vars(one)["__init__"]).parameters.values()
            found.update((p.name, p.default) for p in parameters if p.kind is p.KEYWORD_ONLY)
    return found


def _hints(cls: type) -> dict[str, Any]:
    """The types of the constructor's arguments, its bases' included."""
    found: dict[str, Any] = {}
    for one in reversed(cls.__mro__):
        if inspect.isfunction(vars(one).get("__init__")):
            found.update(typing.get_type_hints(vars(one)["__init__"]))
    return found


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the registered methods that match a shell pattern, sorted.

    A pattern with a colon, such as ``"avalanche:*"``, matches Avalanche's own strategies.

    >>> "rwf" in list_methods("rwf*")
    True
    """
    return METHODS.names(pattern)


def get_method(name: str) -> MethodSpec:
    """Look one method up by name.

    :param name: a registered name, or ``avalanche:NAME`` or ``MODULE:NAME``.
    :raises UsageError: if there is none, with the nearest names.
    """
    return METHODS.lookup(name)


def resolve_options(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options with `overrides` applied; text values are converted.

    Young options are there only where they are not the default.

    :raises UsageError: if the method has no such option or the value is not of its type.
    """
    spec = get_method(name)
    options = dict(spec.options)
    for key, value in overrides.items():
        if key not in options:
            raise UsageError(
                f"The method {name!r} has no option {key!r}; {nearest(key, sorted(options))}."
            )
        kind = spec.types.get(key, str)
        options[key] = convert_option(f"{spec.name}.{key}", value, options[key], kind)
    usual = {key for key in spec.young if options[key] == spec.options[key]}
    return {key: value for key, value in options.items() if key not in usual}


@takes(
    backbone=Instance(nn.Module, "a timm ViT"),
    num_classes=Whole(most=MOST),
    loop=Options(optional=True),
)
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
    return spec.build(
        backbone=backbone,
        num_classes=num_classes,
        loop=dict(loop or {}),
        **resolve_options(name, options),
    )
