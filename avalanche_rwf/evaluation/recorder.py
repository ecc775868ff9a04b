"""Plugins that record what a strategy predicts, and that make it predict in mid-stream.

Both work with every `SupervisedTemplate` strategy, ours and Avalanche's, with (x, y) and (x, y, t)
benchmarks, and with streams of whole experiences as with `split_online_stream`.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import EvaluationPoint, TestStream
from avalanche_rwf.evaluation.stream_position import (
    StreamCounter,
    StreamPosition,
    attribute,
    stream_counter,
    stream_name,
    whole_stream,
)
from avalanche_rwf.evaluation.subset import subset_experiences
from avalanche_rwf.utils.random_state import kept_random_state
from avalanche_rwf.utils.validation import Options, Whole, takes

__all__ = ["AnytimeEvaluation", "PredictionRecorder"]

_ARRAYS = ("targets", "predictions", "test_experience")
"""Of an `EvaluationPoint`: tensors in a state."""


class _Reader(SupervisedPlugin):
    """Reads the strategy's `StreamCounter`. Base of both plugins."""

    def __init__(self) -> None:
        super().__init__()
        self._counter = StreamCounter()

    @property
    def samples_seen(self) -> int:
        """Samples of the stream trained on so far; replayed ones do not count."""
        return self._position.samples_seen

    @property
    def experience(self) -> int | None:
        """Index of the training experience at hand or trained on last; None before training."""
        return self._position.experience

    @property
    def exposed(self) -> tuple[int, ...]:
        """Classes met in training so far, ascending: those of the targets, not of attributes."""
        return self._counter.exposed

    @property
    def _position(self) -> StreamPosition:
        return self._counter.position

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Join the strategy's counter.

        :raises UsageError: if this is no plugin of the strategy.
        """
        if not any(plugin is self for plugin in strategy.plugins):
            self.log_metrics()
        self._counter = stream_counter(strategy, self._counter)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Join the strategy's counter, as in :meth:`before_training`."""
        _Reader.before_training(self, strategy)

    def log_metrics(self, values: Any = None) -> None:
        """Refuse to be a logger or a metric.

        :raises UsageError: always.
        """
        name = type(self).__name__
        raise UsageError(
            f"{name} must be among the strategy's plugins=[...], not among the metrics or loggers "
            "of its EvaluationPlugin."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, loadable with `torch.load(weights_only=True)`."""
        return self._counter.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters from `state_dict()`.

        A run is to be cut between experiences: within one, Avalanche would begin it anew.
        """
        self._counter.load_state_dict(state)


class PredictionRecorder(_Reader):
    """Records targets and predictions of every `strategy.eval(...)` as an `EvaluationPoint`.

    Usage::

        recorder = PredictionRecorder()
        strategy = Naive(..., plugins=[recorder])
        for t, experience in enumerate(benchmark.train_stream):
            strategy.train(experience, shuffle=False)
            recorder.begin(t)
            strategy.eval(benchmark.test_stream)
        summarise(recorder.points, n_experiences=len(benchmark.train_stream))

    Without `begin` the recorder tells by itself whether an evaluation is at the end of a training
    experience (all its samples trained on, over all its sub-experiences) or in mid-stream. Call it
    where that cannot be known: streams whose sub-experiences name no origin, or drop samples.

    Each call of `eval` gives one point, and the point knows the whole test stream: only one that
    covers all its samples of the classes met so far can be an experience's end. Evaluations of
    single test experiences, of parts, in any order and however often, change no number of
    `summarise`; evaluate all wanted test experiences in one call.

    :param stream: name of the stream to record; evaluations of others (Avalanche's `eval_every`
        evaluates the *training* stream unless told otherwise) are passed over. None records all.
    """

    def __init__(self, stream: str | None = "test") -> None:
        super().__init__()
        if not (stream is None or (isinstance(stream, str) and stream)):
            raise UsageError(f"stream must be a stream's name or None, not {stream!r}.")
        self.stream = stream
        self.points: list[EvaluationPoint] = []
        # (label,) when announced by begin; a tuple, as None is a label too.
        self._announced: tuple[int | None] | None = None
        self._label: int | None = None
        self._targets: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._experiences: list[int] = []
        self._tested: Any = None  # an experience of the evaluated stream
        self._whole: tuple[list[Any], TestStream] | None = None  # data sets, and what they hold
        self._passed_over: set[str] = set()

    @takes(experience=Whole(least=0, optional=True))
    def begin(self, experience: int | None) -> None:
        """Say what the next recorded evaluation is: the end of this experience, or mid-stream.

        :param experience: index of the training experience that just ended; None in mid-stream.
        """
        self._announced = (experience,)

    def before_eval(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin a point.

        :raises UsageError: if this is no plugin of the strategy.
        """
        super().before_eval(strategy)
        self._clear()
        if self._announced is not None:
            self._label = self._announced[0]
        else:
            self._label = self._position.experience if self._position.at_experience_end else None

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the targets and predictions of a mini-batch, on its device.

        :raises ValueError: if the strategy's output is not a tensor of logits, [n, classes].
        """
        name = stream_name(strategy.experience)
        if self.stream is not None and name is not None and name != self.stream:
            self._passed_over.add(name)
            return
        output = strategy.mb_output
        if not isinstance(output, Tensor) or output.ndim != 2:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"mb_output must be a tensor of logits, [n, classes], to be recorded, got {got}."
            )
        self._targets.append(strategy.mb_y.detach())
        self._predictions.append(output.detach().argmax(dim=1))
        index = int(strategy.experience.current_experience)
        self._experiences.extend([index] * len(output))
        self._tested = strategy.experience

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Close the point and append it to `points`.

        :raises ValueError: if `begin` announced an evaluation and none of `stream` was made.
        """
        if not self._targets:
            if self._announced is not None:
                raise ValueError(
                    f"eval must be given samples of the stream {self.stream!r} after begin(), got "
                    f"those of {sorted(self._passed_over) or 'none'}; "
                    "PredictionRecorder(stream=...) takes another name."
                )
            return
        self.points.append(
            EvaluationPoint(
                samples_seen=self.samples_seen,
                experience=self._label,
                targets=torch.cat(self._targets).cpu().numpy(),
                predictions=torch.cat(self._predictions).cpu().numpy(),
                exposed=self.exposed,
                test_experience=np.asarray(self._experiences, dtype=np.int64),
                stream=self._whole_stream(self._tested),
                ended=tuple(self._counter.ended),
            )
        )
        self._announced = None
        self._clear()

    def state_dict(self) -> dict[str, Any]:
        """Return counters and points, loadable with `torch.load(weights_only=True)`."""
        points = [
            {
                **vars(point),
                **{name: torch.from_numpy(getattr(point, name).copy()) for name in _ARRAYS},
                "exposed": list(point.exposed),
                "stream": point.stream and [point.stream.experiences, dict(point.stream.samples)],
                "ended": None if point.ended is None else list(point.ended),
            }
            for point in self.points
        ]
        return {**super().state_dict(), "points": points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take counters and points from `state_dict()`, in place of those at hand."""
        super().load_state_dict(state)
        self.points = [
            EvaluationPoint(
                **{
                    **point,
                    **{name: point[name].numpy() for name in _ARRAYS},
                    "exposed": tuple(point["exposed"]),
                    "stream": None if point["stream"] is None else TestStream(*point["stream"]),
                    "ended": None if point["ended"] is None else tuple(point["ended"]),
                }
            )
            for point in state["points"]
        ]
        self._announced = None
        self._clear()

    def _whole_stream(self, experience: Any) -> TestStream | None:
        """The whole of the stream that a test experience is of; None if that is not told."""
        stream = whole_stream(experience)
        if stream is None:
            return None
        try:
            datasets = [e.dataset for e in stream]
            known = self._whole[0] if self._whole is not None else []
            same = len(known) == len(datasets) and all(map(operator.is_, known, datasets))
            if self._whole is None or not same:
                samples = Counter(int(y) for data in datasets for y in data.targets)
                found = TestStream(len(datasets), dict(sorted(samples.items())))
                self._whole = (datasets, found)
            return self._whole[1]
        except (AttributeError, TypeError, ValueError):
            return None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_whole": None}  # a pickled recorder holds no data sets

    def _clear(self) -> None:
        self._targets, self._predictions, self._experiences = [], [], []
        self._tested = None
        self._passed_over = set()


class AnytimeEvaluation(_Reader):
    """Evaluates in mid-stream, every so many samples, and leaves the training as it found it.

    After the training iteration in which the number of samples seen reaches or passes a multiple of
    `every`, `strategy.eval` is called on the test experiences that have a class met so far (with
    split classes: those up to the current one). An evaluation due exactly at the end of an
    experience is left to the caller, who evaluates there anyway.

    It adds no randomness: the states of the torch, numpy and Python generators are put back, so the
    weights after training are equal to the last bit with and without it. Avalanche's `eval` wipes
    the strategy's `mbatch`, `mb_output` and `loss` (`BaseSGDTemplate._eval_cleanup`) and puts back
    only `experience`, `dataloader`, `adapted_dataset` and the training modes. Avalanche's
    `PeriodicEval` survives that because it is the last plugin but one and nothing reads the
    mini-batch after it; this plugin comes before the evaluator, whose training metrics do, so it
    puts back the rest.

    :param test_stream: stream or list of test experiences.
    :param every: number of samples between evaluations.
    :param eval_kwargs: passed to `strategy.eval` (`num_workers`, `pin_memory`).
    :param subset: evaluate on so many test samples only, always the same ones, in the shares that
        the classes have in the whole stream; None takes all. Experience ends are the caller's and
        are not touched by it.
    :raises ValueError: if `every` is not positive, there is no test experience, or the subset has
        not one sample of each class.
    """

    @takes(
        every=Whole(),
        eval_kwargs=Options(optional=True),
        subset=Whole(optional=True),
    )
    def __init__(
        self,
        test_stream: Iterable[Any],
        every: int,
        eval_kwargs: dict[str, Any] | None = None,
        subset: int | None = None,
    ) -> None:
        super().__init__()
        self.every = int(every)
        self._reached = 0  # multiples of it
        self.eval_kwargs = dict(eval_kwargs or {})
        tests = list(test_stream) if isinstance(test_stream, Iterable) else [test_stream]
        if not tests:
            raise UsageError("test_stream must hold at least one experience, got none.")
        if not all(hasattr(test, "current_experience") for test in tests):
            raise UsageError(f"test_stream must hold test experiences, got {test_stream!r}.")
        if subset is not None:
            tests = subset_experiences(tests, subset)
        self._tests = [(test, _classes(test)) for test in tests]

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Join the strategy's counter; multiples of `every` before that are not evaluated.

        :raises UsageError: if this is no plugin of the strategy.
        """
        super().before_training(strategy)
        self._reached = self.samples_seen // self.every

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluate if a multiple of `every` was reached with this mini-batch."""
        self._counter.after_training_iteration(strategy)
        before, self._reached = self._reached, self.samples_seen // self.every
        if self._reached > before and not self._position.at_experience_end:
            self._evaluate(strategy)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters from `state_dict()`, as :class:`PredictionRecorder` does."""
        super().load_state_dict(state)
        self._reached = self.samples_seen // self.every

    def _evaluate(self, strategy: Any) -> None:
        tests = self._seen_tests()
        if not tests:
            return
        kept = {name: getattr(strategy, name) for name in ("mbatch", "mb_output", "loss")}
        stream = strategy.current_eval_stream
        with kept_random_state():
            strategy.eval(tests, **self.eval_kwargs)
        strategy.current_eval_stream = stream
        for name, value in kept.items():
            setattr(strategy, name, value)

    def _seen_tests(self) -> list[Any]:
        """Return the test experiences that have a class met so far.

        One that does not tell its classes is taken if its index is not above the current one.
        """
        exposed = set(self.exposed)
        current = self.experience
        return [
            test
            for test, classes in self._tests
            if (
                exposed & classes
                if classes is not None
                else current is not None and test.current_experience <= current
            )
        ]


def _classes(experience: Any) -> frozenset[int] | None:
    """Return the classes of a test experience, or None if it does not tell."""
    classes = attribute(experience, "classes_in_this_experience")
    return None if classes is None else frozenset(int(c) for c in classes)
