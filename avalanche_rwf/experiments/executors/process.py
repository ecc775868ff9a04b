"""Several runs at a time on this machine, each in a process of its own.

The processes come from a fork server that has imported everything already: importing Avalanche
takes longer than a run on the embedded stream. The server never touches a GPU: a worker is told
which one it has before anything is done with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.executors.base import (
    TICK,
    Context,
    Executor,
    Result,
    is_busy,
    killed,
    pause,
    register_executor,
    shared_features,
)


def process_context() -> BaseContext:
    """How processes are started here."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def start_server() -> None:
    """Let the fork server import the package now, while this process does other things."""
    context = process_context()
    if context.get_start_method() == "forkserver":
        # Threads of a maths library are made at import: the server must see the limit.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context.set_forkserver_preload(["avalanche_rwf.experiments.preload"])
        from multiprocessing import forkserver

        # It ends with this process. A signal to all processes must not end it and its workers.
        with signals.ignored():
            forkserver.ensure_running()


def gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is for each GPU that runs may use; empty: the device as named.

    :param device: "cuda" is all GPUs that this process sees.
    """
    if device != "cuda":
        return []
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if len(named) >= count else [str(index) for index in range(count)]


class _Worker(NamedTuple):
    process: Any
    config: RunConfig
    gpu: str | None
    alone: bool


@register_executor("process")
class ProcessExecutor(Executor):
    """A process for each run. If it is killed, the other runs go on.

    Its own run is then tried again from the last checkpoint when no other run is using memory; if
    it is killed again, it has failed.
    """

    def map(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        """See :meth:`.Executor.map`."""
        start_server()
        execution = self.context.execution
        cards = gpus(execution.device)
        places: list[str | None] = [c for c in cards for _ in range(execution.runs_per_device)]
        jobs = execution.jobs or max(1, len(places))
        # One on each card before a second one on any.
        turns = [cards[i % len(cards)] if cards else None for i in range(min(jobs, len(configs)))]
        with shared_features() as features:
            self.context = replace(self.context, features=features)
            yield from self._done(list(configs), turns)

    def _done(self, todo: list[RunConfig], free: list[str | None]) -> Iterator[Result]:
        waiting: list[RunConfig] = []
        lost: list[RunConfig] = []
        working: dict[Connection, _Worker] = {}
        try:
            while todo or waiting or lost or working:
                if signals.stop_requested():
                    raise signals.RunStopped
                while todo and free:
                    self._start(working, todo.pop(0), free.pop(0))
                if lost and not working:
                    self._start(working, lost.pop(0), free.pop(0), alone=True)
                if free and waiting and not any(worker.alone for worker in working.values()):
                    for config in [c for c in waiting if self.context.is_free(c)][: len(free)]:
                        waiting.remove(config)
                        self._start(working, config, free.pop(0), again=False)
                if not working:
                    pause()
                for ready in wait(list(working), timeout=TICK):
                    assert isinstance(ready, Connection)
                    worker = working.pop(ready)
                    summary = _result(ready)
                    worker.process.join()
                    free.append(worker.gpu)
                    if summary is None and not worker.alone:
                        lost.append(worker.config)
                    elif summary is not None and is_busy(summary):
                        waiting.append(worker.config)
                    else:
                        yield worker.config, killed() if summary is None else summary
        except KeyboardInterrupt as asked:
            if not isinstance(asked, signals.RunStopped):  # a second request before the first
                _kill(working)
            raise
        finally:
            for connection in working:
                connection.close()
            try:
                for worker in working.values():
                    worker.process.join()
            except BaseException:  # asked a second time
                _kill(working)
                raise

    def _start(
        self,
        working: dict[Connection, _Worker],
        config: RunConfig,
        gpu: str | None,
        again: bool = True,
        alone: bool = False,
    ) -> None:
        context = process_context()
        ours, theirs = context.Pipe()
        process = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(self.context, config, again, gpu, theirs)
        )
        process.start()
        theirs.close()
        working[ours] = _Worker(process, config, gpu, alone)


def _work(
    context: Context, config: RunConfig, again: bool, gpu: str | None, answers: Connection
) -> None:
    """In a worker: do one configuration. It stops when the other end of the pipe is closed."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signals.follow(answers)
    context.enter()
    with contextlib.suppress(signals.RunStopped, BrokenPipeError), signals.working():
        answers.send(context.do(config, again))


def _result(answers: Connection) -> dict[str, Any] | None:
    """What a worker says of its run; None if it ended without a word."""
    try:
        return dict(answers.recv())
    except (EOFError, OSError):
        return None
    finally:
        answers.close()


def _kill(working: dict[Connection, _Worker]) -> None:
    for worker in working.values():
        worker.process.kill()
