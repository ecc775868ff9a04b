"""What arguments take, declared: :func:`takes` at a function, and the constraints that it is given.

.. code-block:: python

    @takes(num_prompts=Whole(least=0), beta=Number(above=0, optional=True), insert=Choice(INSERTS))
    def __init__(self, num_prompts: int = 10, *, beta: float | None = None, insert: str = "token"):

A wrong value is refused before the function begins, in one sentence that names the argument, what
it got and takes. This is for constructors and entry points, and not for what runs at each step.
``tests/test_declared_arguments.py`` gives every declared argument of the package wrong values, so
no class needs a test of its own for them.

A truth value is no number here, although it is an ``int`` to Python; NumPy's numbers are numbers.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast

from avalanche_rwf.errors import UsageError

LARGEST_IMAGE = 2**14
"""The largest side of images in pixels: position embeddings of more would fill any memory."""

FAR = 1000.0
"""The largest mean and deviation of images, whose values are from 0 to 1; its inverse is the least
deviation. Beyond these, images become infinite numbers."""

LEAST_CROP = 0.05
"""The least share of an image that is cropped: what is resized for less would fill any memory."""

INTERPOLATIONS = tuple(
    f"{name}{crop}"
    for crop in ("", "-squash", "-border")
    for name in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
)
"""How images are resized: PIL's name, and timm's crop mode if it is not "center"."""

PREPARATION = ("mean", "std", "interpolation", "crop_pct")
"""What is configured of how a backbone's images are prepared, besides their size."""

F = TypeVar("F", bound=Callable[..., Any])

DECLARED: dict[str, tuple[Callable[..., Any], Mapping[str, Constraint]]] = {}
"""What was declared so far, by module and name: the function that checks, and its constraints."""


def takes(**constraints: Constraint) -> Callable[[F], F]:
    """Check the arguments of a function, or of a class's constructor, at each call (decorator).

    Those that are given are checked in the order of `constraints`; a default is not.

    >>> @takes(size=Whole(most=8))
    ... def make(size=4):
    ...     return size
    >>> make()
    4
    >>> make(9)
    Traceback (most recent call last):
    avalanche_rwf.errors.UsageError: size must be a whole number from 1 to 8, not 9.
    """

    def declare(code: F) -> F:
        if inspect.isclass(code):  # of a dataclass, the constructor is made by its decorator
            setattr(code, "__init__", declare(vars(code)["__init__"]))  # noqa: B010
            return code
        parameters = inspect.signature(code).parameters.values()
        positional = [p.name for p in parameters if p.kind < p.VAR_POSITIONAL]
        places = {name: positional.index(name) for name in constraints if name in positional}

        @functools.wraps(code)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for name, constraint in constraints.items():
                if name in kwargs:
                    constraint.check(name, kwargs[name])
                elif places.get(name, len(args)) < len(args):
                    constraint.check(name, args[places[name]])
            return code(*args, **kwargs)

        DECLARED[f"{code.__module__}.{code.__qualname__}"] = checked, constraints
        return cast(F, checked)

    return declare


def is_whole(value: Any) -> bool:
    """Whether it is a whole number by its type: 1 is, 1.0 and True are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number by its type, perhaps infinite or NaN."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether it is a real number by its type that a float holds: not infinite, NaN or 10**400."""
    try:
        return is_number(value) and math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """A value for the end of an error sentence: on one line, and not too long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a whole number of 5000 digits has none, and anybody's class may raise
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Constraint(ABC):
    """What an argument takes."""

    @abstractmethod
    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is not taken.

        :param name: of the argument, which begins the sentence.
        :raises UsageError: "{name} must be {what it takes}, not {value}."
        """


@dataclass(frozen=True)
class By(Constraint):
    """What a function of name and value takes; the function raises the error itself."""

    function: Callable[[str, Any], Any]

    def check(self, name: str, value: Any) -> None:
        """As the function does."""
        self.function(name, value)


