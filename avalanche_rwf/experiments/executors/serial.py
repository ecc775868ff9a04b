"""One run after another in this process: ``--jobs 1``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import current_execution, use_execution
from avalanche_rwf.experiments.executors.base import (
    Executor,
    Result,
    is_busy,
    pause,
    register_executor,
    shared_features,
)


@register_executor("serial")
class SerialExecutor(Executor):
    """One after another; a run that kills its process ends the list.

    After an error that takes the GPU from the process the rest is done in others.
    """

    def map(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        """See :meth:`.Executor.map`."""
        import torch

        from avalanche_rwf.benchmarks.kept_pixels import KEPT
        from avalanche_rwf.models.feature_cache import MEMORY

        # Not `enter`: this process has its variables already.
        before = current_execution()
        use_execution(self.context.execution)
        torch.set_num_threads(self.context.threads)
        with shared_features() as folder:
            MEMORY.share(folder, alone=True)
            KEPT.share(folder)
            try:
                yield from self._done(configs)
            finally:
                MEMORY.share(None)
                KEPT.share(None)
                use_execution(before)

    def _done(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        from avalanche_rwf.experiments.executors.process import ProcessExecutor
        from avalanche_rwf.experiments.failures import device_lost

        todo, again = list(configs), True
        done: list[RunConfig] = []
        while todo:
            waiting = []
            for config in todo:
                if signals.stop_requested():
                    raise signals.RunStopped
                summary = self.context.do(config, again)
                if is_busy(summary):
                    waiting.append(config)
                else:
                    done.append(config)
                    yield config, summary
                if device_lost(summary):
                    rest = [c for c in configs if c not in done]
                    alone = replace(self.context.execution, jobs=1)
                    context = replace(self.context, execution=alone)
                    yield from ProcessExecutor(context).map(rest)
                    return
            if len(waiting) == len(todo):
                pause()
            todo, again = waiting, False
