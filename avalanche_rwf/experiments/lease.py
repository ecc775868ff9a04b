"""Who is at a run: a lock that holds on one machine, and a lease that holds between machines.

The rule, on a local disk, NFS, Lustre or any other file system that machines share:

- Processes of one machine are kept apart by a lock of the system (``flock``), which ends with its
  process, however that ends.
- Such a lock may not reach other machines (NFS with ``local_lock``, Lustre with ``localflock``, or
  a file system without locks). A lease does: a file that only one process can make (``O_EXCL``),
  rewritten every :data:`BEAT` seconds. One of this machine whose lock is free is a dead process's.
  One of another machine is taken over when its content has stayed the same for :data:`EXPIRES`
  seconds of the reader's own clock: clocks of machines are never compared.

A machine that is cut off for longer than that and then returns may do the rest of a run a second
time; both write the same bytes, whole files each.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from avalanche_rwf.experiments.background import repeated

BEAT = 10.0
"""Seconds between two signs of life of a lease's holder."""

EXPIRES = 120.0
"""Seconds without a sign of life after which another machine's lease has ended."""

_SEEN: dict[Path, tuple[bytes, float]] = {}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a run directory, if nobody else does; gives whether it is held.

    Lock and lease are hidden files beside the directory.

    :raises OSError: if they cannot be made.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    only_here = True  # no other process of this machine has it
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except NotImplementedError:
        only_here = False
    try:
        lease = folder.parent / f".{folder.name}.lease"
        mine = f"{_machine()}\n{uuid.uuid4().hex}\n".encode()
        if not _take(lease, mine, only_here):
            yield False
            return
        with _heartbeat(lease, mine):
            yield True
    finally:
        lock.release()


@functools.cache
def _machine() -> str:
    """This machine since it was started: two containers may have one name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()} {boot}"


def _read(lease: Path) -> bytes:
    try:
        return lease.read_bytes()
    except FileNotFoundError:
        return b""


def _take(lease: Path, mine: bytes, only_here: bool) -> bool:
    """Make the lease; one whose holder is dead is removed first."""
    while True:
        with contextlib.suppress(FileExistsError):
            handle = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            with os.fdopen(handle, "wb") as file:
                file.write(mine)
            _SEEN.pop(lease, None)
            return True
        theirs = _read(lease)
        here = theirs.partition(b"\n")[0] == _machine().encode()
        if not (here and only_here) and not _expired(lease, theirs):
            return False
        # Only one of several that found it dead can rename it.
        dead = lease.with_name(f"{lease.name}.{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            lease.rename(dead)
            if dead.read_bytes() != theirs:  # it was renewed, or another has it by now
                with contextlib.suppress(OSError):
                    os.link(dead, lease)
            dead.unlink()


def _expired(lease: Path, content: bytes) -> bool:
    before, since = _SEEN.get(lease, (None, 0.0))
    if before != content:
        _SEEN[lease] = content, time.monotonic()
        return False
    return time.monotonic() - since > EXPIRES


@contextlib.contextmanager
def _heartbeat(lease: Path, mine: bytes) -> Iterator[None]:
    """Give signs of life while the block runs, then give the lease back."""
    content, count, owner = mine, 0, os.getpid()
    part = lease.with_name(f"{lease.name}.{uuid.uuid4().hex}")

    def beat() -> None:
        nonlocal content, count
        with contextlib.suppress(OSError):  # a full disk, a server that is away
            if _read(lease) == content:  # else another machine took it for dead
                count += 1
                new = mine + f"{count}\n".encode()
                part.write_bytes(new)
                part.replace(lease)
                content = new

    try:
        with repeated(beat, BEAT, "lease"):
            yield
    finally:
        if os.getpid() == owner:  # not in a forked worker that loads images
            with contextlib.suppress(OSError):
                if _read(lease) == content:
                    lease.unlink()
