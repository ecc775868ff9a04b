"""The ``avalanche-rwf`` command: results on stdout, everything else on stderr.

Exit status 0: all runs done; 1: a run failed (named, with its log); 2: bad usage.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import errno
import fnmatch
import io
import itertools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import MOST, at_home
from avalanche_rwf.utils.validation import PREPARATION, checked_preparation
from avalanche_rwf.version import __version__

__all__ = ["main"]

# Those of leaderboard.table, which imports pandas: `--help` need not wait for it.
KINDS = ("methods", "benchmarks", "backbones", "streams", "heads")
FORMATS = ("text", "csv", "md", "latex", "html")
# Each is a process: more than any machine's cores are a slip.
_MOST_WORKERS = 1024
# What create_backbone takes besides timm's arguments has a flag of its own.
_BACKBONE_FLAGS = {"name": "--backbone", "weights": "--weights", "image_size": "--image-size"}


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a `UsageError` like every other."""

    def error(self, message: str) -> NoReturn:
        said = f"{message[:1].upper()}{message[1:]}"
        raise UsageError(f"{said} ({self.prog} --help shows the usage).")


class _Messages:
    """stderr, whose reader may be gone at any time: what is said then is lost, the work is not."""

    def __init__(self, file: Any) -> None:
        # It is None where the process was started without (2>&-).
        self._file = Path(os.devnull).open("w") if file is None else file  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error is what Ctrl-C became in an import of compiled code."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _say(text: str) -> None:
    """Print a line for a person, without what a terminal would obey: names may be anybody's."""
    lead = "\n" * text.startswith("\n")  # away from what is on the line, such as ^C
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[len(lead) :])
    print(lead + said, file=sys.stderr, flush=True)


def _say_failed(method: Any, seed: Any, error: Any, folder: Path) -> None:
    _say(f"FAILED {method} seed {seed}: {error} (see {folder / 'log.txt'})")


def _is_seed(text: str) -> bool:
    """A whole number that NumPy takes as a seed."""
    return text.isdecimal() and len(text) <= 10 and int(text) < 2**32


def _integers(text: str) -> list[int]:
    """ "0,1,2" or "0-4" -> integers."""
    numbers: list[int] = []
    for word in text.split(","):
        first, dash, last = word.strip().partition("-")
        if not _is_seed(first) or (dash and not last.isdecimal()):
            raise UsageError(f"--seeds takes whole numbers such as 0,1,2 or 0-4, not {text!r}.")
        # Never more than are refused below, however long the range.
        end = int(last or first) if len(last) <= 12 else 2**40
        if end < int(first):
            raise UsageError(f"--seeds takes ranges that go up, such as 0-4, not {word!r}.")
        numbers += range(int(first), min(end, int(first) + 1000) + 1)
    if len(numbers) > 1000:
        raise UsageError(f"--seeds takes 1 to 1000 whole numbers, not {text!r}.")
    if max(numbers) >= 2**32:
        raise UsageError(f"--seeds takes whole numbers below 2**32, not {text!r}.")
    return list(dict.fromkeys(numbers))


