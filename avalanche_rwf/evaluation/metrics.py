"""Accuracy and forgetting of a class-incremental run, from the predictions themselves.

Pure functions on numpy arrays; nothing here knows torch or Avalanche. A run is a list of
`EvaluationPoint`, one for every evaluation made while the stream was trained on.

The built-in forgetting and backward-transfer metrics of Avalanche 0.6 compare the number of a
*sub-experience* with the number of a test experience and report 0.0 or nonsense on online streams
(ContinualAI/avalanche issue 1343), so none of these numbers is taken from there.

Symbols: T experiences; a[i, j] the accuracy on test experience j after training experience i;
acc[i, c] the accuracy on the test samples of class c at that moment. An accuracy that does not
exist (nothing tested, or no class of it met yet) is NaN and never counts as zero.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avalanche_rwf.checks import check_whole
from avalanche_rwf.errors import UsageError

__all__ = [
    "EvaluationPoint",
    "a_auc",
    "a_avg",
    "a_last",
    "accuracy_exposed",
    "accuracy_matrix",
    "class_accuracy_matrix",
    "forgetting_class",
    "forgetting_experience",
    "summarise",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class EvaluationPoint:
    """All predictions of one evaluation.

    Attributes:
        samples_seen: stream samples trained on before this evaluation (replayed ones not counted).
        experience: index of the training experience that had just ended; None in mid-stream.
        targets: true classes, [n].
        predictions: predicted classes, [n].
        exposed: ids of the classes met in training so far, in ascending order.
        test_experience: the test experience that each sample belongs to, [n].

    Raises:
        ValueError: if the arrays are not one-dimensional integers of one common, positive length,
            or if a count or an index is negative.
    """

    samples_seen: int
    experience: int | None
    targets: IntArray
    predictions: IntArray
    exposed: tuple[int, ...]
    test_experience: IntArray

    def __post_init__(self) -> None:
        check_whole("samples_seen", self.samples_seen, least=0)
        check_whole("experience", self.experience, least=0, optional=True)
        object.__setattr__(self, "samples_seen", int(self.samples_seen))
        if self.experience is not None:
            object.__setattr__(self, "experience", int(self.experience))
        for name in ("targets", "predictions", "test_experience"):
            object.__setattr__(self, name, _integers(getattr(self, name), name))
        n = len(self.targets)
        if n == 0:
            raise ValueError("targets must hold at least one sample, got an empty array.")
        for name in ("predictions", "test_experience"):
            if len(getattr(self, name)) != n:
                raise ValueError(
                    f"{name} must be as long as targets ({n}), got {len(getattr(self, name))}."
                )
        for name in ("targets", "test_experience"):
            if int(getattr(self, name).min()) < 0:
                raise ValueError(
                    f"{name} must not be negative, got {int(getattr(self, name).min())}."
                )
        exposed = self.exposed
        listed = list(exposed) if isinstance(exposed, Collection) else exposed
        classes = set(_integers(listed, "exposed").tolist())
        object.__setattr__(self, "exposed", tuple(sorted(classes)))

    @property
    def correct(self) -> NDArray[np.bool_]:
        """True where the prediction is the target, [n]."""
        return self.targets == self.predictions

    @property
    def counts(self) -> NDArray[np.bool_]:
        """True where the sample's class has been met in training, [n]."""
        return np.isin(self.targets, np.asarray(self.exposed, dtype=np.int64))


def _integers(values: Any, name: str) -> IntArray:
    """Return `values` as a one-dimensional int64 array, or say what is wrong with them."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}.")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}.")
    return array.astype(np.int64, copy=False)


def _check_points(points: Sequence[EvaluationPoint]) -> None:
    if not isinstance(points, Sequence) or not all(isinstance(p, EvaluationPoint) for p in points):
        raise UsageError(f"points must be a list of EvaluationPoint, got {points!r}.")
    if len(points) == 0:
        raise UsageError("points must hold at least one EvaluationPoint, got an empty sequence.")


def _rank(index: int, point: EvaluationPoint) -> tuple[int, bool, int]:
    """Sort key: later in the stream, then an experience end before mid-stream, then recorded later.

    The evaluation at an experience end comes after whatever a method does there (closing a head's
    statistics, for one), so it is the one that stands for its place in the stream.
    """
    return point.samples_seen, point.experience is not None, index


def _distinct(points: Sequence[EvaluationPoint]) -> list[EvaluationPoint]:
    """Return one point per `samples_seen`, ascending; an experience end wins, then the last."""
    ranked = sorted(enumerate(points), key=lambda pair: _rank(*pair))
    return list({point.samples_seen: point for _, point in ranked}.values())


def _experience_ends(points: Sequence[EvaluationPoint]) -> dict[int, EvaluationPoint]:
    """Return the last point of every experience that has one, by experience."""
    ranked = sorted(enumerate(points), key=lambda pair: _rank(*pair))
    ends = {point.experience: point for _, point in ranked if point.experience is not None}
    return dict(sorted(ends.items()))


def _nanmean(values: Sequence[float] | FloatArray) -> float:
    """Mean of the values that exist; NaN, without numpy's warning, where none does."""
    array = np.asarray(values, dtype=np.float64)
    array = array[~np.isnan(array)]
    return float(array.mean()) if array.size else float("nan")


