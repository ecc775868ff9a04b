"""Accuracy and forgetting of a class-incremental run, from the predictions themselves.

Pure functions on numpy arrays; nothing here knows torch or Avalanche. A run is a list of
`EvaluationPoint`, one for every evaluation made while the stream was trained on.

The built-in forgetting and backward-transfer metrics of Avalanche 0.6 compare the number of a
*sub-experience* with the number of a test experience and report 0.0 or nonsense on online streams
(ContinualAI/avalanche issue 1343), so none of these numbers is taken from there.

An experience's end is a point that covers every test sample of the classes met by then: an
evaluation of a part of the test stream stands for nothing but itself. What that leaves without a
value is NaN (None in `summarise`, which says why in a warning), never the number of another set of
test images.

Symbols: T experiences; a[i, j] the accuracy on test experience j after training experience i;
acc[i, c] the accuracy on the test samples of class c at that moment. An accuracy that does not
exist (nothing tested, or no class of it met yet) is NaN and never counts as zero.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.validation import By, Whole, shown, takes

__all__ = [
    "METRICS",
    "EvaluationPoint",
    "Metric",
    "TestStream",
    "a_auc",
    "a_avg",
    "a_last",
    "accuracy_exposed",
    "accuracy_matrix",
    "class_accuracy_matrix",
    "example_points",
    "experience_ends",
    "forgetting_class",
    "forgetting_experience",
    "metric",
    "metrics_csv",
    "summarise",
]

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A number of a run's `summary.json`, declared once for summary, CSV, leaderboard and entries.

    :param name: its key.
    :param title: its heading in tables.
    :param kind: "share" (0 to 1), "change" (of a share, -1 to 1), "seconds", "rate", "count" or
        "bytes".
    :param help: one line about it.
    :param best: "max" or "min", whichever is better; None is a fact and no score.
    :param keep: importance of its column where the width is short, 100 for one that is always
        there; None shows it in wide tables only.
    :param of_machine: whether the machine decides it as much as the method.
    :param function: of the evaluations; None is measured while the run goes on.
    """

    name: str
    title: str
    kind: str
    help: str
    best: str | None = None
    keep: int | None = None
    of_machine: bool = False
    function: Callable[..., float] | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """What the function takes of what `summarise` has."""
        known = ("points", "n_experiences", "every", "matrix", "class_matrix")
        given = () if self.function is None else inspect.signature(self.function).parameters
        return tuple(name for name in given if name in known)


METRICS: dict[str, Metric] = {}
"""All that `summary.json` has numbers of, by name, in the order of the file."""


