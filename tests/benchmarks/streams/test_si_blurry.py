"""Si-Blurry: the session sizes of the official sampler, and what it is to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avalanche_rwf.benchmarks.streams.si_blurry import si_blurry

CIFAR100 = np.repeat(np.arange(100), 500)


# Session sizes that both public implementations give (50 per cent disjoint, 10 blurry).
@pytest.mark.parametrize(
    ("seed", "sizes"),
    [
        (1, [6500, 3000, 10264, 22000, 8236]),
        (2, [4500, 9500, 13500, 10500, 12000]),
        (3, [21000, 13000, 2500, 7500, 6000]),
        (5, [6500, 27500, 8061, 3389, 4550]),
    ],
)
def test_session_sizes_of_cifar100(seed, sizes):
    for remainder in ("keep", "drop"):  # nothing remains of 100 classes and 5 sessions
        dealt = si_blurry(CIFAR100, seed, 5, 50, 10, remainder)
        assert [len(part) for part in dealt] == sizes
    mixed = np.random.RandomState(0).permutation(CIFAR100)
    assert [len(part) for part in si_blurry(mixed, seed, 5)] == sizes


def test_classes_of_the_sessions():
    dealt = [set(CIFAR100[part].tolist()) for part in si_blurry(CIFAR100, 1, 5)]
    assert [len(classes) for classes in dealt] == [19, 12, 27, 47, 23]
    seen: set[int] = set()
    new = []
    for classes in dealt:
        new.append(len(classes - seen))
        seen |= classes
    assert new == [19, 5, 20, 40, 16]


def test_session_sizes_of_200_classes_of_30():
    labels = np.repeat(np.arange(200), 30)
    assert [len(part) for part in si_blurry(labels, 1, 5)] == [1170, 780, 1560, 472, 2018]


def test_half_of_the_classes_stay_in_one_session_and_a_tenth_of_the_others_samples_wander():
    dealt = si_blurry(CIFAR100, 1, 5)
    counts = np.stack([np.bincount(CIFAR100[part], minlength=100) for part in dealt])
    whole = counts.max(axis=0) == 500
    assert whole.sum() >= 50
    home = counts.argmax(axis=0)
    wandered = counts.sum() - counts[home, np.arange(100)].sum()
    assert 0 < wandered <= 2500  # some are dealt back to where they came from


def test_the_remainder_is_kept_unless_it_is_to_be_dropped():
    labels = np.repeat(np.arange(196), 40)
    kept = np.concatenate(si_blurry(labels, 1, 5))
    dropped = np.concatenate(si_blurry(labels, 1, 5, remainder="drop"))
    assert sorted(kept) == list(range(len(labels)))
    # 95 disjoint classes, 101 blurry: one is left out, with all of its samples.
    assert len(dropped) == len(labels) - 40
    assert len(set(labels[dropped].tolist())) == 195


def reference(labels, seed, sessions, n, m):
    """The sampler as it is described, sample by sample; classes that do not divide are kept."""
    g = torch.Generator().manual_seed(seed)

    def cut(length):
        if not length:
            return [0] * sessions
        inner = sorted(torch.randint(0, length, (sessions - 1,), generator=g).tolist())
        return [b - a for a, b in zip([0, *inner], [*inner, length], strict=True)]

    def deal(things, sizes):
        things = iter(things)
        return [[next(things) for _ in range(size)] for size in sizes]

    classes = max(labels) + 1
    disjoint = classes * n // 100 // sessions * sessions
    order = torch.randperm(classes, generator=g).tolist()
    own = deal(order[:disjoint], cut(disjoint))
    shared = deal(order[disjoint:], cut(classes - disjoint))
    stay = [[i for i, label in enumerate(labels) if label in part] for part in own]
    wander = [[i for i, label in enumerate(labels) if label in part] for part in shared]
    quotas = cut(sum(map(len, wander)) * m // 100)
    pool = [i for part, quota in zip(wander, quotas, strict=True) for i in part[:quota]]
    pool = [pool[i] for i in torch.randperm(len(pool), generator=g)]
    dealt = []
    for first, part, quota in zip(stay, wander, quotas, strict=True):
        back, pool = pool[:quota], pool[quota:]
        session = first + part[quota:] + back
        dealt.append([session[i] for i in torch.randperm(len(session), generator=g)])
    return dealt


@pytest.mark.parametrize("seed", range(12))
def test_the_lists_of_samples_are_those_of_the_description(seed):
    rng = np.random.RandomState(seed)
    labels = rng.permutation(np.repeat(np.arange(15), rng.randint(1, 20, 15)))
    for sessions, n, m in ((5, 50, 10), (4, 30, 60), (7, 100, 50), (3, 0, 100)):
        dealt = si_blurry(labels, seed, sessions, n, m)
        assert [part.tolist() for part in dealt] == reference(labels.tolist(), seed, sessions, n, m)
