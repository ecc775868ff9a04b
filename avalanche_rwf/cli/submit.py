"""``avalanche-rwf submit``: a method's runs as a checked file for others."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from avalanche_rwf.cli.common import read_results, result_folders, say
from avalanche_rwf.errors import UsageError

SUMMARY = DESCRIPTION = "make a checked file of a method's runs for others"

EXAMPLES = """
avalanche-rwf submit results --method rwf --out rwf.json
avalanche-rwf submit --schema
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("dirs", metavar="DIR", nargs="*", help="the --out of earlier comparisons")
    add("--method", metavar="NAME", help="the method whose runs to submit")
    add("--config", default="", metavar="HASH",
        help="which configuration, by the beginning of its hash, where the method has several")
    add("--out", metavar="FILE", help="the entry to write")
    add("--schema", action="store_true", help="print the entry's JSON schema")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    folders = result_folders(args.dirs, "submit")
    missing = [flag for flag, value in (("DIR", folders), ("--method", args.method),
                                        ("--out", args.out)) if not value]  # fmt: skip
    if missing and not args.schema:
        raise UsageError(
            f"submit takes DIR, --method and --out (or --schema), got no {missing[0]}."
        )

    from avalanche_rwf.leaderboard.submissions import build_entry, read_entry, schema

    if args.schema:
        print(json.dumps(schema(), indent=1))
        return 0
    runs = read_results(folders)
    entry = build_entry(runs, args.method, args.config)
    try:
        Path(args.out).write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--out takes a file that can be written, not {args.out!r} ({error.strerror})."
        ) from None
    read_entry(args.out)
    seeds = ",".join(str(run.seed) for run in entry.runs)
    say(f"{args.out}: {args.method}, configuration {entry.config_hash}, seeds {seeds}.")
    if entry.config.benchmark.startswith("folder:"):
        say(f"It names the folder of the images: {entry.config.benchmark}.")
    return 0
