"""What methods, heads and backbones there are, known without importing PyTorch.

``data/index.json`` is written by ``make index`` from the registries. It counts for the sources that
it was made from, without ``--import``, without extensions that are installed and without what this
process has registered by itself; otherwise :func:`known` says nothing and the registries are asked.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from avalanche_rwf.utils.registry import Registry
from avalanche_rwf.utils.user_code import ENTRY_POINTS, VARIABLE

_PACKAGE = Path(__file__).resolve().parents[1]
INDEX = _PACKAGE / "data" / "index.json"
"""The generated file."""

# They register nothing of what is in the index.
_OTHERS = ("benchmarks", "cli", "data", "evaluation", "experiments", "leaderboard")


@functools.cache
def sources_sha256() -> str:
    """SHA-256 of the sources that register methods, heads and backbones."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        name = path.relative_to(_PACKAGE).as_posix()
        if name.partition("/")[0] not in _OTHERS:
            digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


@functools.cache
def _index() -> Mapping[str, Any]:
    try:
        content = json.loads(INDEX.read_text(encoding="utf-8"))
        return content if content["sources"] == sources_sha256() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def known(kind: str) -> Mapping[str, Any] | None:
    """What there is of a kind, by name; None if that is not known here.

    :param kind: "methods", "heads" or "backbones".
    """
    if kind == "backbones" and _index().get("timm") != metadata.version("timm"):
        return None
    extended = os.environ.get(VARIABLE) or metadata.entry_points(group=f"{ENTRY_POINTS}{kind}")
    made = Registry.made.get(kind)
    if extended or (made is not None and made.extended()):
        return None
    return _index().get(kind)
