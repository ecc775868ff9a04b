"""Results survive: several processes, full disks, removed folders, signals."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fault_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.experiments import checkpoint, signals
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute
from avalanche_rwf.experiments.lease import locked
from avalanche_rwf.experiments.run import run
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs
from avalanche_rwf.utils import atomic_io
from avalanche_rwf.utils.atomic_io import read_state

from ..runs import execute_with
from .conftest import Outcome

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_processes_on_one_folder_do_each_run_once(configure, tmp_path):
    configs = [
        configure(method, seed=seed)
        for seed in range(2)
        for method in ("ncm", "slda", "linear-probe")
    ]
    for config in configs:
        assert run(config, tmp_path / "serial")["status"] == "done"

    begun = [
        children.start(children.compared, number, configs, tmp_path / "many")
        for number in range(4)
    ]
    assert [children.status_of(process) for process in begun] == [0] * 4
    for config in configs:
        Outcome(tmp_path / "many", config).assert_equal(Outcome(tmp_path / "serial", config))
        log = (run_directory(tmp_path / "many", config) / "log.txt").read_text()
        assert log.count(f"{config.method} on ") == 1
    boards = [aggregate(read_runs(tmp_path / name)[0]) for name in ("serial", "many")]
    columns = [c for c in boards[0] if not any(w in c for w in ("second", "memory", "share"))]
    assert boards[0][columns].equals(boards[1][columns])


@needs_fork
def test_a_lock_ends_with_its_owner(configure, tmp_path):
    config = configure("ncm")
    folder = run_directory(tmp_path, config)
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        with locked(folder) as mine:
            os.write(go, b"1" if mine else b"0")
            time.sleep(600)
        os._exit(0)
    try:
        assert os.read(ready, 1) == b"1"
        assert run(config, tmp_path, wait=False) == {"status": "busy"}
        assert not folder.exists()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert run(config, tmp_path, wait=False)["status"] == "done"


def test_a_run_that_another_process_fails_is_not_tried_again_by_who_waits(configure, tmp_path):
    config = configure("ncm")
    folder = run_directory(tmp_path, config)
    found = []
    with locked(folder):
        waiting = threading.Thread(target=lambda: found.append(run(config, tmp_path)))
        waiting.start()
        time.sleep(0.3)
        module.write_json(folder / "summary.json", {"status": "failed", "error": "theirs"})
    waiting.join()
    assert found == [{"status": "failed", "error": "theirs"}]
    assert run(config, tmp_path)["status"] == "done"  # a new attempt is one


@pytest.mark.parametrize(
    ("code", "after"), [(errno.ENOSPC, 1), (errno.ENOSPC, 6), (errno.EROFS, 6)]
)
def test_a_disk_that_takes_nothing_ends_one_run_and_leaves_the_rest(
    code, after, configure, tmp_path, monkeypatch
):
    """Some files are written, then one run's directory takes no more."""
    execute_with(monkeypatch, checkpoint_every=1)
    first, bad, last = (configure(method) for method in ("ncm", "linear-probe", "slda"))
    assert run(first, tmp_path)["status"] == "done"
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    calls = []
    fsync = os.fsync

    def full(handle: int) -> None:
        name = str(Path(f"/proc/self/fd/{handle}").readlink())
        if f"/{bad.method}/" in name:
            calls.append(name)
            if len(calls) > after:
                raise OSError(code, os.strerror(code), name)
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(atomic_io.os, "fsync", full)
        execution = Execution(jobs=1, quiet=True, checkpoint_every=1)
        results = list(execute([bad, last], tmp_path, execution))
    (_, failed), (_, done) = results
    assert done["status"] == "done"
    assert failed["status"] == "failed"
    assert os.strerror(code) in failed["error"]
    assert "\n" not in failed["error"]
    assert all(p.read_bytes() == content for p, content in before.items())
    assert not list(run_directory(tmp_path, bad).glob(".*"))
    # With room again the same command ends as if nothing had been.
    assert run(bad, tmp_path)["status"] == "done"
    run(bad, tmp_path / "whole")
    Outcome(tmp_path, bad).assert_equal(Outcome(tmp_path / "whole", bad))


def test_a_folder_that_is_removed_ends_its_run_with_a_sentence(configure, tmp_path, monkeypatch):
    execute_with(monkeypatch, checkpoint_every=1)
    config, other = configure("linear-probe"), configure("ncm")
    folder = run_directory(tmp_path, config)

    def remove(samples: int) -> None:
        if config.method in str(folder) and folder.exists():
            shutil.rmtree(folder)

    summary = run(config, tmp_path, progress=remove)
    assert summary["status"] == "failed"
    assert summary["error"] == (
        f"The run directory {str(folder)!r} was removed while the run was going on."
    )
    assert not folder.exists()
    assert run(other, tmp_path)["status"] == "done"


# ---- signals


def interrupting(at: int, number: int = signal.SIGINT):
    """A progress function that sends this process a signal at a step."""
    seen = []

    def progress(samples: int) -> None:
        seen.append(samples)
        if len(seen) == at:
            os.kill(os.getpid(), number)

    return progress


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_once_a_run_stops_after_its_step_with_a_checkpoint(
    number, configure, tmp_path, monkeypatch
):
    execute_with(monkeypatch, checkpoint_every=0)
    config = configure("rwf", eval_every_samples=0)
    whole = run(config, tmp_path / "whole")
    said: list[str] = []
    handler = signal.getsignal(number)
    with signals.listening(said.append), pytest.raises(signals.RunStopped):
        run(config, tmp_path, progress=interrupting(3, number))
    assert signal.getsignal(number) is handler
    assert signals.stopped_by() == number
    assert len(said) == 1 and "once more stops now" in said[0]
    folder = run_directory(tmp_path, config)
    position = read_state(folder / checkpoint.NAME)["position"]
    assert position == {"experience": 0, "samples": 12, "trained": False}
    assert "stopped; the same command goes on from here" in (folder / "log.txt").read_text()
    assert run(config, tmp_path)["a_last"] == whole["a_last"]
    Outcome(tmp_path, config).assert_equal(Outcome(tmp_path / "whole", config))


