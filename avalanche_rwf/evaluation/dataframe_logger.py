"""A logger for Avalanche's metrics that gives a tidy pandas table."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metric_results import AlternativeValues
from avalanche.logging import BaseLogger
from torch import Tensor

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.stream_position import StreamCounter, stream_counter, whole_stream

__all__ = ["DataFrameLogger", "MetricName", "parse_metric_name"]

_TYPES = {
    "iteration": "int64",
    "phase": "object",
    "stream": "object",
    "task": "Int64",
    "experience": "Int64",
    "trained_experience": "Int64",
    "samples_seen": "int64",
    "metric": "object",
    "value": "float64",
}
_TASK = re.compile(r"Task_?(\d+)")
_EXPERIENCE = re.compile(r"Exp(\d+)")


class MetricName(NamedTuple):
    """The parts of a metric's full name; a part that the name does not have is None."""

    metric: str
    phase: str | None
    stream: str | None
    task: int | None
    experience: int | None


@functools.lru_cache(maxsize=4096)
def parse_metric_name(name: str) -> MetricName:
    """Take the full name of an Avalanche metric apart; every part but the first is optional.

    The names are made by `avalanche.evaluation.metric_utils.get_metric_name`. The task is there
    with `nc_benchmark` and missing with (x, y) benchmarks and online streams, the phase is missing
    for some metrics, and per-class values append one more part, which stays with the metric:
    ``Top1_ClassAcc_Exp/eval_phase/test_stream/Task000/Exp001/3`` is the metric
    ``Top1_ClassAcc_Exp/3`` of phase eval, stream test, task 0, experience 1.
    """
    first, *rest = name.split("/")
    metric = [first]
    phase: str | None = None
    stream: str | None = None
    task: int | None = None
    experience: int | None = None
    for part in rest:
        if phase is None and part in ("train_phase", "eval_phase"):
            phase = part.removesuffix("_phase")
        elif stream is None and part.endswith("_stream"):
            stream = part.removesuffix("_stream")
        elif task is None and (found := _TASK.fullmatch(part)):
            task = int(found.group(1))
        elif experience is None and (found := _EXPERIENCE.fullmatch(part)):
            experience = int(found.group(1))
        else:
            metric.append(part)
    return MetricName("/".join(metric), phase, stream, task, experience)