def _flat(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _value(text: str) -> Any:
    """A number, True, False, None or a tuple written as in Python; other text is itself."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text.lower(), text)
    value = tuple(value) if isinstance(value, list) else value
    # Nothing that has no hash or no JSON: the configuration has both.
    plain = all(item is None or isinstance(item, (int, float, str)) for item in _flat(value))
    return value if plain else text


def backbone_args(pairs: Sequence[str]) -> dict[str, Any]:
    """``--backbone-arg`` key=value pairs as timm's keyword arguments."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--backbone-arg takes key=value, not {pair!r}.")
        if key in _BACKBONE_FLAGS:
            raise UsageError(f"--backbone-arg {key}: give it as {_BACKBONE_FLAGS[key]}.")
        values[key] = _value(text)
        numbers = [v for v in _flat(values[key]) if isinstance(v, (int, float))]
        if any(not -MOST < v < MOST for v in numbers):
            raise UsageError(f"--backbone-arg {key} takes finite numbers, not {text!r}.")
    return values


def _settings(pairs: Sequence[str]) -> list[tuple[str, str, str]]:
    settings = []
    for pair in pairs:
        left, equals, value = pair.partition("=")
        method, dot, key = left.rpartition(".")
        if not (equals and dot and method and key):
            raise UsageError(f"--set takes method.option=value, not {pair!r}.")
        settings.append((method, key, value))
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="avalanche-rwf",
        description="Routing without Forgetting against other continual learners, on one stream.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=_Parser)

    compare = verbs.add_parser(
        "compare",
        help="run methods on a stream and print the leaderboard",
        description="Run what is missing, resume what was cut, print the leaderboard. With no "
        "argument: the default methods on the embedded stream with the packaged backbone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = compare.add_argument
    add("--benchmark", default="split-digits",
        help="a name of `list benchmarks`, such as split-digits, or folder:PATH")
    add("--methods",
        help="comma-separated names or patterns, or all (default: the default ones); "
        "'avalanche:*' are Avalanche's own strategies, MODULE:NAME or FILE.py:NAME is yours")
    add("--exclude", metavar="NAME|PATTERN[,..]", help="methods to leave out of --methods")
    _add_import(compare)
    add("--seeds", default="0,1,2", help="comma-separated seeds or a range such as 0-4")
    add("--experiences", type=int, metavar="N", help="number of experiences (default: its own)")
    _add_stream(compare)
    add("--boundary-free", action="store_true",
        help="give strategies mini-batches as sub-experiences that tell no boundaries")
    add("--backbone", metavar="NAME", help="timm ViT by exact tag (default: the packaged one)")
    add("--backbone-arg", action="append", default=[], metavar="KEY=VALUE", help="passed to timm")
    add("--weights", metavar="FILE", help="local .safetensors, .pth or .npz")
    add("--image-size", type=int, metavar="N", help="side in pixels (default: the backbone's)")
    add("--data-config", metavar="TAG",
        help="prepare images as for this timm tag (default: the backbone's)")
    add("--mean", metavar="R,G,B", help="of images from 0 to 1 (default: the backbone's)")
    add("--std", metavar="R,G,B", help="of images from 0 to 1 (default: the backbone's)")
    add("--interpolation", metavar="NAME",
        help="of resized images, such as bicubic or bicubic-squash (default: the backbone's)")
    add("--crop-pct", type=float, metavar="SHARE",
        help="of the resized image that is taken, from its middle (default: the backbone's)")
    add("--batch-size", type=int, default=16, metavar="N", help="images per training step")
    add("--gradient-steps", type=int, default=1, metavar="N", help="updates per mini-batch")
    add("--head",
        help="one head for all methods: a name of `list heads`, such as linear or slda")
    add("--mask", help="one training logit mask for all: none, seen, batch or decoupled")
    add("--readout", help="one read-out for all: cls, mean or cls+mean")
    add("--augment", default="none",
        help="training augmentation: none, flip, flip-crop or autoaug")
    add("--set", action="append", default=[], metavar="METHOD.KEY=VALUE", help="a method's option")
    add("--budget", default="default", choices=("default", "tuned"),
        help="each method's own options, or the best of up to 6 settings on held-out training "
        "images of the first experiences")
    add("--eval-every-samples", type=int, metavar="N",
        help="also evaluate after each N training samples, for a_auc (default: 4 times a stream)")
    add("--eval-subset", type=int, default=0, metavar="N",
        help="of these evaluations, on N test images only, a fixed part with all classes; "
        "experience ends always take all (default: all)")
    add("--holdout", type=float, default=0.0, metavar="SHARE",
        help="evaluate on this share of the training images instead of the test set (tuning)")
    _add_share(compare)
    add("--skip-corrupt", action="store_true", help="leave out images that cannot be read")
    add("--precision", default="auto", help="fp32, bf16 or auto (bf16 on a GPU)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: one per core on the CPU)")
    add("--executor", default="process",
        help="where runs are done: process (this machine), ray, slurm or one that --import names")
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
    add("--checkpoint-every", metavar="N",
        help="training steps between checkpoints, besides those at experience ends; 0: at these "
        "alone (default: auto, so that writing costs at most 3 per cent of the time)")
    add("--fresh", action="store_true",
        help="begin runs that were cut from their start instead of their last checkpoint")
    _add_data_root(compare)
    add("--out", default="results", metavar="DIR", help="where run directories go")
    add("--format", default="text", choices=FORMATS, help="of the leaderboard")
    add("--quiet", action="store_true", help="no progress bar")
    compare.set_defaults(run=_compare)

    status = verbs.add_parser(
        "status",
        help="how far the comparisons in a folder are",
        description="What is running, waiting, done and failed, from any machine that sees the "
        "folder.",
    )
    status.add_argument("dir", metavar="DIR", help="the --out of a comparison")
    status.add_argument("--watch", action="store_true", help="show it again until all have ended")
    status.set_defaults(run=_status)

    inspect = verbs.add_parser(
        "inspect",
        help="what a stream brings when, before any training",
        description="Sizes and classes of each experience, which are new and which come back.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = inspect.add_argument
    add("--benchmark", default="split-digits",
        help="a name of `list benchmarks`, such as split-digits, or folder:PATH")
    add("--experiences", type=int, metavar="N", help="number of experiences (default: its own)")
    _add_import(inspect)
    _add_stream(inspect)
    add("--seed", default="0", metavar="N", help="of the stream")
    add("--holdout", type=float, default=0.0, metavar="SHARE", help="as compare takes it")
    _add_share(inspect)
    add("--skip-corrupt", action="store_true", help="leave out images that cannot be read")
    _add_data_root(inspect)
    add("--json", action="store_true", help="print JSON instead of the table")
    add("--plot", metavar="FILE", help="also draw it: a .png, .svg or .pdf")
    inspect.set_defaults(run=_inspect)

    listing = verbs.add_parser("list", help="what there is, by name")
    listing.add_argument("kind", choices=KINDS)
    listing.add_argument("pattern", nargs="?", default="*", help="shell pattern")
    _add_import(listing)
    listing.set_defaults(run=_list)

    board = verbs.add_parser("leaderboard", help="rank the runs in a folder")
    board.add_argument("dirs", metavar="DIR", nargs="+",
        help="the --out of earlier comparisons; several, as from other machines, are put together")
    board.add_argument("--format", default="text", choices=(*FORMATS, "cl-baselines"))
    board.add_argument("--wide", action="store_true", help="every column, however wide")
    board.add_argument("--reference", metavar="METHOD",
        help="compare every row with this method, paired by seed: difference, interval, p, pairs")
    board.add_argument("--add", action="extend", nargs="+", default=[], metavar="ENTRY",
        help="entries of others, made by `submit`: rows of their own, marked as submitted")
    board.add_argument("--plots", metavar="FOLDER", help="write every picture as SVG, PDF and PNG")
    board.add_argument("--out", metavar="FOLDER",
        help="where --format cl-baselines writes its files (default: they are printed)")
    board.set_defaults(run=_leaderboard)

    submit = verbs.add_parser("submit", help="make a checked file of a method's runs for others")
    submit.add_argument("dirs", metavar="DIR", nargs="*", help="the --out of earlier comparisons")
    submit.add_argument("--method", metavar="NAME", help="the method whose runs to submit")
    submit.add_argument("--config", default="", metavar="HASH",
        help="which configuration, by the beginning of its hash, where the method has several")
    submit.add_argument("--out", metavar="FILE", help="the entry to write")
    submit.add_argument("--schema", action="store_true", help="print the entry's JSON schema")
    submit.set_defaults(run=_submit)

    report = verbs.add_parser("report", help="write the leaderboard as a page for a browser")
    report.add_argument("dirs", metavar="DIR", nargs="+",
        help="the --out of earlier comparisons; several, as from other machines, are put together")
    report.add_argument("--add", action="extend", nargs="+", default=[], metavar="ENTRY",
        help="entries of others, made by `submit`: rows of their own, marked as submitted")
    report.add_argument("--out", metavar="FOLDER",
        help="where to write it (default: report in the first DIR)")
    report.set_defaults(run=_report)

    explain = verbs.add_parser(
        "explain", help="draw where on an image each prompt was retrieved from"
    )
    explain.add_argument("images", nargs="+", metavar="IMAGE", help="image files")
    explain.add_argument("--run", dest="run_dir", required=True, metavar="DIR",
        help="a finished run of a method with routing layers: its seed<k> directory")
    explain.add_argument("--out", default=".", metavar="FOLDER", help="where the figures go")
    explain.add_argument("--format", default="png", choices=("png", "svg"))
    _add_import(explain)
    explain.set_defaults(run=_explain)
    return parser


def _add_stream(parser: argparse.ArgumentParser) -> None:
    """--stream and the options of all kinds, as the registry has them."""
    from avalanche_rwf.benchmarks.stream_registry import OPTIONS, having, list_streams

    parser.add_argument("--stream", default="split", help=f"one of {', '.join(list_streams())}")
    for option in OPTIONS.values():
        parser.add_argument(
            option.flag,
            dest=f"stream_{option.name}",
            metavar=option.name.split("_")[-1].upper(),
            # The sentence says the default itself: it may be the data's.
            default=argparse.SUPPRESS,
            help=f"{', '.join(having(option.name))}: {option.help}".replace("%", "%%"),
        )


def _stream_options(args: argparse.Namespace) -> dict[str, Any]:
    from avalanche_rwf.benchmarks.stream_registry import OPTIONS, resolve_stream_options

    given = {name: getattr(args, f"stream_{name}", None) for name in OPTIONS}
    return resolve_stream_options(args.stream, given, args.benchmark)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
        help="import this first: the methods, benchmarks, streams and heads that it registers are "
        "there; may be repeated",
    )  # fmt: skip


def _add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root", metavar="DIR",
        help="where data sets are and go (default: $AVALANCHE_RWF_DATA or ~/.avalanche/data)",
    )  # fmt: skip


def _add_share(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--test-share", type=float, default=0.0, metavar="SHARE",
        help="of a folder without test images: take this share of each class as the test set",
    )  # fmt: skip
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="of --test-share's choice"
    )