def test_asked_in_an_evaluation_it_is_done_again(configure, tmp_path, monkeypatch):
    execute_with(monkeypatch, checkpoint_every=0)
    config = configure("er", options={"buffer": 4}, batch_size=2)
    run(config, tmp_path / "whole")
    ask = module.PredictionRecorder.before_eval

    def before_eval(self, strategy, **kwargs):
        ask(self, strategy, **kwargs)
        if self._announced == (1,):
            signals.request_stop()

    with monkeypatch.context() as patch, signals.listening(lambda line: None):
        patch.setattr(module.PredictionRecorder, "before_eval", before_eval)
        with pytest.raises(signals.RunStopped):
            run(config, tmp_path)
    position = read_state(run_directory(tmp_path, config) / checkpoint.NAME)["position"]
    assert position == {"experience": 1, "samples": 15, "trained": True}
    assert run(config, tmp_path)["status"] == "done"
    Outcome(tmp_path, config).assert_equal(Outcome(tmp_path / "whole", config))


def test_asked_twice_it_stops_where_it_is(configure, tmp_path, monkeypatch):
    execute_with(monkeypatch, checkpoint_every=1)
    config = configure("linear-probe")
    stop_at = interrupting(2)

    def progress(samples: int) -> None:
        stop_at(samples)
        stop_at(samples)
        if signals.stop_requested():
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second one is to stop at once")

    with signals.listening(lambda line: None), pytest.raises(KeyboardInterrupt) as caught:
        run(config, tmp_path, progress=progress)
    assert not isinstance(caught.value, signals.RunStopped)
    assert not (run_directory(tmp_path, config) / checkpoint.NAME).exists()


@pytest.mark.parametrize("stop", [True, False])
def test_an_error_while_stopping_is_no_failure(stop, configure, tmp_path, monkeypatch):
    """A signal to all processes ends those that load images, too."""
    execute_with(monkeypatch, checkpoint_every=1)
    config = configure("linear-probe")
    steps = []

    def progress(samples: int) -> None:
        steps.append(samples)
        if len(steps) == 3:
            if stop:
                os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    with signals.listening(lambda line: None):
        if stop:
            with pytest.raises(signals.RunStopped):
                run(config, tmp_path, progress=progress)
        else:
            assert run(config, tmp_path, progress=progress)["status"] == "failed"
    assert (run_directory(tmp_path, config) / "summary.json").exists() is not stop
    assert run(config, tmp_path)["status"] == "done"


def test_nothing_is_begun_after_being_asked(configure, tmp_path):
    with signals.listening(lambda line: None):
        signals.request_stop()
        with pytest.raises(signals.RunStopped):
            run(configure("ncm"), tmp_path)
        with pytest.raises(signals.RunStopped):
            list(execute([configure("ncm")], tmp_path, Execution(jobs=1, quiet=True)))
    assert list(tmp_path.iterdir()) == []


def alive(group: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, 0)
        return True
    return False


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@needs_fork
@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        (signal.SIGTERM, False),
        (signal.SIGKILL, False),
        # A terminal that is closed, or a batch system.
        (getattr(signal, "SIGHUP", signal.SIGTERM), True),
    ],
)
def test_a_comparison_that_is_ended_takes_its_workers_with_it(number, to_all, folder, tmp_path):
    """Runs of many minutes in two workers; the signal goes to the parent alone, or to all."""
    command = [
        *(sys.executable, "-m", "avalanche_rwf", "compare", "--benchmark", f"folder:{folder}"),
        *("--methods", "rwf", "--seeds", "0,1", "--jobs", "2", "--batch-size", "1"),
        *("--backbone", "vit_tiny_patch16_224", "--image-size", "16"),
        *("--backbone-arg", "pretrained=False", "--backbone-arg", "depth=5"),
        *("--backbone-arg", "embed_dim=16", "--backbone-arg", "num_heads=2"),
        *("--backbone-arg", "patch_size=8", "--gradient-steps", "60"),
        *("--checkpoint-every", "1", "--out", str(tmp_path / "out"), "--quiet"),
    ]
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    try:
        wait_for(
            lambda: process.poll() is not None
            or len(list((tmp_path / "out").rglob(checkpoint.NAME))) == 2
        )
        assert process.poll() is None, (tmp_path / "stderr").read_text()
        (os.killpg if to_all else os.kill)(process.pid, number)
        status = process.wait(240)
        wait_for(lambda: not alive(process.pid))
    finally:
        if alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said, said
    if number != signal.SIGKILL:
        assert status == 128 + number
        assert "Stopped; the same command goes on from here." in said
    logs = [path.read_text() for path in (tmp_path / "out").rglob("log.txt")]
    assert len(logs) == 2
    assert all(log.endswith("stopped; the same command goes on from here\n") for log in logs), logs
    for path in (tmp_path / "out").rglob(checkpoint.NAME):
        assert read_state(path)["position"]["samples"] >= 1
