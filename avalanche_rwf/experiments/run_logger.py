"""A run's values, as they come, for the loggers of ``compare --log``.

It reads what the run records anyway and changes no number. A logger that fails is left out, which
``log.txt`` says, and the run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from avalanche_rwf.errors import reason
from avalanche_rwf.evaluation.metrics import accuracy_exposed, accuracy_matrix
from avalanche_rwf.evaluation.recorder import PredictionRecorder
from avalanche_rwf.evaluation.stream_position import stream_counter
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import current_execution
from avalanche_rwf.experiments.loggers import LOGGERS, Logger

LOSS_EVERY = 10
"""Training steps between two values of the loss."""


class RunLogger(SupervisedPlugin):
    """Gives a run's values to Avalanche loggers; x is the number of samples seen.

    The training loss each ``LOSS_EVERY`` steps, the accuracy on the classes so far at each
    evaluation, at experience ends the accuracy on each test experience, and at last the summary.
    Used as a context manager: its end closes the loggers.

    :param folder: the run directory.
    :param log: takes a line for the run's ``log.txt``.
    """

    def __init__(self, folder: Path, config: RunConfig, log: Callable[[str], None]) -> None:
        super().__init__()
        self.folder, self.config, self.log = folder, config, log
        self._open: dict[str, tuple[Logger, Callable[[], None]]] | None = None

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *error: object) -> None:
        for name, (_, close) in list((self._open or {}).items()):
            with self._surviving(name):
                close()
        self._open = None

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Open the loggers, where the run begins or goes on."""
        if self._open is None:
            self._open = {}
            fresh = stream_counter(strategy).position.samples_seen == 0
            for name in current_execution().log:
                with self._surviving(name):
                    self._open[name] = LOGGERS[name](self.folder, self.config, fresh)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Open the loggers, where a run goes on with an evaluation."""
        self.before_training(strategy)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Log the loss of each ``LOSS_EVERY``-th step, of strategies that have one."""
        step = strategy.clock.train_iterations
        if self._open and step % LOSS_EVERY == 0 and getattr(strategy, "trains", True):
            counter = stream_counter(strategy)
            counter.after_training_iteration(strategy)
            loss = torch.as_tensor(strategy.loss).detach().mean()
            self.write({"loss": float(loss)}, counter.position.samples_seen)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Log the accuracies of the evaluation, as the recorder before this plugin has it."""
        points = next(p.points for p in strategy.plugins if isinstance(p, PredictionRecorder))
        if not self._open or not points:
            return
        point = points[-1]
        values = {"accuracy_exposed": accuracy_exposed(point)}
        if point.experience is not None:
            count = max(point.experience, int(point.test_experience.max())) + 1
            row = accuracy_matrix([point], count)[point.experience].tolist()
            values |= {f"accuracy/experience_{e}": v for e, v in enumerate(row) if v == v}
        self.write(values, point.samples_seen)

    def write(self, values: Mapping[str, Any], samples_seen: int) -> None:
        """Give numbers to all loggers; what is no number is passed over."""
        for name, (logger, _) in list((self._open or {}).items()):
            with self._surviving(name):
                for metric, value in values.items():
                    if isinstance(value, (int, float)):
                        logger.log_single_metric(metric, float(value), samples_seen)

    @contextmanager
    def _surviving(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            (self._open or {}).pop(name, None)
            why = f"{type(error).__name__}: {reason(error)}"
            self.log(f"--log {name} stopped ({why}); the run goes on")
