"""Kinds of streams by name, with their options: `split`, `si-blurry`, `k-shot`, ...

A new kind is one file in `streams/` with a function decorated by `@register_stream`; command line,
configuration, leaderboard, `inspect` and the registry-driven tests find it without another edit.
The function is pure: it gets labels, a seed and its options and returns which sample comes in which
experience. Images and Avalanche are the business of `splits`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.utils.registry import Registry
from avalanche_rwf.utils.untrusted_io import MOST
from avalanche_rwf.utils.user_code import origin_of
from avalanche_rwf.utils.validation import is_finite, is_whole

if TYPE_CHECKING:
    import numpy as np  # `--help` needs this module, and not that one

__all__ = [
    "OPTIONS",
    "STREAMS",
    "StreamOption",
    "StreamSpec",
    "add_option",
    "get_stream",
    "list_streams",
    "number",
    "one_of",
    "register_stream",
    "resolve_stream_options",
    "streams_with",
    "whole",
]


@dataclass(frozen=True)
class StreamOption:
    """An option that one or several kinds of streams have.

    :param name: as in Python; the flag has dashes.
    :param takes: what it takes, for the sentence that refuses something else.
    :param read: text or value -> plain JSON value; raises ValueError for what it does not take.
    :param help: for the command line.
    """

    name: str
    takes: str
    read: Callable[[Any], Any]
    help: str

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return "--" + self.name.replace("_", "-")


@dataclass(frozen=True)
class StreamSpec:
    """A registered kind of stream.

    :param name: as typed.
    :param deal: ``deal(labels, seed, experiences, **options)``: labels int [N] of 0 to C - 1, every
        class present -> positions in `labels`, one array per experience, in order of training.
    :param summary: one line for listings.
    :param options: option name -> default; None is "as the data say".
    :param whole: whether every sample comes exactly once. Others leave samples out by definition.
    :param new_classes: whether every experience must bring a class, so that there cannot be more
        experiences than classes.
    :param counts_itself: whether `deal` finds the number of experiences where none is asked for
        (`experiences` is then None); otherwise it is the benchmark's default.
    :param defaults: benchmark's name -> options that this name stands for.
    :param origin: where the code is, if not in this package; see :func:`.user_code.origin_of`.
    """

    name: str
    deal: Callable[..., list[np.ndarray]]
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = True
    new_classes: bool = False
    counts_itself: bool = False
    defaults: Callable[[str], Mapping[str, Any]] = lambda benchmark: {}
    origin: Mapping[str, str] = field(default_factory=dict)


OPTIONS: dict[str, StreamOption] = {}
"""All options by name."""

STREAMS: Registry[StreamSpec] = Registry(
    "stream",
    "avalanche_rwf.benchmarks.streams",
    unknown="--{kind} {name!r} is unknown",
    text="{kind}",
    order=lambda name: (name != "split", name),
)


def whole(lowest: int, highest: int | None = None) -> Callable[[Any], int]:
    """A reader of whole numbers from `lowest` to `highest`."""

    def read(value: Any) -> int:
        if isinstance(value, str):
            value = int(value)
        most = MOST if highest is None else highest
        if not is_whole(value) or not lowest <= value <= most:
            raise ValueError
        return int(value)

    return read


def number(lowest: float, highest: float) -> Callable[[Any], float]:
    """A reader of finite numbers from `lowest` to `highest`."""

    def read(value: Any) -> float:
        value = float(value) if isinstance(value, str) else value
        if not is_finite(value) or not lowest <= value <= highest:
            raise ValueError
        return float(value)

    return read


def one_of(*choices: str) -> Callable[[Any], str]:
    """A reader of one of some words."""

    def read(value: Any) -> str:
        if value not in choices:
            raise ValueError
        return str(value)

    return read


def add_option(name: str, takes: str, read: Callable[[Any], Any], help: str) -> None:
    """Make an option known; streams that have an argument of this name have the option.

    :raises ValueError: if the name stands for another option already.
    """
    known = OPTIONS.get(name)
    if known is not None and (known.takes, known.help) != (takes, help):
        raise ValueError(
            f"The stream option {name!r} is registered twice: its name must be another one."
        )
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"A stream option is called as in Python, not {name!r}.")
    OPTIONS[name] = StreamOption(name, takes, read, help)


def register_stream(
    name: str, *, summary: str, **spec: Any
) -> Callable[[Callable[..., list[np.ndarray]]], Callable[..., list[np.ndarray]]]:
    """Register a dealing function under `name` (decorator).

    Its arguments after `labels, seed, experiences` are the options, each with a default and known
    by :func:`add_option`.

    :param summary: one line for listings.
    :param spec: `whole`, `new_classes`, `counts_itself`, `defaults`: see :class:`StreamSpec`.
    :raises ValueError: if the name is taken, or an argument has no default or is no known option.
    """

    def register(deal: Callable[..., list[np.ndarray]]) -> Callable[..., list[np.ndarray]]:
        parameters = list(inspect.signature(deal).parameters.values())[3:]
        for parameter in parameters:
            if parameter.default is inspect.Parameter.empty or parameter.name not in OPTIONS:
                raise ValueError(
                    f"The argument {parameter.name!r} of stream {name!r} needs a default and "
                    "add_option."
                )
        options = {parameter.name: parameter.default for parameter in parameters}
        entry = StreamSpec(name, deal, summary, options, **spec, origin=origin_of(deal))
        STREAMS.add(name, entry, deal)
        return deal

    return register


def list_streams() -> list[str]:
    """Registered names: `split` first, the others sorted."""
    return STREAMS.names()


def get_stream(name: str) -> StreamSpec:
    """Return the entry of a kind of stream.

    :raises UsageError: no such kind; the nearest names are given.
    """
    return STREAMS.lookup(name)


def streams_with(option: str) -> list[str]:
    """The kinds of streams that have an option."""
    return [name for name, spec in STREAMS.items() if option in spec.options]


def resolve_stream_options(
    stream: str, given: Mapping[str, Any], benchmark: str = ""
) -> dict[str, Any]:
    """Check options as far as that can be done without data, and fill in the defaults.

    :param given: option -> value, or its text as on the command line; None counts as not given.
    :param benchmark: its name, which may stand for options (`fscil`).
    :returns: plain JSON values, without those that are left to the data.
    :raises UsageError: an unknown kind or option, an option of another kind (named), or a value out
        of range.
    """
    spec = get_stream(stream)
    values = dict(spec.options)
    named = {name: value for name, value in given.items() if value is not None}
    for name, value in named.items():
        if name not in OPTIONS:
            raise UsageError(f"Stream option {name!r} is unknown; {nearest(name, OPTIONS)}.")
        option = OPTIONS[name]
        if name not in spec.options:
            owners = streams_with(name)
            raise UsageError(
                f"{option.flag} belongs to --stream {' and '.join(owners)}, not to {stream!r}."
            )
        try:
            values[name] = option.read(value)
        except (ValueError, TypeError):
            raise UsageError(f"{option.flag} takes {option.takes}, not {value!r}.") from None
    values.update({k: v for k, v in spec.defaults(benchmark).items() if k not in named})
    return {name: value for name, value in values.items() if value is not None}
