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
    say,
    say_failed,
    set_data_root,
    stream_options,
)
from avalanche_rwf.cli.values import (
    backbone_args,
    read_grids,
    read_seeds,
    read_settings,
    read_slurm,
    read_value,
)
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.remote import Remote, is_url
from avalanche_rwf.experiments.selection import exclude_methods, named_methods, select_names
from avalanche_rwf.models.names import PACKAGED, checked_path
from avalanche_rwf.utils.known import known
from avalanche_rwf.utils.validation import PREPARATION, checked_preparation

if TYPE_CHECKING:
    from avalanche_rwf.experiments.compare import Plan
    from avalanche_rwf.experiments.executors import Options

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
# Settings of a run whose flags' values are not those of the run as they are.
_COMPUTED = ("seed", "backbone", "precision", "eval_every_samples")
# Each is a process: more than any machine's cores are a slip.
_MOST_WORKERS = 1024



def add_flags(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_run_flags(parser, compares=True)


def add_run_flags(parser: argparse.ArgumentParser, compares: bool) -> None:
    """What is run and where.

    :param compares: False leaves out what `tune` does not have.
    """
    from avalanche_rwf.experiments.config import run_settings

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

    add = parser.add_argument_group("where and how runs are done").add_argument
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: one per core on the CPU)")
    add("--executor", default="process", metavar="NAME",
        help="process (this machine), ray, slurm or one that --import names")
    add("--runs-per-device", type=int, default=1, metavar="N",
        help="small runs at a time on each GPU")
    add("--ray-address", metavar="ADDRESS",
        help="of a Ray that is there: auto or HOST:PORT (default: one that ends with the command)")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE,...",
        help="options of sbatch, such as partition=gpu,gres=gpu:1,time=04:00:00; "
        "array_parallelism=N jobs at a time")
    add("--detach", action="store_true",
        help="with --executor slurm: submit and leave; `status DIR` shows how far it is")
    add("--workers", type=int, metavar="N",
        help="processes that load images, per run (default: none for images in memory, else as "
        "many as a run has threads)")
    add("--eval-batch-size", type=int, metavar="N",
        help="test images per step; no result depends on it (default: 64, at least --batch-size; "
        "halved where a GPU's memory is short)")
    add("--no-cache", action="store_true",
        help="compute every feature; by default those of a frozen backbone are looked up across "
        "methods and seeds, to the same bits, and their time is charged")
    add("--no-checks", action="store_true",
        help="do not look whether loss and gradients are finite: steps never wait for the GPU")
    add("--deterministic", action="store_true",
        help="deterministic kernels on a GPU: slower, and a run again has the same numbers")
    if compares:
        add("--checkpoint-every", metavar="N",
            help="training steps between checkpoints, besides those at experience ends; 0: at "
            "these alone (default: auto, so that writing costs at most 3 per cent of the time)")
        add("--fresh", action="store_true",
            help="begin runs that were cut from their start instead of their last checkpoint")

    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", default="results", metavar="DIR",
        help="where run directories go: a folder, or a URL such as s3://bucket/sweep")
    if compares:
        add("--format", default="text", choices=FORMATS, help="of the leaderboard")
        add("--log", action="append", default=[], metavar="NAME[,..]",
            help="each run also logs to csv, tensorboard or wandb; changes no number")
    add("--quiet", action="store_true", help="show no progress")
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


def _set_loading(args: argparse.Namespace) -> None:
    """Put what changes no number into the environment: this process's and its workers'."""
    from avalanche_rwf.experiments.loggers import LOG, check_loggers  # imports nothing heavy

    os.environ[LOG] = ",".join(check_loggers(args.log))

    from avalanche_rwf.experiments.config import LARGEST
    from avalanche_rwf.experiments.variables import (
        CHECKS,
        DETERMINISTIC,
        EVAL_BATCH,
        EVERY,
        FRESH,
        NO_CACHE,
        read_every,
    )

    if args.workers is not None:
        if not 0 <= args.workers <= _MOST_WORKERS:
            raise UsageError(
                f"--workers takes a whole number from 0 to {_MOST_WORKERS}, not {args.workers}."
            )
        os.environ["AVALANCHE_RWF_WORKERS"] = str(args.workers)
    if args.eval_batch_size is not None:
        if not 1 <= args.eval_batch_size <= LARGEST:
            raise UsageError(
                f"--eval-batch-size takes a whole number from 1 to {LARGEST}, not "
                f"{args.eval_batch_size}."
            )
        os.environ[EVAL_BATCH] = str(args.eval_batch_size)
    for name, value in (
        (CHECKS, "0" * args.no_checks),
        (DETERMINISTIC, "1" * args.deterministic),
        (NO_CACHE, "1" * args.no_cache),
    ):
        os.environ.pop(name, None)
        if value:
            os.environ[name] = value
    if args.checkpoint_every is not None:
        read_every(args.checkpoint_every, "--checkpoint-every")
        os.environ[EVERY] = args.checkpoint_every
    os.environ.pop(FRESH, None)
    if args.fresh:
        os.environ[FRESH] = "1"
    set_data_root(args)


