"""Lists of runs, one after another or several at a time, with a progress bar.

Worker processes come from a fork server that has imported everything already: importing Avalanche
takes longer than a run on the embedded stream.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from avalanche_rwf.experiments import stopping
from avalanche_rwf.experiments.config import BUSY, RunConfig

__all__ = ["default_jobs", "default_threads", "execute", "start_server"]

Result = tuple[RunConfig, dict[str, Any]]
Work = Callable[..., dict[str, Any]]
"""What is done with each configuration: called as :func:`.run.run` is, and picklable."""


class _Common(NamedTuple):
    """What the runs of one list have in common; see :func:`execute`. Workers get it."""

    work: Work | None
    out: Path
    device: str
    threads: int


def _context() -> BaseContext:
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def start_server() -> None:
    """Let the fork server import the package now, while this process does other things."""
    context = _context()
    if context.get_start_method() == "forkserver":
        # Threads of a maths library are made at import: the server must see the limit.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        context.set_forkserver_preload(["avalanche_rwf.experiments.preload"])
        from multiprocessing import forkserver

        # It ends with this process; a signal to all must not end it, and its workers with it.
        with stopping.ignored():
            forkserver.ensure_running()


def default_jobs(device: str, runs: int) -> int:
    """How many runs at a time: one per core on the CPU (a small batch does not fill several),
    one on a GPU.
    """
    return 1 if device != "cpu" else max(1, min(_cores(), runs))


def default_threads(device: str, runs: int) -> int:
    """Threads per run: the cores that a comparison of so many runs leaves idle.

    Sums are rounded differently by another number of threads. So the number depends on the whole
    comparison and the machine, and never on the runs at a time or on those that are left to do:
    ``--jobs 1``, ``--jobs 2`` and a resumed comparison give the same numbers to the last bit.
    """
    return _cores() if device != "cpu" else max(1, _cores() // max(1, runs))


def _cores() -> int:
    """Cores that this process may use, at most 8: a small batch does not fill more."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    return max(1, min(cores, 8))


_QUEUE: Any = None


def _settings() -> dict[str, str]:
    """This package's environment variables: what to import, where data sets are, loading."""
    return {key: value for key, value in os.environ.items() if key.startswith("AVALANCHE_RWF_")}


def _initialise(
    progress: Any, orders: Connection, threads: int, features: str, settings: dict[str, str]
) -> None:
    """In a worker: its threads, where to report to, where features are shared, its settings."""
    global _QUEUE
    stopping.follow(orders)
    import torch

    from avalanche_rwf.models.remember import MEMORY

    # The fork server may have been started before the command line was read.
    for key in _settings().keys() - settings.keys():
        del os.environ[key]
    os.environ.update(settings)
    torch.set_num_threads(threads)
    MEMORY.share(Path(features))
    _QUEUE = progress


def _work(common: _Common, config: RunConfig, how: dict[str, bool]) -> dict[str, Any]:
    with stopping.working():
        return _do(common, config, _QUEUE.put, how)


def _do(
    common: _Common, config: RunConfig, progress: Callable[[int], Any], how: dict[str, bool]
) -> dict[str, Any]:
    """One configuration: what was asked for, or a run that does not wait for other processes.

    Errors are a summary: not every one of a user's can go to another process, and one that cannot
    be unpickled would break the pool of workers.
    """
    from avalanche_rwf.experiments.run import run

    try:
        if common.work is not None:
            return common.work(config, common.out, common.device, progress=progress)
        return run(config, common.out, common.device, progress=progress, wait=False, **how)
    except (Exception, SystemExit) as error:
        return _failed(error)


def execute(
    configs: Sequence[RunConfig],
    out: Path,
    device: str,
    jobs: int,
    samples: Callable[[RunConfig], int],
    quiet: bool = False,
    threads: int = 1,
    work: Work | None = None,
    noun: str = "runs",
) -> Iterator[Result]:
    """Do the runs and yield each with its summary as it ends.

    A run that cannot even write its directory is a failed one too; the others go on. Runs that
    another process is at are left to the last, and its summary is given if it ends first.

    :param samples: training samples of a run, for the progress bar.
    :param jobs: runs at a time.
    :param quiet: no progress bar.
    :param threads: of each run; see :func:`default_threads`.
    :param work: what to do with each configuration; None is :func:`.run.run`.
    :param noun: what the progress bar calls them.
    :raises RunStopped: if the process is asked to stop (:mod:`.stopping`); what was being done has
        a checkpoint then.
    """
    total = sum(samples(c) for c in configs)
    with tqdm(
        total=total,
        unit="img",
        file=sys.stderr,
        disable=quiet,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} img "
        "[{elapsed}<{remaining}]",
    ) as bar:
        common = _Common(work, out, device, threads)
        results = (
            _serial(configs, common, bar) if jobs == 1 else _parallel(configs, common, jobs, bar)
        )
        for count, (config, summary) in enumerate(results, start=1):
            bar.set_description_str(
                f"{count}/{len(configs)} {noun}, last {config.method} seed {config.seed}"
            )
            yield config, summary


