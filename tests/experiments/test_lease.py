"""Who is at a run: one process, of one machine or of many, on any shared file system."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from avalanche_rwf.experiments import lease
from avalanche_rwf.experiments.lease import locked

CHILD = """
import sys, time
from pathlib import Path
from avalanche_rwf.experiments import lease
machine, folder, log = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
if machine:
    lease._machine = lambda: machine
    class NoLock:  # as on a file system whose locks do not reach other machines
        def __init__(self, path): pass
        def acquire(self, timeout): pass
        def release(self): pass
    lease.FileLock = NoLock
lease.BEAT = 0.05
end = time.monotonic() + 1
while time.monotonic() < end:
    with lease.locked(folder) as mine:
        if mine:
            with log.open("a") as file:
                file.write("in\\n")
            time.sleep(0.02)
            with log.open("a") as file:
                file.write("out\\n")
    time.sleep(0.001)
"""


@pytest.mark.parametrize("machines", [("", "", ""), ("one", "two", "three")])
def test_one_process_at_a_time_is_in(machines, tmp_path):
    """Of one machine by its lock; of several by the lease, where locks do not reach."""
    log = tmp_path / "log"
    begun = [
        subprocess.Popen([sys.executable, "-c", CHILD, name, str(tmp_path / "run"), str(log)])
        for name in machines
    ]
    assert [child.wait(60) for child in begun] == [0, 0, 0]
    lines = log.read_text().split()
    assert len(lines) > 10
    assert lines == ["in", "out"] * (len(lines) // 2)
    assert not (tmp_path / ".run.lease").exists()


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A lease that a process of another machine holds, whose locks do not reach this one."""
    path = tmp_path / ".run.lease"
    path.write_bytes(b"another machine\n1234\n")
    return path


def test_another_machines_run_is_taken_over_when_it_gives_no_more_signs_of_life(
    elsewhere, tmp_path, monkeypatch
):
    now = [1000.0]
    monkeypatch.setattr(lease.time, "monotonic", lambda: now[0])

    def is_free() -> bool:
        with locked(tmp_path / "run") as mine:
            return mine

    assert not is_free()
    now[0] += lease.EXPIRES - 1
    elsewhere.write_bytes(b"another machine\n1234\n1\n")  # a sign of life
    assert not is_free()
    now[0] += lease.EXPIRES - 1
    assert not is_free()
    now[0] += 2
    assert is_free()
    assert not elsewhere.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lease_of_a_dead_process_of_this_machine_ends_at_once(tmp_path):
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException), locked(tmp_path / "run") as mine:
            os.write(go, b"1" if mine else b"0")
            time.sleep(600)
        os._exit(0)
    assert os.read(ready, 1) == b"1"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".run.lease").exists()
    with locked(tmp_path / "run") as mine:
        assert mine


def test_a_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.01)
    path, seen = tmp_path / ".run.lease", set()
    with locked(tmp_path / "run"):
        end = time.monotonic() + 30
        while len(seen) < 3 and time.monotonic() < end:
            with contextlib.suppress(FileNotFoundError):
                seen.add(path.read_bytes())
    assert len(seen) >= 3
    assert not path.exists()
    assert not list(tmp_path.glob(".run.lease.*"))


def test_a_holder_that_was_taken_for_dead_leaves_the_others_lease_alone(tmp_path):
    path = tmp_path / ".run.lease"
    with locked(tmp_path / "run") as mine:
        assert mine
        path.write_bytes(b"another machine\n1\n")
    assert path.read_bytes() == b"another machine\n1\n"
