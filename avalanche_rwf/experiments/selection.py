"""Which methods a command line names: names alone, so that they can be checked at once."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence

from avalanche_rwf.errors import UsageError, nearest


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in (text or "").split(",") if word.strip()]


def select_names(
    text: str | None,
    names: Sequence[str],
    default: Sequence[str],
    elsewhere: Callable[[str], list[str]],
) -> list[str]:
    """Names from a comma-separated list of names and shell patterns; None is the default ones.

    :param names: all registered ones, which "all" stands for.
    :param default: those that are taken for None.
    :param elsewhere: finds a name or pattern with a colon, such as ``avalanche:*``.
    :raises UsageError: for a name or pattern that matches none.
    """
    if text is None:
        return list(default)
    chosen: list[str] = []
    for word in _words(text):
        found = elsewhere(word) if ":" in word else fnmatch.filter(names, word)
        found = list(names) if word == "all" else found
        if not found:
            raise UsageError(f"There is no method {word!r}; {nearest(word, names)}.")
        chosen += [name for name in found if name not in chosen]
    if not chosen:
        raise UsageError(f"--methods takes names or patterns, not {text!r}.")
    return chosen


def named_methods(text: str | None) -> set[str]:
    """Of :func:`select_names`' names those that are named by themselves, by no pattern."""
    return {w for w in _words(text) if w != "all" and not any(sign in w for sign in "*?[")}


def exclude_methods(methods: Sequence[str], text: str | None) -> list[str]:
    """The methods less those of a comma-separated list of names and shell patterns.

    :raises UsageError: for a name or pattern of no method here, and if no method is left.
    """
    left = list(methods)
    for word in _words(text):
        if not fnmatch.filter(methods, word):
            raise UsageError(
                f"--exclude {word} names no method of this comparison; {nearest(word, methods)}."
            )
        left = [name for name in left if not fnmatch.fnmatchcase(name, word)]
    if not left:
        raise UsageError(f"--exclude {text} leaves no method of {', '.join(methods)}.")
    return left
