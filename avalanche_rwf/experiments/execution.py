"""Execution: how runs are done, which changes no number of them.

Declared like the settings of a run (:mod:`.config`): the command line makes its flags and checks
from it. The command gives it to an executor, which brings it to each worker; what a run needs of it
is read by :func:`current_execution`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from avalanche_rwf.experiments.config import LARGEST, declare, run_settings
from avalanche_rwf.utils.validation import Flag, Whole

# Each is a process: more than any machine's cores are a slip.
_MOST = 1024


@dataclass(frozen=True)
class Execution:
    """Where runs are done, how many at a time, and how each is done.

    :param device: as PyTorch names it.
    :param jobs: runs at a time; None leaves it to the executor.
    :param executor: by name; see :func:`.executors.list_executors`.
    :param runs_per_device: runs at a time on each GPU.
    :param ray_address: "auto", "HOST:PORT", or None for a Ray of this command's own.
    :param slurm: what is passed on to Slurm.
    :param detach: submit and leave.
    :param workers: processes that load images, of each run; None is what
        :func:`.loader_workers` says.
    :param eval_batch_size: test images per step; None is what
        :func:`.eval_batch_size` says.
    :param no_cache: compute every feature.
    :param no_checks: look at no loss and gradient.
    :param deterministic: take deterministic kernels.
    :param checkpoint_every: training steps between two; see :class:`.checkpoint.Schedule`.
    :param fresh: go on from no checkpoint.
    :param log: names of :data:`.loggers.LOGGERS`.
    :param quiet: show no progress.
    :param url: where finished runs are copied to; see :mod:`.remote`.
    """

    device: str = declare("cpu", "text", flag="--device", metavar="NAME",
        help="auto, cpu, cuda or cuda:N")  # fmt: skip
    jobs: int | None = declare(None, Whole(1, _MOST, optional=True), flag="--jobs", metavar="N",
        help="runs at a time (default: one per core on the CPU)")  # fmt: skip
    executor: str = declare("process", "text", flag="--executor", metavar="NAME",
        help="process (this machine), ray, slurm or one that --import names")  # fmt: skip
    runs_per_device: int = declare(1, Whole(1, _MOST), flag="--runs-per-device", metavar="N",
        help="small runs at a time on each GPU")  # fmt: skip
    ray_address: str | None = declare(None, "text", flag="--ray-address", metavar="ADDRESS",
        help="of a Ray that is there: auto or HOST:PORT (default: one that ends with the command)",
    )  # fmt: skip
    slurm: Mapping[str, str] = declare({}, "list", flag="--slurm", metavar="KEY=VALUE,...",
        help="options of sbatch, such as partition=gpu,gres=gpu:1,time=04:00:00; "
        "array_parallelism=N jobs at a time")  # fmt: skip
    detach: bool = declare(False, Flag(), flag="--detach",
        help="with --executor slurm: submit and leave; `status DIR` shows how far it is",
    )  # fmt: skip
    workers: int | None = declare(None, Whole(0, _MOST, optional=True),
        flag="--workers", metavar="N",
        help="processes that load images, per run (default: none for images in memory, else as "
        "many as a run has threads)")  # fmt: skip
    eval_batch_size: int | None = declare(None, Whole(1, LARGEST, optional=True),
        flag="--eval-batch-size", metavar="N",
        help="test images per step; no result depends on it (default: 64, at least --batch-size; "
        "halved where a GPU's memory is short)")  # fmt: skip
    no_cache: bool = declare(False, Flag(), flag="--no-cache",
        help="compute every feature; by default those of a frozen backbone are looked up across "
        "methods and seeds, to the same bits, and their time is charged")  # fmt: skip
    no_checks: bool = declare(False, Flag(), flag="--no-checks",
        help="do not look whether loss and gradients are finite: steps never wait for the GPU",
    )  # fmt: skip
    deterministic: bool = declare(False, Flag(), flag="--deterministic",
        help="deterministic kernels on a GPU: slower, and a run again has the same numbers",
    )  # fmt: skip
    checkpoint_every: int | None = declare(None, "text", flag="--checkpoint-every", metavar="N",
        help="training steps between checkpoints, besides those at experience ends; 0: at "
        "these alone (default: auto, so that writing costs at most 3 per cent of the time)",
    )  # fmt: skip
    fresh: bool = declare(False, Flag(), flag="--fresh",
        help="begin runs that were cut from their start instead of their last checkpoint",
    )  # fmt: skip
    log: tuple[str, ...] = declare((), "list", flag="--log", metavar="NAME[,..]",
        help="each run also logs to csv, tensorboard or wandb; changes no number")  # fmt: skip
    quiet: bool = declare(False, Flag(), flag="--quiet", help="show no progress")
    url: str = declare("", "text")

    def validate(self) -> Execution:
        """Check every number; returns itself.

        :raises UsageError: naming the flag, what it got and what it takes.
        """
        for name, setting in run_settings(type(self)).items():
            setting.check(getattr(self, name))
        return self


_current = Execution()


def current_execution() -> Execution:
    """How this process does runs; by default as an :class:`Execution` without arguments says."""
    return _current


def use_execution(execution: Execution) -> None:
    """Let this process do runs so from here on."""
    global _current
    _current = execution
