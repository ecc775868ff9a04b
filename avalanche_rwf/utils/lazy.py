"""What is imported when it is first used: names of a package (PEP 562), and a whole package."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    :param package: its ``__name__``.
    :param homes: exported name -> module within the package, such as "benchmarks.registry".
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *homes})


class _LazyModule(types.ModuleType):
    """Stands for a package until one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = importlib.import_module(self.__name__)
        vars(self).update(vars(module))
        return getattr(module, name)


def import_later(package: str) -> None:
    """Let ``import package`` of others import it only when they use one of its names."""
    if package in sys.modules:
        return
    found = importlib.util.find_spec(package)
    if found is not None:
        module = sys.modules[package] = _LazyModule(package)
        module.__spec__, module.__file__ = found, found.origin
        module.__path__ = list(found.submodule_search_locations or ())
