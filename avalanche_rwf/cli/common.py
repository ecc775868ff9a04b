"""What the verbs share: the parser, messages, flags of runs, streams and data."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.experiments.config import run_settings
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.utils.untrusted_io import at_home

# Those of leaderboard.table, which imports pandas: `--help` need not wait for it.
FORMATS = ("text", "csv", "md", "latex", "html")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Says a default where there is one that the help does not say already."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=30, **kwargs)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.help or ""
        silent = action.default in (None, "", False, argparse.SUPPRESS) or action.default == []
        return said if silent or "default" in said else f"{said} (default: %(default)s)"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        # Examples keep their lines, a description does not.
        whole = super(argparse.RawDescriptionHelpFormatter, self)._fill_text
        return text if "\n" in text else whole(text, width, indent)


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a `UsageError`, no flag is shortened, and names are suggested."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs = {"allow_abbrev": False, "formatter_class": _Formatter, **kwargs}
        super().__init__(**kwargs)
        self._optionals.title = "help"
        self.verbs: dict[str, Parser] = {}

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        said = f"{message[:1].upper()}{message[1:]}"
        raise UsageError(f"{said} ({self.prog} --help shows the usage).")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            names = list(map(str, action.choices))
            said = f"takes one of {', '.join(names)}, not {value!r}"
            if action.dest == "verb":
                said = f"there is no {value!r}; {nearest(str(value), names)}"
            raise argparse.ArgumentError(action, said)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but what this verb does not know ends here, with the nearest flag."""
        known, rest = super().parse_known_args(args, namespace)
        flag = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
        flags = [name for name in self._option_string_actions if name.startswith("--")]
        if flag is not None and self._subparsers is None:
            self.error(f"there is no {flag}; {nearest(flag, flags)}")
        return known, rest

    def _print_message(self, message: str, file: Any = None) -> None:
        file = file or sys.stderr
        if message and file.isatty() and "NO_COLOR" not in os.environ:
            message = re.sub(r"^(\S.*?:)(?=\n| )", "\x1b[1m\\1\x1b[0m", message, flags=re.M)
            message = re.sub(r"^(  +)(--?[\w-]+)", "\\1\x1b[36m\\2\x1b[0m", message, flags=re.M)
        file.write(message)


class Messages:
    """stderr whose errors are ignored: the work goes on when its reader is gone."""

    def __init__(self, file: Any) -> None:
        # sys.stderr is None in a process that was started without it (2>&-).
        self._file = Path(os.devnull).open("w") if file is None else file  # noqa: SIM115

    def write(self, text: str) -> int:
        """Write; an error is ignored."""
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush; an error is ignored."""
        with contextlib.suppress(OSError, ValueError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def say(text: str) -> None:
    """Print a message on stderr with control characters escaped: names can come from anybody."""
    lead = "\n" * text.startswith("\n")  # a new line, as ^C may be on this one
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[len(lead) :])
    print(lead + said, file=sys.stderr, flush=True)


def say_failed(method: Any, seed: Any, error: Any, folder: Path) -> None:
    """Name a run that failed, why, and where its log is."""
    say(f"FAILED {method} seed {seed}: {error} (see {folder / 'log.txt'})")


def add_settings(group: argparse._ActionsContainer, *names: str, **defaults: Any) -> None:
    """Flags of settings, as :class:`RunConfig` and :class:`Execution` declare them.

    :param names: of their fields.
    :param defaults: other ones than the fields'.
    """
    declared = {**run_settings(), **run_settings(Execution)}
    for name in names:
        setting = declared[name]
        default = defaults.get(name, setting.default)
        kind: dict[str, Any] = {"type": {"whole": int, "number": float}.get(setting.kind, str)}
        if setting.kind == "list":
            kind, default = {"action": "append"}, []
        if setting.kind == "flag":
            kind = {"action": "store_true"}
        elif setting.metavar is not None:
            kind["metavar"] = setting.metavar
        group.add_argument(setting.flag, dest=name, default=default, help=setting.help, **kind)


def add_seeds(group: argparse._ActionsContainer, default: str, help: str) -> None:
    """--seeds, which may be called --seed."""
    group.add_argument("--seeds", "--seed", default=default, metavar="N", help=help)


def add_config(group: argparse._ActionsContainer) -> None:
    """--config, whose file :func:`main` has put before the other words, and --print-config."""
    group.add_argument("--config", metavar="FILE",
        help="flags from a .yaml, .toml or .json file (batch-size: 32), or the config.json of a "
        "run; flags that are typed count more")
    group.add_argument("--print-config", action="store_true",
        help="print what this command line comes to as such a file, and do nothing")  # fmt: skip


def add_stream(parser: argparse.ArgumentParser) -> None:
    """The stream: --benchmark, --stream and the options of all kinds, as the registry has them."""
    from avalanche_rwf.benchmarks.stream_registry import OPTIONS, list_streams, streams_with

    group = parser.add_argument_group("stream")
    add_settings(group, "benchmark", "experiences", benchmark="split-digits")
    group.add_argument("--stream", default="split", help=f"one of {', '.join(list_streams())}")
    for option in OPTIONS.values():
        group.add_argument(
            option.flag,
            dest=f"stream_{option.name}",
            metavar=option.name.split("_")[-1].upper(),
            # The help says the default itself, because it can depend on the data.
            default=argparse.SUPPRESS,
            help=f"{', '.join(streams_with(option.name))}: {option.help}".replace("%", "%%"),
        )


def stream_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags of :func:`add_stream` say, checked."""
    from avalanche_rwf.benchmarks.stream_registry import OPTIONS, resolve_stream_options

    given = {name: getattr(args, f"stream_{name}", None) for name in OPTIONS}
    return resolve_stream_options(args.stream, given, args.benchmark)


