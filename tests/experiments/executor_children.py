"""What the tests of executors and of signals have done in processes of the fork server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute
from avalanche_rwf.experiments.executors.base import Work


def follower(orders: Connection, said: Connection) -> None:
    """A worker that says when it was asked to stop, and does not."""
    signals.follow(orders)
    said.send("follows")
    while not signals.stop_requested():
        time.sleep(0.01)
    said.send("asked")
    time.sleep(600)


def endless(config: RunConfig, out: Path, device: str, progress: Any = None) -> dict[str, Any]:
    """A step that takes for ever; a file says which process is in it."""
    path = out / f"{config.method}{config.seed}"
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path.with_suffix(".pid"))
    time.sleep(600)
    raise AssertionError("nobody stopped it")


class OddError(Exception):
    """It can be pickled, and not be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def raising(config: RunConfig, out: Path, device: str, progress: Any = None) -> dict[str, Any]:
    """One method raises what no other process can read, and one asks for the end of its own."""
    if config.method == "ncm":
        raise OddError("no", "way")
    if config.method == "slda":
        raise SystemExit(0)
    return {"status": "done"}


def awkward(config: RunConfig, out: Path, device: str, progress: Any = None) -> dict[str, Any]:
    """Another process is at one run at first, and while that is known a worker is killed."""
    file = out / config.method
    times = len(file.read_text()) if file.exists() else 0
    file.write_text("x" * (times + 1))
    if config.method == "ncm" and not times:
        return {"status": "busy"}
    if config.method == "slda" and not times:
        while not (out / "ncm").exists():
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if config.method not in ("ncm", "slda"):  # so many are left that nothing is asked for again
        time.sleep(0.3)
    return {"status": "done"}


def cut_once(
    config: RunConfig, out: Path, device: str, progress: Any = None, *, number: int, victim: int
) -> dict[str, Any]:
    """A run; the victim's process gets a signal in its third step, the first time."""
    from avalanche_rwf.experiments.run import run

    steps = 0

    def cut(samples: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 3 and config.seed == victim and not (out / "cut").exists():
            (out / "cut").touch()
            os.kill(os.getpid(), number)

    return run(config, out, device, progress=cut, wait=False)


def where(
    config: RunConfig, out: Path, device: str, progress: Any = None, *, together: int
) -> dict[str, Any]:
    """Which GPU a worker has, and whether any was touched before; ends when all have begun."""
    import torch

    (out / f"begun{config.seed}").touch()
    while len(list(out.glob("begun*"))) < together:
        time.sleep(0.01)
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    return {"status": "done", "gpu": gpu, "touched": torch.cuda.is_initialized()}


def waits_once(
    config: RunConfig,
    out: Path,
    device: str,
    progress: Any = None,
    *,
    victim: tuple[str, int],
) -> dict[str, Any]:
    """A run; the victim waits in its third step, the first time, until it is asked to stop."""
    from avalanche_rwf.experiments.run import run

    steps = 0

    def wait_here(samples: int) -> None:
        nonlocal steps
        steps += 1
        if steps == 3 and (config.method, config.seed) == victim and not (out / "waits").exists():
            (out / "waits.part").write_text(str(os.getpid()))
            (out / "waits.part").rename(out / "waits")
            while not signals.stop_requested():
                time.sleep(0.02)

    return run(config, out, device, progress=wait_here, wait=False)


def sweeps(
    configs: Sequence[RunConfig],
    out: Path,
    execution: Execution,
    work: Work | None,
    environ: Mapping[str, str],
) -> None:
    """A command that does a list; a process of the fork server has its variables from there."""
    os.environ.update(environ)
    for _, summary in execute(configs, out, execution, 24, work=work):
        assert summary["status"] == "done", summary


def tunes(
    config: RunConfig,
    out: Path,
    trials: int,
    execution: Execution = Execution(jobs=1, quiet=True),  # noqa: B008
    environ: Mapping[str, str] = {},
) -> None:
    """A command that brings a study to so many trials."""
    from avalanche_rwf.experiments.study import search

    os.environ.update(environ)
    _, found = search(config, (), out, trials, execution)
    assert all(summary["status"] == "done" for _, summary in found)