def metric(
    title: str, kind: str, help: str, **how: Any
) -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Declare a function to be a number of every run (decorator).

    Its arguments are taken by name from what `summarise` has: `points`, `n_experiences`, `every`,
    `matrix` (`accuracy_matrix`) and `class_matrix` (`class_accuracy_matrix`).

    :param title: its heading in tables.
    :param kind: as `Metric` has it.
    :param help: one line about it.
    :param how: `best`, `keep`, as `Metric` has them.
    :returns: the decorator.
    """

    def declare(function: Callable[..., float]) -> Callable[..., float]:
        name = function.__name__
        METRICS[name] = Metric(name, title, kind, help, function=function, **how)
        return function

    return declare


@dataclass(frozen=True)
class TestStream:
    """What a whole test stream holds.

    :param experiences: how many test experiences it has.
    :param samples: how many samples it has of each class, by class.
    """

    __test__ = False  # it is no test of pytest's

    experiences: int
    samples: Mapping[int, int]


@takes(samples_seen=Whole(least=0), experience=Whole(least=0, optional=True))
@dataclass(frozen=True, eq=False)
class EvaluationPoint:
    """All predictions of one evaluation.

    :param samples_seen: stream samples trained on before this evaluation (replayed ones not
        counted).
    :param experience: index of the training experience that had just ended; None in mid-stream.
    :param targets: true classes, [n].
    :param predictions: predicted classes, [n].
    :param exposed: ids of the classes met in training so far, in ascending order.
    :param test_experience: the test experience that each sample belongs to, [n].
    :param stream: the whole test stream that the evaluated samples are of; None if it is not known.
    :param ended: training experiences that had ended by then; None if it is not known.
    :raises ValueError: if the arrays are not one-dimensional integers of one common, positive
        length, or if a count or an index is negative.

    >>> point = EvaluationPoint(10, 0, np.array([0, 1]), np.array([0, 0]), (0,), np.array([0, 1]))
    >>> point.correct.tolist(), point.counts.tolist()
    ([True, False], [True, False])
    """

    samples_seen: int
    experience: int | None
    targets: IntArray
    predictions: IntArray
    exposed: tuple[int, ...]
    test_experience: IntArray
    stream: TestStream | None = field(default=None, repr=False)
    ended: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
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

    @property
    def tested(self) -> dict[int, int]:
        """Samples of each class that were tested, by class."""
        classes, counts = np.unique(self.targets, return_counts=True)
        return dict(zip(classes.tolist(), counts.tolist(), strict=True))

    def missing(self, samples: Mapping[int, int] | None = None) -> list[int]:
        """Classes met in training that were not tested, of those that could be.

        :param samples: tested samples of each class that it takes to be complete. By default one of
            each class that the test stream has.
        """
        tested = self.tested
        if samples is None:
            known = {} if self.stream is None else self.stream.samples
            return [c for c in self.exposed if known.get(c, 0) and c not in tested]
        return [c for c in self.exposed if samples.get(c, 0) != tested.get(c, 0)]


def example_points() -> list[EvaluationPoint]:
    """Return the run of this module's examples, as a recorder would.

    Two experiences with a class each, evaluated at their ends and once in between on four images.

    :returns: three points.

    >>> [(point.samples_seen, point.experience, point.exposed) for point in example_points()]
    [(10, 0, (0,)), (15, None, (0, 1)), (20, 1, (0, 1))]
    """
    targets = np.array([0, 0, 1, 1])
    return [
        EvaluationPoint(seen, experience, targets, np.array(predictions), exposed, targets)
        for seen, experience, predictions, exposed in (
            (10, 0, [0, 0, 0, 0], (0,)),
            (15, None, [0, 0, 0, 1], (0, 1)),
            (20, 1, [1, 0, 1, 1], (0, 1)),
        )
    ]


def _integers(values: Any, name: str) -> IntArray:
    """Return `values` as a one-dimensional int64 array, or say what is wrong with them."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}.")
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}.")
    return array.astype(np.int64, copy=False)


def _check_points(name: str, value: Any) -> None:
    if not isinstance(value, Sequence) or not all(isinstance(p, EvaluationPoint) for p in value):
        raise UsageError(f"{name} must be a list of EvaluationPoint, not {shown(value)}.")
    if len(value) == 0:
        raise UsageError(f"{name} must hold at least one EvaluationPoint, not an empty sequence.")


_POINTS = By(_check_points)


def _whole(points: Sequence[EvaluationPoint]) -> Mapping[int, int]:
    """Samples of each class in the whole test stream.

    It is the stream of the first point at an experience's end; where no point knows its stream, the
    most samples of each class that one of them has.
    """
    for point in points:
        if point.experience is not None and point.stream is not None:
            return point.stream.samples
    most: dict[int, int] = {}
    for point in points:
        if point.stream is None:
            for label, n in point.tested.items():
                most[label] = max(n, most.get(label, 0))
    return most


def _usable(points: Sequence[EvaluationPoint]) -> list[bool]:
    """Which points stand for their place in the stream.

    At an experience's end one must be complete. In mid-stream a subset of the samples will do, if
    it has some of every class met.
    """
    whole = _whole(points)
    return [
        not (point.missing() if point.experience is None else point.missing(whole))
        for point in points
    ]


def _ranked(points: Sequence[EvaluationPoint]) -> list[tuple[EvaluationPoint, bool]]:
    """Points with whether they stand for their place, later ones behind.

    Later is: later in the stream, then one that stands for its place, then an experience end, then
    recorded later. The evaluation at an experience end comes after whatever a method does there
    (closing a head's statistics, for one), so it is the one that counts before mid-stream ones.
    """
    usable = _usable(points)
    order = sorted(
        range(len(points)),
        key=lambda i: (points[i].samples_seen, usable[i], points[i].experience is not None, i),
    )
    return [(points[i], usable[i]) for i in order]


