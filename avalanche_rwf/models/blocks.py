"""Which blocks of a backbone: as a user types them, and as a method's default has them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping

from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import is_whole


class FitWarning(UserWarning):
    """Says that a default of a method was changed to fit the backbone."""


class DefaultBlocks(str):
    """A method's default blocks, as a text.

    A backbone with fewer blocks gets those of them that it has, while a text that a user gives is
    refused if it does not fit.

    :param small: depth -> blocks, for backbones that are too small for that rule.
    """

    small: Mapping[int, str]

    def __new__(cls, text: str, small: Mapping[int, str] | None = None) -> DefaultBlocks:
        """Init."""
        made = super().__new__(cls, text)
        made.small = dict(small or {})
        return made

    def on(self, depth: int) -> str:
        """The text for a backbone of `depth` blocks: itself if that fits, else indices."""
        text = str(self)
        if depth in self.small:
            return self.small[depth]
        counted = re.fullmatch(r"(first|last) ?(\d+)", text)
        if counted:
            return text if int(counted[2]) <= depth else ",".join(map(str, range(depth)))
        indices = [int(word) for word in text.split(",")] if text[0].isdecimal() else []
        there = [i for i in indices if i < depth]
        return text if there == indices else ",".join(map(str, there or [depth - 1]))


def as_default(value: object) -> object:
    """A method's default, marked as one if it names blocks by number ("first 5", "0,1")."""
    if type(value) is str and re.fullmatch(r"(first|last) ?\d+|\d+(,\d+)*", value):
        return DefaultBlocks(value)
    return value


def parse_blocks(
    blocks: str | Collection[int], depth: int, name: str = "blocks"
) -> tuple[int, ...]:
    """Block indices from "first 3", "last 5", "all", "none", "0,2,4" or a collection of integers.

    Negative indices count from the end. The result is sorted and has no duplicates. Of
    :class:`DefaultBlocks` those that exist are taken, with a :class:`FitWarning`.

    :param name: what the argument is called, for the error.
    :raises UsageError: if it cannot be read or an index is not a block of the backbone.
    """
    if isinstance(blocks, DefaultBlocks):
        fitted = blocks.on(depth)
        if fitted != blocks:
            warnings.warn(
                f"The backbone has {depth} blocks, so {name} is {fitted!r} and not its default "
                f"{str(blocks)!r}",
                FitWarning,
                stacklevel=4,
            )
        blocks = fitted
    error = UsageError(
        f"{name} must be 'first N', 'last N', 'all', 'none' or indices from 0 to {depth - 1}, not "
        f"{blocks!r}: the backbone has {depth} blocks."
    )
    if isinstance(blocks, str):
        words = blocks.replace("first", "first ").replace("last", "last ").split()
        try:
            if blocks in ("all", "none"):
                indices = list(range(depth)) if blocks == "all" else []
            elif len(words) == 2 and words[0] in ("first", "last"):
                n = int(words[1])
                if not 0 <= n <= depth:
                    raise ValueError
                indices = list(range(n)) if words[0] == "first" else list(range(depth - n, depth))
            else:
                indices = [int(word) for word in blocks.split(",")]
        except ValueError:
            raise error from None
    else:
        if not isinstance(blocks, Collection) or isinstance(blocks, Tensor):
            raise error
        indices = list(blocks)
    if any(not is_whole(i) or not -depth <= i < depth for i in indices):
        raise error
    return tuple(sorted({i % depth for i in indices}))
