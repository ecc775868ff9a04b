"""``avalanche-rwf tune``: search over the options of a method."""

from __future__ import annotations

import argparse
import contextlib

from avalanche_rwf.cli.common import say
from avalanche_rwf.cli.compare import add_run_flags, prepare
from avalanche_rwf.cli.values import is_seed
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.remote import is_url

SUMMARY = "search over the options of a method"
DESCRIPTION = (
    "A study of Optuna on held-out training images of the first experiences; no test image is "
    "used. The same command goes on with it, and several share it. Options that are given are not "
    "searched."
)
EXAMPLES = """
avalanche-rwf tune rwf --trials 50
avalanche-rwf tune slda --benchmark split-cifar100 --executor slurm --slurm partition=cpu
avalanche-rwf compare --methods rwf --budget study:results/tuning/rwf-3f0c91d2ab
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add = parser.add_argument
    add("method", metavar="METHOD", help="a name of `list methods`")
    add("--trials", type=int, default=50, metavar="N", help="settings to try, in the whole study")
    add_run_flags(parser, compares=False)
    # What a comparison has and a search has not.
    parser.set_defaults(
        exclude=None, budget="default", eval_every_samples=0, eval_subset=0, checkpoint_every=None,
        fresh=False, grid=[], log=[],
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    if not 1 <= args.trials <= 100_000:
        raise UsageError(f"--trials takes a whole number from 1 to 100000, not {args.trials}.")
    if not is_seed(args.seeds):
        raise UsageError(f"--seed takes a whole number from 0 to 2**32 - 1, not {args.seeds!r}.")
    if args.holdout:
        raise UsageError(f"tune holds images out itself: leave out --holdout {args.holdout}.")
    if is_url(args.out):
        raise UsageError(f"tune takes a folder as --out, which its processes lock, not {args.out}.")
    if set(args.method) & set(",*?["):
        raise UsageError(f"tune takes one method, not {args.method!r}.")
    args.methods = args.method

    from avalanche_rwf.experiments.executors.base import needs

    needs("optuna", "tune", "tune")
    ready = prepare(args)

    from avalanche_rwf.experiments.signals import listening
    from avalanche_rwf.experiments.study import read_study, search, study_choice

    (config,) = ready.planned.configs
    failed = 0
    with listening(say):
        fixed = ready.given[config.method]
        folder, found = search(config, fixed, ready.out, args.trials, ready.execution)
        for trial, summary in found:
            if summary["status"] != "done":
                failed += 1
                say(f"FAILED trial {trial.seed}: {summary['error']}")
    content = read_study(folder)
    if args.detach:
        say("The jobs go on without this command; the same one without --detach shows the best.")
        return 0
    with contextlib.suppress(UsageError):  # none has a score
        choice = study_choice(folder)
        say(choice.sentence())
        options = " ".join(f"--set {choice.method}.{k}={v}" for k, v in content["chosen"].items())
        print(options or f"{choice.method}: its own options")
    for key, share in content["importance"].items():
        say(f"  {key:20} {100 * share:3.0f} % of the variance of the scores")
    say(f"avalanche-rwf compare --budget study:{folder} --methods {config.method} uses it.")
    return 1 if failed else 0
