"""Being asked to stop, in the process that was started and in its workers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import executor_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.executors.process import process_context

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def worker():
    """A worker process, what it says, and what it takes its orders from."""
    context = process_context()
    orders, giver = context.Pipe(duplex=False)
    heard, said = context.Pipe(duplex=False)
    process = context.Process(target=children.follower, args=(orders, said), daemon=True)
    process.start()
    orders.close()

    def hear() -> str:
        assert heard.poll(60), "it says nothing"
        return heard.recv()

    assert hear() == "follows"
    yield process, hear, heard, giver
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.join()


def test_a_worker_leaves_ctrl_c_to_its_parent_and_ends_at_the_second_sigterm(worker):
    process, hear, heard, _ = worker
    os.kill(process.pid, signal.SIGINT)
    assert not heard.poll(0.2)
    os.kill(process.pid, signal.SIGTERM)
    assert hear() == "asked"
    assert process.is_alive()  # until its step ends
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM


def test_a_worker_stops_when_its_orders_end(worker):
    _, hear, _, giver = worker
    giver.close()
    assert hear() == "asked"


def test_one_sigterm_after_the_end_of_the_orders_is_the_first(worker):
    """It may be handled late, after a long operation."""
    process, hear, _, giver = worker
    giver.close()
    assert hear() == "asked"
    os.kill(process.pid, signal.SIGTERM)
    process.join(0.5)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_one_request_may_come_twice(name, monkeypatch):
    """`timeout` and batch systems send a signal to the process and to its group."""
    number, now = getattr(signal, name), [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    said: list[str] = []
    with signals.listening(said.append):
        os.kill(os.getpid(), number)
        now[0] += 0.5
        os.kill(os.getpid(), number)
        assert signals.stop_requested()
        now[0] += 1
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
            signal.sigtimedwait([], 1)  # the handler has run by then
    assert len(said) == 1
    assert signals.stopped_by() == number


def test_a_copy_of_the_process_leaves_signals_to_it():
    said: list[str] = []
    with signals.listening(said.append):
        handler = signal.getsignal(signal.SIGINT)
        child = os.fork()
        if not child:  # only looks at what the handler does: nothing of PyTorch's is used
            with contextlib.suppress(BaseException):
                handler(signal.SIGINT, None)
                os._exit(int(signals.stop_requested()) + len(said))
            os._exit(9)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_is_started_meanwhile_ignores_signals():
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    code = "import signal; print([signal.getsignal(s) for s in (1, 2, 15)].count(signal.SIG_IGN))"
    with signals.ignored():
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert found.stdout.split() == [b"3"]
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before


def test_nothing_is_begun_in_a_worker_that_was_asked():
    with signals.listening(lambda line: None):
        signals.request_stop()
        with pytest.raises(signals.RunStopped), signals.working():
            pytest.fail("it was begun")
    with signals.working():
        assert not signals.stop_requested()  # the next block is not asked
