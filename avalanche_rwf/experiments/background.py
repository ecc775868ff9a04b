"""A thread that calls a function every few seconds beside a run: heartbeats, copies, a display."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeated(action: Callable[[], object], seconds: float, name: str) -> Iterator[None]:
    """Call a function every so many seconds while the block runs, in a thread of its own.

    At the end of the block a call that is going on is waited for.

    :param name: of the thread.
    """
    over, owner = threading.Event(), os.getpid()

    def repeat() -> None:
        while not over.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        if os.getpid() == owner:  # not a forked worker that loads images: it has no such thread
            thread.join()