def _preparation(args: argparse.Namespace) -> dict[str, Any]:
    """What --mean, --std, --interpolation and --crop-pct say."""
    given: dict[str, Any] = {}
    for name in PREPARATION:
        flag, value = "--" + name.replace("_", "-"), getattr(args, name)
        if value is None:
            continue
        if name in ("mean", "std"):
            text, value = value, _value(value)
            if not isinstance(value, tuple) or len(value) != 3:
                raise UsageError(f"{flag} takes three numbers such as 0.5,0.5,0.5, not {text!r}.")
        given |= checked_preparation({name: value}, flag)
    return given


def _set_loading(args: argparse.Namespace) -> None:
    """Put what changes no number into the environment: this process's and its workers'."""
    from avalanche_rwf.experiments.checkpoint import EVERY, FRESH, read_every

    if args.workers is not None:
        if not 0 <= args.workers <= _MOST_WORKERS:
            raise UsageError(
                f"--workers takes a whole number from 0 to {_MOST_WORKERS}, not {args.workers}."
            )
        os.environ["AVALANCHE_RWF_WORKERS"] = str(args.workers)
    if args.checkpoint_every is not None:
        read_every(args.checkpoint_every, "--checkpoint-every")
        os.environ[EVERY] = args.checkpoint_every
    os.environ.pop(FRESH, None)
    if args.fresh:
        os.environ[FRESH] = "1"
    _set_data_root(args)


