"""How many CPU cores and threads this process may use: by affinity, container, Slurm and OpenMP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

MOST = 8
"""Cores that a run makes use of: a small batch does not fill more."""


def available_cores(root: Path = Path("/")) -> int:
    """Whole cores that this process may use, from 1 to :data:`MOST`.

    The least of the cores that it may run on, the CPU quota of its control groups (v1 and v2: what
    Docker, Kubernetes and systemd set) and ``SLURM_CPUS_PER_TASK``.

    :param root: of the file system.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        cores = os.cpu_count() or 1
    task = _whole("SLURM_CPUS_PER_TASK")
    limits = [*_quotas(root), *([task] if task else [])]
    return max(1, min([cores, MOST, *map(int, limits)]))


def thread_limit() -> int:
    """The most threads of a run: ``OMP_NUM_THREADS``, or :data:`MOST` where it is not set."""
    return _whole("OMP_NUM_THREADS") or MOST


def _whole(variable: str) -> int | None:
    """A whole number of at least 1 in an environment variable, of a list ("4,2") the first."""
    text = os.environ.get(variable, "").partition(",")[0].strip()
    return int(text) if text.isdecimal() and 0 < len(text) < 10 and int(text) else None


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of CPU time that each control group above this process allows."""
    fs = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = [*line.split(":", 2), "", ""][:3]
        controllers = names.split(",")
        if names and "cpu" not in controllers:
            continue
        # In a container the path may be the host's; the container's own group is then at the root.
        mount = fs / "cpu" if names and not (fs / names).is_dir() else fs / names
        group = mount / path.lstrip("/")
        for folder in dict.fromkeys([group, *group.parents, mount]):
            if folder.is_relative_to(mount):
                with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                    yield _quota(folder, names == "")


def _quota(folder: Path, unified: bool) -> float:
    """The quota of one control group.

    :raises OSError: if it has none.
    :raises ValueError: if it is without a limit.
    """
    if unified:
        quota, period = (folder / "cpu.max").read_text().split()
    else:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota, period = ((folder / name).read_text().strip() for name in names)
    cores = float(quota) / float(period)  # "max" is no number
    if cores <= 0:  # -1 is no limit
        raise ValueError
    return cores
