"""A comparison takes no more cores and threads than it was given."""

from __future__ import annotations

import pytest

from avalanche_rwf.experiments import cpus
from avalanche_rwf.experiments.cpus import available_cores, thread_limit


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 6 cores and no limit."""
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("said", "files", "cores"),
    [
        # v2: of the own group, of one above it, in a container that does not see its path
        ("0::/a/b", {"a/b/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ("0::/host/path", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 6),
        ("0::/", {"cpu.max": "nonsense"}, 6),
        ("0::/", {}, 6),
        # v1
        ("3:cpu,cpuacct:/a", {"cpu,cpuacct/a/cpu.cfs_quota_us": "400000",
                              "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 4),
        ("3:cpu:/host", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ("3:memory:/", {"memory/cpu.cfs_quota_us": "1", "memory/cpu.cfs_period_us": "1"}, 6),
        (None, {}, 6),
    ],
)  # fmt: skip
def test_a_containers_cpu_quota_is_kept(said, files, cores, tmp_path):
    if said is not None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(said + "\n")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("given", "cores"), [("2", 2), ("64", 6), ("", 6), ("x", 6), ("0", 6)])
def test_slurms_share_is_kept(given, cores, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
    assert available_cores(tmp_path) == cores


@pytest.mark.parametrize(("given", "limit"), [("1", 1), ("4,2", 4), ("0", 8), ("many", 8)])
def test_openmps_threads_are_kept(given, limit, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert thread_limit() == limit


@pytest.mark.parametrize(("count", "cores"), [(6, 6), (64, 8), (None, 1)])
def test_cores_where_a_process_cannot_be_told_some(count, cores, tmp_path, monkeypatch):
    monkeypatch.delattr(cpus.os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(cpus.os, "cpu_count", lambda: count)
    assert available_cores(tmp_path) == cores
