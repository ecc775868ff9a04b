"""``avalanche-rwf explain``: where on an image each prompt was retrieved from."""

from __future__ import annotations

import argparse
from pathlib import Path

from avalanche_rwf.cli.common import add_import

SUMMARY = DESCRIPTION = "draw where on an image each prompt was retrieved from"



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
    from avalanche_rwf.leaderboard.explain import explain

    images = [Path(name) for name in args.images]
    for path, _ in explain(images, Path(args.run_dir), Path(args.out), args.format):
        print(path)
    return 0
