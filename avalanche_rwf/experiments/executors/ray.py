"""A task of Ray for each run: ``pip install "avalanche-rwf[ray]"``.

The output folder must be one that all nodes see. A task whose node or worker dies is done again
elsewhere, from the run's last checkpoint. Few more tasks are handed to Ray than can run: a list of
tens of thousands needs no memory in this process.
"""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from avalanche_rwf.errors import UsageError, reason
from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors.base import (
    TICK,
    Context,
    Executor,
    Result,
    failed,
    is_busy,
    killed,
    needs,
    node_folder,
    pause,
    register_executor,
)

_RETRIES = 5
_LOOK = 1.0  # seconds between two looks at what the cluster has
_FRACTION = 1 / 4  # more tasks than can run, so that no node waits for the next one


def _task(context: Context, config: RunConfig, again: bool) -> dict[str, Any]:
    """On a node: one configuration. That Ray cancels it is a request to stop."""
    context = replace(context, features=node_folder(context.out))
    context.enter()
    with signals.listening(lambda line: None):
        return context.do(config, again)


@register_executor("ray")
class RayExecutor(Executor):
    """See the module's text."""

    @classmethod
    def check(cls, execution: Execution) -> None:
        """Look for the package, and for the Ray that was named.

        :raises UsageError: in one sentence.
        """
        super().check(execution)
        needs("ray", "--executor ray", "ray")
        _connect(execution)

    def map(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        """See :meth:`.Executor.map`."""
        execution = self.context.execution
        ray = _connect(execution)
        gpu = execution.device.startswith("cuda")
        resources = {
            "num_cpus": 1 if gpu else self.context.threads,
            "num_gpus": 1 / execution.runs_per_device if gpu else 0,
        }
        if gpu:  # Ray shows a task its own GPU alone
            self.context = replace(self.context, execution=replace(execution, device="cuda"))
        context = ray.put(self.context)
        task = ray.remote(_task)

        def submit(config: RunConfig, again: bool) -> Any:
            return task.options(
                name=f"{config.method} seed {config.seed}", max_retries=_RETRIES, **resources
            ).remote(context, config, again)

        try:
            yield from self._done(ray, submit, configs, resources)
        finally:
            if execution.ray_address is None:
                ray.shutdown()

    def _room(self, ray: Any, resources: dict[str, float]) -> int:
        """Tasks to be handed over at a time: those that can run now, and some more."""
        there = ray.cluster_resources()
        kind, each = ("GPU", resources["num_gpus"]) if resources["num_gpus"] else (
            "CPU", resources["num_cpus"]
        )  # fmt: skip
        slots = max(1, int(there.get(kind, 0) / each))
        return min(self.context.execution.jobs or slots, slots) + 1 + int(_FRACTION * slots)

    def _done(
        self, ray: Any, submit: Any, configs: Sequence[RunConfig], resources: dict[str, float]
    ) -> Iterator[Result]:
        todo, waiting = iter(configs), list[RunConfig]()
        pending: dict[Any, RunConfig] = {}
        exhausted, room, asked = False, 0, float("-inf")
        try:
            while True:
                if signals.stop_requested():
                    raise signals.RunStopped
                if time.monotonic() - asked > _LOOK:  # nodes come and go
                    room, asked = self._room(ray, resources), time.monotonic()
                while len(pending) < room and not exhausted:
                    config = next(todo, None)
                    if config is None:
                        exhausted = True
                    else:
                        pending[submit(config, True)] = config
                for config in [c for c in waiting if self.context.is_free(c)]:
                    waiting.remove(config)
                    pending[submit(config, False)] = config
                if not pending:
                    if not waiting:
                        return
                    pause()
                    continue
                ray.wait(list(pending), num_returns=1, timeout=TICK)
                for ready in ray.wait(list(pending), num_returns=len(pending), timeout=0)[0]:
                    config = pending.pop(ready)
                    summary = _result(ray, ready)
                    if is_busy(summary):
                        waiting.append(config)
                    else:
                        yield config, summary
        except KeyboardInterrupt as asked:
            gently = isinstance(asked, signals.RunStopped)
            for ref in pending:
                ray.cancel(ref, force=not gently)
            if gently:
                ray.wait(list(pending), num_returns=len(pending), timeout=600)
            raise


def _result(ray: Any, ref: Any) -> dict[str, Any]:
    try:
        return dict(ray.get(ref))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
        return killed()
    except Exception as error:  # such as a worker that cannot import a module
        return failed(error)


def _connect(execution: Execution) -> Any:
    """Ray, connected to.

    :raises UsageError: if there is none at the address.
    """
    ray: Any = importlib.import_module("ray")
    address = execution.ray_address
    _find(address)
    if ray.is_initialized():
        return ray
    # Workers of another machine find the package where this one does, and their own where not.
    paths = [path for path in sys.path if path and "site-packages" not in path]
    runtime = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    try:
        ray.init(
            address=address or "local",
            num_cpus=execution.jobs if address is None else None,
            include_dashboard=False if address is None else None,
            runtime_env=runtime,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"--ray-address {address or 'local'}"
        raise UsageError(f"{where}: Ray cannot be used ({reason(error)}).") from None
    return ray


def _find(address: str | None) -> None:
    """Ray itself waits long for an address where nothing is."""
    if address is None or address == "auto":
        return  # where nothing is started, "auto" says so at once
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"--ray-address takes auto or HOST:PORT, not {address!r}.")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"--ray-address {address}: no Ray answers there ({why}).") from None
