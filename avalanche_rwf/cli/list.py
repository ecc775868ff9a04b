"""``avalanche-rwf list``: what there is, by name."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping
from typing import Any

from avalanche_rwf.cli.common import add_import, say
from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.utils.known import known

SUMMARY = "what there is, by name"
DESCRIPTION = "Methods, benchmarks, backbones, streams and heads, and the options of a method."
EXAMPLES = """
avalanche-rwf list methods                  all, and which ones compare runs by default
avalanche-rwf list methods 'rwf*'           those that match a pattern
avalanche-rwf list options rwf              what --set rwf.OPTION=VALUE takes
avalanche-rwf list backbones '*dino*'       timm's tags that can be backbones
avalanche-rwf list methods 'avalanche:*'    Avalanche's own strategies
"""
KINDS = ("methods", "options", "benchmarks", "backbones", "streams", "heads")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("kind", choices=KINDS, help=f"one of {', '.join(KINDS)}")
    parser.add_argument("pattern", nargs="?", metavar="PATTERN",
        help="a shell pattern in quotes (default: all); the method of `list options`")  # fmt: skip
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    if args.kind == "options" and args.pattern is None:
        raise UsageError("list options takes the name of a method, such as: list options rwf.")
    pattern = "*" if args.pattern is None else args.pattern
    lines = globals()[f"_{args.kind}"](pattern)
    if not lines:
        raise UsageError(f"No {args.kind} match the pattern {pattern!r}.")
    print("\n".join(lines))
    if args.kind == "methods" and pattern == "*":
        say("Avalanche's own strategies: avalanche-rwf list methods 'avalanche:*'.")
    return 0


def _entries(kind: str) -> Mapping[str, Any]:
    """What there is, from the index, or from the registries where that does not know."""
    found = known(kind)
    if found is None:
        from avalanche_rwf.cli.index import BUILDERS

        found = BUILDERS[kind]()
    return found


def _table(rows: Mapping[str, str]) -> list[str]:
    width = max(map(len, rows), default=0)
    return [f"{name:{width}}  {text}".rstrip() for name, text in rows.items()]


def _methods(pattern: str) -> list[str]:
    if ":" in pattern:  # of another module
        from avalanche_rwf.strategies.registry import get_method, list_methods

        return _table({name: get_method(name).summary for name in list_methods(pattern)})
    return _table(
        {
            name: entry["summary"] + " [default]" * entry["default"]
            for name, entry in _entries("methods").items()
            if fnmatch.fnmatchcase(name, pattern)
        }
    )


def _options(method: str) -> list[str]:
    entries = {} if ":" in method else known("methods") or {}
    if entries and method not in entries:
        raise UsageError(f"There is no method {method!r}; {nearest(method, entries)}.")
    if entries:
        options = entries[method]["options"]
    else:
        from avalanche_rwf.cli.index import describe_options

        options = describe_options(method)
    rows = [("option", "type", "default", "meaning")]
    rows += [(key, kind, str(value), said) for key, (kind, value, said) in options.items()]
    a, b, c = (max(len(row[column]) for row in rows) for column in range(3))
    return [f"{o:{a}}  {kind:{b}}  {value:{c}}  {said}".rstrip() for o, kind, value, said in rows]


def _benchmarks(pattern: str) -> list[str]:
    from avalanche_rwf.benchmarks.registry import get_benchmark, list_benchmarks

    names = list_benchmarks(pattern)
    return _table(
        {f"{n}PATH" if n.endswith(":") else n: get_benchmark(n).summary for n in names}
    )


def _backbones(pattern: str) -> list[str]:
    found = _entries("backbones")
    lines = [name for name in found["supported"] if fnmatch.fnmatchcase(name, pattern)]
    if pattern == "*":
        return lines
    others = {
        name: why
        for why, architectures in found["unsupported"].items()
        for arch, tags in architectures.items()
        for name in fnmatch.filter([arch], pattern) or fnmatch.filter(tags, pattern)
    }
    for name, why in sorted(others.items()):
        say(f"not supported: {name} {why}.")
    if others and not lines:
        raise UsageError(f"No backbone that is supported matches {pattern!r}.")
    return lines


def _streams(pattern: str) -> list[str]:
    from avalanche_rwf.benchmarks.stream_registry import get_stream, list_streams

    names = fnmatch.filter(list_streams(), pattern)
    return _table({name: get_stream(name).summary for name in names})


def _heads(pattern: str) -> list[str]:
    heads = _entries("heads").items()
    return _table({n: text for n, text in heads if fnmatch.fnmatchcase(n, pattern)})