def _set_data_root(args: argparse.Namespace) -> None:
    if args.data_root is not None:
        folder = at_home(args.data_root)
        # The folder may be made later, but not below a file.
        if not next((p for p in (folder, *folder.parents) if p.exists()), folder).is_dir():
            raise UsageError(f"--data-root takes a folder, and {args.data_root!r} is none.")
        os.environ["AVALANCHE_RWF_DATA"] = str(folder.absolute())


def _compare(args: argparse.Namespace) -> int:
    seeds, settings = _integers(args.seeds), _settings(args.set)
    given, stream_options = backbone_args(args.backbone_arg), _stream_options(args)
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
    if args.precision not in ("auto", "fp32", "bf16"):
        raise UsageError(f"--precision takes auto, fp32 or bf16, not {args.precision!r}.")

    from avalanche_rwf.benchmarks.registry import check_benchmark
    from avalanche_rwf.experiments.config import RunConfig
    from avalanche_rwf.experiments.executors import (
        Options,
        default_jobs,
        default_threads,
        execute,
        get_executor,
        start_server,
    )
    from avalanche_rwf.experiments.signals import listening

    out = Path(args.out)
    RunConfig(
        benchmark=args.benchmark,
        method="",
        experiences=args.experiences,
        image_size=args.image_size,
        batch_size=args.batch_size,
        gradient_steps=args.gradient_steps,
        eval_every_samples=args.eval_every_samples or 0,
        eval_subset=args.eval_subset,
        holdout=args.holdout,
        budget=args.budget,
        test_share=args.test_share,
        split_seed=args.split_seed,
    ).validate()
    check_benchmark(args.benchmark, args.test_share)
    _set_loading(args)
    executor = get_executor(args.executor)
    how = Options(
        args.jobs,
        args.runs_per_device,
        args.ray_address,
        _slurm_options(args.slurm),
        args.detach,
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
    if args.executor == "process" and args.jobs != 1:
        start_server()
    if not args.quiet and sys.stderr.isatty():
        _say("Loading PyTorch, timm and Avalanche ...")

    from avalanche_rwf.experiments.compare import (
        exclude_methods,
        given_options,
        method_options,
        named_methods,
        plan,
        plan_tuned,
        resolve_device,
        select_methods,
        write_left_out,
    )
    from avalanche_rwf.experiments.config import run_directory
    from avalanche_rwf.experiments.status import write_list
    from avalanche_rwf.experiments.tuning import tune
    from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs, write_leaderboard
    from avalanche_rwf.leaderboard.table import render
    from avalanche_rwf.models.backbone import PACKAGED
    from avalanche_rwf.models.preprocessing import plain_name, tag_config

    if args.data_config is not None:  # as values: a tag's may be others in another timm
        prepared = {**tag_config(args.data_config), **prepared}
    device = resolve_device(args.device)
    chosen = select_methods(args.methods)
    methods = exclude_methods(chosen, args.exclude)
    left_out = {name: "--exclude names it." for name in chosen if name not in methods}
    common = {"head": args.head, "mask": args.mask, "readout": args.readout}
    options, notes = method_options(methods, common, settings)
    base = RunConfig(
        benchmark=args.benchmark,
        method="",
        stream=args.stream,
        stream_options=stream_options,
        boundary_free=args.boundary_free,
        experiences=args.experiences,
        backbone=plain_name(args.backbone or PACKAGED),
        backbone_args=given,
        weights=args.weights,
        image_size=args.image_size,
        batch_size=args.batch_size,
        gradient_steps=args.gradient_steps,
        precision=("bf16" if device.startswith("cuda") else "fp32")
        if args.precision == "auto"
        else args.precision,
        augment=args.augment,
        eval_every_samples=args.eval_every_samples or 0,
        eval_subset=args.eval_subset,
        holdout=args.holdout,
        skip_corrupt=args.skip_corrupt,
        budget=args.budget,
        data_config=prepared,
        test_share=args.test_share,
        split_seed=args.split_seed,
    )
    planned = plan(
        base, methods, seeds, options, out, notes, args.eval_every_samples is None,
        named_methods(args.methods),
    )  # fmt: skip
    methods = planned.methods
    left_out.update(planned.left_out)
    for note in planned.notes:
        _say(note)
    if args.budget == "tuned":
        fixed = {name: given_options(name, common, settings) for name in methods}
        first = planned.configs[: len(methods)]
        with listening(_say):
            choices = tune(
                *(first, fixed, out, device, args.jobs, args.quiet),
                *(args.executor, replace(how, detach=False)),
            )
        for choice in choices.values():
            _say(choice.sentence())
        planned = plan_tuned(planned, choices, out)
    here = args.executor in ("process", "serial")
    jobs = args.jobs or default_jobs(device, len(planned.todo), args.runs_per_device)
    where = f"{jobs} at a time on {device}" if here else f"on {args.executor}, device {device}"
    _say(
        f"{len(planned.configs)} runs ({len(methods)} methods, {len(seeds)} seeds), "
        f"{len(planned.configs) - len(planned.todo)} done already, {where}."
    )
    failed = []
    threads = default_threads(device, len(planned.configs), args.runs_per_device)
    write_list(out, planned.configs, planned.samples)
    with listening(_say):
        for config, summary in execute(
            *(planned.todo, out, device, jobs if here else args.jobs),
            *(lambda config: planned.samples, args.quiet, threads),
            executor=args.executor,
            options=replace(how, jobs=jobs) if here else how,
        ):
            if summary["status"] != "done":
                failed.append(config)
                folder = run_directory(out, config)
                _say_failed(config.method, config.seed, summary["error"], folder)
    if args.detach:
        _say(
            f"The jobs go on without this command: `avalanche-rwf status {out}` shows how far they "
            "are, and the same command without --detach prints the leaderboard."
        )
        return 0
    if not out.is_dir():
        _say(f"avalanche-rwf: The folder {str(out)!r} was removed or renamed meanwhile.")
        return 1
    runs, broken = read_runs(out)
    written = True
    try:
        write_leaderboard(out, aggregate(runs))
    except (UsageError, OSError) as error:  # a full disk: what was done is printed all the same
        written = False
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        why = getattr(cause, "strerror", None) or cause
        _say(f"avalanche-rwf: leaderboard.csv in {str(out)!r} was not written ({why}).")
    for directory in broken:
        _say(f"left out: {directory}")
    hashes = {config.config_hash() for config in planned.configs}
    if len(runs):
        board = aggregate(runs[runs["config_hash"].isin(hashes)])
        print(render(board, args.format), end="")
    for method, why in left_out.items():
        _say(f"not compared: {method}: {why}")
    if written:
        with contextlib.suppress(OSError):  # a full disk: it was printed
            write_left_out(out, args.benchmark, base.backbone, left_out)
        _say(f"Run directories and leaderboard.csv are in {out}{os.sep}")
    return 1 if failed or not written else 0


def _slurm_options(texts: Sequence[str]) -> dict[str, str]:
    """``--slurm key=value,...`` as pairs; a comma in a value is kept where no key follows it."""
    options: dict[str, str] = {}
    for text in texts:
        key = ""
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if equals and name.replace("-", "_").isidentifier():
                key = name.replace("-", "_")
                options[key] = value
            elif key:
                options[key] += f",{part}"
            else:
                raise UsageError(f"--slurm takes key=value,..., not {text!r}.")
    return options


def _status(args: argparse.Namespace) -> int:
    import time

    from avalanche_rwf.experiments.status import read_state
    from avalanche_rwf.experiments.view import Screen, Speed, summary_line, table

    (out,) = _folders([args.dir], "status")
    ended: dict[str, dict[str, Any]] = {}
    speed, screen = Speed(), Screen(sys.stdout) if sys.stdout.isatty() else None
    while True:
        state = read_state(out, ended)
        if state is None:
            raise UsageError(f"status takes the --out of a comparison, and {args.dir!r} is none.")
        per_second = speed.note(state.samples_done)
        if not args.watch:
            print("\n".join(table(state, per_second)))
            return 0
        if screen is not None:
            screen.draw(table(state, per_second))
        else:
            print(summary_line(state, per_second), flush=True)
        if not state.running and not state.waiting:
            return 0
        time.sleep(1 if screen is not None else 30)


def _inspect(args: argparse.Namespace) -> int:
    stream_options = _stream_options(args)
    if not _is_seed(args.seed):
        raise UsageError(f"--seed takes a whole number from 0 to 2**32 - 1, not {args.seed!r}.")
    _set_data_root(args)

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
        seed=int(args.seed),
        experiences=args.experiences,
        skip_corrupt=args.skip_corrupt,
        holdout=args.holdout,
        stream=args.stream,
        stream_options=stream_options,
        test_share=args.test_share,
        split_seed=args.split_seed,
    )
    for note in plan.notes:
        _say(note)
    said = ", ".join(f"{key}={value}" for key, value in plan.options.items())
    stream = f"{args.stream} ({said})" if said else args.stream
    title = f"{args.benchmark}, stream {stream}, seed {args.seed}"
    if args.json:
        values = {"benchmark": args.benchmark, "stream": args.stream, "seed": int(args.seed)}
        print(json.dumps({**values, **describe(plan)}))
    else:
        print(f"{title}\n{stream_table(plan)}")
    if plot is not None:
        plot_stream(plan, plot, title)
        _say(f"The picture is in {plot}.")
    return 0


