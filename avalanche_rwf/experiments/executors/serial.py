"""One run after another in this process: ``--jobs 1``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.executors.base import (
    Executor,
    Result,
    is_busy,
    pause,
    register_executor,
)

__all__ = ["SerialExecutor"]


@register_executor("serial")
class SerialExecutor(Executor):
    """One after another; a run that kills its process ends the list."""

    def map(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        """See :meth:`.Executor.map`."""
        import torch

        torch.set_num_threads(self.context.threads)
        todo, again = list(configs), True
        while todo:
            waiting = []
            for config in todo:
                if signals.stop_requested():
                    raise signals.RunStopped
                summary = self.context.do(config, again)
                if is_busy(summary):
                    waiting.append(config)
                else:
                    yield config, summary
            if len(waiting) == len(todo):
                pause()
            todo, again = waiting, False
