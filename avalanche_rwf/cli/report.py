"""``avalanche-rwf report``: the leaderboard as a page for a browser."""

from __future__ import annotations

import argparse
from pathlib import Path

from avalanche_rwf.cli.common import add_results, say

SUMMARY = DESCRIPTION = "write the leaderboard as a page for a browser"

EXAMPLES = """
avalanche-rwf report results
avalanche-rwf report results other-machine/results --out page
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_results(parser)
    parser.add_argument(
        "--out", metavar="FOLDER", help="where to write it (default: report in the first DIR)"
    )


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    from avalanche_rwf.experiments.remote import folders_of
    from avalanche_rwf.leaderboard.report import write_report

    folder, *more = folders_of(args.dirs)
    entries = [Path(name) for name in args.add]
    out = Path(args.out) if args.out else None
    page = write_report(folder, out, more=more, entries=entries)
    say("Open it in a browser; the folder can be moved or published as it is.")
    print(page)
    return 0
