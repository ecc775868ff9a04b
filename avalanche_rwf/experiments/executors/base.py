"""What all executors share: the protocol, the registry, and how one configuration is done.

An executor takes a list of configurations and gives each back with its summary, as it ends, from
wherever it was done. It is a class with this decorator in one file of this package, or in a file
that ``--import`` names::

    @register_executor("mine")
    class Mine(Executor):
        def map(self, configs):
            for config in configs:
                yield config, self.context.do(config)

What a run needs to know travels in the :class:`Context`, which can be pickled: it does not depend
on the process, the machine or the environment that it arrives in.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import importlib.util
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import BUSY, RunConfig, run_directory
from avalanche_rwf.experiments.execution import Execution, use_execution
from avalanche_rwf.experiments.lease import locked
from avalanche_rwf.experiments.remote import Remote
from avalanche_rwf.experiments.status import Reporter
from avalanche_rwf.utils.registry import Registry

__all__ = [
    "EXECUTORS",
    "KILLED",
    "TICK",
    "Context",
    "Executor",
    "Result",
    "Work",
    "failed",
    "get_executor",
    "is_busy",
    "killed",
    "list_executors",
    "needs",
    "node_folder",
    "pause",
    "register_executor",
    "shared_features",
    "variables",
]

Result = tuple[RunConfig, dict[str, Any]]
Work = Callable[..., dict[str, Any]]
"""What is done with each configuration: called as :func:`.run.run` is, and picklable. One that may
come to the status "busy" has a method ``place(out, config)``: the folder that is locked then.
"""

TICK = 0.25
"""Seconds between two looks at the runs of other processes, and at whether to stop."""

KILLED = (
    "The worker process was killed, most often because the memory was not enough: fewer --jobs or "
    "a smaller --batch-size need less."
)


def variables() -> dict[str, str]:
    """This package's environment variables: what to import, and where data sets are."""
    return {key: value for key, value in os.environ.items() if key.startswith("AVALANCHE_RWF_")}


@dataclass(frozen=True)
class Context:
    """What the runs of one list have in common; it can be pickled.

    :param out: where run directories go.
    :param execution: how they are done.
    :param threads: of each run; see :func:`.executors.default_threads`.
    :param work: what to do with each configuration; None is :func:`.run.run`.
    :param variables: of the environment, as :func:`variables` gives them.
    :param features: folder where the runs of one machine share features and decoded images; None
        is each process for itself.
    """

    out: Path
    execution: Execution = field(default_factory=Execution)
    threads: int = 1
    work: Work | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    features: Path | None = None

    def enter(self) -> None:
        """Let this process, which was started for it, do runs of the list."""
        import torch

        from avalanche_rwf.benchmarks.kept_pixels import KEPT
        from avalanche_rwf.models.feature_cache import MEMORY

        # The process may have been started before the command line was read, or be another one's.
        for key in variables().keys() - self.variables.keys():
            del os.environ[key]
        os.environ.update(self.variables)
        use_execution(self.execution)
        torch.set_num_threads(self.threads)
        if self.features is not None:
            with contextlib.suppress(OSError):
                os.utime(self.features)  # it is in use
        MEMORY.share(self.features)
        KEPT.share(self.features)

    def do(self, config: RunConfig, again: bool = True) -> dict[str, Any]:
        """Do one configuration: what was asked for, or a run that does not wait for others.

        Errors are a summary: not every one of a user's can go to another process.

        :param again: do a run again that failed in an earlier attempt.
        """
        from avalanche_rwf.experiments.run import run

        how: dict[str, Any] = {} if self.work is not None else {"wait": False, "again": again}
        try:
            with Reporter(self.out, config) as report, self._mirrored(config) as out:
                device = self.execution.device
                return (self.work or run)(config, out, device, progress=report, **how)
        except (Exception, SystemExit) as error:
            return failed(error)

    @contextlib.contextmanager
    def _mirrored(self, config: RunConfig) -> Iterator[Path]:
        """The folder to work in, whose run is copied to the URL if there is one."""
        if not self.execution.url or self.work is not None:
            yield self.out
            return
        remote = Remote(self.execution.url)
        with remote.mirrored(run_directory(Path(), config).as_posix()):
            yield remote.local

    def place(self, config: RunConfig) -> Path:
        """The folder that is locked while a configuration is done."""
        return Path(getattr(self.work, "place", run_directory)(self.out, config))

    def is_free(self, config: RunConfig) -> bool:
        """Whether no other process is doing a configuration."""
        with locked(self.place(config)) as free:
            return free


