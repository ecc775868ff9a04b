"""How a method looks: one colour, marker and line of its own, in every picture and on the page.

A look follows from the method's name alone, not from its rank, its place or the methods beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

# On a light and on a dark ground. The first seven are Okabe and Ito's without the yellow, which a
# white page hides; the others are of Tol's "muted". Told apart with every kind of colour vision.
_COLOURS = (
    ("#0072B2", "#62B4EC"),  # blue
    ("#D55E00", "#F58B4C"),  # vermilion
    ("#009E73", "#3CC9A0"),  # green
    ("#CC79A7", "#E6A9CA"),  # pink
    ("#E69F00", "#F3BE55"),  # orange
    ("#56B4E9", "#A9DAF7"),  # sky
    ("#000000", "#ECEDEF"),  # the ink
    ("#882255", "#DF7FA8"),  # wine
    ("#332288", "#A394F0"),  # indigo
    ("#999933", "#CFCF75"),  # olive
    ("#44AA99", "#83D6C8"),  # teal
)
# As matplotlib and as Plotly name them. Filled shapes only: a hollow one means something.
_MARKERS = (
    *(("o", "circle"), ("s", "square"), ("D", "diamond"), ("^", "triangle-up")),
    *(("v", "triangle-down"), ("P", "cross"), ("X", "x"), ("p", "pentagon")),
    *(("<", "triangle-left"), (">", "triangle-right"), ("*", "star"), ("h", "hexagon")),
)
_DASHES = (("-", "solid"), ("--", "dash"), ("-.", "dashdot"), (":", "dot"))
# Methods that are often drawn together: the first eleven differ in colour, all in the look. Any
# other name, as of a method of your own, gets its look from a hash.
_KNOWN = (
    *("rwf", "slda", "rwf-lda", "l2p", "dualprompt", "rwf-mean", "ncm", "single-prompt"),
    *("linear-probe", "layers-lda", "coda-prompt"),
    *("mvp", "fine-tune", "avalanche-l2p", "rp-ridge", "er", "er-ace", "der", "rwf-literal"),
    *("rwf-static", "rwf-random", "rwf-lda-held", "avalanche-l2p-as-shipped"),
    *("f-oal", "fecam", "klda", "layup", "randumb", "pool-lda", "ranpac", "online-lora"),
)


class Look(NamedTuple):
    """How a row of the leaderboard is drawn.

    :param light: the colour on a light ground; `dark` is that on a dark one.
    :param marker: as matplotlib names it; `symbol` is Plotly's name.
    :param line: as matplotlib names it; `dash` is Plotly's name.
    """

    light: str
    dark: str
    marker: str
    symbol: str
    line: str
    dash: str


def look(method: str, variant: int = 0) -> Look:
    """Return the look of a method.

    :param method: by name.
    :param variant: of several rows of the method, which share its colour.
    """
    if method in _KNOWN:
        number = _KNOWN.index(method)
        place = number + 4 * (number // len(_COLOURS))  # another marker in the second round
        return _look(number, place + variant, place + variant)
    known = {look(name) for name in _KNOWN}
    number = int.from_bytes(hashlib.sha256(method.encode(errors="replace")).digest()[:8], "big")
    while True:
        rest = number // len(_COLOURS)
        found = _look(number, rest + variant, rest // len(_MARKERS) + variant)
        if found not in known:
            return found
        number += 1


def _look(colour: int, marker: int, line: int) -> Look:
    light, dark = _COLOURS[colour % len(_COLOURS)]
    return Look(
        light, dark, *_MARKERS[marker % len(_MARKERS)], *_DASHES[line % len(_DASHES)]
    )


def looks(rows: Sequence[Mapping[str, Any]]) -> list[Look]:
    """Return the looks of rows that are drawn together.

    :param rows: with `method` and `config_hash`. Several of a method are told apart in the order of
        their hashes, which no score changes.
    """
    of: dict[str, list[int]] = {}
    for i in sorted(range(len(rows)), key=lambda i: (str(rows[i]["config_hash"]), i)):
        of.setdefault(str(rows[i]["method"]), []).append(i)
    return [
        look(method, of[method].index(i))
        for i, method in enumerate(str(row["method"]) for row in rows)
    ]
