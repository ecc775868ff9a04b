"""``avalanche-rwf list``: what there is, by name."""

from __future__ import annotations

import argparse
import fnmatch

from avalanche_rwf.cli.common import add_import, say
from avalanche_rwf.errors import UsageError

SUMMARY = DESCRIPTION = "what there is, by name"
KINDS = ("methods", "benchmarks", "backbones", "streams", "heads")



def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("pattern", nargs="?", default="*", help="shell pattern")
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    if args.kind == "backbones":
        from avalanche_rwf.models.backbone import list_backbones, unsupported_backbones

        lines = list_backbones(args.pattern)
        if args.pattern != "*":
            others = unsupported_backbones(args.pattern)
            for name, why in others.items():
                say(f"not supported: {name} {why}.")
            if others and not lines:
                raise UsageError(f"No backbone that is supported matches {args.pattern!r}.")
    elif args.kind == "benchmarks":
        from avalanche_rwf.benchmarks.registry import list_benchmarks

        lines = [
            f"{name}PATH" if name.endswith(":") else name for name in list_benchmarks(args.pattern)
        ]
    elif args.kind == "streams":
        from avalanche_rwf.benchmarks.stream_registry import get_stream, list_streams

        lines = [
            f"{name:12}{get_stream(name).summary}"
            for name in list_streams()
            if fnmatch.fnmatch(name, args.pattern)
        ]
    elif args.kind == "heads":
        from avalanche_rwf.models.heads import HEADS, list_heads

        lines = [
            f"{name:12}{next(iter((HEADS[name].__doc__ or '').strip().splitlines()), '')}"
            for name in list_heads()
            if fnmatch.fnmatch(name, args.pattern)
        ]
    else:
        from avalanche_rwf.strategies.registry import get_method, list_methods

        specs = [get_method(name) for name in list_methods(args.pattern)]
        width = max((len(spec.name) for spec in specs), default=0)
        lines = [
            f"{spec.name:{width}}  {spec.summary}" + (" [default]" if spec.default else "")
            for spec in specs
        ]
    if not lines:
        raise UsageError(f"No {args.kind} match the pattern {args.pattern!r}.")
    print("\n".join(lines))
    if args.kind == "methods" and args.pattern == "*":
        say("Avalanche's own strategies: avalanche-rwf list methods 'avalanche:*'.")
    return 0
