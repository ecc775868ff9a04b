"""``avalanche-rwf completion``: what a shell completes after Tab."""

from __future__ import annotations

import argparse

from avalanche_rwf.errors import UsageError

SUMMARY = "print what a shell completes after Tab"
DESCRIPTION = "A script for your shell; it needs shtab (pip install avalanche-rwf[completion])."
EXAMPLES = """
avalanche-rwf completion bash > ~/.local/share/bash-completion/completions/avalanche-rwf
avalanche-rwf completion zsh > ~/.zfunc/_avalanche-rwf
"""
SHELLS = ("bash", "zsh", "tcsh")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("shell", choices=SHELLS, help=f"one of {', '.join(SHELLS)}")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    try:
        import shtab
    except ImportError:
        raise UsageError(
            "completion needs shtab, which is not installed: pip install avalanche-rwf[completion]."
        ) from None

    from avalanche_rwf.cli.app import build_parser

    parser = build_parser()
    for one in parser.verbs.values():
        for action in one._actions:
            if action.metavar in ("DIR", "FOLDER"):
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in ("FILE", "IMAGE", "ENTRY", "MODULE_OR_FILE"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return 0
