"""Metrics for Avalanche's loggers: accuracy on the classes met so far, its mean over the stream."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avalanche_rwf.evaluation.metrics import a_auc, accuracy_exposed
from avalanche_rwf.evaluation.recorder import PredictionRecorder
from avalanche_rwf.utils.validation import Instance, Whole, takes

__all__ = ["AnytimeAUC", "EmittedMetric", "ExposedAccuracy", "anytime_metrics"]


class EmittedMetric(PluginMetric[float]):
    """A value that is emitted at some events, under the class's `name`."""

    name = ""

    def __init__(self) -> None:
        super().__init__()
        self._value: float | None = None

    def __str__(self) -> str:
        return self.name

    def result(self) -> float | None:
        """The value emitted last; None if there is none."""
        return self._value

    def reset(self) -> None:
        """Forget the last value."""
        self._value = None

    def emit(
        self, strategy: Any, value: float | None, *, add_experience: bool = False
    ) -> list[MetricValue]:
        """Keep a value and give it to the loggers.

        :param value: None is kept, and nothing is given.
        :param add_experience: whether the name says which experience it is of.
        """
        self._value = value
        if value is None:
            return []
        name = get_metric_name(self, strategy, add_experience=add_experience, add_task=False)
        return [MetricValue(self, name, value, strategy.clock.train_iterations)]


class _RecordedMetric(EmittedMetric):
    """A value of the points of a `PredictionRecorder`, emitted after each evaluation it records."""

    @takes(recorder=Instance(PredictionRecorder))
    def __init__(self, recorder: PredictionRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self._points = 0

    @abstractmethod
    def measure(self) -> float:
        """The value of all points so far."""

    def before_training(self, strategy: Any) -> None:
        """Check that there will be something to emit.

        :raises ValueError: if the recorder is no plugin of the strategy.
        """
        if not any(plugin is self.recorder for plugin in strategy.plugins):
            raise ValueError(
                f"the recorder of {self.name} must be among the strategy's plugins, which are "
                f"{', '.join(type(plugin).__name__ for plugin in strategy.plugins)}."
            )

    def before_eval(self, strategy: Any) -> None:
        """Note how many points there are."""
        self._points = len(self.recorder.points)

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Emit the value, unless the evaluation was of another stream than the recorder's."""
        if len(self.recorder.points) == self._points:
            return []
        return self.emit(strategy, self.measure())


class ExposedAccuracy(_RecordedMetric):
    """Accuracy over the test samples of the classes met so far; see `metrics.accuracy_exposed`."""

    name = "Top1_Acc_Exposed"

    def measure(self) -> float:
        """That of the last evaluation."""
        return accuracy_exposed(self.recorder.points[-1])


class AnytimeAUC(_RecordedMetric):
    """Anytime accuracy over the stream so far; see `metrics.a_auc`.

    :param every: as `metrics.a_auc` takes it.
    """

    name = "A_auc"

    @takes(every=Whole(optional=True))
    def __init__(self, recorder: PredictionRecorder, every: int | None = None) -> None:
        super().__init__(recorder)
        self.every = every

    def measure(self) -> float:
        """The mean up to here; after the last evaluation it is the run's."""
        return a_auc(self.recorder.points, self.every)


def anytime_metrics(
    recorder: PredictionRecorder, every: int | None = None
) -> list[PluginMetric[float]]:
    """Both metrics, for an ``EvaluationPlugin``::

        recorder = PredictionRecorder()
        anytime = AnytimeEvaluation(benchmark.test_stream, every=1000)
        evaluator = EvaluationPlugin(*anytime_metrics(recorder, 1000), loggers=[TextLogger()])
        strategy = Naive(..., plugins=[recorder, anytime], evaluator=evaluator)

    :param recorder: a plugin of the same strategy; its points are what is measured.
    :param every: of the anytime evaluation, for an even grid; None averages over all evaluations.
    """
    return [ExposedAccuracy(recorder), AnytimeAUC(recorder, every)]
