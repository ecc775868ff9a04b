"""Makes ``data/index.json`` from the registries: ``make index``; see :mod:`..utils.known`."""

from __future__ import annotations

import inspect
import json
import re
import typing
import warnings
from importlib import metadata
from typing import Any

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.known import INDEX, sources_sha256


def _methods() -> dict[str, Any]:
    from avalanche_rwf.strategies.registry import get_method, list_methods

    return {
        name: {"summary": spec.summary, "default": spec.default, "options": dict(spec.options)}
        for name, spec in ((name, get_method(name)) for name in list_methods())
    }


def _heads() -> dict[str, str]:
    from avalanche_rwf.models.heads import HEADS, list_heads

    docs = {name: inspect.cleandoc(HEADS[name].__doc__ or "") for name in list_heads()}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def _backbones() -> dict[str, Any]:
    """The supported names, and the others by reason and architecture."""
    from avalanche_rwf.models.backbone import list_backbones, unsupported_backbones

    reasons: dict[str, dict[str, list[str]]] = {}
    for name, why in (unsupported_backbones("*") | unsupported_backbones("*.*")).items():
        architecture, dot, _ = name.partition(".")
        reasons.setdefault(why, {}).setdefault(architecture, []).extend([name] if dot else [])
    return {"supported": list_backbones(), "unsupported": reasons}


# Options that mean the same in every method.
_USUAL = {
    "lr": "learning rate",
    "lr_head": "learning rate of the head",
    "lr_backbone": "learning rate of the backbone",
    "lr_queries": "learning rate of the queries",
    "buffer": "earlier images to keep and replay with each mini-batch",
    "replay_batch": "images replayed in each step",
    "buffer_policy": '"reservoir" or "class-balanced": which images stay in the buffer',
    "alpha": "weight of the distance to the stored logits",
    "beta": "weight of the cross-entropy on replayed images",
    "blocks": 'blocks whose tokens are used: "first 5", "last 3", "all", indices',
    "centre": "what is taken from the tokens before they are used",
}

BUILDERS = {"methods": _methods, "heads": _heads, "backbones": _backbones}
"""What :func:`.known.known` gives of each kind, from the registries."""


def describe_options(name: str) -> dict[str, list[Any]]:
    """Each option of a method: its type as text, its default and what it means.

    The meaning is that of the ``:param`` in the docstrings of the builder, then of the classes that
    it makes a strategy of.

    :raises UsageError: no such method.
    """
    from avalanche_rwf import PACKAGED, create_backbone, create_strategy
    from avalanche_rwf.strategies.registry import get_method

    spec = get_method(name)
    documented: list[Any] = [spec.build]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Avalanche warns that nothing will be logged
            strategy = create_strategy(
                name, backbone=create_backbone(PACKAGED), num_classes=2, loop={"evaluator": None}
            )
        parts = [strategy, *strategy.model.modules()]
        documented += [c for part in parts for c in type(part).__mro__]
    except (UsageError, AttributeError):  # a strategy of Avalanche's with a model of its own
        pass
    meanings: dict[str, str] = {}
    for thing in dict.fromkeys(documented):
        for text in (thing.__doc__, getattr(getattr(thing, "__init__", None), "__doc__", None)):
            clean = re.sub(r"(?::\w+:)?`+~?\.?([^`]+)`+", r"\1", inspect.cleandoc(text or ""))
            for key, said in re.findall(r"^:param (\w+):\s(.*?)(?=^:|^\S|\Z)", clean, re.M | re.S):
                meanings.setdefault(key, " ".join(said.split()))
    said = {**_USUAL, **meanings}
    if "lr_head" in spec.options and "lr" not in meanings:
        said["lr"] = "learning rate of prompts and keys"
    return {
        key: [_type_name(spec.types.get(key, str)), default, said.get(key, "")]
        for key, default in spec.options.items()
    }


def _type_name(kind: Any) -> str:
    inner = typing.get_args(kind) or (kind,)
    names = [getattr(one, "__name__", str(one)) for one in inner]
    return " or ".join("None" if name == "NoneType" else name for name in names)


def build_index() -> dict[str, Any]:
    """The content of the file."""
    content = {kind: build() for kind, build in BUILDERS.items()}
    for name, entry in content["methods"].items():
        entry["options"] = describe_options(name)
    about = {"sources": sources_sha256(), "timm": metadata.version("timm")}
    return json.loads(json.dumps({**about, **content}))  # as it is read back


def _lines(value: Any, depth: int) -> str:
    """JSON with one entry a line, down to a depth."""
    if depth and isinstance(value, dict):
        inner = (f"{json.dumps(key)}: {_lines(v, depth - 1)}" for key, v in value.items())
        return "{\n" + ",\n".join(inner) + "\n}"
    return json.dumps(value)


if __name__ == "__main__":
    INDEX.write_text(_lines(build_index(), 3) + "\n", encoding="utf-8")
