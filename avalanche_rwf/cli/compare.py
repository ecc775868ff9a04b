"""``avalanche-rwf compare``: run methods on a stream and print the leaderboard."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_rwf.cli.common import (
    FORMATS,
    add_config,
    add_data,
    add_import,
    add_seeds,
    add_settings,
    add_stream,
    read_results,
    say,
    say_failed,
    set_data_root,
    stream_options,
)
from avalanche_rwf.cli.values import (
    backbone_args,
    read_every,
    read_grids,
    read_seeds,
    read_settings,
    read_slurm,
    read_value,
)
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.config import RunConfig, run_settings
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.remote import Remote, is_url
from avalanche_rwf.experiments.selection import exclude_methods, named_methods, select_names
from avalanche_rwf.experiments.store import check_writable
from avalanche_rwf.models.names import PACKAGED, checked_path
from avalanche_rwf.utils.known import known
from avalanche_rwf.utils.validation import PREPARATION, checked_preparation

if TYPE_CHECKING:
    from avalanche_rwf.experiments.compare import Plan

SUMMARY = "run methods on a stream and print the leaderboard"
DESCRIPTION = (
    "Run what is missing, resume what was cut, print the leaderboard. With no argument: the "
    "default methods on the embedded stream with the packaged backbone."
)
EXAMPLES = """
avalanche-rwf compare
avalanche-rwf compare --methods rwf,l2p,slda --benchmark folder:PATH --seeds 0-4
avalanche-rwf compare --methods 'rwf*' --set rwf.num_prompts=20 --head linear
avalanche-rwf compare --methods rwf --print-config > exp.yaml
avalanche-rwf compare --config exp.yaml --seeds 0-4
avalanche-rwf compare --benchmark split-cifar100 --stream si-blurry \\
    --backbone vit_base_patch16_224.augreg_in21k --out results/si-blurry
