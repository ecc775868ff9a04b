"""The same list of runs in one process, in workers, on three nodes of Ray and on a real Slurm.

Left out, with a reason, where Ray or Slurm's commands are not installed; Slurm is started by the
test on this machine alone, which takes root.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import executor_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import signals
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute, get_executor
from avalanche_rwf.experiments.run import run
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs

METHODS = ("ncm", "slda", "linear-probe", "rwf")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install ray)"
)
_MISSING = [p for p in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(p) is None]
needs_slurm = pytest.mark.skipif(
    bool(_MISSING) or os.getuid() != 0 or importlib.util.find_spec("submitit") is None,
    reason=f"needs root, submitit and Slurm's programs (not installed: {_MISSING})",
)


@pytest.fixture(scope="module")
def configs(configure):
    return [configure(method, seed=seed) for seed in range(2) for method in METHODS]


@pytest.fixture(scope="module")
def serial(configs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("serial")
    assert all(run(config, out)["status"] == "done" for config in configs)
    return out


def assert_same(out: Path, serial: Path, configs) -> None:
    for config in configs:
        here, there = (run_directory(folder, config) for folder in (out, serial))
        assert (here / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()
        log = (here / "log.txt").read_text()
        assert log.count(" experience 2: accuracy") == 1, log  # nothing twice
    boards = [aggregate(read_runs(folder)[0]) for folder in (serial, out)]
    measured = ("second", "memory", "share")
    columns = [c for c in map(str, boards[0]) if not any(word in c for word in measured)]
    assert boards[0][columns].equals(boards[1][columns])


def do(configs, out, executor, work=None, **how):
    execution = Execution(executor=executor, quiet=True, **how)
    return list(execute(configs, out, execution, 24, work=work))


def test_workers_give_the_same_bytes(server, configs, serial, tmp_path):
    results = do(configs, tmp_path, "process", jobs=2)
    assert {summary["status"] for _, summary in results} == {"done"}
    assert_same(tmp_path, serial, configs)


# ---- Ray


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    there = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [there.add_node(num_cpus=1) for _ in range(3)]
    yield there, nodes
    ray.shutdown()
    there.shutdown()


@needs_ray
def test_three_nodes_of_ray_give_the_same_bytes_though_one_is_killed(
    cluster, configs, serial, tmp_path
):
    """The node dies with a run on it, which goes on elsewhere from its checkpoint."""
    there, nodes = cluster
    killed = threading.Event()

    def kill() -> None:
        while not (tmp_path / "waits").exists():
            time.sleep(0.05)
        pid = int((tmp_path / "waits").read_text())
        for node in nodes:
            raylet = node.all_processes["raylet"][0].process.pid
            if raylet in ancestors(pid):
                there.remove_node(node, allow_graceful=False)
                killed.set()
                os.kill(pid, signal.SIGKILL)  # with the machine's end everything on it ends
                return

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    work = functools.partial(children.waits_once, victim=("linear-probe", 1))
    results = do(configs, tmp_path, "ray", work, ray_address=there.address, checkpoint_every=1)
    assert killed.is_set()
    assert len(results) == len(configs)
    assert {summary["status"] for _, summary in results} == {"done"}, results
    assert_same(tmp_path, serial, configs)
    victim = next(c for c in configs if (c.method, c.seed) == ("linear-probe", 1))
    assert "resumed" in (run_directory(tmp_path, victim) / "log.txt").read_text()


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


@needs_ray
@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1", "127.0.0.1:x"])
def test_where_no_ray_is_it_is_said_before_any_run(address):
    with pytest.raises(UsageError, match="--ray-address"):
        get_executor("ray").check(Execution(ray_address=address))


# ---- Slurm

CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={port}
SlurmdPort={next}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=60
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A Slurm of this test's own on 127.0.0.1; its environment."""
    folder = Path(tmp_path_factory.mktemp("slurm"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    with socket.socket() as one, socket.socket() as other:
        for end in (one, other):
            end.bind(("127.0.0.1", 0))
        ports = {"port": one.getsockname()[1], "next": other.getsockname()[1]}
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, **ports))
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    # Jobs find `executor_children` there, and this package where this process does.
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    patch.setenv("PYTHONPATH", os.pathsep.join(paths))
    begun = []
    for line, ready in (
        (["munged", "--foreground", "--force", f"--key-file={folder}/key",
          f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid",
          f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed"],
         ["munge", f"--socket={folder}/munge.socket", "--no-input"]),
        (["slurmctld", "-D"], ["sinfo"]),
        (["slurmd", "-D"], ["sinfo", "--states=idle", "--noheader"]),
    ):  # fmt: skip
        begun.append(
            subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )
        until(lambda ready=ready: subprocess.run(ready, capture_output=True).stdout, 30)
    try:
        yield begun
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True)
        for process in reversed(begun):
            process.terminate()
            process.wait(30)
        patch.undo()


