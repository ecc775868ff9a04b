"""Lists of runs: on this machine, or on a cluster. See :mod:`.base` for the protocol."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.cpus import available_cores, thread_limit
from avalanche_rwf.experiments.executors.base import (
    Context,
    Executor,
    Options,
    Result,
    Work,
    get_executor,
    list_executors,
    register_executor,
    settings,
)
from avalanche_rwf.experiments.executors.process import gpus, start_server
from avalanche_rwf.experiments.remote import Remote
from avalanche_rwf.experiments.status import read_running
from avalanche_rwf.experiments.view import View

__all__ = [
    "Context",
    "Executor",
    "Options",
    "default_jobs",
    "default_threads",
    "execute",
    "get_executor",
    "list_executors",
    "register_executor",
    "start_server",
]


def default_jobs(device: str, runs: int, per_device: int = 1) -> int:
    """How many runs at a time on this machine: one per core on the CPU (a small batch does not
    fill several), `per_device` on each GPU.
    """
    if device != "cpu":
        return max(1, len(gpus(device))) * per_device
    return max(1, min(available_cores(), runs))


def default_threads(device: str, runs: int, per_device: int = 1) -> int:
    """Threads per run: the cores that a comparison of so many runs leaves idle, or that a GPU's
    runs have each, and never more than ``OMP_NUM_THREADS``.

    Sums are rounded differently by another number of threads. So the number depends on the whole
    comparison and the machine, and never on the runs at a time or on those that are left to do:
    ``--jobs 1``, ``--jobs 2`` and a resumed comparison give the same numbers to the last bit.
    """
    at_once = default_jobs(device, runs, per_device) if device != "cpu" else runs
    return max(1, min(thread_limit(), available_cores() // max(1, at_once)))


def execute(
    configs: Sequence[RunConfig],
    out: Path,
    device: str,
    jobs: int | None,
    samples: Callable[[RunConfig], int],
    quiet: bool = False,
    threads: int = 1,
    work: Work | None = None,
    noun: str = "runs",
    executor: str = "process",
    options: Options | None = None,
) -> Iterator[Result]:
    """Do the runs and yield each with its summary as it ends.

    A run that cannot even write its directory is a failed one too; the others go on. Runs that
    another process is at are left to the last, and its summary is given if it ends first.

    :param jobs: runs at a time; None leaves it to the executor. One is done in this
        process, on a GPU in one of its own.
    :param samples: training samples of a run, for the view.
    :param quiet: no view.
    :param threads: of each run; see :func:`default_threads`.
    :param work: what to do with each configuration; None is :func:`.run.run`.
    :param noun: what the view calls them.
    :param executor: by name; see :func:`list_executors`.
    :raises RunStopped: if the process is asked to stop (:mod:`.signals`); what was being done has
        a checkpoint then.
    """
    if executor == "process" and jobs == 1 and device == "cpu":
        executor = "serial"  # on a GPU each run leaves its memory and its errors to its process
    options = options or Options(jobs=jobs)
    context = Context(out, device, threads, work, settings(), url=options.url)
    doing = get_executor(executor)(context, options)
    each = samples(configs[0]) if configs else 0
    with View(functools.partial(read_running, out), configs, each, noun, quiet) as view:
        for config, summary in doing.map(configs) if configs else ():
            view.ended(config, summary)
            if options.url and work is None and summary["status"] == "done":
                # Done on another machine, it is needed here for the table.
                Remote(options.url).pull(run_directory(Path(), config).as_posix())
            with view.aside():
                yield config, summary
