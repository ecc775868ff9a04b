"""The parser of all verbs, and what every command line has in common."""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import itertools
import sys
import textwrap
import warnings
from collections.abc import Sequence

from avalanche_rwf.cli.common import Messages, Parser, say
from avalanche_rwf.cli.config_file import ConfigFile, config_text
from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.user_code import import_now
from avalanche_rwf.version import __version__

VERBS = (
    *("compare", "tune", "status", "inspect", "list", "leaderboard", "submit", "report"),
    *("explain", "completion"),
)
"""In the order of the help; each is a module of this package."""

_CONFIGURABLE = ("compare", "tune")  # those with --config FILE


_FIRST_STEPS = """examples:
  avalanche-rwf compare                       the default methods, offline, two minutes
  avalanche-rwf compare --methods rwf,slda --benchmark folder:PATH --test-share 0.2
  avalanche-rwf list methods
  avalanche-rwf leaderboard results"""


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error comes from Ctrl-C: imports of compiled code make an ImportError of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _check_words(words: Sequence[str]) -> None:
    """Refuse empty words, '--' as a value and NUL, which argparse lets through.

    An empty word is most often a shell variable that was not set; as a folder it would mean the
    current one.
    """
    for before, word in zip(["", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if not flag.startswith("-"):
            flag, equals, value = before, "", word
        named = flag if flag.startswith("-") else "avalanche-rwf"
        # argparse takes -- for the end of the options and gives the flag an empty list.
        if word != flag and equals and value == "--":
            raise UsageError(f"{named} takes a value, not '--'.")
        if word == "" or (equals and value == ""):
            raise UsageError(f"{named} takes a value, not ''.")
        if "\0" in word:
            raise UsageError(f"{named} takes no text with a NUL character, such as {word[:50]!r}.")


def build_parser(verb: str | None = None) -> Parser:
    """The parser of the command line.

    :param verb: the only one whose flags are needed; None is all.
    :raises UsageError: if a stream of --import has an option that is called as a flag.
    """
    parser = Parser(
        prog="avalanche-rwf",
        description="Routing without Forgetting against other continual learners, on one stream.",
        epilog=_FIRST_STEPS,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    for name in VERBS:
        module = importlib.import_module(f"avalanche_rwf.cli.{name}")
        one = verbs.add_parser(
            name,
            help=module.SUMMARY,
            description=f"{module.DESCRIPTION[0].upper()}{module.DESCRIPTION[1:].rstrip('.')}.",
            epilog="examples:" + textwrap.indent(module.EXAMPLES, "  ").rstrip(),
        )
        if verb in (None, name):
            try:
                module.add_flags(one)
            except argparse.ArgumentError as error:
                raise UsageError(
                    "A stream of --import has an option whose name must be another one "
                    f"({error.message}: {error.argument_name})."
                ) from None
            if len(one._actions) > 12:  # they are below, each with its meaning
                one.usage = "%(prog)s [options]"
            one.set_defaults(run=module.run)
        parser.verbs[name] = one
    return parser


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
    with contextlib.redirect_stderr(Messages(sys.stderr)):
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        _check_words(words)
        verb = next((w for w in words if not w.startswith("-")), "")
        file = ConfigFile.named(words) if verb in _CONFIGURABLE else None
        # It may bring streams with options of their own: the parser is made after it. And the fork
        # server, which starts later, has a copy of what is in the environment.
        import_now([*(file.imports() if file else []), *_imported(words)])
        parser = build_parser(verb)
        if not words:
            parser.print_help()
            return 0
        if file is not None:
            words = file.before(words, parser.verbs[verb])
        args = parser.parse_args(words)
        if getattr(args, "print_config", False):
            print(config_text(parser.verbs[verb], args), end="")
            return 0
        return int(args.run(args))
    except UsageError as error:
        say(f"avalanche-rwf: {error}")
        return 2
    except KeyboardInterrupt:
        return _stopped("--fresh" in words)
    except BrokenPipeError:
        return 1
    except OSError as error:
        # A full disk or a folder that is gone, where no run is to blame.
        where = f" {str(error.filename)!r}" if error.filename else ""
        say(f"avalanche-rwf: {error.strerror or error}{where}.")
        # These two errors are a wrong name on the command line, so bad usage.
        return 2 if error.errno in (errno.ENAMETOOLONG, errno.ELOOP) else 1
    except ImportError as error:
        if _interrupted(error):
            return _stopped("--fresh" in words)
        raise


def _stopped(fresh: bool) -> int:
    from avalanche_rwf.experiments.signals import stopped_by

    say(f"\nStopped; the same command{' without --fresh' if fresh else ''} goes on from here.")
    return 128 + stopped_by()
