"""``avalanche-rwf status``: how far the comparisons in a folder are."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from avalanche_rwf.cli.common import result_folders
from avalanche_rwf.errors import UsageError

SUMMARY = "how far the comparisons in a folder are"
DESCRIPTION = (
    "What is running, waiting, done and failed, from any machine that sees the folder."
)

EXAMPLES = """
avalanche-rwf status results
avalanche-rwf status results --watch
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("dir", metavar="DIR", help="the --out of a comparison")
    parser.add_argument("--watch", action="store_true", help="show it again until all have ended")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    import time

    from avalanche_rwf.experiments.status import read_state
    from avalanche_rwf.experiments.view import Screen, Speeds, log_line, table

    (out,) = result_folders([args.dir], "status")
    ended: dict[str, dict[str, Any]] = {}
    speed, screen = Speeds(), Screen(sys.stdout) if sys.stdout.isatty() else None
    while True:
        state = read_state(out, ended)
        if state is None:
            raise UsageError(f"status takes the --out of a comparison, and {args.dir!r} is none.")
        per_second = speed.note(state)
        if not args.watch:
            print("\n".join(table(state, per_second)))
            return 0
        if screen is not None:
            screen.draw(table(state, per_second))
        else:
            print(log_line(state, per_second), flush=True)
        if not state.running and not state.waiting:
            return 0
        time.sleep(1 if screen is not None else 30)