class DataFrameLogger(BaseLogger, SupervisedPlugin):
    """Collects every scalar metric of an `EvaluationPlugin` as a row of a tidy table.

    Usage::

        logger = DataFrameLogger()
        evaluator = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[logger])
        strategy = Naive(..., evaluator=evaluator)
        ...
        logger.to_frame()

    Columns: `iteration` (the metric's x: training iterations so far), `phase` (train or eval),
    `stream`, `task`, `experience` (the one evaluated, where the name has it), `trained_experience`
    (the training experience at hand or trained on last; for a sub-experience of an online stream
    the one it was cut from), `samples_seen`, `metric`, `value`. Missing parts are NA.

    Values that are not scalars (confusion matrices, images) are skipped unless they offer a number
    as an alternative. Rows are kept as tuples and become a frame when asked for; no file is open,
    so the logger can be pickled with its strategy.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[tuple[Any, ...]] = []
        self._counter = StreamCounter()
        self._phase: str | None = None
        self._partial: set[int] = set()  # rows that are of a part of a test experience
        self._in_part = False

    def __len__(self) -> int:
        return len(self._rows)

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Append a row, if the value is or offers a number.

        :param name: full name of the metric.
        :param value: its value.
        :param x_plot: training iterations so far.
        """
        number = _number(value)
        if number is None:
            return
        parts = parse_metric_name(name)
        if self._in_part:
            self._partial.add(len(self._rows))
        self._rows.append(
            (
                int(x_plot),
                parts.phase or self._phase,
                parts.stream,
                parts.task,
                parts.experience,
                self._counter.position.experience,
                self._counter.position.samples_seen,
                parts.metric,
                number,
            )
        )

    def before_training(self, strategy: Any, metric_values: Any = None, **kwargs: Any) -> None:
        """Join the strategy's counter.

        :raises UsageError: if this is no logger of the strategy's evaluator.
        """
        loggers = getattr(getattr(strategy, "evaluator", None), "loggers", [])
        if any(p is self for p in strategy.plugins) or not any(p is self for p in loggers):
            raise UsageError(
                "DataFrameLogger must be among the loggers, EvaluationPlugin(..., "
                "loggers=[DataFrameLogger()]), and not among the plugins or metrics."
            )
        self._counter = stream_counter(strategy, self._counter)

    def before_training_exp(self, strategy: Any, metric_values: Any = None, **kwargs: Any) -> None:
        """Note that training begins."""
        self._phase = "train"

    def before_eval(self, strategy: Any, metric_values: Any = None, **kwargs: Any) -> None:
        """Note that an evaluation begins, and join the counter as in :meth:`before_training`."""
        self.before_training(strategy)
        self._phase = "eval"

    def before_eval_exp(self, strategy: Any, metric_values: Any = None, **kwargs: Any) -> None:
        """Note whether a part of a test experience is evaluated."""
        here, stream = strategy.experience, whole_stream(strategy.experience)
        try:
            whole = stream[int(here.current_experience)] if stream is not None else here
            self._in_part = len(here.dataset) != len(whole.dataset)
        except (AttributeError, IndexError, TypeError, ValueError):
            self._in_part = False

    def after_eval_exp(self, strategy: Any, metric_values: Any = None, **kwargs: Any) -> None:
        """Note that the evaluation of an experience ended."""
        self._in_part = False

    def after_eval(self, strategy: Any, metric_values: Any = None, **kwargs: Any) -> None:
        """Note that the evaluation ended, which matters where training goes on."""
        self._phase = "train"

    def state_dict(self) -> dict[str, Any]:
        """Return rows and counters, loadable with `torch.load(weights_only=True)`."""
        return {
            **self._counter.state_dict(),
            "rows": [list(row) for row in self._rows],
            "phase": self._phase,
            "partial": sorted(self._partial),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take rows and counters from `state_dict()`, in place of those at hand.

        :raises ValueError: if a row is not one of this logger's.
        """
        if not all(len(row) == len(_TYPES) for row in state["rows"]):
            raise ValueError(f"rows must have {len(_TYPES)} values each.")
        self._counter.load_state_dict(state)
        self._rows = [tuple(row) for row in state["rows"]]
        self._phase = state["phase"]
        self._partial = {int(row) for row in state["partial"]}

    def to_frame(self) -> pd.DataFrame:
        """Return the rows so far as a data frame, in the order in which they were logged."""
        columns: list[Any] = list(zip(*self._rows, strict=True)) or [()] * len(_TYPES)
        return pd.DataFrame(
            {
                name: pd.Series(list(column), dtype=kind)
                for (name, kind), column in zip(_TYPES.items(), columns, strict=True)
            }
        )

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows so far to a CSV file, with its folder, and return its path.

        :param path: the file; one that is there is replaced.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.to_frame().to_csv(target, index=False)
        return target

    def accuracy_matrix(
        self, metric: str = "Top1_Acc_Exp", stream: str | None = None
    ) -> pd.DataFrame:
        """Return the value of a per-experience metric after every training experience.

        :param metric: a metric with an experience in its name, by default that of
            `accuracy_metrics(experience=True)`.
        :param stream: the evaluated stream; by default "test", or the only one there is.
        :return: a frame with `trained_experience` as index and `experience` as columns; the last
            value of each pair, NaN where there is none; values of a part of a test experience are
            none. Test experiences that were evaluated before
            their classes were trained on have a value here, unlike in `metrics.accuracy_matrix`.
        :raises ValueError: if no such value has been logged, or if the stream is not clear.
        """
        rows = self.to_frame().drop(index=sorted(self._partial))
        rows = rows[(rows["phase"] == "eval") & (rows["metric"] == metric)]
        rows = rows[rows["experience"].notna() & rows["trained_experience"].notna()]
        if rows.empty:
            raise ValueError(
                f"metric must be one logged per experience after training, got {metric!r}; give "
                "the EvaluationPlugin accuracy_metrics(experience=True) and call eval."
            )
        streams = sorted(rows["stream"].dropna().unique())
        if stream is None and len(streams) > 1 and "test" not in streams:
            raise ValueError(f"stream must be given where several were evaluated: {streams}.")
        if stream is not None and stream not in streams:
            raise ValueError(f"stream must be one of {streams}, got {stream!r}.")
        if stream is not None or len(streams) > 1:
            rows = rows[rows["stream"] == (stream or "test")]
        table = rows.pivot_table(
            index="trained_experience", columns="experience", values="value", aggfunc="last"
        )
        # Plain integers, so that table.loc[1, 0] and to_numpy() behave.
        table.index = table.index.astype("int64")
        table.columns = table.columns.astype("int64")
        return table.sort_index().sort_index(axis=1)


def _number(value: Any) -> float | None:
    """Return a scalar metric value as a float, None for anything else."""
    if isinstance(value, AlternativeValues):
        value = value.best_supported_value(float, int)
    if isinstance(value, (float, int, np.number)):
        return float(value)
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        return float(value.item())
    return None