def _places(points: Sequence[EvaluationPoint]) -> list[tuple[EvaluationPoint, bool]]:
    """One point per `samples_seen`, ascending, with whether it stands for the place."""
    return list({point.samples_seen: (point, fits) for point, fits in _ranked(points)}.values())


def experience_ends(points: Sequence[EvaluationPoint]) -> dict[int, EvaluationPoint]:
    """The last complete point of every experience that has one, by experience.

    :param points: evaluations of one run.
    :returns: the points; one that covers a part of the test samples of the classes met is none of
        them.

    >>> run = example_points()
    >>> {e: point.samples_seen for e, point in experience_ends(run).items()}
    {0: 10, 1: 20}
    """
    ends = {
        point.experience: point
        for point, fits in _ranked(points)
        if fits and point.experience is not None
    }
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

    :param point: one evaluation.
    :returns: a value in [0, 1], or NaN if no tested sample is of an exposed class, or if the
        evaluation left out an exposed class that the test stream has.

    >>> run = example_points()
    >>> [accuracy_exposed(point) for point in run]  # class 1 is not met at the first
    [1.0, 0.75, 0.75]
    """
    return float("nan") if point.missing() else _accuracy(point, point.counts)


@metric("A_last", "share", "Accuracy over all classes after the stream", best="max", keep=100)
@takes(points=_POINTS)
def a_last(points: Sequence[EvaluationPoint]) -> float:
    """Accuracy over all exposed classes after the stream: `accuracy_exposed` of the last point.

    The last point is the one with the most samples seen; an experience end wins over a mid-stream
    evaluation at the same place. Source: as `accuracy_exposed`.

    :param points: evaluations of one run.
    :returns: a value in [0, 1]; NaN if that place has no complete evaluation.
    :raises ValueError: if there are no points.

    >>> run = example_points()
    >>> a_last(run)
    0.75
    """
    last, fits = _places(points)[-1]
    return accuracy_exposed(last) if fits else float("nan")


@metric(
    *("A_avg", "share", "Mean over experience ends of the accuracy on the classes so far"),
    best="max",
    keep=4,
)
@takes(points=_POINTS)
def a_avg(points: Sequence[EvaluationPoint]) -> float:
    """Mean of `accuracy_exposed` over experience ends.

    ``(1/T) sum_t A_t``, the average incremental accuracy (Rebuffi et al., iCaRL, CVPR 2017). An
    experience that was evaluated twice at its end counts once, with its later evaluation.

    :param points: evaluations of one run.
    :returns: a value in [0, 1]; NaN if no point is at an experience end, or if an experience is
        known to have ended without one.
    :raises ValueError: if there are no points.

    >>> run = example_points()
    >>> a_avg(run)  # of 1.0 and 0.75
    0.875
    """
    ends = experience_ends(points)
    if set(_ended(points)) - set(ends):
        return float("nan")
    return _nanmean([accuracy_exposed(point) for point in ends.values()])


def _ended(points: Sequence[EvaluationPoint]) -> list[int]:
    """Experiences that have ended: as was noted, and those that some point is at the end of."""
    return sorted(
        {e for point in points for e in point.ended or ()}
        | {point.experience for point in points if point.experience is not None}
    )


@metric(
    *("A_auc", "share"),
    "Mean over evaluations at even steps of the accuracy on the classes so far",
    best="max",
    keep=7,
)
@takes(points=_POINTS, every=Whole(optional=True))
def a_auc(points: Sequence[EvaluationPoint], every: int | None = None) -> float:
    """Anytime accuracy: mean of `accuracy_exposed` over the places where the stream was evaluated.

    ``(1/J) sum_j A(s_j)`` over evaluation points s_j, the area under the accuracy-to-samples curve
    (Koh et al., i-Blurry, ICLR 2022; Moon et al., Si-Blurry, ICCV 2023). The end always counts
    (some published code drops the last partial period), evaluations at equal `samples_seen` count
    once (an experience end wins), and one before anything was trained does not count. Evaluations
    that leave out an exposed class, and incomplete ones at an experience's end, are none of the
    stream: NaN if the last place has no other.

    :param points: evaluations of one run.
    :param every: None averages over all distinct places, experience ends included. A number k keeps
        an even grid: the first place at or after every multiple of k, and the end; experience ends
        between them are then left out, as in the published protocol.
    :returns: a value in [0, 1], or NaN.
    :raises ValueError: if there are no points or `every` is not positive.

    >>> run = example_points()
    >>> round(a_auc(run), 4), a_auc(run, every=10)  # the grid leaves 15 out
    (0.8333, 0.875)
    """
    ranked = _places(points)
    if not ranked[-1][1]:
        return float("nan")
    places = [point for point, fits in ranked if fits]
    if every is not None:
        kept = {places[-1].samples_seen}
        reached = 0
        for point in places:
            if point.samples_seen // every > reached:
                reached = point.samples_seen // every
                kept.add(point.samples_seen)
        places = [point for point in places if point.samples_seen in kept]
    return _nanmean([accuracy_exposed(point) for point in places])


@takes(points=_POINTS, n_experiences=Whole())
def accuracy_matrix(points: Sequence[EvaluationPoint], n_experiences: int) -> FloatArray:
    """Accuracy on every test experience after every training experience, [T, T].

    Entry (t, j) is the accuracy on the samples of test experience j after training experience t
    (Lopez-Paz and Ranzato, GEM, NeurIPS 2017, equation of R). Only samples of classes met by then
    count, so on streams whose classes are split the part above the diagonal is NaN, not zero.

    :param points: evaluations of one run.
    :param n_experiences: T.
    :returns: shares of 1.
    :raises ValueError: if there are no points, or if a point is of an experience >=
        `n_experiences`.

    >>> run = example_points()
    >>> accuracy_matrix(run, 2)
    array([[1. , nan],
           [0.5, 1. ]])
    """
    matrix = np.full((n_experiences, n_experiences), np.nan)
    for t, point in experience_ends(points).items():
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


@takes(points=_POINTS, n_experiences=Whole(), n_classes=Whole(optional=True))
def class_accuracy_matrix(
    points: Sequence[EvaluationPoint], n_experiences: int, n_classes: int | None = None
) -> FloatArray:
    """Accuracy on every class after every training experience, [T, C].

    Entry (t, c) is the accuracy on the test samples of class c after training experience t; NaN
    where the class had not been met by then or was not tested.

    :param points: evaluations of one run.
    :param n_experiences: T.
    :param n_classes: C; by default one more than the largest target.
    :returns: shares of 1.
    :raises ValueError: if there are no points, if a point is of an experience >= `n_experiences`,
        or if a target is not below `n_classes`.

    >>> run = example_points()
    >>> class_accuracy_matrix(run, 2, n_classes=3)
    array([[1. , nan, nan],
           [0.5, 1. , nan]])
    """
    needed = 1 + max(int(point.targets.max()) for point in points)
    if n_classes is not None and n_classes < needed:
        raise ValueError(f"n_classes must be above every target, got {n_classes} for {needed - 1}.")
    classes = needed if n_classes is None else n_classes
    matrix = np.full((n_experiences, classes), np.nan)
    for t, point in experience_ends(points).items():
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


@metric(
    *("F_exp", "change", "What an experience has lost since its best, mean over experiences"),
    best="min",
)
def forgetting_experience(matrix: FloatArray) -> float:
    """Forgetting per experience, from the accuracy matrix [T, T].

    ``F = 1/(T-1) sum_{t < T-1} ( max_{t <= i < T-1} a[i, t] - a[T-1, t] )``, counting from 0: what
    every experience but the last lost since its best moment (Chaudhry et al., ECCV 2018). It may be
    negative, where later experiences helped. This is the number of offline papers and *not* the
    class-level F_last of the online prompt papers: see `forgetting_class`.

    :param matrix: shares of 1, of `accuracy_matrix`.
    :returns: the mean over the experiences whose terms exist; NaN with a single experience, and
        where a row lacks all values behind one that has some.
    :raises ValueError: if the matrix is not square.

    >>> run = example_points()
    >>> forgetting_experience(accuracy_matrix(run, 2))
    0.5
    """
    a = np.asarray(matrix, dtype=np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or a.shape[0] == 0:
        raise ValueError(f"matrix must be square, [T, T], got shape {a.shape}.")
    if _has_gaps(a):
        return float("nan")
    final = len(a) - 1
    losses = [_best(a[t:final, t]) - a[final, t] for t in range(final)]
    return _nanmean(losses)


@metric(
    *("F_cls", "change", "What a class has lost since its best, mean over classes"),
    best="min",
    keep=3,
)
def forgetting_class(class_matrix: FloatArray, only_learned: bool = False) -> float:
    """Forgetting per class, from the class accuracy matrix [T, C]: F_last of the online papers.

    ``F = mean_c ( max_{t < T-1} acc[t, c] - acc[T-1, c] )``, counting from 0, over the classes c
    that were met before the last experience. It may be negative.

    SinglePrompt and FlyGCL leave out a class whose best accuracy is 0. Here such a class counts by
    default (with a loss <= 0): leaving it out gives every method another set of classes, and one
    that never learned a class would be charged more than one that did and kept a little of it.
    `only_learned=True` gives their number.

    :param class_matrix: shares of 1, of `class_accuracy_matrix`.
    :param only_learned: whether classes whose best accuracy is 0 are left out.
    :returns: the mean over those classes; NaN if there are none, as with a single experience, and
        where a row lacks all values behind one that has some.
    :raises ValueError: if the matrix does not have two dimensions and at least one row.

    >>> run = example_points()
    >>> forgetting_class(class_accuracy_matrix(run, 2))
    0.5
    """
    acc = np.asarray(class_matrix, dtype=np.float64)
    if acc.ndim != 2 or acc.shape[0] == 0:
        raise ValueError(f"class_matrix must be [T, C] with T >= 1, got shape {acc.shape}.")
    if _has_gaps(acc):
        return float("nan")
    losses = []
    for c in range(acc.shape[1]):
        best = _best(acc[:-1, c])
        if not (only_learned and best <= 0):
            losses.append(best - acc[-1, c])
    return _nanmean(losses)


def _has_gaps(matrix: FloatArray) -> bool:
    """Whether an experience was not evaluated at its end after one that was.

    The best of the others would be of fewer moments. Streams may begin with empty experiences.
    """
    there: NDArray[np.bool_] = np.asarray(~np.isnan(matrix).all(axis=1))
    return bool(there.any() and not there[int(there.argmax()) :].all())


def _best(values: FloatArray) -> float:
    """Maximum of the values that exist, NaN where none does."""
    there = values[~np.isnan(values)]
    return float(there.max()) if there.size else float("nan")


@takes(points=_POINTS, n_experiences=Whole(), every=Whole(optional=True))
def summarise(
    points: Sequence[EvaluationPoint], n_experiences: int, every: int | None = None
) -> dict[str, float | None]:
    """Return the numbers of a run that are computed from its evaluations, for `summary.json`.

    :param points: evaluations of one run.
    :param n_experiences: number of training experiences.
    :param every: the grid of `a_auc`.
    :returns: `a_last`, `a_avg`, `a_auc`, `forgetting_experience`, `forgetting_class` as shares of
        1; None for a number that does not exist (forgetting with one experience), as JSON has no
        NaN. Where the evaluations made do not give it, a warning says why.
    :raises ValueError: as the single functions do.

    >>> run = example_points()
    >>> {name: round(value, 4) for name, value in summarise(run, 2).items()}  # doctest: +ELLIPSIS
    {'a_last': 0.75, 'a_avg': 0.875, 'a_auc': 0.8333, 'forgetting_experience': 0.5, ...}
    """
    notes, no_matrix = _notes(points, n_experiences)
    known: dict[str, Any] = {"points": points, "n_experiences": n_experiences, "every": every}
    if not notes:
        known["class_matrix"] = class_accuracy_matrix(points, n_experiences)
        if not no_matrix:
            known["matrix"] = accuracy_matrix(points, n_experiences)
    for note in (*notes, *no_matrix):
        warnings.warn(note, stacklevel=3)
    values: dict[str, float | None] = {}
    for name, one in METRICS.items():
        if one.function is None:
            continue
        given = {key: known[key] for key in one.arguments if key in known}
        value = one.function(**given) if len(given) == len(one.arguments) else float("nan")
        values[name] = None if np.isnan(value) else value
    return values


def _notes(points: Sequence[EvaluationPoint], n_experiences: int) -> tuple[list[str], list[str]]:
    """What cannot be computed, and why: of all experience ends, and of test experiences alone."""
    ends = experience_ends(points)
    notes = []
    whole = _whole(points)
    last, fits = _places(points)[-1]
    if not fits:
        notes.append(
            "There is no a_last and no a_auc: the evaluations after the last training sample have "
            f"not tested all samples of the classes {_few(last.missing(whole))}."
        )
    missing = [e for e in _ended(points) if e not in ends]
    if missing:
        notes.append(
            f"There is no a_avg and no forgetting: no evaluation at the end of the training "
            f"experiences {_few(missing)} has tested all samples of the classes met by then."
        )
    places = [point.samples_seen for point in ends.values()]
    if places != sorted(places):
        notes.append(
            f"There is no forgetting: the training experiences came in another order than that of "
            f"their numbers ({_few(sorted(ends, key=lambda e: ends[e].samples_seen))})."
        )
    sizes = {point.stream.experiences for point in ends.values() if point.stream is not None}
    others = sizes - {n_experiences}
    no_matrix = [
        f"There is no forgetting_experience: the test stream has {size} experiences and the "
        f"training stream {n_experiences}."
        for size in others
    ]
    return notes, no_matrix


def _few(numbers: Sequence[int]) -> str:
    """Some numbers, and how many there are if they are many."""
    text = ", ".join(map(str, numbers[:8]))
    return text if len(numbers) <= 8 else f"{text}, ... ({len(numbers)} in all)"


def metrics_csv(
    points: Sequence[EvaluationPoint],
    summary: Mapping[str, float | None],
    n_experiences: int,
    more: Sequence[tuple[int, int, str, float]] = (),
) -> str:
    """``samples_seen,experience,metric,value``; repr keeps every bit of a value.

    ``experience`` is a test experience. A value of the whole stream leaves it empty; so does that
    of a class, whose number is in the metric's name: ``accuracy_class_<c>``.

    :param points: evaluations of one run.
    :param summary: of `summarise`.
    :param n_experiences: number of training experiences.
    :param more: rows of other metrics: samples seen, test experience, name, value.
    :returns: the text of the file, with its header.

    >>> run = example_points()
    >>> print(metrics_csv(run[:1], dict.fromkeys(METRICS), 2).strip())
    samples_seen,experience,metric,value
    10,,accuracy_exposed,1.0
    10,0,accuracy,1.0
    10,,accuracy_class_0,1.0
    """
    rows = ["samples_seen,experience,metric,value"]
    ends = list(experience_ends(points).values())
    for point in points:
        rows.append(f"{point.samples_seen},,accuracy_exposed,{accuracy_exposed(point)!r}")
        if point.experience is not None and point in ends:
            accuracies = accuracy_matrix([point], n_experiences)[point.experience]
            for e, value in enumerate(accuracies.tolist()):
                if value == value:
                    rows.append(f"{point.samples_seen},{e},accuracy,{value!r}")
            by_class = class_accuracy_matrix([point], n_experiences)[point.experience]
            for c, value in enumerate(by_class.tolist()):
                if value == value:
                    rows.append(f"{point.samples_seen},,accuracy_class_{c},{value!r}")
    rows += [f"{seen},{experience},{name},{value!r}" for seen, experience, name, value in more]
    last = points[-1].samples_seen if points else 0
    for name, one in METRICS.items():
        value = None if one.function is None else summary[name]
        if value is not None:
            rows.append(f"{last},,{name},{float(value)!r}")
    return "\n".join(rows) + "\n"


def _declare(name: str, title: str, kind: str, help: str, **how: Any) -> None:
    METRICS[name] = Metric(name, title, kind, help, **how)


# What a run measures while it goes on.
_declare("train_seconds", "train s", "seconds", "Seconds of training", of_machine=True)
_declare("eval_seconds", "eval s", "seconds", "Seconds of evaluation", of_machine=True)
_declare(
    *("train_samples_per_second", "train img/s", "rate", "Training images per second"),
    best="max",
    keep=2,
    of_machine=True,
)
_declare(
    *("forward_passes_per_image", "fwd/img", "rate"),
    *("Images through the backbone per training image",),
    keep=1,
)
_declare("trainable_parameters", "params", "count", "Trained parameters", keep=0)
_declare("state_bytes", "state", "bytes", "What training left: weights, sums, buffer, optimizer")
_declare("peak_memory_bytes", "memory", "bytes", "Most memory at a time", of_machine=True)
_declare("gradient_steps", "steps", "count", "Updates of the parameters in the whole run")
_declare("samples_seen", "images", "count", "Training images seen")
