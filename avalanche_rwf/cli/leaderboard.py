"""``avalanche-rwf leaderboard``: rank the runs in a folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from avalanche_rwf.cli.common import (
    FORMATS,
    add_results,
    read_results,
    result_folders,
    say,
    say_failed,
)
from avalanche_rwf.errors import UsageError

SUMMARY = DESCRIPTION = "rank the runs in a folder"

EXAMPLES = """
avalanche-rwf leaderboard results
avalanche-rwf leaderboard results --reference l2p --format md
avalanche-rwf leaderboard results --format latex > table.tex
avalanche-rwf leaderboard results other-machine/results --plots figures
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_results(parser)
    add = parser.add_argument
    add("--format", default="text", choices=(*FORMATS, "cl-baselines"))
    add("--wide", action="store_true", help="every column, however wide")
    add("--reference", metavar="METHOD",
        help="compare every row with this method, paired by seed: difference, interval, p, pairs")
    add("--columns", metavar="NAME,...",
        help="these columns, by their headings or names: a_last,a_avg,f_cls")
    add("--names", metavar="FILE", help='what to call methods: a TOML file of lines slda = "SLDA"')
    add("--label", metavar="TEXT", help="of a LaTeX table")
    add("--caption", metavar="TEXT", help="of a LaTeX table, in the place of the protocol")
    add("--plots", metavar="FOLDER", help="write every picture as SVG, PDF and PNG")
    add("--for", dest="target", choices=("neurips", "icml", "slides"),
        help="what pictures and a LaTeX table are for: their widths")
    add("--out", metavar="FOLDER",
        help="where --format cl-baselines writes its files (default: they are printed)")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    folders = result_folders(args.dirs, "leaderboard")
    if args.out and args.format != "cl-baselines":
        raise UsageError(f"--out goes with --format cl-baselines, not with {args.format}.")
    how = _render_options(args)

    import pandas as pd

    from avalanche_rwf.leaderboard.aggregate import (
        add_reference,
        aggregate,
        write_leaderboard,
    )
    from avalanche_rwf.leaderboard.render import render

    runs = read_results(folders)
    if args.add:
        from avalanche_rwf.leaderboard.submissions import read_entries

        runs = pd.concat([frame for frame in (runs, read_entries(args.add)) if len(frame)])
    if not len(runs):
        raise UsageError(
            f"{', '.join(map(repr, args.dirs))} holds no finished run (runs are in "
            "DIR/runs/<benchmark>/<method>/...)."
        )
    for run in runs[runs["status"] == "failed"].to_dict("records"):
        folder = Path(str(run["folder"])) / str(run["run_dir"])
        say_failed(run["method"], run["seed"], run["error"], folder)
    board = aggregate(runs)
    # The file is of the folder's own runs.
    if len(folders) == 1 and not args.add and os.access(folders[0], os.W_OK):
        write_leaderboard(folders[0], board)
    if args.reference:
        board = add_reference(board, runs, args.reference)
    if args.plots:
        from avalanche_rwf.leaderboard.plots import write_plots

        written = write_plots(runs, args.plots, args.target or "screen", args.reference or "")
        for note in written.notes:
            say(note)
        say(f"{len(written.paths)} pictures are in {args.plots}{os.sep}")
    if args.format == "cl-baselines":
        from avalanche_rwf.leaderboard.cl_baselines import contribution, write_contribution

        files, notes = contribution(board, runs)
        for note in notes:
            say(note)
        if args.out:
            for path in write_contribution(files, args.out):
                print(path)
        else:
            print("\n".join(f"# ---- {name}\n{text}" for name, text in files.items()))
        return 0
    print(render(board, args.format, wide=args.wide, **how), end="")
    return 0


def _render_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `render` takes besides the format.

    :raises UsageError: for flags that the format does not take.
    """
    latex = args.format == "latex"
    goes = {
        "--columns": (args.columns, args.format in FORMATS and args.format != "csv"),
        "--names": (args.names, args.format in FORMATS and args.format != "csv"),
        "--label": (args.label, latex),
        "--caption": (args.caption, latex),
        "--for": (args.target, bool(args.plots) or (latex and args.target != "slides")),
    }
    for flag, (given, fits) in goes.items():
        if given and not fits:
            raise UsageError(f"{flag} has no use with --format {args.format}"
                             f"{' and no --plots' if flag == '--for' else ''}.")  # fmt: skip
    how: dict[str, Any] = {}
    if args.columns:
        how["columns"] = [name.strip() for name in args.columns.split(",") if name.strip()]
    if args.names:
        from avalanche_rwf.leaderboard.render import read_names

        how["names"] = read_names(args.names)
    if latex:
        target = None if args.target == "slides" else args.target
        how.update(label=args.label or "", caption=args.caption or "", target=target)
    return how