def _check_names(args: argparse.Namespace) -> None:
    """Refuse methods that there are not before anything slow is imported."""
    methods = known("methods")
    if methods is not None:
        default = [name for name, entry in methods.items() if entry["default"]]
        chosen = select_names(args.methods, list(methods), default, lambda word: [word])
        if not any(":" in name for name in chosen):
            exclude_methods(chosen, args.exclude)


@dataclass(frozen=True)
class Prepared:
    """A command line that was checked.

    :param planned: its runs.
    :param how: they are done.
    :param given: options that the user gave, by method.
    :param left_out: methods that are not compared, with the reason.
    :param grids: settings that are tried, by method.
    """

    planned: Plan
    out: Path
    device: str
    how: Options
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
    given, of_stream = backbone_args(args.backbone_arg), stream_options(args)
    prepared = _preparation(args)
    if args.jobs is not None and not 1 <= args.jobs <= _MOST_WORKERS:
        raise UsageError(
            f"--jobs takes a whole number from 1 to {_MOST_WORKERS}, not {args.jobs}."
        )
    if not 1 <= args.runs_per_device <= _MOST_WORKERS:
        raise UsageError(
            f"--runs-per-device takes a whole number from 1 to {_MOST_WORKERS}, not "
            f"{args.runs_per_device}."
        )
    if args.precision not in ("auto", "fp32", "bf16", "fp16"):
        raise UsageError(f"--precision takes auto, fp32, bf16 or fp16, not {args.precision!r}.")
    if args.weights is not None:
        checked_path(args.weights)

    from avalanche_rwf.benchmarks.registry import check_benchmark
    from avalanche_rwf.experiments.config import RunConfig, run_settings
    from avalanche_rwf.experiments.executors import (
        Options,
        get_executor,
        start_server,
    )

    remote = Remote(args.out) if is_url(args.out) else None
    out = Path(args.out) if remote is None else remote.local
    base = RunConfig(
        method="",
        stream_options=of_stream,
        backbone_args=given,
        data_config=prepared,
        **{
            name: getattr(args, name)
            for name, setting in run_settings().items()
            if setting.flag and name not in _COMPUTED
        },
        precision="fp32" if args.precision == "auto" else args.precision,
        eval_every_samples=args.eval_every_samples or 0,
    ).validate()
    check_benchmark(args.benchmark, args.test_share)
    _check_names(args)
    _set_loading(args)
    executor = get_executor(args.executor)
    how = Options(
        args.jobs,
        args.runs_per_device,
        args.ray_address,
        read_slurm(args.slurm),
        args.detach,
        args.out if remote is not None else "",
    )
    for flag, value, name in (
        ("--ray-address", args.ray_address, "ray"),
        ("--slurm", args.slurm, "slurm"),
    ):
        if value and args.executor != name:
            raise UsageError(f"{flag} goes with --executor {name}, not with {args.executor}.")
    executor.check(how)
    from avalanche_rwf.experiments.store import check_writable  # it imports PyTorch

    check_writable(out)
    if remote is not None:
        if remote.url.startswith("memory:") and (args.executor, args.jobs) != ("process", 1):
            raise UsageError("memory:// is the memory of one process: it goes with --jobs 1.")
        remote.check()
        remote.get()
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
    from avalanche_rwf.experiments.device import auto_precision
    from avalanche_rwf.models.preprocessing import plain_name, tag_config

    if args.data_config is not None:  # as values: a tag's may be others in another timm
        prepared = {**tag_config(args.data_config), **prepared}
    device = resolve_device(args.device)
    chosen = select_methods(args.methods)
    methods = exclude_methods(chosen, args.exclude)
    left_out = {name: "--exclude names it." for name in chosen if name not in methods}
    common = {"head": args.head, "mask": args.mask, "readout": args.readout}
    options, notes = method_options(methods, common, settings)
    typed = {name: given_options(name, common, settings) for name in methods}
    tried = method_grids(methods, grids, typed)
    if args.precision == "auto" and device.startswith("cuda"):
        precision, reason = auto_precision(device)
        base = replace(base, precision=precision)
        notes.append(f"--precision auto is {precision} here: {reason}.")
    base = replace(base, backbone=plain_name(args.backbone or PACKAGED), data_config=prepared)
    planned = plan(
        base, methods, seeds, options, out, notes, args.eval_every_samples is None,
        named_methods(args.methods), tried,
    )  # fmt: skip
    left_out.update(planned.left_out)
    for note in planned.notes:
        say(note)
    return Prepared(planned, out, device, how, typed, left_out, tried)


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

        with listening(say):
            choices = tune(
                *(first, ready.given, ready.out, ready.device, args.jobs, args.quiet),
                *(args.executor, replace(ready.how, detach=False)),
                grids=ready.grids or None,
            )
        said = [choice.sentence() for choice in choices.values()]
        planned = plan_tuned(planned, choices, ready.out)
    elif first:
        from avalanche_rwf.experiments.study import plan_studies

        planned, said = plan_studies(planned, args.budget, ready.given, ready.out)
    for line in said:
        say(line)
    return planned