class Executor(abc.ABC):
    """Does configurations; see the module's text.

    :param context: what they have in common.
    """

    name: ClassVar[str]
    can_detach: ClassVar[bool] = False
    """Whether the work goes on after this process has ended."""
    takes_urls: ClassVar[bool] = True
    """Whether it needs no folder that it shares with other machines."""

    def __init__(self, context: Context) -> None:
        self.context = context

    @classmethod
    def check(cls, execution: Execution) -> None:
        """Say what is missing, before any work is done.

        :raises UsageError: in one sentence.
        """
        if execution.detach and not cls.can_detach:
            raise UsageError(f"--detach goes with --executor slurm, not with {cls.name}.")
        if execution.url and not cls.takes_urls:
            raise UsageError(
                f"--executor {cls.name} takes a folder that all nodes see as --out, not a URL."
            )

    @abc.abstractmethod
    def map(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        """Do the configurations and yield each with its summary as it ends.

        Asked to stop (:mod:`.signals`), what is being done ends with a checkpoint.

        :raises RunStopped: when it was asked to.
        """


EXECUTORS: Registry[type[Executor]] = Registry("executor", "avalanche_rwf.experiments.executors")


def register_executor(name: str) -> Callable[[type[Executor]], type[Executor]]:
    """Register an executor (decorator of its class).

    :raises ValueError: if the name is taken.
    """

    def register(executor: type[Executor]) -> type[Executor]:
        EXECUTORS.add(name, executor, executor)
        executor.name = name
        return executor

    return register


def list_executors() -> list[str]:
    """Names, of this package's and of what ``--import`` names."""
    return EXECUTORS.names()


def get_executor(name: str) -> type[Executor]:
    """Look one up by name.

    :raises UsageError: if there is none.
    """
    return EXECUTORS.lookup(name)


def needs(package: str, what: str, extra: str) -> None:
    """Check that an optional package is there, without importing it.

    :param what: needs it, such as "--executor ray".
    :param extra: of this package, which brings it.
    :raises UsageError: if it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f'{what} needs {package}, which is not installed: pip install "avalanche-rwf[{extra}]".'
        )


def failed(error: BaseException) -> dict[str, Any]:
    """The summary of a run that could not write one (a full disk, most often)."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return {"status": "failed", "error": reason, "error_type": type(error).__name__}


def killed(why: str = KILLED) -> dict[str, Any]:
    """The summary of a run whose process is gone."""
    return {"status": "failed", "error": why, "error_type": "Killed"}


def is_busy(summary: Mapping[str, Any]) -> bool:
    """Whether another process is at the run."""
    return bool(summary["status"] == BUSY)


def pause() -> None:
    """Wait a tick, if not asked to stop."""
    if signals.stop_requested():
        raise signals.RunStopped
    time.sleep(TICK)


def node_folder(out: Path) -> Path | None:
    """A folder on this machine's own disk for all processes of this user that work for `out`.

    It outlives them: the next job on the machine finds what earlier ones left. None if it cannot be
    had.
    """
    import hashlib

    root = _root()
    if root is None:
        return None
    folder = root / hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    return None


@contextlib.contextmanager
def shared_features() -> Iterator[Path]:
    """A folder for features and decoded images, for this comparison and no longer."""
    folder = _temporary()
    try:
        with folder as name:
            yield Path(name)
    finally:
        root = Path(folder.name).parent
        if root != Path(tempfile.gettempdir()):
            with contextlib.suppress(OSError):  # others are there
                root.rmdir()


def _temporary() -> tempfile.TemporaryDirectory[str]:
    """A new folder below this user's, which another command that ends may remove when empty."""
    make = functools.partial(
        tempfile.TemporaryDirectory, prefix="avalanche-rwf-", ignore_cleanup_errors=True
    )
    for _ in range(9):
        with contextlib.suppress(FileNotFoundError):
            return make(dir=_root())
    return make()


def _root() -> Path | None:
    """The folder of this user's own below the temporary folder; None if it cannot be had.

    What nobody has used in it for a day is removed: a command that was killed leaves its folder.
    """
    import shutil

    user = os.getuid() if hasattr(os, "getuid") else "user"
    root = Path(tempfile.gettempdir()) / f"avalanche-rwf-{user}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        facts = root.lstat()
        # What is found there is believed: nobody else may have made it.
        if not stat.S_ISDIR(facts.st_mode) or facts.st_mode & 0o077 or facts.st_uid != user:
            return None
        for other in root.iterdir():
            if time.time() - other.stat().st_mtime > 86400:
                shutil.rmtree(other, ignore_errors=True)
    except OSError:
        return None
    return root
