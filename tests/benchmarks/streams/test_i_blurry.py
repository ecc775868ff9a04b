"""i-Blurry: equal sessions, and the remainder."""

from __future__ import annotations

import numpy as np

from avalanche_rwf.benchmarks.streams.i_blurry import i_blurry

LABELS = np.repeat(np.arange(20), 50)


def test_sessions_are_equal_and_a_tenth_of_half_the_classes_wanders():
    dealt = i_blurry(LABELS, 1, 5)
    assert [len(part) for part in dealt] == [200] * 5
    counts = np.stack([np.bincount(LABELS[part], minlength=20) for part in dealt])
    home = counts.argmax(axis=0)
    at_home = counts[home, np.arange(20)]
    assert (at_home == 50).sum() >= 10  # disjoint
    # 90 of a session's 100 blurry samples stay; what wanders is all of its first class.
    assert (at_home >= 40).all()
    assert np.bincount(home).tolist() == [4] * 5
    assert 0 < 1000 - at_home.sum() <= 50


def test_the_blurred_samples_are_the_first_of_a_sessions_list():
    dealt = i_blurry(LABELS, 1, 5, disjoint=0, blurry=20)
    counts = np.stack([np.bincount(LABELS[part], minlength=20) for part in dealt])
    home = np.asarray([counts[:, c].argmax() for c in range(20)])
    for session, part in enumerate(dealt):
        own = np.sort(np.flatnonzero(home[LABELS] == session))
        stayed = set(own[40:].tolist())  # 200 samples, of which a fifth went to the pool
        assert stayed <= set(part.tolist())


def test_a_remainder_is_kept_or_dropped_as_asked():
    labels = np.repeat(np.arange(13), 7)
    kept = i_blurry(labels, 0, 4, blurry=30)
    assert sorted(np.concatenate(kept)) == list(range(91))
    # Of 13 classes 4 are disjoint; of the other 9 one is left out, and 14 * 30 % = 4 samples of
    # each session form a pool of 16, which divides.
    dropped = np.concatenate(i_blurry(labels, 0, 4, blurry=30, remainder="drop"))
    assert len(dropped) == 12 * 7
    # Six classes in 3 sessions of 10, 10 and 20 samples: 35 % are 3, 3 and 7, and of a pool of 13
    # one is left.
    uneven = np.concatenate([np.repeat(np.arange(5), 5), np.full(15, 5)])
    for seed in range(3):
        parts = i_blurry(uneven, seed, 3, disjoint=0, blurry=35, remainder="drop")
        assert len(np.concatenate(parts)) == 39