def _accuracy(point: EvaluationPoint, where: NDArray[np.bool_]) -> float:
    """Share of right predictions among the samples in `where`; NaN if there are none."""
    n = int(where.sum())
    return float(point.correct[where].sum()) / n if n else float("nan")


def accuracy_exposed(point: EvaluationPoint) -> float:
    """Accuracy over the test samples of the classes met so far.

    ``sum_n [y_n in E] [y^_n = y_n] / sum_n [y_n in E]`` with E the exposed classes. A prediction
    outside E counts as wrong. This is the accuracy under A_last, A_avg and A_auc in Si-Blurry
    (Moon et al., ICCV 2023, arXiv 2308.09303).

    Returns:
        a value in [0, 1], or NaN if no tested sample is of an exposed class.
    """
    return _accuracy(point, point.counts)


def a_last(points: Sequence[EvaluationPoint]) -> float:
    """Accuracy over all exposed classes after the stream: `accuracy_exposed` of the last point.

    The last point is the one with the most samples seen; an experience end wins over a mid-stream
    evaluation at the same place. Source: as `accuracy_exposed`.

    Raises:
        ValueError: if there are no points.
    """
    _check_points(points)
    return accuracy_exposed(_distinct(points)[-1])


def a_avg(points: Sequence[EvaluationPoint]) -> float:
    """Mean of `accuracy_exposed` over experience ends.

    ``(1/T) sum_t A_t``, the average incremental accuracy (Rebuffi et al., iCaRL, CVPR 2017). An
    experience that was evaluated twice at its end counts once, with its later evaluation. NaN if no
    point is at an experience end.

    Raises:
        ValueError: if there are no points.
    """
    _check_points(points)
    return _nanmean([accuracy_exposed(point) for point in _experience_ends(points).values()])


def a_auc(points: Sequence[EvaluationPoint], every: int | None = None) -> float:
    """Anytime accuracy: mean of `accuracy_exposed` over the places where the stream was evaluated.

    ``(1/J) sum_j A(s_j)`` over evaluation points s_j, the area under the accuracy-to-samples curve
    (Koh et al., i-Blurry, ICLR 2022; Moon et al., Si-Blurry, ICCV 2023). The end always counts
    (some published code drops the last partial period), evaluations at equal `samples_seen` count
    once (an experience end wins), and one before anything was trained does not count.

    Args:
        points: evaluations of one run.
        every: None averages over all distinct places, experience ends included. A number k keeps an
            even grid: the first place at or after every multiple of k, and the end; experience ends
            between them are then left out, as in the published protocol.

    Raises:
        ValueError: if there are no points or `every` is not positive.
    """
    _check_points(points)
    check_whole("every", every, optional=True)
    places = _distinct(points)
    if every is not None:
        kept = {places[-1].samples_seen}
        reached = 0
        for point in places:
            if point.samples_seen // every > reached:
                reached = point.samples_seen // every
                kept.add(point.samples_seen)
        places = [point for point in places if point.samples_seen in kept]
    return _nanmean([accuracy_exposed(point) for point in places])


def accuracy_matrix(points: Sequence[EvaluationPoint], n_experiences: int) -> FloatArray:
    """Accuracy on every test experience after every training experience, [T, T].

    Entry (t, j) is the accuracy on the samples of test experience j after training experience t
    (Lopez-Paz and Ranzato, GEM, NeurIPS 2017, equation of R). Only samples of classes met by then
    count, so on streams whose classes are split the part above the diagonal is NaN, not zero.

    Raises:
        ValueError: if there are no points, or if a point is of an experience >= `n_experiences`.
    """
    _check_points(points)
    check_whole("n_experiences", n_experiences)
    matrix = np.full((n_experiences, n_experiences), np.nan)
    for t, point in _experience_ends(points).items():
        last = max(t, int(point.test_experience.max()))
        if last >= n_experiences:
            raise ValueError(
                f"n_experiences must be above every experience index, got {n_experiences} "
                f"and a point with experience {last}."
            )
        counts = point.counts
        for j in range(n_experiences):
            matrix[t, j] = _accuracy(point, counts & (point.test_experience == j))
    return matrix