def add_import(parser: argparse._ActionsContainer) -> None:
    """--import, which :func:`main` has done by then."""
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
        help="import this first: the methods, benchmarks, streams and heads that it registers are "
        "there; may be repeated",
    )  # fmt: skip


def add_data(parser: argparse.ArgumentParser) -> None:
    """The data behind a stream: what is held out, left out, and where it is."""
    group = parser.add_argument_group("data")
    add_settings(group, "test_share", "split_seed", "holdout", "skip_corrupt")
    group.add_argument(
        "--data-root", metavar="DIR",
        help="where data sets are and go (default: $AVALANCHE_RWF_DATA or ~/.avalanche/data)",
    )  # fmt: skip


def set_data_root(args: argparse.Namespace) -> None:
    """Put --data-root into the environment, of which workers get a copy."""
    if args.data_root is not None:
        folder = at_home(args.data_root)
        # The folder may be made later, but not below a file.
        if not next((p for p in (folder, *folder.parents) if p.exists()), folder).is_dir():
            raise UsageError(f"--data-root takes a folder, and {args.data_root!r} is none.")
        os.environ["AVALANCHE_RWF_DATA"] = str(folder.absolute())


def result_folders(names: Sequence[str], verb: str) -> list[Path]:
    """Folders of results or their URLs, checked before anything slow is imported."""
    from avalanche_rwf.experiments.remote import folders_of, is_url

    for name in names:
        if not is_url(name) and not Path(name).is_dir():
            raise UsageError(f"{verb} takes a folder of results, and {name!r} is none.")
    return folders_of(names)


def read_results(folders: Sequence[Path]) -> Any:
    """The runs in folders as a data frame; run directories that cannot be read are named."""
    from avalanche_rwf.leaderboard.aggregate import read_runs

    runs, broken = read_runs(*folders)
    for directory in broken:
        say(f"left out: {directory}")
    return runs


def add_results(parser: argparse.ArgumentParser) -> None:
    """The folders of results, and --add."""
    parser.add_argument("dirs", metavar="DIR", nargs="+",
        help="the --out of earlier comparisons; several, as from other machines, are put together")
    parser.add_argument("--add", action="extend", nargs="+", default=[], metavar="ENTRY",
        help="entries of others, made by `submit`: rows of their own, marked as submitted",
    )  # fmt: skip