@dataclass(frozen=True)
class Kind(Constraint):
    """A kind of values that a sentence can say.

    :param optional: whether None is taken too.
    """

    optional: bool = field(default=False, kw_only=True)

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether a value that is not None is taken."""

    @abstractmethod
    def said(self) -> str:
        """What is taken, such as "a whole number of at least 1"."""

    def got(self, value: Any) -> str:
        """How the sentence shows a value that is not taken."""
        return shown(value)

    def accepts(self, value: Any) -> bool:
        """Whether a value is taken, None included."""
        return (self.optional and value is None) or self.fits(value)

    def check(self, name: str, value: Any) -> None:
        """Refuse what does not fit."""
        if not self.accepts(value):
            none = " or None" * self.optional
            raise UsageError(f"{name} must be {self.said()}{none}, not {self.got(value)}.")


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `least` to `most`.

    >>> Whole(1, 8).check("size", 2.5)
    Traceback (most recent call last):
    avalanche_rwf.errors.UsageError: size must be a whole number from 1 to 8, not 2.5.
    """

    least: int = 1
    most: int | None = None

    def fits(self, value: Any) -> bool:
        return (
            is_whole(value) and value >= self.least and (self.most is None or value <= self.most)
        )

    def said(self) -> str:
        if self.most is None:
            return f"a whole number of at least {self.least}"
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Number(Kind):
    """A finite number.

    :param least: the smallest that is taken.
    :param above: the largest that is too small.
    :param most: the largest that is taken.
    :param below: the smallest that is too large.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def fits(self, value: Any) -> bool:
        return (
            is_finite(value)
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def said(self) -> str:
        bounds = {
            "of at least": self.least, "above": self.above, "at most": self.most,
            "below": self.below,
        }  # fmt: skip
        said = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return " ".join(["a finite number", " and ".join(said)]).rstrip()


@dataclass(frozen=True)
class Choice(Kind):
    """One of some names.

    :param names: the names, or a function that gives them when they are needed.
    :param prefix: begins further names that are taken, as "folder:" does.
    """

    names: Collection[str] | Callable[[], Collection[str]]
    prefix: str = ""

    def known(self) -> Collection[str]:
        """The names."""
        return self.names() if callable(self.names) else self.names

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and (
            value in self.known()
            or bool(self.prefix and re.fullmatch(f"{re.escape(self.prefix)}.+", value))
        )

    def said(self) -> str:
        names = [*self.known(), *([f"{self.prefix}NAME"] if self.prefix else [])]
        return " or ".join(map(repr, names)) if len(names) == 2 else f"one of {', '.join(names)}"


@dataclass(frozen=True, init=False)
class Either(Kind):
    """What one of several constraints takes."""

    kinds: tuple[Kind, ...]

    def __init__(self, *kinds: Kind, optional: bool = False) -> None:
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "optional", optional)

    def fits(self, value: Any) -> bool:
        return any(kind.fits(value) for kind in self.kinds)

    def said(self) -> str:
        return " or ".join(kind.said() for kind in self.kinds)


@dataclass(frozen=True)
class Subset(Kind):
    """A collection of some of `names`.

    :param empty: whether it may have none of them.
    """

    names: Collection[str]
    empty: bool = True

    def fits(self, value: Any) -> bool:
        # A text or a tensor is a collection too, and neither is meant here.
        return (
            isinstance(value, Collection)
            and not isinstance(value, str)
            and all(isinstance(name, str) and name in self.names for name in value)
            and (self.empty or len(value) > 0)
        )

    def said(self) -> str:
        return f"a {'' if self.empty else 'non-empty '}subset of {', '.join(self.names)}"


class _Typed(Kind):
    kind: ClassVar[Any]
    what: ClassVar[str]

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def said(self) -> str:
        return self.what


class Flag(_Typed):
    """True or False."""

    kind, what = bool, "True or False"


class Text(_Typed):
    """A text."""

    kind, what = str, "a text"


class AnyPath(_Typed):
    """A path, a text or of pathlib's kind."""

    kind, what = (str, os.PathLike), "a path"


@dataclass(frozen=True)
class Options(Kind):
    """A mapping of names to values."""

    def fits(self, value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)

    def said(self) -> str:
        return "a dictionary of options"


@dataclass(frozen=True)
class Instance(Kind):
    """An object of a class.

    :param kind: the class, or what else ``isinstance`` takes.
    :param what: how the sentence calls it, if not by the class's name.
    """

    kind: Any
    what: str = ""

    def fits(self, value: Any) -> bool:
        return isinstance(value, self.kind)

    def said(self) -> str:
        return self.what or f"a {self.kind.__name__}"

    def got(self, value: Any) -> str:
        plain = value is None or isinstance(value, (str, numbers.Number))
        return shown(value) if plain else f"a {type(value).__name__}"


def checked_preparation(values: Mapping[str, Any], label: str = "data_config") -> dict[str, Any]:
    """How images are prepared, some of `PREPARATION`, as plain numbers and text.

    :param label: begins the sentence of an error.
    :raises UsageError: another key, or a value out of range.
    """
    unknown = sorted(set(values) - set(PREPARATION))
    if unknown:
        raise UsageError(f"{label} takes {', '.join(PREPARATION)} or a tag, not {unknown[0]!r}.")
    checked: dict[str, Any] = {}
    # Pictures have values from 0 to 1.
    for key, low in (("mean", -FAR), ("std", 1 / FAR)):
        if key not in values:
            continue
        given = values[key]
        three = list(given) if isinstance(given, (list, tuple)) else []
        if len(three) != 3 or not all(is_finite(v) and low <= v <= FAR for v in three):
            raise UsageError(
                f"{label}: {key} has to be three numbers from {low:g} to {FAR:g}, not "
                f"{shown(given)}."
            )
        checked[key] = tuple(map(float, three))
    if "interpolation" in values:
        if values["interpolation"] not in INTERPOLATIONS:
            raise UsageError(
                f"{label}: interpolation has to be one of {', '.join(INTERPOLATIONS)}, not "
                f"{shown(values['interpolation'])}."
            )
        checked["interpolation"] = values["interpolation"]
    if "crop_pct" in values:
        crop = values["crop_pct"]
        if not is_number(crop) or not LEAST_CROP <= crop <= 1:
            raise UsageError(
                f"{label}: crop_pct has to be a number from {LEAST_CROP} to 1, not {shown(crop)}."
            )
        checked["crop_pct"] = float(crop)
    return checked
