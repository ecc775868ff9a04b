"""Statistics over seeds: pure functions on arrays, one value a seed; NaN is a seed without one."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


class Paired(NamedTuple):
    """A method's difference to a reference over the seeds that both have.

    :param n: pairs.
    :param difference: mean of method minus reference; NaN without a pair.
    :param low: lower end of its 95 % interval; NaN with fewer than two pairs.
    :param high: its upper end.
    :param p: of the two-sided paired t-test; NaN with fewer than two pairs, or where all
        differences are equal and the test is not defined.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


def _there(values: ArrayLike) -> list[float]:
    return [value for value in np.asarray(values, np.float64).tolist() if value == value]


def mean_std(values: ArrayLike) -> tuple[float, float]:
    """Mean and sample standard deviation (ddof=1) of the values that are not NaN, [n].

    Sums are exact (`math.fsum`), so the order of the seeds changes nothing; for the few values of a
    row that also is the faster way.
    """
    there = _there(values)
    n = len(there)
    if not n:
        return math.nan, math.nan
    mean = math.fsum(there) / n
    if n < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in there) / (n - 1))


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of the values that are not NaN, [n].

    ``mean ± t(n - 1) · s / sqrt(n)`` with s the sample standard deviation. It is not cut at 0 and
    1: with two or three seeds an interval of accuracies may well pass them, and says so how little
    two or three seeds tell.

    :returns: its ends; NaN with fewer than two values.
    """
    mean, deviation = mean_std(values)
    n = len(_there(values))
    if n < 2:
        return math.nan, math.nan
    half = float(special.stdtrit(n - 1, 0.5 + level / 2)) * deviation / math.sqrt(n)
    return mean - half, mean + half


def paired_difference(values: ArrayLike, reference: ArrayLike) -> Paired:
    """Compare a method with a reference seed by seed.

    A seed fixes the stream, the order of samples and every initial value, so what two methods have
    in common at a seed drops out of their difference.

    :param values: of the method, [n], by seed.
    :param reference: of the reference at the same seeds, [n]; pairs with a NaN do not count.
    """
    differences = _there(np.asarray(values, np.float64) - np.asarray(reference, np.float64))
    n = len(differences)
    mean, deviation = mean_std(differences)
    low, high = interval(differences)
    # Equal differences leave nothing but rounding to divide by.
    if n < 2 or deviation <= 1e-12 * max(1.0, abs(mean)):
        return Paired(n, mean, low, high, math.nan)
    from scipy import stats  # takes a second to import, and a plain ranking does not need it

    return Paired(n, mean, low, high, float(stats.ttest_1samp(differences, 0.0).pvalue))
