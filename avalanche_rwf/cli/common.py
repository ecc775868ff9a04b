"""What the verbs share: the parser, messages, flags of streams and data."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import at_home

__all__ = [
    "FORMATS",
    "Messages",
    "Parser",
    "add_data_root",
    "add_import",
    "add_share",
    "add_stream",
    "result_folders",
    "say",
    "say_failed",
    "set_data_root",
    "stream_options",
]

# Those of leaderboard.table, which imports pandas: `--help` need not wait for it.
FORMATS = ("text", "csv", "md", "latex", "html")


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is a `UsageError` like every other."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        said = f"{message[:1].upper()}{message[1:]}"
        raise UsageError(f"{said} ({self.prog} --help shows the usage).")


class Messages:
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


def say(text: str) -> None:
    """Print a line for a person, without what a terminal would obey: names may be anybody's."""
    lead = "\n" * text.startswith("\n")  # away from what is on the line, such as ^C
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[len(lead) :])
    print(lead + said, file=sys.stderr, flush=True)


def say_failed(method: Any, seed: Any, error: Any, folder: Path) -> None:
    """Name a run that failed, why, and where its log is."""
    say(f"FAILED {method} seed {seed}: {error} (see {folder / 'log.txt'})")


def add_stream(parser: argparse.ArgumentParser) -> None:
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


def stream_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags of :func:`add_stream` say, checked."""
    from avalanche_rwf.benchmarks.stream_registry import OPTIONS, resolve_stream_options

    given = {name: getattr(args, f"stream_{name}", None) for name in OPTIONS}
    return resolve_stream_options(args.stream, given, args.benchmark)


def add_import(parser: argparse.ArgumentParser) -> None:
    """--import, which :func:`main` has done by then."""
    parser.add_argument(
        "--import", dest="imports", action="append", default=[], metavar="MODULE_OR_FILE",
        help="import this first: the methods, benchmarks, streams and heads that it registers are "
        "there; may be repeated",
    )  # fmt: skip


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """--data-root."""
    parser.add_argument(
        "--data-root", metavar="DIR",
        help="where data sets are and go (default: $AVALANCHE_RWF_DATA or ~/.avalanche/data)",
    )  # fmt: skip


def add_share(parser: argparse.ArgumentParser) -> None:
    """--test-share and its seed."""
    parser.add_argument(
        "--test-share", type=float, default=0.0, metavar="SHARE",
        help="of a folder without test images: take this share of each class as the test set",
    )  # fmt: skip
    parser.add_argument(
        "--split-seed", type=int, default=0, metavar="N", help="of --test-share's choice"
    )


def set_data_root(args: argparse.Namespace) -> None:
    """Put --data-root into the environment: this process's and its workers'."""
    if args.data_root is not None:
        folder = at_home(args.data_root)
        # The folder may be made later, but not below a file.
        if not next((p for p in (folder, *folder.parents) if p.exists()), folder).is_dir():
            raise UsageError(f"--data-root takes a folder, and {args.data_root!r} is none.")
        os.environ["AVALANCHE_RWF_DATA"] = str(folder.absolute())


def result_folders(names: Sequence[str], verb: str) -> list[Path]:
    """Folders of results, checked before anything slow is imported."""
    for name in names:
        if not Path(name).is_dir():
            raise UsageError(f"{verb} takes a folder of results, and {name!r} is none.")
    return [Path(name) for name in names]