def _list(args: argparse.Namespace) -> int:
    if args.kind == "backbones":
        from avalanche_rwf.models.backbone import list_backbones, unsupported_backbones

        lines = list_backbones(args.pattern)
        if args.pattern != "*":
            others = unsupported_backbones(args.pattern)
            for name, why in others.items():
                _say(f"not supported: {name} {why}.")
            if others and not lines:
                raise UsageError(f"No backbone that is supported matches {args.pattern!r}.")
    elif args.kind == "benchmarks":
        from avalanche_rwf.benchmarks.registry import list_benchmarks

        lines = [
            f"{name}PATH" if name.endswith(":") else name for name in list_benchmarks(args.pattern)
        ]
    elif args.kind == "streams":
        from avalanche_rwf.benchmarks.stream_registry import get_stream, list_streams

        lines = [
            f"{name:12}{get_stream(name).summary}"
            for name in list_streams()
            if fnmatch.fnmatch(name, args.pattern)
        ]
    elif args.kind == "heads":
        from avalanche_rwf.models.heads import HEADS, list_heads

        lines = [
            f"{name:12}{next(iter((HEADS[name].__doc__ or '').strip().splitlines()), '')}"
            for name in list_heads()
            if fnmatch.fnmatch(name, args.pattern)
        ]
    else:
        from avalanche_rwf.strategies.registry import get_method, list_methods

        specs = [get_method(name) for name in list_methods(args.pattern)]
        width = max((len(spec.name) for spec in specs), default=0)
        lines = [
            f"{spec.name:{width}}  {spec.summary}" + (" [default]" if spec.default else "")
            for spec in specs
        ]
    if not lines:
        raise UsageError(f"No {args.kind} match the pattern {args.pattern!r}.")
    print("\n".join(lines))
    if args.kind == "methods" and args.pattern == "*":
        _say("Avalanche's own strategies: avalanche-rwf list methods 'avalanche:*'.")
    return 0


