"""Lists of runs: on this machine, or on a cluster. See :mod:`.base` for the protocol."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.cpus import available_cores, thread_limit
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import process
from avalanche_rwf.experiments.executors.base import (
    Context,
    Executor,
    Result,
    Work,
    get_executor,
    list_executors,
    register_executor,
    variables,
)
from avalanche_rwf.experiments.executors.process import start_server
from avalanche_rwf.experiments.remote import Remote
from avalanche_rwf.experiments.status import read_running
from avalanche_rwf.experiments.view import View

__all__ = [
    "HERE",
    "Context",
    "Execution",
    "Executor",
    "default_jobs",
    "default_threads",
    "execute",
    "get_executor",
    "list_executors",
    "register_executor",
    "start_server",
]

HERE = ("process", "serial")
"""The executors that do runs on this machine."""


def default_jobs(execution: Execution, runs: int) -> int:
    """How many runs at a time on this machine: those that were asked for, or one per core on the
    CPU (a small batch does not fill several), or ``runs_per_device`` on each GPU.
    """
    if execution.jobs is not None:
        return execution.jobs
    if execution.device != "cpu":
        return max(1, len(process.gpus(execution.device))) * execution.runs_per_device
    return max(1, min(available_cores(), runs))


def default_threads(execution: Execution, runs: int) -> int:
    """Threads per run: the cores that a comparison of so many runs leaves idle, or that a GPU's
    runs have each, and never more than ``OMP_NUM_THREADS``.

    Sums are rounded differently by another number of threads. So the number depends on the whole
    comparison and the machine, and never on the runs at a time or on those that are left to do:
    ``--jobs 1``, ``--jobs 2`` and a resumed comparison give the same numbers to the last bit.
    """
    if execution.device != "cpu":
        runs = default_jobs(replace(execution, jobs=None), runs)
    return max(1, min(thread_limit(), available_cores() // max(1, runs)))


def execute(
    configs: Sequence[RunConfig],
    out: Path,
    execution: Execution,
    samples: int = 0,
    threads: int = 1,
    work: Work | None = None,
    noun: str = "runs",
) -> Iterator[Result]:
    """Do the runs and yield each with its summary as it ends.

    A run that cannot even write its directory counts as failed; the others go on. Runs that another
    process is doing come last; if that process ends first, its summary is given. One run at a time
    is done in this process, or on a GPU in a process of its own.

    :param samples: training samples of a run, for the view.
    :param threads: of each run; see :func:`default_threads`.
    :param work: what to do with each configuration; None is :func:`.run.run`.
    :param noun: what the view calls them.
    :raises RunStopped: if the process is asked to stop (:mod:`.signals`); what was being done has
        a checkpoint then.
    """
    name, url = execution.executor, execution.url
    if name in HERE:
        execution = replace(execution, jobs=default_jobs(execution, len(configs)))
        if execution.jobs == 1 and execution.device == "cpu":
            name = "serial"  # a GPU's memory and errors end with the run's process
    doing = get_executor(name)(Context(out, execution, threads, work, variables()))
    running = functools.partial(read_running, out)
    with View(running, configs, samples, noun, execution.quiet) as view:
        for config, summary in doing.map(configs) if configs else ():
            view.ended(config, summary)
            if url and work is None and summary["status"] == "done":
                # A run of another machine is copied here for the table.
                Remote(url).pull(run_directory(Path(), config).as_posix())
            with view.aside():
                yield config, summary
