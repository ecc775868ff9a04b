"""Being asked to stop, in the process that was started and in its workers."""

from __future__ import annotations

import contextlib
import os
import signal

import executor_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.experiments import executors, stopping

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def worker():
    """A worker process, what it says, and what it takes its orders from."""
    context = executors._context()
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


def test_nothing_is_begun_in_a_worker_that_was_asked():
    with stopping.listening(lambda line: None):
        stopping.request_stop()
        with pytest.raises(stopping.RunStopped), stopping.working():
            pytest.fail("it was begun")
    with stopping.working():
        assert not stopping.stop_requested()  # the next block is not asked
