"""Things by name: the one class behind methods, heads, benchmarks, streams and executors.

A thing is registered by a decorator of its kind in a file of the kind's package, in a file that
``--import`` names, or in an installed package (entry points). The files are imported when a name is
first asked for, and none is listed anywhere else.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.utils.untrusted_io import MOST
from avalanche_rwf.utils.user_code import load_extensions, origin_of
from avalanche_rwf.utils.validation import Text, is_finite, is_whole, takes

E = TypeVar("E")


class Registry(Mapping[str, E]):
    """A table name -> entry of one kind of thing, filled when it is first looked at.

    :param kind: what the things are called, such as "method"; the plural is the group of entry
        points.
    :param packages: dotted names of packages, each of whose modules registers things.
    :param unknown: begins the sentence about a name that is not there.
    :param text: what a name is called where it is no text.
    :param arguments: whether a name may end with a colon, after which an argument follows.
    :param order: sorts the names in listings.
    """

    made: ClassVar[dict[str, Registry[Any]]] = {}
    """Those of this process, by the plural of their kind."""

    def __init__(
        self,
        kind: str,
        *packages: str,
        unknown: str = "There is no {kind} {name!r}",
        text: str = "The {kind}'s name",
        arguments: bool = False,
        order: Callable[[str], Any] = str,
    ) -> None:
        self.kind, self.packages = kind, packages
        self.unknown, self.text, self.arguments, self.order = unknown, text, arguments, order
        self.entries: dict[str, E] = {}  # as registered so far
        # Lists and looks up names with a colon, which are not registered; None if there are none.
        self.elsewhere: tuple[Callable[[str], list[str]], Callable[[str], E]] | None = None
        self._codes: dict[str, Any] = {}
        self._outside: set[str] = set()
        Registry.made[f"{kind}s"] = self
        self._discovered = False

    # -- filling it -----------------------------------------------------------------------------

    def add(self, name: str, entry: E, code: Any) -> None:
        """Register `entry`, which stands for the function or class `code`.

        The same code of one file may come again: a script that is run and is also named by
        ``--import``, a cell of a notebook.

        :raises ValueError: if the name has a colon, or other code is registered by it.
        """
        if ":" in (name[:-1] if self.arguments else name):
            where = "a colon at its end only" if self.arguments else "no colon"
            raise ValueError(f"The name of a {self.kind} has {where}, not {name!r}.")
        outside = bool(origin_of(code))
        if outside:
            self._discover_own()  # whose names are taken
        known = self._codes.get(name) if name in self.entries else None
        if known is not None and _place(known) != _place(code):
            raise ValueError(
                f"The {self.kind} {name!r} is registered already by {known.__module__} and cannot "
                "be registered twice."
            )
        self.entries[name], self._codes[name] = entry, code
        if outside:
            self._outside.add(name)

    def discover(self) -> None:
        """Import what registers: this package's modules, ``--import``'s, installed packages'.

        :raises UsageError: if something that the user named cannot be imported.
        """
        self._discover_own()
        load_extensions(f"{self.kind}s")

    def _discover_own(self) -> None:
        if self._discovered:
            return
        for name in self.packages:
            package = importlib.import_module(name)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{name}.{module.name}")
        self._discovered = True

    # -- looking into it ------------------------------------------------------------------------

    @takes(pattern=Text())
    def names(self, pattern: str = "*") -> list[str]:
        """The names that match a shell pattern, sorted.

        :raises UsageError: if the pattern is no text.
        """
        self.discover()
        if ":" in pattern and self.elsewhere:
            return self.elsewhere[0](pattern)
        return sorted(fnmatch.filter(self.entries, pattern), key=self.order)

    def lookup(self, name: str) -> E:
        """The entry of a name, with its argument or without.

        :raises UsageError: if there is none, with the nearest names.
        """
        Text().check(self.text.format(kind=self.kind), name)
        self.discover()
        if ":" in name and self.elsewhere:
            return self.elsewhere[1](name)
        key = name.partition(":")[0] + ":" if ":" in name else name
        if key not in self.entries:
            said = self.unknown.format(kind=self.kind, name=name)
            raise UsageError(f"{said}; {nearest(name, self.names())}.")
        return self.entries[key]

    def extended(self) -> bool:
        """Whether code from outside the package has registered something so far."""
        return bool(self._outside & self.entries.keys())

    def registered_by(self, module: ModuleType) -> dict[str, E]:
        """What a module registers, by the registered names."""
        self.discover()
        places = {module.__name__}
        if getattr(module, "__file__", None) is not None:
            places.add(str(Path(str(module.__file__)).resolve()))
        return {
            name: entry
            for name, entry in self.entries.items()
            if {self._codes[name].__module__, _place(self._codes[name])[0]} & places
        }

    def __getitem__(self, name: str) -> E:
        self.discover()
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())


def _place(code: Any) -> tuple[str, str]:
    return origin_of(code).get("file", code.__module__), code.__qualname__


# -- options: the arguments of a function or class that have defaults --------------------------


def check_call(kind: str, name: str, code: Callable[..., Any], takes: Collection[str]) -> None:
    """Check that something to be registered can be called with so many arguments.

    :raises ValueError: if not.
    """
    try:
        inspect.signature(code).bind(*takes)
    except TypeError as error:
        raise ValueError(
            f"The {kind} {name!r} is called with ({', '.join(takes)}), and further arguments need "
            f"a default ({error})."
        ) from None


def read_options(
    kind: str, name: str, code: Callable[..., Any], skip: Collection[str] = ()
) -> dict[str, Any]:
    """The options of a function or class by name, with their defaults, from its signature.

    :param skip: arguments that are none.
    :raises ValueError: if one has no default.
    """
    options = {
        key: parameter.default
        for key, parameter in inspect.signature(code).parameters.items()
        if key not in skip and parameter.kind is not parameter.VAR_KEYWORD
    }
    check_defaults(kind, name, options)
    return options


def check_defaults(kind: str, name: str, options: Mapping[str, Any]) -> None:
    """Check that each option has a default.

    :raises ValueError: naming one that has none.
    """
    for key, default in options.items():
        if default is inspect.Parameter.empty:
            raise ValueError(f"The option {key!r} of {kind} {name!r} needs a default.")


def option_types(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The type of each option: its annotation, or else what its default is."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # a name that exists for type checkers only
        hints = {}
    return {key: _plain(hints.get(key, _type_of(value))) for key, value in options.items()}


def _plain(kind: Any) -> Any:
    """Of a union, the types that can be typed at a command line."""
    found = [k for k in typing.get_args(kind) if k in (bool, int, float, str, type(None))]
    return typing.Union[tuple(found)] if found else kind  # noqa: UP007  (of a list's members)


def _type_of(default: Any) -> Any:
    if default is None:
        return int | float | str | None
    if isinstance(default, bool):
        return bool
    # Such as a strength of 1, which may be 0.5.
    return int | float if isinstance(default, (int, float)) else str


def convert_option(option: str, value: Any, default: Any, kind: Any = str) -> Any:
    """Turn the text of ``--set`` into an option's type; what is not text must be of it.

    :param option: its name, for the sentence, such as "rwf.lr".
    :param kind: its type, as annotated.
    :raises UsageError: "The option {option} takes {kind}, not {value}."
    """
    names = {k.__name__ for k in typing.get_args(kind) if isinstance(k, type)} or {
        getattr(kind, "__name__", "str")
    }
    try:
        if isinstance(value, str):
            return _read(value, names, isinstance(default, bool))
        if value is default or _fits(value, names):
            return value
    except (ValueError, KeyError):
        pass
    wanted = " or ".join(sorted(names - {"NoneType"}))
    raise UsageError(f"The option {option} takes {wanted}, not {value!r}.")


def _read(text: str, names: set[str], is_flag: bool) -> Any:
    if text.lower() in ("none", "null") and "NoneType" in names:
        return None
    if is_flag or names == {"bool"}:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        return words[text.lower()]
    if names == {"float", "str"}:  # a number, or a word in its place
        try:
            names, text = {"float"}, str(float(text))
        except ValueError:
            return text
    if "str" in names or not names & {"int", "float"}:
        return text
    if "float" not in names or ("int" in names and text.lstrip("+-").isdecimal()):
        number: float = int(text)
        if abs(number) >= MOST:
            raise ValueError
        return number
    number = float(text)
    if not math.isfinite(number):
        raise ValueError
    return number


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