def _folders(names: Sequence[str], verb: str) -> list[Path]:
    """Folders of results, checked before anything slow is imported."""
    for name in names:
        if not Path(name).is_dir():
            raise UsageError(f"{verb} takes a folder of results, and {name!r} is none.")
    return [Path(name) for name in names]


def _leaderboard(args: argparse.Namespace) -> int:
    folders = _folders(args.dirs, "leaderboard")
    if args.out and args.format != "cl-baselines":
        raise UsageError(f"--out goes with --format cl-baselines, not with {args.format}.")

    import pandas as pd

    from avalanche_rwf.leaderboard.aggregate import (
        add_reference,
        aggregate,
        read_runs,
        write_leaderboard,
    )
    from avalanche_rwf.leaderboard.table import render

    runs, broken = read_runs(*folders)
    if args.add:
        from avalanche_rwf.leaderboard.submissions import read_entries

        runs = pd.concat([frame for frame in (runs, read_entries(args.add)) if len(frame)])
    for directory in broken:
        _say(f"left out: {directory}")
    if not len(runs):
        raise UsageError(
            f"{', '.join(map(repr, args.dirs))} holds no finished run (runs are in "
            "DIR/runs/<benchmark>/<method>/...)."
        )
    for run in runs[runs["status"] == "failed"].to_dict("records"):
        folder = Path(str(run["folder"])) / str(run["run_dir"])
        _say_failed(run["method"], run["seed"], run["error"], folder)
    board = aggregate(runs)
    # The file is of the folder's own runs.
    if len(folders) == 1 and not args.add and os.access(folders[0], os.W_OK):
        write_leaderboard(folders[0], board)
    if args.reference:
        board = add_reference(board, runs, args.reference)
    if args.plots:
        from avalanche_rwf.leaderboard.plots import write_plots

        written = write_plots(runs, args.plots)
        for note in written.notes:
            _say(note)
        _say(f"{len(written.paths)} pictures are in {args.plots}{os.sep}")
    if args.format == "cl-baselines":
        from avalanche_rwf.leaderboard.cl_baselines import contribution, write_contribution

        files, notes = contribution(board, runs)
        for note in notes:
            _say(note)
        if args.out:
            for path in write_contribution(files, args.out):
                print(path)
        else:
            print("\n".join(f"# ---- {name}\n{text}" for name, text in files.items()))
        return 0
    print(render(board, args.format, wide=args.wide), end="")
    return 0


