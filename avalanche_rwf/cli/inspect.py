"""``avalanche-rwf inspect``: what a stream brings when."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from avalanche_rwf.cli.common import (
    add_data,
    add_import,
    add_seeds,
    add_stream,
    say,
    set_data_root,
    stream_options,
)
from avalanche_rwf.cli.values import is_seed
from avalanche_rwf.errors import UsageError

SUMMARY = "what a stream brings when, before any training"
DESCRIPTION = "Sizes and classes of each experience, which are new and which come back."
EXAMPLES = """
avalanche-rwf inspect
avalanche-rwf inspect --benchmark folder:PATH --test-share 0.2
avalanche-rwf inspect --benchmark split-cifar100 --stream si-blurry --plot stream.png
"""



def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_stream(parser)
    add_seeds(parser._action_groups[-1], default="0", help="the seed of the stream, one")
    add_import(parser._action_groups[-1])
    add_data(parser)
    add = parser.add_argument_group("output").add_argument
    add("--json", action="store_true", help="print JSON instead of the table")
    add("--plot", metavar="FILE", help="also draw it: a .png, .svg or .pdf")


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    options = stream_options(args)
    if not is_seed(args.seeds):
        raise UsageError(f"--seed takes one whole number from 0 to 2**32 - 1, not {args.seeds!r}.")
    set_data_root(args)

    from avalanche_rwf.benchmarks.inspection import (
        check_plot,
        describe,
        plot_stream,
        stream_table,
    )
    from avalanche_rwf.benchmarks.registry import plan_benchmark

    plot = check_plot(Path(args.plot)) if args.plot is not None else None
    plan = plan_benchmark(
        args.benchmark,
        seed=int(args.seeds),
        experiences=args.experiences,
        skip_corrupt=args.skip_corrupt,
        holdout=args.holdout,
        stream=args.stream,
        stream_options=options,
        test_share=args.test_share,
        split_seed=args.split_seed,
    )
    for note in plan.notes:
        say(note)
    said = ", ".join(f"{key}={value}" for key, value in plan.options.items())
    stream = f"{args.stream} ({said})" if said else args.stream
    title = f"{args.benchmark}, stream {stream}, seed {args.seeds}"
    if args.json:
        values = {"benchmark": args.benchmark, "stream": args.stream, "seed": int(args.seeds)}
        print(json.dumps({**values, **describe(plan)}))
    else:
        print(f"{title}\n{stream_table(plan)}")
    if plot is not None:
        plot_stream(plan, plot, title)
        say(f"The picture is in {plot}.")
    return 0