def _failed(error: BaseException) -> dict[str, Any]:
    """The summary of a run that could not write one (a full disk, most often)."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return {"status": "failed", "error": reason, "error_type": type(error).__name__}


# What is done with a run the first time, and when another process was found to be at it.
_FIRST, _THEN = {"again": True}, {"again": False}
# Seconds between two looks at the runs of other processes, and at whether to stop.
_TICK = 0.25


def _busy(summary: dict[str, Any]) -> bool:
    return summary["status"] == BUSY


def _serial(configs: Sequence[RunConfig], common: _Common, bar: Any) -> Iterator[Result]:
    import torch

    torch.set_num_threads(common.threads)
    todo, how = list(configs), _FIRST
    while todo:
        waiting = []
        for config in todo:
            if stopping.stop_requested():
                raise stopping.RunStopped
            if how is _FIRST:
                bar.set_description_str(f"{config.method} seed {config.seed}")
            summary = _do(common, config, bar.update, how)
            if _busy(summary):
                waiting.append(config)
            else:
                yield config, summary
        if len(waiting) == len(todo):
            bar.set_description_str(f"{len(waiting)} left, which another process is at")
            time.sleep(_TICK)
        todo, how = waiting, _THEN


def _drain(progress: Any, bar: Any, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            bar.update(progress.get(timeout=0.2))
        except queue.Empty:
            continue
        except (OSError, EOFError):
            return


def _parallel(
    configs: Sequence[RunConfig], common: _Common, jobs: int, bar: Any
) -> Iterator[Result]:
    """Several at a time. A worker that is killed takes nothing with it but its own run.

    Its pool ends with it. The runs that were going on may have killed it: each is done again alone,
    from its last checkpoint, and has failed if its worker is killed again.
    """
    todo, suspects = list(configs), list[RunConfig]()
    while todo or suspects:
        alone = bool(suspects)
        batch = [suspects.pop(0)] if alone else todo
        todo = todo if alone else []
        lost = []
        for config, summary in _pool(batch, common, 1 if alone else jobs, bar):
            if summary is not None:
                yield config, summary
            elif alone:
                yield config, {"status": "failed", "error": _KILLED, "error_type": "Killed"}
            else:
                lost.append(config)
        # They are begun in the order of the list.
        lost.sort(key=batch.index)
        suspects += lost[:jobs]
        todo += lost[jobs:]


_KILLED = (
    "The worker process was killed, most often because the memory was not enough: fewer --jobs or "
    "a smaller --batch-size need less."
)


def _pool(
    configs: Sequence[RunConfig], common: _Common, jobs: int, bar: Any
) -> Iterator[tuple[RunConfig, dict[str, Any] | None]]:
    """One pool of workers; the summary is None for what was not done when a worker was killed."""
    start_server()
    context = _context()
    progress = context.Queue()
    stop = threading.Event()
    drain = threading.Thread(target=_drain, args=(progress, bar, stop), daemon=True)
    # Test features that methods have in common, for this comparison and no longer.
    features = tempfile.TemporaryDirectory(prefix="avalanche-rwf-", ignore_cleanup_errors=True)
    # Workers read one end; that the other one is closed tells them to stop.
    orders, giver = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(jobs, len(configs)),  # a queue has room for each
        mp_context=context,
        initializer=_initialise,
        initargs=(progress, orders, common.threads, features.name, _settings()),
    )
    futures: dict[Future[dict[str, Any]], RunConfig] = {}
    waiting: list[RunConfig] = []
    broken = False
    try:
        drain.start()
        for number, config in enumerate(configs):
            try:
                futures[pool.submit(_work, common, config, _FIRST)] = config
            except BrokenProcessPool:
                broken = True
                yield from ((left, None) for left in configs[number:])
                break
        while futures or waiting:
            if stopping.stop_requested():
                raise stopping.RunStopped
            if waiting and (broken or len(futures) < jobs):
                if broken:
                    yield from ((config, None) for config in waiting)
                else:
                    if not futures:
                        bar.set_description_str(f"{len(waiting)} left, which others are at")
                        time.sleep(_TICK)
                    for config in waiting:
                        try:
                            futures[pool.submit(_work, common, config, _THEN)] = config
                        except BrokenProcessPool:
                            broken = True
                            yield config, None
                waiting = []
            for future in wait(futures, timeout=_TICK, return_when=FIRST_COMPLETED).done:
                config = futures.pop(future)
                summary: dict[str, Any] | None
                try:
                    summary = future.result()
                except BrokenProcessPool:
                    broken, summary = True, None
                except Exception as error:
                    summary = _failed(error)
                if summary is not None and _busy(summary):
                    waiting.append(config)
                else:
                    yield config, summary
    except KeyboardInterrupt as asked:
        if not isinstance(asked, stopping.RunStopped):  # twice, before the first was looked at
            _kill(pool)
        raise
    finally:
        stop.set()
        giver.close()
        try:
            pool.shutdown(wait=True, cancel_futures=True)
        except BaseException:  # asked a second time
            _kill(pool)
            raise
        finally:
            orders.close()
            features.cleanup()


def _kill(pool: ProcessPoolExecutor) -> None:
    for process in list((pool._processes or {}).values()):
        process.kill()
