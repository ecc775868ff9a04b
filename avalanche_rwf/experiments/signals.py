"""Being asked to stop: Ctrl-C, a signal, or the end of the process that began the comparison.

Once asked, a run stops after the step that it is in, with a checkpoint; asked again, the process
stops where it is, and the next one goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

_ASKED = threading.Event()
_WORKING = threading.Lock()
_SIGNAL = signal.SIGINT
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


# Seconds in which SIGTERM or SIGHUP again is the same request: `timeout` and batch systems send one
# to the process and one to its group.
_SAME = 1.0


class RunStopped(KeyboardInterrupt):
    """The run was asked to stop, and has stopped where it can go on from."""


def stop_requested() -> bool:
    """Whether this process was asked to stop."""
    return _ASKED.is_set()


def request_stop() -> None:
    """Ask for it."""
    _ASKED.set()


def stopped_by() -> int:
    """The number of the signal that asked last; SIGINT if none did."""
    return int(_SIGNAL)


@contextlib.contextmanager
def _handled(handler: Any, but: Any) -> Iterator[None]:
    """Handle SIGNALS by `handler` while the block runs, except one whose handler is `but`.

    Outside the main thread, which signals do not reach, nothing is changed.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) is not but:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextlib.contextmanager
def listening(say: Callable[[str], None]) -> Iterator[None]:
    """Take signals as requests while the block runs; the second one is a KeyboardInterrupt.

    SIGTERM or SIGHUP again within a second is not a second request. A signal that is ignored when
    the block begins (SIGHUP under nohup) stays so.
    """
    owner, asked_at = os.getpid(), float("-inf")

    def handle(number: int, frame: FrameType | None) -> None:
        global _SIGNAL
        nonlocal asked_at
        # A process that loads images is a copy of this one and gets Ctrl-C too; it ends with it.
        if os.getpid() != owner:
            return
        if _ASKED.is_set():
            if number != signal.SIGINT and time.monotonic() - asked_at < _SAME:
                return
            _SIGNAL = signal.Signals(number)
            raise KeyboardInterrupt
        _SIGNAL = signal.Signals(number)
        asked_at = time.monotonic()
        _ASKED.set()
        with contextlib.suppress(RuntimeError, OSError):  # in the middle of writing to it, or gone
            say("\nStopping after this step; once more stops now.")

    global _SIGNAL
    _ASKED.clear()
    _SIGNAL = signal.SIGINT
    try:
        with _handled(handle, but=signal.SIG_IGN):
            yield
    finally:
        _ASKED.clear()


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """Let processes that are started in the block ignore these signals, as their children do.

    A terminal and most batch systems send them to all processes of a comparison: the one that was
    started decides what becomes of it.
    """
    # None: a handler that was not set from Python, and that could not be put back.
    with _handled(signal.SIG_IGN, but=None):
        yield


@contextlib.contextmanager
def working() -> Iterator[None]:
    """In a worker process: the block runs to its end even if the parent is gone."""
    with _WORKING:
        if stop_requested():
            raise RunStopped
        yield


def follow(orders: Connection) -> None:
    """In a worker process: stop when the other end of `orders` is closed, or its process ends.

    Ctrl-C in a terminal reaches all processes, and so does its closing; the one that began the
    comparison decides.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    owner, terminated = os.getpid(), False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal terminated
        if os.getpid() != owner:  # a process that loads images
            return
        # Counted here: a first one may be handled after a long operation, when the orders have
        # ended already.
        if terminated:
            os._exit(128 + number)
        terminated = True
        _ASKED.set()

    signal.signal(signal.SIGTERM, handle)
    parent = multiprocessing.parent_process()
    ends: list[Any] = [orders, *([parent.sentinel] if parent is not None else [])]

    def watch() -> None:
        wait(ends)
        _ASKED.set()
        if parent is not None:
            wait([parent.sentinel])
            # Without its parent nobody would ever end this worker.
            with _WORKING:
                os._exit(1)

    threading.Thread(target=watch, name="orders", daemon=True).start()
