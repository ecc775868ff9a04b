"""What the metrics for Avalanche's loggers have in common: a name and the last value."""

from __future__ import annotations

from typing import Any

from avalanche.evaluation.metric_definitions import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

__all__ = ["EmittedMetric"]


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
