"""Statistics over seeds against scipy and cases worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from avalanche_rwf.leaderboard.stats import interval, mean_std, paired_difference


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_intervals_and_tests_are_those_of_scipy(n):
    rng = np.random.default_rng(n)
    a, b = rng.random(n), rng.random(n)
    assert mean_std(a) == pytest.approx((a.mean(), a.std(ddof=1)))
    expected = stats.t.interval(0.95, n - 1, loc=a.mean(), scale=stats.sem(a))
    assert interval(a) == pytest.approx(expected)
    paired = paired_difference(a, b)
    test = stats.ttest_rel(a, b)
    assert (paired.n, paired.difference) == (n, pytest.approx((a - b).mean()))
    assert paired.p == pytest.approx(test.pvalue)
    ends = test.confidence_interval(0.95)
    assert (paired.low, paired.high) == pytest.approx((ends.low, ends.high))


def test_intervals_and_tests_are_those_by_hand():
    # mean 0.7, s 0.2, t(2) = 4.302653: half of the interval is 4.302653 * 0.2 / sqrt(3)
    assert interval([0.5, 0.7, 0.9]) == pytest.approx((0.7 - 0.4968275, 0.7 + 0.4968275))
    # differences 0.1 and 0.3: t = 0.2 / 0.1 = 2 with one degree of freedom, p = 1 - 2 atan(2) / pi
    paired = paired_difference([0.5, 0.9], [0.4, 0.6])
    assert paired.difference == pytest.approx(0.2)
    assert paired.p == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_what_does_not_exist_is_nan():
    assert all(math.isnan(value) for value in (*mean_std([]), *interval([0.5])))
    assert mean_std([0.5, math.nan])[0] == 0.5
    assert math.isnan(paired_difference([], []).difference)
    one = paired_difference([0.5, math.nan], [0.25, 0.1])
    assert (one.n, one.difference) == (1, 0.25)
    assert math.isnan(one.p)
    # all differences equal, but for rounding: no test
    alike = paired_difference([0.3, 0.5, 0.8], [0.1, 0.3, 0.6])
    assert alike.difference == pytest.approx(0.2)
    assert math.isnan(alike.p)
