"""A job of Slurm for each run, in arrays: ``pip install "avalanche-rwf[slurm]"`` (submitit).

``OUT/slurm/<batch>/batch.json``   the number of an array and its runs, in the order of its tasks
``OUT/slurm/<batch>/<task>.json``  what a task came to
``OUT/slurm/jobs/``                what submitit writes

The output folder must be one that all nodes see. Jobs go on when the command ends; the same command
finds them in the queue and submits only what is not there. Slurm's signal before the time limit
(and SIGTERM, as at a preemption) stops a run after its step with a checkpoint; at the time limit
the job puts itself back into the queue.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors.base import (
    Context,
    Executor,
    Result,
    is_busy,
    killed,
    needs,
    node_folder,
    register_executor,
)
from avalanche_rwf.experiments.store import read_json, write_json
from avalanche_rwf.utils.untrusted_io import read_object

_EVERY = 2.0  # seconds between two looks at the queue, and more for a long queue
_SIGNAL_BEFORE = 90  # seconds before the time limit
_TIME = "01:00:00"
# Those that submitit reads itself; all others are sbatch's.
_SUBMITITS = ("array_parallelism", "signal_delay_s", "use_srun")


@dataclass(frozen=True)
class _Task:
    """What a job does; it can be pickled."""

    context: Context
    config: RunConfig
    answer: Path

    def __call__(self) -> None:
        context = replace(self.context, features=node_folder(self.context.out))
        context.enter()
        self._log()
        limit = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal limit
            limit = limit or number == signal.SIGUSR2
            signals.request_stop()

        # In the place of submitit's handlers, which stop in the middle of a step.
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        try:
            summary = context.do(self.config)
        except signals.RunStopped:
            if limit:
                print("The time limit is near: back into the queue.", flush=True)
                # Otherwise Slurm's SIGTERM goes unnoticed, and Slurm waits KillWait seconds.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
                time.sleep(60)  # Slurm ends this process
            sys.exit(128 + signal.SIGTERM)
        write_json(self.answer, summary, make_folder=False)

    def _log(self) -> None:
        """Let what the job prints go to the run directory."""
        if self.context.work is None:
            folder = run_directory(self.context.out, self.config)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "slurm.log").open("ab") as file:
                for stream in (1, 2):
                    os.dup2(file.fileno(), stream)


@register_executor("slurm")
class SlurmExecutor(Executor):
    """See the module's text."""

    can_detach = True
    takes_urls = False

    @classmethod
    def check(cls, execution: Execution) -> None:
        """Look for the package and for Slurm, and let it judge the options.

        :raises UsageError: in one sentence.
        """
        super().check(execution)
        needs("submitit", "--executor slurm", "slurm")
        for program in ("sbatch", "squeue", "srun"):
            if shutil.which(program) is None:
                raise UsageError(
                    f"--executor slurm needs Slurm's commands, and {program} is not here."
                )
        for name in _SUBMITITS[:2]:
            value = execution.slurm.get(name, "1")
            if not value.isdecimal() or int(value) < 1:
                raise UsageError(f"--slurm {name} takes a whole number from 1, not {value!r}.")
        flags = [
            f"--{key.replace('_', '-')}={value}"
            for key, value in execution.slurm.items()
            if key not in _SUBMITITS
        ]
        tried = subprocess.run(
            ["sbatch", "--test-only", *flags, "--wrap", "true"], capture_output=True, text=True
        )
        if tried.returncode:
            why = " ".join(tried.stderr.replace("sbatch: error:", "").split()).rstrip(".")
            raise UsageError(f"--slurm is refused by Slurm: {why[:300]}.")

    def _name(self, config: RunConfig) -> str:
        """Of a job in the folder of all commands: what is done, and where."""
        kind = "runs" if self.context.work is None else "work"
        return f"{kind} {self.context.place(config).relative_to(self.context.out).as_posix()}"

    @property
    def _folder(self) -> Path:
        return self.context.out.absolute() / "slurm"

    def map(self, configs: Sequence[RunConfig]) -> Iterator[Result]:
        """See :meth:`.Executor.map`. Asked to stop, it leaves the jobs in the queue."""
        self.context = replace(self.context, out=self.context.out.absolute())
        by_name = {self._name(config): config for config in configs}
        queued = _queue()
        # An answer of an earlier command is only good for what it did.
        answers = {
            name: (job, answer)
            for name, job, answer in _batches(self._folder)
            if name in by_name
            and (job in queued or (read_json(answer) or {}).get("status") == "done")
        }
        missing = [name for name in by_name if name not in answers]
        answers |= self._submit({name: by_name[name] for name in missing})
        if self.context.execution.detach:
            return
        yield from self._follow(by_name, answers)
        self._clean()

    def _submit(self, configs: Mapping[str, RunConfig]) -> dict[str, tuple[str, Path]]:
        """Put runs into the queue, in arrays as long as this Slurm takes them."""
        submitit: Any = importlib.import_module("submitit.slurm.slurm")
        execution = self.context.execution
        given = dict(execution.slurm)
        # Slurm shares out a node's cores itself.
        given.setdefault("time", _TIME)
        own: dict[str, Any] = {
            "array_parallelism": int(given.pop("array_parallelism", "0")) or execution.jobs or 256,
            "signal_delay_s": int(given.pop("signal_delay_s", _SIGNAL_BEFORE)),
            "use_srun": given.pop("use_srun", "true").lower() != "false",
        }
        if not execution.device.startswith("cuda"):
            given.setdefault("cpus_per_task", str(self.context.threads))
        answers: dict[str, tuple[str, Path]] = {}
        names, most = list(configs), _longest_array()
        for start in range(0, len(names), most):
            part = names[start : start + most]
            batch = self._folder / uuid.uuid4().hex[:12]
            batch.mkdir(parents=True)
            executor = submitit.SlurmExecutor(self._folder / "jobs" / batch.name)
            executor.update_parameters(
                job_name="avalanche-rwf",
                additional_parameters={k.replace("_", "-"): v for k, v in given.items()}
                | {"requeue": True},
                stderr_to_stdout=True,
                **own,
            )
            paths = [batch / f"{index}.json" for index in range(len(part))]
            tasks = [
                _Task(self.context, configs[name], path)
                for name, path in zip(part, paths, strict=True)
            ]
            with executor.batch():
                jobs = [executor.submit(task) for task in tasks]
            ids = [str(job.job_id) for job in jobs]
            write_json(batch / "batch.json", {"runs": part, "jobs": ids}, make_folder=False)
            answers |= {n: (i, p) for n, i, p in zip(part, ids, paths, strict=True)}
        return answers

    def _follow(
        self, configs: Mapping[str, RunConfig], answers: dict[str, tuple[str, Path]]
    ) -> Iterator[Result]:
        """Yield what ends: by the answers that jobs leave, or as it is not queued any more."""
        gone: dict[str, int] = {}
        while answers:
            if signals.stop_requested():
                raise signals.RunStopped
            queued = _queue()
            for name, (job, answer) in list(answers.items()):
                config = configs[name]
                summary = read_json(answer)
                if summary is None and job in queued:
                    gone.pop(name, None)
                    continue
                # Another command on this folder has had the answer and removed it: a new job gives
                # it again, as one does after the run of another process.
                cleaned = summary is None and not answer.parent.exists()
                if cleaned or (summary is not None and is_busy(summary)):
                    if self.context.is_free(config):
                        del answers[name]
                        answers |= self._submit({name: config})
                    continue
                if summary is None:
                    # The queue may forget a job before a shared disk shows its answer.
                    gone[name] = gone.get(name, 0) + 1
                    if gone[name] < 3:
                        continue
                    summary = killed(
                        f"Slurm's job {job} has ended without a result (cancelled, out of memory, "
                        f"or its node died; see {self._folder / 'jobs'}); the same command goes "
                        "on from the last checkpoint."
                    )
                del answers[name]
                yield config, summary
            _pause(_EVERY * (1 + len(answers) / 1000))

    def _clean(self) -> None:
        """Remove the folders of batches whose jobs have all answered and left the queue."""
        batches = {}
        for path in self._folder.glob("*/batch.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                jobs = read_object(path)["jobs"]
                if all((path.parent / f"{index}.json").exists() for index in range(len(jobs))):
                    batches[path.parent] = set(jobs)
        for _ in range(5):
            queued = _queue()
            for folder in [folder for folder, jobs in batches.items() if not jobs & queued]:
                del batches[folder]
                shutil.rmtree(self._folder / "jobs" / folder.name, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
            if not batches:
                return
            _pause(_EVERY)  # a job that has answered takes a moment to leave the queue


def _batches(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Each run that was submitted: its name, its job, and where its answer is."""
    for path in folder.glob("*/batch.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = read_object(path)
            for index, (name, job) in enumerate(zip(content["runs"], content["jobs"], strict=True)):
                yield name, job, path.parent / f"{index}.json"


def _queue() -> set[str]:
    """This user's jobs that wait or run, as "JOB_TASK".

    A controller that does not answer says nothing of the jobs: it is asked again.
    """
    while True:
        asked = subprocess.run(
            ["squeue", "--noheader", "--array", "--me", "--format", "%F_%K %A"],
            capture_output=True,
            text=True,
        )
        if not asked.returncode:
            words = [line.split() for line in asked.stdout.splitlines()]
            return {word for line in words for word in line}
        _pause(_EVERY)


def _pause(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if signals.stop_requested():
            raise signals.RunStopped
        time.sleep(0.1)


def _longest_array() -> int:
    asked = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    for line in asked.stdout.splitlines():
        key, _, value = line.partition("=")
        if key.strip() == "MaxArraySize" and value.strip().isdecimal():
            return max(1, int(value) - 1)
    return 1000
