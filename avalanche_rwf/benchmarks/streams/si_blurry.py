"""`si-blurry`: stochastic incremental blurry tasks (Moon et al., ICCV 2023, arXiv 2308.09303).

Written from a description of the official sampler, whose random numbers it reproduces: for class
numbers that divide, the index lists are those of the official code at the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import add_option, one_of, register_stream, whole

if TYPE_CHECKING:
    import torch

add_option(
    "disjoint",
    "a whole number from 0 to 100, the share of the classes in per cent",
    whole(0, 100),
    "per cent of the classes that stay in one experience (default: 50)",
)
add_option(
    "blurry",
    "a whole number from 0 to 100, the share of the samples in per cent",
    whole(0, 100),
    "per cent of the other classes' samples that wander between experiences (default: 10)",
)
add_option(
    "remainder",
    "keep or drop",
    one_of("keep", "drop"),
    "what does not divide by the number of experiences: keep, or drop as the official code does "
    "(default: keep)",
)


def split_classes(
    num_classes: int, experiences: int, disjoint: int, remainder: str, generator: torch.Generator
) -> tuple[list[int], list[int]]:
    """The disjoint and the blurry classes, each in a random order.

    ``D = (C n // 100) // T * T`` classes are disjoint, the other ``B = C - D`` blurry; with the
    remainder dropped only ``B // T * T`` of these are in the stream.
    """
    import torch

    order = torch.randperm(num_classes, generator=generator).tolist()
    d = num_classes * disjoint // 100 // experiences * experiences
    b = num_classes - d
    if remainder == "drop":
        b = b // experiences * experiences
    return order[:d], order[d : d + b]


def positions_of(labels: np.ndarray, classes: list[int]) -> np.ndarray:
    """Positions of the samples of some classes, in the order of the data set."""
    return np.flatnonzero(np.isin(labels, classes))


def permuted(positions: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Positions in a random order."""
    import torch

    return positions[torch.randperm(len(positions), generator=generator).numpy()]


def mixed_sessions(
    stay: Sequence[np.ndarray],
    wander: Sequence[np.ndarray],
    quotas: Sequence[int],
    deal: Callable[[np.ndarray], list[np.ndarray]],
    generator: torch.Generator,
) -> list[np.ndarray]:
    """Positions per session: the samples that stay, and the blurry ones after some have wandered.

    The first samples of each session's blurry list, as many as its quota (or as there are), form a
    pool, which is permuted and dealt to the sessions. Each session is then permuted.
    """
    pool = np.concatenate([blurry[:quota] for blurry, quota in zip(wander, quotas, strict=True)])
    parts = zip(stay, wander, quotas, deal(permuted(pool, generator)), strict=True)
    return [
        permuted(np.concatenate([disjoint, blurry[quota:], back]), generator)
        for disjoint, blurry, quota, back in parts
    ]


def _cuts(length: int, parts: int, generator: torch.Generator) -> list[int]:
    """``[0, ..., length]``: where a list is cut into `parts`, any of which may be empty."""
    import torch

    if length == 0:
        return [0] * (parts + 1)
    inner = torch.randint(0, length, (parts - 1,), generator=generator)
    return [0, *inner.sort().values.tolist(), length]


@register_stream(
    "si-blurry", summary="Si-Blurry: random session sizes, some classes wander between sessions"
)
def si_blurry(
    labels: np.ndarray,
    seed: int,
    experiences: int,
    disjoint: int = 50,
    blurry: int = 10,
    remainder: str = "keep",
) -> list[np.ndarray]:
    """Deal samples as Si-Blurry does; positions of `labels` per session.

    1. Classes are permuted; `disjoint` per cent of them are disjoint, the others blurry, and the
       ones and the others are cut into T lists at random places: sessions of very unequal sizes,
       perhaps without new classes, or empty.
    2. `blurry` per cent of the blurry classes' samples are cut into T quotas at random places, by
       which samples wander and are dealt back: see :func:`mixed_sessions`.

    :param labels: int [N] of 0 to C - 1.
    :param experiences: T.
    :param remainder: "drop" leaves blurry classes out that do not divide by T, as the official code
        does; "keep" is the variant of SinglePrompt and MISA and loses nothing.
    """
    import torch

    g = torch.Generator().manual_seed(seed)
    num_classes = int(labels.max()) + 1
    d_classes, b_classes = split_classes(num_classes, experiences, disjoint, remainder, g)
    d_cuts = _cuts(len(d_classes), experiences, g)
    b_cuts = _cuts(len(b_classes), experiences, g)
    sessions = range(experiences)
    stay = [positions_of(labels, d_classes[d_cuts[i] : d_cuts[i + 1]]) for i in sessions]
    wander = [positions_of(labels, b_classes[b_cuts[i] : b_cuts[i + 1]]) for i in sessions]

    ends = _cuts(sum(map(len, wander)) * blurry // 100, experiences, g)
    quotas = np.diff(ends).tolist()
    return mixed_sessions(stay, wander, quotas, lambda pool: np.split(pool, ends[1:-1]), g)
