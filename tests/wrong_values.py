"""Values that an argument of a kind cannot have, each of which something once took in silence."""

from __future__ import annotations

import torch


class _Thing:
    def __repr__(self) -> str:
        return "thing"  # where in memory it is would be another name for a test in each process


_OTHER = ["x", [], {}, _Thing(), torch.zeros(2)]
NAN, INFINITY = float("nan"), float("inf")
NO_COUNT = [None, -1, 0, 1.5, True, NAN, INFINITY, *_OTHER]
"""No whole number of at least 1."""
NO_RATE = [None, -1, True, NAN, INFINITY, *_OTHER]
"""No finite number of at least 0."""
NO_NAME = [None, -1, 0, 1.5, True, NAN, *_OTHER]
"""No name of anything."""
NO_FLAG = [None, -1, 0, 1, 1.5, NAN, *_OTHER]
"""Neither True nor False."""


def without(values: list, *fine) -> list:
    """Those values that are not the very ones that an argument takes besides."""
    return [value for value in values if not any(value is one for one in fine)]
