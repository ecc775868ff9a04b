"""Plugins that record what a strategy predicts, and that make it predict in mid-stream.

Both work with every `SupervisedTemplate` strategy, ours and Avalanche's, with (x, y) and (x, y, t)
benchmarks, and with streams of whole experiences as with `split_online_stream`.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from avalanche_rwf.checks import check_mapping, check_whole
from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import EvaluationPoint
from avalanche_rwf.evaluation.stream_position import StreamPosition, attribute, stream_name
from avalanche_rwf.evaluation.subset import subset_experiences

__all__ = ["AnytimeEvaluation", "PredictionRecorder"]

# Targets are looked at only when somebody asks, so that a step never waits for the accelerator;
# at this many kept mini-batches they are folded into the set all the same.
_MAX_PENDING = 512


class _Position(SupervisedPlugin):
    """Keeps a `StreamPosition` and the exposed classes up to date. Base of both plugins."""

    def __init__(self) -> None:
        super().__init__()
        self._position = StreamPosition()
        self._exposed: set[int] = set()
        self._pending: list[Tensor] = []

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
        if self._pending:
            self._exposed.update(torch.cat([y.reshape(-1) for y in self._pending]).tolist())
            self._pending.clear()
        return tuple(sorted(self._exposed))

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note which experience begins."""
        self._position.start_part(strategy.experience, strategy.train_epochs)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Note that an epoch begins."""
        self._position.start_epoch()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count the mini-batch and its classes."""
        self._position.count(len(strategy.mb_y), strategy.train_mb_size)
        self._pending.append(strategy.mb_y.detach())
        if len(self._pending) >= _MAX_PENDING:
            _ = self.exposed

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note that the experience ended."""
        self._position.finish_part()

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, loadable with `torch.load(weights_only=True)`."""
        return {"position": self._position.state_dict(), "exposed": list(self.exposed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the counters from `state_dict()`.

        A run is to be cut between experiences: within one, Avalanche would begin it anew.
        """
        self._position.load_state_dict(state["position"])
        self._exposed = {int(c) for c in state["exposed"]}
        self._pending.clear()


class PredictionRecorder(_Position):
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

    Evaluate all wanted test experiences in one call: each call of `eval` gives one point.

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
        self._passed_over: set[str] = set()

    def begin(self, experience: int | None) -> None:
        """Say what the next recorded evaluation is: the end of this experience, or mid-stream.

        :param experience: index of the training experience that just ended; None in mid-stream.
        """
        check_whole("experience", experience, least=0, optional=True)
        self._announced = (experience,)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Begin a point."""
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
            )
        )
        self._announced = None
        self._clear()

    def state_dict(self) -> dict[str, Any]:
        """Return counters and points, loadable with `torch.load(weights_only=True)`."""
        points = [
            {
                "samples_seen": point.samples_seen,
                "experience": point.experience,
                "targets": torch.from_numpy(point.targets.copy()),
                "predictions": torch.from_numpy(point.predictions.copy()),
                "exposed": list(point.exposed),
                "test_experience": torch.from_numpy(point.test_experience.copy()),
            }
            for point in self.points
        ]
        return {**super().state_dict(), "points": points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take counters and points from `state_dict()`, in place of those at hand."""
        super().load_state_dict(state)
        self.points = [
            EvaluationPoint(
                samples_seen=int(point["samples_seen"]),
                experience=None if point["experience"] is None else int(point["experience"]),
                targets=point["targets"].numpy(),
                predictions=point["predictions"].numpy(),
                exposed=tuple(point["exposed"]),
                test_experience=point["test_experience"].numpy(),
            )
            for point in state["points"]
        ]
        self._announced = None
        self._clear()

    def _clear(self) -> None:
        self._targets, self._predictions, self._experiences = [], [], []
        self._passed_over = set()


class AnytimeEvaluation(_Position):
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

    List it after a `PredictionRecorder`, which must have counted the mini-batch by then.

    :param test_stream: stream or list of test experiences.
    :param every: number of samples between evaluations.
    :param eval_kwargs: passed to `strategy.eval` (`num_workers`, `pin_memory`).
    :param subset: evaluate on so many test samples only, always the same ones, in the shares that
        the classes have in the whole stream; None takes all. Experience ends are the caller's and
        are not touched by it.
    :raises ValueError: if `every` is not positive, there is no test experience, or the subset has
        not one sample of each class.
    """

    def __init__(
        self,
        test_stream: Iterable[Any],
        every: int,
        eval_kwargs: dict[str, Any] | None = None,
        subset: int | None = None,
    ) -> None:
        super().__init__()
        check_whole("every", every)
        check_mapping("eval_kwargs", eval_kwargs)
        check_whole("subset", subset, optional=True)
        self.every = int(every)
        self.eval_kwargs = dict(eval_kwargs or {})
        tests = list(test_stream) if isinstance(test_stream, Iterable) else [test_stream]
        if not tests:
            raise UsageError("test_stream must hold at least one experience, got none.")
        if not all(hasattr(test, "current_experience") for test in tests):
            raise UsageError(f"test_stream must hold test experiences, got {test_stream!r}.")
        if subset is not None:
            tests = subset_experiences(tests, subset)
        self._tests = [(test, _classes(test)) for test in tests]

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Check the order of the plugins.

        :raises ValueError: if a `PredictionRecorder` comes after this plugin.
        """
        plugins = list(strategy.plugins)
        later = plugins[plugins.index(self) + 1 :] if self in plugins else []
        if any(isinstance(plugin, PredictionRecorder) for plugin in later):
            raise ValueError(
                "plugins must list PredictionRecorder before AnytimeEvaluation, got it after: it "
                "would record the evaluations with the samples of one mini-batch too few."
            )

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count the mini-batch, and evaluate if a multiple of `every` was reached."""
        before = self.samples_seen
        super().after_training_iteration(strategy, **kwargs)
        due = self.samples_seen // self.every > before // self.every
        if due and not self._position.at_experience_end:
            self._evaluate(strategy)

    def _evaluate(self, strategy: Any) -> None:
        tests = self._seen_tests()
        if not tests:
            return
        kept = {name: getattr(strategy, name) for name in ("mbatch", "mb_output", "loss")}
        stream = strategy.current_eval_stream
        with _random_state_kept():
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


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Put back the random states of torch (all devices in use), numpy and Python at the end.

    Even a plain evaluation draws: every iterator of a `DataLoader` takes a seed for its workers.
    """
    cpu, legacy, builtin = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # Asking for the state of a device that nothing has used would start it up.
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        np.random.set_state(legacy)
        random.setstate(builtin)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)
