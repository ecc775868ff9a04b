"""What the tests have done in processes of their own.

They come from the package's fork server: a copy of the test's own process would have the locks of
PyTorch's threads without the threads, and wait for them for ever.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avalanche_rwf.experiments import executors
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import Execution, current_execution, use_execution
from avalanche_rwf.experiments.executors.base import variables
from avalanche_rwf.experiments.executors.process import process_context


def start(work: Callable[..., None], *args: Any) -> Any:
    """Begin ``work(*args)``, a function of this module, in a process with this one's settings."""
    import torch

    executors.start_server()
    process = process_context().Process(  # type: ignore[attr-defined]
        target=_call, args=(variables(), current_execution(), torch.get_num_threads(), work, args)
    )
    process.start()
    return process


def status_of(process: Any) -> int:
    """Its exit status when it has ended; minus the signal's number if it was killed."""
    process.join(300)
    assert process.exitcode is not None, "the process does not end"
    return int(process.exitcode)


def _call(
    variables: dict[str, str],
    execution: Execution,
    threads: int,
    work: Callable[..., None],
    args: Sequence[Any],
) -> None:
    import torch

    os.environ.update(variables)
    use_execution(execution)
    torch.set_num_threads(threads)  # sums in another order would be other numbers
    work(*args)


def killed_at(config: RunConfig, out: Path, at: int) -> None:
    """A run that kills itself at an event: a step, or a call while writing."""
    from avalanche_rwf.experiments.run import run
    from avalanche_rwf.utils import atomic_io

    events = 0

    def event(*args: object) -> None:
        nonlocal events
        events += 1
        if events == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def with_event(*args: Any, **kwargs: Any) -> Any:
            event()
            return call(*args, **kwargs)

        setattr(owner, name, with_event)

    before(atomic_io.os, "fsync")
    before(atomic_io._HashingFile, "write")
    before(Path, "replace")
    assert run(config, out, progress=event)["status"] == "done"


def compared(number: int, configs: Sequence[RunConfig], out: Path) -> None:
    """All of them on an output folder that others use, half of the processes in reverse order."""
    ordered = configs if number % 2 else configs[::-1]
    done = list(executors.execute(ordered, out, Execution(jobs=1, quiet=True)))
    assert sorted(map(repr, configs)) == sorted(repr(config) for config, _ in done)
    assert all(summary["status"] == "done" for _, summary in done)


def a_victim(
    config: RunConfig, out: Path, device: str, progress: Any = None, *, victim: str
) -> dict[str, str]:
    """In the place of a run; the victim's process is killed in it, as for memory."""
    if config.method == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    with (out / f"{config.method}{config.seed}").open("a") as file:
        file.write("ran\n")
    return {"status": "done"}