@needs_slurm
def test_slurm_gives_the_same_bytes(slurm, configs, serial, tmp_path):
    some = configs[2:4]  # each is a process that imports everything
    results = do(some, tmp_path, "slurm", slurm={"time": "10"})
    assert {summary["status"] for _, summary in results} == {"done"}, results
    for config in some:
        here, there = (run_directory(folder, config) for folder in (tmp_path, serial))
        assert (here / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()
        assert (here / "slurm.log").exists()
    assert not list((tmp_path / "slurm").glob("*/batch.json"))


@needs_slurm
def test_slurm_jobs_outlive_the_command_which_finds_them_again(
    slurm, configs, serial, tmp_path, monkeypatch
):
    """Stopped while a job runs; the same command waits for that job and submits no other."""
    monkeypatch.setattr("avalanche_rwf.experiments.executors.slurm._EVERY", 0.2)
    config = next(c for c in configs if (c.method, c.seed) == ("linear-probe", 1))
    work = functools.partial(children.waits_once, victim=("linear-probe", 1))
    waits = tmp_path / "waits"

    def stop() -> None:
        until(waits.exists)
        signals.request_stop()

    with signals.listening(lambda line: None), pytest.raises(signals.RunStopped):
        threading.Thread(target=stop, daemon=True).start()
        do([config], tmp_path, "slurm", work, checkpoint_every=1)
    (batch,) = (tmp_path / "slurm").glob("*/batch.json")
    (job,) = json.loads(batch.read_text())["jobs"]
    # At the time limit, or a preemption: the same signals, here by hand.
    subprocess.run(["scancel", "--signal=USR2", job], check=True)

    def requeued() -> bool:
        shown = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True
        ).stdout
        return "Restarts=1" in shown and "JobState=PENDING" in shown

    until(requeued, 40)  # Slurm need not kill it
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    (result,) = do([config], tmp_path, "slurm", work, checkpoint_every=1)
    assert result[1]["status"] == "done", result
    here, there = (run_directory(folder, config) for folder in (tmp_path, serial))
    assert (here / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()
    assert "resumed" in (here / "log.txt").read_text()


@needs_slurm
def test_a_cancelled_job_is_named_and_goes_on_from_its_checkpoint(
    slurm, configs, serial, tmp_path, monkeypatch
):
    monkeypatch.setattr("avalanche_rwf.experiments.executors.slurm._EVERY", 0.2)
    config = next(c for c in configs if (c.method, c.seed) == ("linear-probe", 1))
    work = functools.partial(children.waits_once, victim=("linear-probe", 1))

    def cancel() -> None:
        until((tmp_path / "waits").exists)
        subprocess.run(["scancel", "--me"], check=True)

    threading.Thread(target=cancel, daemon=True).start()
    (result,) = do([config], tmp_path, "slurm", work, checkpoint_every=1)
    assert "has ended without a result" in result[1]["error"]
    # The same command submits it again; here that job is not waited for.
    do([config], tmp_path, "slurm", work, detach=True, slurm={"begin": "now+1hour"})
    queue = subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True).stdout
    assert len(queue.splitlines()) == 1, queue
    assert run(config, tmp_path)["status"] == "done"
    here, there = (run_directory(folder, config) for folder in (tmp_path, serial))
    assert (here / "metrics.csv").read_bytes() == (there / "metrics.csv").read_bytes()
    assert "resumed" in (here / "log.txt").read_text()


@needs_slurm
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"partition": "nowhere"}, "invalid partition"),
        ({"gres": "gpu:1"}, "refused by Slurm"),
        ({"nonsense": "1"}, "unrecognized option"),
        ({"array_parallelism": "0"}, "array_parallelism"),
    ],
)
def test_what_slurm_refuses_is_said_before_any_run(options, says, slurm):
    with pytest.raises(UsageError, match=says):
        get_executor("slurm").check(Execution(slurm=options))