def _submit(args: argparse.Namespace) -> int:
    folders = _folders(args.dirs, "submit")
    missing = [flag for flag, value in (("DIR", folders), ("--method", args.method),
                                        ("--out", args.out)) if not value]  # fmt: skip
    if missing and not args.schema:
        raise UsageError(
            f"submit takes DIR, --method and --out (or --schema), got no {missing[0]}."
        )

    import json

    from avalanche_rwf.leaderboard.aggregate import read_runs
    from avalanche_rwf.leaderboard.submissions import build_entry, read_entry, schema

    if args.schema:
        print(json.dumps(schema(), indent=1))
        return 0
    runs, broken = read_runs(*folders)
    for directory in broken:
        _say(f"left out: {directory}")
    entry = build_entry(runs, args.method, args.config)
    try:
        Path(args.out).write_text(entry.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--out takes a file that can be written, not {args.out!r} ({error.strerror})."
        ) from None
    read_entry(args.out)
    seeds = ",".join(str(run.seed) for run in entry.runs)
    _say(f"{args.out}: {args.method}, configuration {entry.config_hash}, seeds {seeds}.")
    if entry.config.benchmark.startswith("folder:"):
        _say(f"It names the folder of the images: {entry.config.benchmark}.")
    return 0


def _report(args: argparse.Namespace) -> int:
    from avalanche_rwf.leaderboard.report import write_report

    folder, *more = map(Path, args.dirs)
    entries = [Path(name) for name in args.add]
    out = Path(args.out) if args.out else None
    page = write_report(folder, out, more=more, entries=entries)
    _say("Open it in a browser; the folder can be moved or published as it is.")
    print(page)
    return 0