def class_accuracy_matrix(
    points: Sequence[EvaluationPoint], n_experiences: int, n_classes: int | None = None
) -> FloatArray:
    """Accuracy on every class after every training experience, [T, C].

    Entry (t, c) is the accuracy on the test samples of class c after training experience t; NaN
    where the class had not been met by then or was not tested.

    Args:
        points: evaluations of one run.
        n_experiences: T.
        n_classes: C; by default one more than the largest target.

    Raises:
        ValueError: if there are no points, if a point is of an experience >= `n_experiences`, or if
            a target is not below `n_classes`.
    """
    _check_points(points)
    check_whole("n_experiences", n_experiences)
    check_whole("n_classes", n_classes, optional=True)
    needed = 1 + max(int(point.targets.max()) for point in points)
    if n_classes is not None and n_classes < needed:
        raise ValueError(f"n_classes must be above every target, got {n_classes} for {needed - 1}.")
    classes = needed if n_classes is None else n_classes
    matrix = np.full((n_experiences, classes), np.nan)
    for t, point in _experience_ends(points).items():
        if t >= n_experiences:
            raise ValueError(
                f"n_experiences must be above every experience index, got {n_experiences} "
                f"and a point with experience {t}."
            )
        counts = point.counts
        tested = np.bincount(point.targets[counts], minlength=classes)
        right = np.bincount(point.targets[counts & point.correct], minlength=classes)
        there = tested > 0
        matrix[t, there] = right[there] / tested[there]
    return matrix


def forgetting_experience(matrix: FloatArray) -> float:
    """Forgetting per experience, from the accuracy matrix [T, T].

    ``F = 1/(T-1) sum_{t < T-1} ( max_{t <= i < T-1} a[i, t] - a[T-1, t] )``, counting from 0: what
    every experience but the last lost since its best moment (Chaudhry et al., ECCV 2018). It may be
    negative, where later experiences helped. This is the number of offline papers and *not* the
    class-level F_last of the online prompt papers: see `forgetting_class`.

    Returns:
        the mean over the experiences whose terms exist; NaN with a single experience.

    Raises:
        ValueError: if the matrix is not square.
    """
    a = np.asarray(matrix, dtype=np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
        raise ValueError(f"matrix must be square, [T, T], got shape {a.shape}.")
    final = len(a) - 1
    losses = [_best(a[t:final, t]) - a[final, t] for t in range(final)]
    return _nanmean(losses)


def forgetting_class(class_matrix: FloatArray, only_learned: bool = False) -> float:
    """Forgetting per class, from the class accuracy matrix [T, C]: F_last of the online papers.

    ``F = mean_c ( max_{t < T-1} acc[t, c] - acc[T-1, c] )``, counting from 0, over the classes c
    that were met before the last experience. It may be negative.

    SinglePrompt and FlyGCL leave out a class whose best accuracy is 0. Here such a class counts by
    default (with a loss <= 0): leaving it out gives every method another set of classes, and one
    that never learned a class would be charged more than one that did and kept a little of it.
    `only_learned=True` gives their number.

    Returns:
        the mean over those classes; NaN if there are none, as with a single experience.

    Raises:
        ValueError: if the matrix does not have two dimensions and at least one row.
    """
    acc = np.asarray(class_matrix, dtype=np.float64)
    if acc.ndim != 2 or acc.shape[0] == 0:
        raise ValueError(f"class_matrix must be [T, C] with T >= 1, got shape {acc.shape}.")
    losses = []
    for c in range(acc.shape[1]):
        best = _best(acc[:-1, c])
        if not (only_learned and best <= 0):
            losses.append(best - acc[-1, c])
    return _nanmean(losses)


def _best(values: FloatArray) -> float:
    """Maximum of the values that exist, NaN where none does."""
    there = values[~np.isnan(values)]
    return float(there.max()) if there.size else float("nan")


def summarise(
    points: Sequence[EvaluationPoint], n_experiences: int, every: int | None = None
) -> dict[str, float | None]:
    """Return the five numbers of a run, as they stand in `summary.json`.

    Args:
        points: evaluations of one run.
        n_experiences: number of training experiences.
        every: the grid of `a_auc`.

    Returns:
        `a_last`, `a_avg`, `a_auc`, `forgetting_experience`, `forgetting_class` as shares of 1; None
        for a number that does not exist (forgetting with one experience), as JSON has no NaN.

    Raises:
        ValueError: as the single functions do.
    """
    values = {
        "a_last": a_last(points),
        "a_avg": a_avg(points),
        "a_auc": a_auc(points, every),
        "forgetting_experience": forgetting_experience(accuracy_matrix(points, n_experiences)),
        "forgetting_class": forgetting_class(class_accuracy_matrix(points, n_experiences)),
    }
    return {name: None if np.isnan(value) else value for name, value in values.items()}
