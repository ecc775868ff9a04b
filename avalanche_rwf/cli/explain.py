"""``avalanche-rwf explain``: where on an image each prompt was retrieved from."""

from __future__ import annotations

import argparse
from pathlib import Path

from avalanche_rwf.cli.common import add_import
from avalanche_rwf.errors import UsageError

SUMMARY = DESCRIPTION = "draw where on an image each prompt was retrieved from"

EXAMPLES = """
avalanche-rwf explain cat.jpg --run results/runs/split-digits/rwf/HASH/seed0
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files")
    add("--run", dest="run_dir", required=True, metavar="DIR",
        help="a finished run of a method with routing layers: its seed<k> directory")
    add("--out", default=".", metavar="FOLDER", help="where the figures go")
    add("--format", default="png", choices=("png", "svg"))
    add_import(parser)


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    images = [Path(name) for name in args.images]
    for path in images:
        if not path.exists():
            raise UsageError(
                f"explain takes image files, and {str(path)!r} is none (No such file or directory)."
            )
    if not (Path(args.run_dir) / "config.json").is_file():
        raise UsageError(
            "--run takes a run directory (OUT/runs/<benchmark>/<method>/<hash>/seed<k>), and "
            f"{args.run_dir!r} has no config.json that can be read."
        )

    from avalanche_rwf.leaderboard.explain import explain

    for path, _ in explain(images, Path(args.run_dir), Path(args.out), args.format):
        print(path)
    return 0