def _explain(args: argparse.Namespace) -> int:
    from avalanche_rwf.leaderboard.explain import explain

    images = [Path(name) for name in args.images]
    for path, _ in explain(images, Path(args.run_dir), Path(args.out), args.format):
        print(path)
    return 0


def _check_words(words: Sequence[str]) -> None:
    """Refuse what argparse lets through and no flag of any verb takes.

    An empty word is most often a variable of the shell that was not set: as a folder it would be
    the one that one stands in.
    """
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if not flag.startswith("-"):
            flag, equals, value = before, "", word
        named = flag if flag.startswith("-") else "avalanche-rwf"
        # argparse takes it for the end of the options and gives the flag an empty list.
        if word != flag and equals and value == "--":
            raise UsageError(f"{named} takes a value, not '--'.")
        if word == "" or (equals and value == ""):
            raise UsageError(f"{named} takes a value, not ''.")
        if "\0" in word:
            raise UsageError(f"{named} takes no text with a NUL character, such as {word[:50]!r}.")


def _all_flags() -> argparse.ArgumentParser:
    """The parser; an option of a stream from outside may not be called as one that is there."""
    try:
        return _parser()
    except argparse.ArgumentError as error:
        raise UsageError(
            "A stream of --import has an option whose name must be another one "
            f"({error.message}: {error.argument_name})."
        ) from None


def _imported(words: Sequence[str]) -> list[str]:
    """What --import names."""
    found = [after for word, after in itertools.pairwise(words) if word == "--import"]
    found += [word.partition("=")[2] for word in words if word.startswith("--import=")]
    return [name for name in found if name and not name.startswith("-")]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    # Two libraries warn of each other's changes at import; a user can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(timm|avalanche)\.")
    warnings.filterwarnings("ignore", message="no QP solver found")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that has no sign for ± gets a question mark, not a traceback.
            stream.reconfigure(errors="replace")
    with contextlib.redirect_stderr(_Messages(sys.stderr)):
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    try:
        words = sys.argv[1:] if argv is None else list(argv)
        _check_words(words)
        from avalanche_rwf.utils.user_code import import_now

        # It may bring streams with options of their own: the parser is made after it. And the fork
        # server, which starts later, has a copy of what is in the environment.
        import_now(_imported(words))
        args = _all_flags().parse_args(words)
        import_now(getattr(args, "imports", []))  # of a flag that was shortened
        return int(args.run(args))
    except UsageError as error:
        _say(f"avalanche-rwf: {error}")
        return 2
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:
        return 1
    except OSError as error:
        # A full disk or a folder that is gone, where no run is to blame.
        where = f" {str(error.filename)!r}" if error.filename else ""
        _say(f"avalanche-rwf: {error.strerror or error}{where}.")
        # No name of a file that the system takes can have been meant by that.
        return 2 if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else 1
    except ImportError as error:
        if _interrupted(error):
            return _stopped()
        raise


def _stopped() -> int:
    from avalanche_rwf.experiments.signals import stopped_by

    fresh = os.environ.get("AVALANCHE_RWF_FRESH")  # as --fresh sets it
    _say(f"\nStopped; the same command{' without --fresh' if fresh else ''} goes on from here.")
    return 128 + stopped_by()
