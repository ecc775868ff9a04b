"""The error of a user's mistake, and that of a training that became infinite."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input, said in one sentence: the argument, what it got, and what it takes.

    The command line prints the sentence and ends with status 2; in Python it is a `ValueError`.
    """


class NonFiniteLossError(RuntimeError):
    """Features, loss or a gradient became infinite or NaN.

    The weights are those before the step. If it was the features, the batch has changed nothing; if
    it was the loss, the batch's labels and statistics have been taken in.
    """


def reason(error: BaseException) -> str:
    """What an error says, on one line for the end of a sentence: 200 characters at most."""
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """Say which known names are nearest to `name`, for the end of an error sentence.

    Returns "the nearest names are 'a', 'b'", or "the names are 'a', ..." where nothing is near.
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=n, cutoff=0.4)
    shown, lead = (close, "the nearest names are") if close else (names[:12], "known names are")
    return f"{lead} " + ", ".join(repr(s) for s in shown)