def run(args: argparse.Namespace) -> int:
    """Do it; returns the exit status."""
    ready = prepare(args)

    from avalanche_rwf.experiments.compare import write_left_out
    from avalanche_rwf.experiments.config import run_directory
    from avalanche_rwf.experiments.executors import default_jobs, default_threads, execute
    from avalanche_rwf.experiments.signals import listening
    from avalanche_rwf.experiments.status import write_list
    from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs, write_leaderboard
    from avalanche_rwf.leaderboard.render import render

    planned = _choose_options(args, ready)
    out, device, how = ready.out, ready.device, ready.how
    methods, seeds = planned.methods, {config.seed for config in planned.configs}
    here = args.executor in ("process", "serial")
    jobs = args.jobs or default_jobs(device, len(planned.todo), args.runs_per_device)
    where = f"{jobs} at a time on {device}" if here else f"on {args.executor}, device {device}"
    say(
        f"{len(planned.configs)} runs ({len(methods)} methods, {len(seeds)} seeds), "
        f"{len(planned.configs) - len(planned.todo)} done already, {where}."
    )
    failed = []
    threads = default_threads(device, len(planned.configs), args.runs_per_device)
    write_list(out, planned.configs, planned.samples)
    with listening(say):
        for config, summary in execute(
            *(planned.todo, out, device, jobs if here else args.jobs),
            *(lambda config: planned.samples, args.quiet, threads),
            executor=args.executor,
            options=replace(how, jobs=jobs) if here else how,
        ):
            if summary["status"] != "done":
                failed.append(config)
                folder = run_directory(out, config)
                say_failed(config.method, config.seed, summary["error"], folder)
    if args.detach:
        say(
            f"The jobs go on without this command: `avalanche-rwf status {out}` shows how far they "
            "are, and the same command without --detach prints the leaderboard."
        )
        return 0
    if not out.is_dir():
        say(f"avalanche-rwf: The folder {str(out)!r} was removed or renamed meanwhile.")
        return 1
    runs, broken = read_runs(out)
    written = True
    try:
        write_leaderboard(out, aggregate(runs))
    except (UsageError, OSError) as error:  # a full disk: what was done is printed all the same
        written = False
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        why = getattr(cause, "strerror", None) or cause
        say(f"avalanche-rwf: leaderboard.csv in {str(out)!r} was not written ({why}).")
    for directory in broken:
        say(f"left out: {directory}")
    hashes = {config.config_hash() for config in planned.configs}
    if len(runs):
        board = aggregate(runs[runs["config_hash"].isin(hashes)])
        print(render(board, args.format), end="")
    for method, why in ready.left_out.items():
        say(f"not compared: {method}: {why}")
    if written:
        with contextlib.suppress(OSError):  # a full disk: it was printed
            write_left_out(out, args.benchmark, planned.configs[0].backbone, ready.left_out)
        if how.url:
            Remote(how.url).push_tables()
        say(f"Run directories and leaderboard.csv are in {how.url or out}{os.sep}")
    return 1 if failed or not written else 0