"""
# Precisions that stand for one of the others.
_CHOSEN = ("auto", "fastest")
# Settings that are computed from their flags, not copied from them.
_COMPUTED = ("seed", "backbone", "precision", "eval_every_samples")

def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_run_flags(parser, compares=True)


def add_run_flags(parser: argparse.ArgumentParser, compares: bool) -> None:
    """What is run and where.

    :param compares: False leaves out what `tune` does not have.
    """
    add = parser.add_argument_group("methods").add_argument
    if compares:
        add("--methods", metavar="NAME,...",
            help="names or patterns, or all (default: the default ones of `list methods`); "
            "'avalanche:*' are Avalanche's own strategies, MODULE:NAME or FILE.py:NAME is yours")
        add("--exclude", metavar="NAME,...", help="names or patterns to leave out of --methods")
    add("--set", action="append", default=[], metavar="METHOD.KEY=VALUE",
        help="an option of a method, see `list options METHOD`; may be repeated")
    if compares:
        add("--grid", action="append", default=[], metavar="METHOD.KEY=V,V,...",
            help="compare a method with the best of these values on held-out training images of "
            "the first experiences; several --grid of a method are tried together")
    add("--head", metavar="NAME",
        help="one head for all methods: a name of `list heads`, such as linear or slda")
    add("--mask", metavar="NAME",
        help="one training logit mask for all: none, seen, batch or decoupled")
    add("--readout", metavar="NAME", help="one read-out for all: cls, mean or cls+mean")
    if compares:
        add_settings(parser._action_groups[-1], "budget")
    add_import(parser._action_groups[-1])
    add_stream(parser)
    add_settings(parser._action_groups[-1], "boundary_free")
    add_data(parser)

    group = parser.add_argument_group("backbone and its images")
    add = group.add_argument
    add_settings(group, "backbone", backbone=None)
    add("--backbone-arg", action="append", default=[], metavar="KEY=VALUE", help="passed to timm")
    add_settings(group, "weights", "image_size")
    add("--data-config", metavar="TAG",
        help="prepare images as for this timm tag (default: the backbone's)")
    add("--mean", metavar="R,G,B", help="of images from 0 to 1 (default: the backbone's)")
    add("--std", metavar="R,G,B", help="of images from 0 to 1 (default: the backbone's)")
    add("--interpolation", metavar="NAME",
        help="of resized images, such as bicubic or bicubic-squash (default: the backbone's)")
    add("--crop-pct", type=float, metavar="SHARE",
        help="of the resized image that is taken, from its middle (default: the backbone's)")
    add_settings(group, "augment")

    group = parser.add_argument_group("training and evaluation")
    if compares:
        add_seeds(group, default="0,1,2", help="one, several (0,1,2) or a range (0-4)")
    else:
        add_seeds(group, default="0", help="of the stream and of the search's choices")
    add_settings(group, "batch_size", "gradient_steps", "precision", precision="auto")
    if compares:
        add_settings(group, "eval_every_samples", "eval_subset", eval_every_samples=None)
    for name, setting in run_settings().items():  # those that no group names
        wanted = compares or name not in ("budget", "eval_every_samples", "eval_subset")
        there = any(setting.flag in action.option_strings for action in parser._actions)
        if setting.flag and wanted and not there:
            add_settings(group, name)

    group = parser.add_argument_group("where and how runs are done")
    left_out = ("log", "quiet") if compares else ("log", "quiet", "checkpoint_every", "fresh")
    flags = [name for name, setting in run_settings(Execution).items() if setting.flag]
    add_settings(group, *(name for name in flags if name not in left_out), device="auto")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", default="results", metavar="DIR",
        help="where run directories go: a folder, or a URL such as s3://bucket/sweep")
    if compares:
        add("--format", default="text", choices=FORMATS, help="of the leaderboard")
        add_settings(group, "log")
    add_settings(group, "quiet")
    add_config(group)


def _preparation(args: argparse.Namespace) -> dict[str, Any]:
    """What --mean, --std, --interpolation and --crop-pct say."""
    given: dict[str, Any] = {}
    for name in PREPARATION:
        flag, value = "--" + name.replace("_", "-"), getattr(args, name)
        if value is None:
            continue
        if name in ("mean", "std"):
            text, value = value, read_value(value)
            if not isinstance(value, tuple) or len(value) != 3:
                raise UsageError(f"{flag} takes three numbers such as 0.5,0.5,0.5, not {text!r}.")
        given |= checked_preparation({name: value}, flag)
    return given


def _execution(args: argparse.Namespace) -> Execution:
    """What the command line says of how runs are done."""
    from avalanche_rwf.experiments.executors import get_executor
    from avalanche_rwf.experiments.loggers import check_loggers

    given = {name: getattr(args, name) for name in run_settings(Execution) if name in args}
    execution = Execution(
        **{
            **given,
            "slurm": read_slurm(args.slurm),
            "log": check_loggers(args.log),
            "checkpoint_every": read_every(args.checkpoint_every),
            "url": args.out if is_url(args.out) else "",
        }
    ).validate()
    for flag, value, name in (
        ("--ray-address", args.ray_address, "ray"),
        ("--slurm", args.slurm, "slurm"),
    ):
        if value and args.executor != name:
            raise UsageError(f"{flag} goes with --executor {name}, not with {args.executor}.")
    get_executor(args.executor).check(execution)
    return execution


def _check_names(args: argparse.Namespace) -> None:
    """Refuse methods that there are not before anything slow is imported."""
    methods = known("methods")
    if methods is not None:
        default = [name for name, entry in methods.items() if entry["default"]]
        chosen = select_names(args.methods, list(methods), default, lambda word: [word])
        if not any(":" in name for name in chosen):
            exclude_methods(chosen, args.exclude)


def _run_config(args: argparse.Namespace) -> RunConfig:
    """What the command line says of a run, without its method, seed and backbone."""
    given, of_stream = backbone_args(args.backbone_arg), stream_options(args)
    prepared = _preparation(args)
    if args.precision not in (*_CHOSEN, "fp32", "bf16", "fp16"):
        raise UsageError(
            f"--precision takes auto, fastest, fp32, bf16 or fp16, not {args.precision!r}."
        )
    if args.weights is not None:
        checked_path(args.weights)
    same = (n for n, s in run_settings().items() if s.flag and n not in _COMPUTED)
    return RunConfig(
        method="",
        stream_options=of_stream,
        backbone_args=given,
        data_config=prepared,
        precision="fp32" if args.precision in _CHOSEN else args.precision,
        eval_every_samples=args.eval_every_samples or 0,
        **{name: getattr(args, name) for name in same},
    ).validate()


def _open_results(execution: Execution, out: Path) -> Path:
    """The folder of the results, which can be written to; what is behind a URL is brought there."""
    remote = Remote(execution.url) if execution.url else None
    out = out if remote is None else remote.local
    check_writable(out)
    if remote is not None:
        in_memory = remote.url.startswith("memory:")
        if in_memory and (execution.executor, execution.jobs) != ("process", 1):
            raise UsageError("memory:// is the memory of one process: it goes with --jobs 1.")
        remote.check()
        remote.get()
    return out


@dataclass(frozen=True)
class Prepared:
    """A command line that was checked.

    :param planned: its runs.
    :param execution: how they are done.
    :param given: options that the user gave, by method.
    :param left_out: methods that are not compared, with the reason.
    :param grids: settings that are tried, by method.
    """

    planned: Plan
    out: Path
    execution: Execution
    given: Mapping[str, Mapping[str, Any]]
    left_out: Mapping[str, str]
    grids: Mapping[str, Sequence[Mapping[str, Any]]]


def prepare(args: argparse.Namespace) -> Prepared:
    """Check everything that can be checked before any work, and say what is to be known.

    :raises UsageError: for the first thing that is wrong.
    """
    seeds, settings, grids = read_seeds(args.seeds), read_settings(args.set), read_grids(args.grid)
    if bool(grids) != (args.budget == "grid"):
        if args.budget != "default":
            what = f"--grid {args.grid[0]}" if grids else "no --grid METHOD.KEY=VALUE,..."
            raise UsageError(f"--budget {args.budget} does not go with {what}.")
        args.budget = "grid"
    base = _run_config(args)

    from avalanche_rwf.benchmarks.registry import check_benchmark
    from avalanche_rwf.experiments.executors import default_threads, start_server

    check_benchmark(args.benchmark, args.test_share)
    _check_names(args)
    set_data_root(args)
    execution = _execution(args)
    out = _open_results(execution, Path(args.out))
    if args.executor == "process" and args.jobs != 1:
        start_server()
    if not args.quiet and sys.stderr.isatty():
        say("Loading PyTorch, timm and Avalanche ...")

    from avalanche_rwf.experiments.compare import (
        given_options,
        method_grids,
        method_options,
        plan,
        resolve_device,
        select_methods,
    )
    from avalanche_rwf.experiments.precision import auto_precision
    from avalanche_rwf.models.preprocessing import plain_name, tag_config

    if args.data_config is not None:  # values, because those of a tag change with timm's version
        base = replace(base, data_config={**tag_config(args.data_config), **base.data_config})
    execution = replace(execution, device=resolve_device(args.device))
    chosen = select_methods(args.methods)
    methods = exclude_methods(chosen, args.exclude)
    left_out = {name: "--exclude names it." for name in chosen if name not in methods}
    common = {"head": args.head, "mask": args.mask, "readout": args.readout}
    options, notes = method_options(methods, common, settings)
    typed = {name: given_options(name, common, settings) for name in methods}
    tried = method_grids(methods, grids, typed)
    if args.precision in _CHOSEN and execution.device.startswith("cuda"):
        precision, reason = auto_precision(execution.device)
        base = replace(base, precision=precision)
        notes.append(f"--precision {args.precision} is {precision} here: {reason}.")
    probes = args.precision == "fastest" and execution.device == "cpu"
    planned = plan(
        replace(base, backbone=plain_name(args.backbone or PACKAGED)),
        *(methods, seeds, options, out, notes, args.eval_every_samples is None),
        *(named_methods(args.methods), tried),
        default_threads(execution, len(methods) * len(seeds)) if probes else None,
    )
    if probes and execution.url:  # commands on other machines are to find the answer
        Remote(execution.url).push_tables()
    for note in planned.notes:
        say(note)
    return Prepared(planned, out, execution, typed, {**left_out, **planned.left_out}, tried)


def _choose_options(args: argparse.Namespace, ready: Prepared) -> Plan:
    """The runs with the options of the budget."""
    planned, said = ready.planned, list[str]()
    if args.budget == "grid":  # of the others the own options
        own = (replace(c, budget="grid" if c.method in ready.grids else "default")
               for c in planned.configs)  # fmt: skip
        planned = replace(planned, configs=tuple(own))
    first = [c for c in planned.configs[: len(planned.methods)] if c.budget != "default"]
    if first and args.budget in ("tuned", "grid"):
        from avalanche_rwf.experiments.compare import plan_tuned
        from avalanche_rwf.experiments.signals import listening
        from avalanche_rwf.experiments.tuning import tune

        execution = replace(ready.execution, detach=False)
        with listening(say):
            choices = tune(first, ready.given, ready.out, execution, ready.grids or None)
        said = [choice.sentence() for choice in choices.values()]
        planned = plan_tuned(planned, choices, ready.out)
    elif first:
        from avalanche_rwf.experiments.study import plan_studies

        planned, said = plan_studies(planned, args.budget, ready.given, ready.out)
    for line in said:
        say(line)
    return planned


def _run_all(planned: Plan, out: Path, execution: Execution) -> bool:
    """Do the runs that are missing and name those that fail; whether all are done."""
    from avalanche_rwf.experiments.config import run_directory
    from avalanche_rwf.experiments.executors import HERE, default_jobs, default_threads, execute
    from avalanche_rwf.experiments.signals import listening
    from avalanche_rwf.experiments.status import write_list

    configs, todo, device = planned.configs, planned.todo, execution.device
    where = f"on {execution.executor}, device {device}"
    if execution.executor in HERE:
        where = f"{default_jobs(execution, len(todo))} at a time on {device}"
    say(
        f"{len(configs)} runs ({len(planned.methods)} methods, "
        f"{len({config.seed for config in configs})} seeds), "
        f"{len(configs) - len(todo)} done already, {where}."
    )
    threads, done = default_threads(execution, len(configs)), True
    write_list(out, configs, planned.samples)
    with listening(say):
        for config, summary in execute(todo, out, execution, planned.samples, threads):
            if summary["status"] != "done":
                done = False
                folder = run_directory(out, config)
                say_failed(config.method, config.seed, summary["error"], folder)
    return done


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    ready = prepare(args)

    from avalanche_rwf.experiments.compare import write_left_out
    from avalanche_rwf.leaderboard.aggregate import aggregate, write_leaderboard
    from avalanche_rwf.leaderboard.render import render

    planned, out, url = _choose_options(args, ready), ready.out, ready.execution.url
    done = _run_all(planned, out, ready.execution)
    if args.detach:
        say(
            f"The jobs go on without this command: `avalanche-rwf status {out}` shows how far they "
            "are, and the same command without --detach prints the leaderboard."
        )
        return 0
    if not out.is_dir():
        say(f"avalanche-rwf: The folder {str(out)!r} was removed or renamed meanwhile.")
        return 1
    runs, written = read_results([out]), True
    try:
        write_leaderboard(out, aggregate(runs))
    except (UsageError, OSError) as error:  # a full disk: what was done is printed all the same
        written = False
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        why = getattr(cause, "strerror", None) or cause
        say(f"avalanche-rwf: leaderboard.csv in {str(out)!r} was not written ({why}).")
    hashes = {config.config_hash() for config in planned.configs}
    if len(runs):
        board = aggregate(runs[runs["config_hash"].isin(hashes)])
        print(render(board, args.format), end="")
    for method, why in ready.left_out.items():
        say(f"not compared: {method}: {why}")
    if written:
        with contextlib.suppress(OSError):  # a full disk: it was printed
            write_left_out(out, args.benchmark, planned.configs[0].backbone, ready.left_out)
        if url:
            Remote(url).push_tables()
        say(f"Run directories and leaderboard.csv are in {url or out}{os.sep}")
    return 0 if done and written else 1
