"""`i-blurry`: sessions of equal numbers of classes, some of them blurry (i-Blurry, Koh et al., ICLR
2022, arXiv 2110.10031)."""

from __future__ import annotations

import numpy as np

from avalanche_rwf.benchmarks.stream_registry import register_stream
from avalanche_rwf.benchmarks.streams.si_blurry import (
    mixed_sessions,
    positions_of,
    split_classes,
)


@register_stream(
    "i-blurry", summary="i-Blurry: equal sessions, a part of some classes' samples wanders"
)
def i_blurry(
    labels: np.ndarray,
    seed: int,
    experiences: int,
    disjoint: int = 50,
    blurry: int = 10,
    remainder: str = "keep",
) -> list[np.ndarray]:
    """Deal samples as i-Blurry with fixed N and M does; positions of `labels` per session.

    Classes are permuted and `disjoint` per cent of them are disjoint, the others blurry; each
    session has equal numbers of both. The first `blurry` per cent of each session's blurry samples
    form a pool, which is permuted and dealt to the sessions in equal parts.

    :param labels: int [N] of 0 to C - 1.
    :param experiences: T.
    :param remainder: what does not divide by T: with "keep" the first sessions have a blurry class
        or a sample of the pool more; "drop" leaves out those classes (where the official code
        stops with an error) and up to T - 1 samples of the pool (which it loses).
    """
    import torch

    g = torch.Generator().manual_seed(seed)
    num_classes = int(labels.max()) + 1
    d_classes, b_classes = split_classes(num_classes, experiences, disjoint, remainder, g)
    stay = [positions_of(labels, part) for part in _parts(d_classes, experiences)]
    wander = [positions_of(labels, part) for part in _parts(b_classes, experiences)]

    def deal(pool: np.ndarray) -> list[np.ndarray]:
        kept = len(pool) // experiences * experiences if remainder == "drop" else len(pool)
        return np.array_split(pool[:kept], experiences)

    quotas = [len(positions) * blurry // 100 for positions in wander]
    return mixed_sessions(stay, wander, quotas, deal, g)


def _parts(classes: list[int], experiences: int) -> list[list[int]]:
    """Equal parts, the first ones one class longer where it does not divide."""
    return [part.tolist() for part in np.array_split(np.asarray(classes, dtype=int), experiences)]
