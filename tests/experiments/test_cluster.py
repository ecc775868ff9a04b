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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import executor_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import signals, study
from avalanche_rwf.experiments.config import RunConfig, run_directory
from avalanche_rwf.experiments.execution import Execution
from avalanche_rwf.experiments.executors import execute, get_executor
from avalanche_rwf.experiments.executors import slurm as slurm_executor
from avalanche_rwf.experiments.executors.base import Context
from avalanche_rwf.experiments.executors.process import process_context
from avalanche_rwf.experiments.run import run
from avalanche_rwf.experiments.store import write_json
from avalanche_rwf.experiments.study import read_study, search
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs

METHODS = ("ncm", "slda", "linear-probe", "rwf")
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install ray)"
)
_MISSING = [p for p in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(p) is None]
needs_optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="Optuna is not installed"
)
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
    seeds = {config.seed for config in configs}
    hashes = {config.config_hash() for config in configs}
    runs = [read_runs(folder)[0] for folder in (serial, out)]
    boards = [aggregate(r[r["config_hash"].isin(hashes) & r["seed"].isin(seeds)]) for r in runs]
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


VICTIM = ("linear-probe", 1)


@pytest.fixture
def sweep(configs, serial, tmp_path, monkeypatch):
    """A list whose command is killed while its victim waits in a step, and that is then finished
    by the same command."""
    monkeypatch.setattr("avalanche_rwf.experiments.executors.slurm._EVERY", 0.2)
    some = ("ncm", 1), VICTIM
    return Sweep([c for c in configs if (c.method, c.seed) in some], tmp_path, serial)


@dataclass
class Sweep:
    configs: list[RunConfig]
    out: Path
    serial: Path

    def killed(self, executor: str, **how) -> None:
        """A command that does the list and is killed in the victim's third step."""
        work = functools.partial(children.waits_once, victim=VICTIM)
        execution = Execution(executor=executor, quiet=True, checkpoint_every=1, **how)
        command = process_context().Process(  # type: ignore[attr-defined]
            target=children.sweeps,
            args=(self.configs, self.out, execution, work, dict(os.environ)),
            daemon=True,
        )
        command.start()
        until((self.out / "waits").exists)
        command.kill()
        command.join()

    def finish(self, executor: str, **how) -> None:
        """The same command again: everything is done, nothing twice, to the same bytes."""
        work = functools.partial(children.waits_once, victim=VICTIM)
        results = do(self.configs, self.out, executor, work, checkpoint_every=1, **how)
        assert len(results) == len(self.configs)
        assert {summary["status"] for _, summary in results} == {"done"}, results
        self.check()

    def check(self) -> None:
        assert_same(self.out, self.serial, self.configs)
        (victim,) = (c for c in self.configs if (c.method, c.seed) == VICTIM)
        assert "resumed" in (run_directory(self.out, victim) / "log.txt").read_text()


# ---- Ray


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # Ray's workers leave the cores to all others
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


@needs_ray
def test_a_killed_driver_takes_its_tasks_along_and_the_same_command_goes_on(cluster, server, sweep):
    there, _ = cluster
    sweep.killed("ray", ray_address=there.address)
    pid = int((sweep.out / "waits").read_text())
    until(lambda: not Path(f"/proc/{pid}").exists())
    sweep.finish("ray", ray_address=there.address)


def tuning(config, out, trials, **how):
    """A command that searches, in a process of its own."""
    execution = Execution(quiet=True, **how)
    command = process_context().Process(
        target=children.tunes, args=(config, out, trials, execution, dict(os.environ)), daemon=True
    )
    command.start()
    return command


def assert_each_trial_once(out: Path, trials: int) -> None:
    (folder,) = (out / "tuning").iterdir()
    assert read_study(folder)["trials"] == list(range(trials))
    told = [(t.user_attrs["trial"], t.state.name) for t in study._open(folder, 0).get_trials()]
    assert sorted(number for number, _ in told) == list(range(trials))
    assert "RUNNING" not in dict(told).values()


@needs_ray
@needs_optuna
def test_two_commands_share_a_study_on_ray_and_one_is_killed(cluster, server, configure, tmp_path):
    there, _ = cluster
    how = {"executor": "ray", "ray_address": there.address}
    commands = [tuning(configure("slda"), tmp_path, 6, **how) for _ in range(2)]
    until(lambda: list(tmp_path.glob("tuning/*/trials/*.json")))
    commands[0].kill()
    commands[1].join(120)
    assert commands[1].exitcode == 0
    assert_each_trial_once(tmp_path, 6)


# ---- Slurm

CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/socket
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
    (folder / "key-file").write_bytes(os.urandom(1024))
    (folder / "key-file").chmod(0o400)
    patch = pytest.MonkeyPatch()
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    # Jobs find `executor_children` there, and this package where this process does.
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    patch.setenv("PYTHONPATH", os.pathsep.join(paths))
    there = Slurm(folder)
    try:
        for program in ("munged", "slurmctld", "slurmd"):
            there.start(program)
        yield there
    finally:
        subprocess.run(["scancel", "--me"], capture_output=True)
        for process in reversed(there.begun.values()):
            process.terminate()
            process.wait(30)
        patch.undo()


class Slurm:
    """Slurm's programs, which can be started again."""

    def __init__(self, folder: Path) -> None:
        self.begun: dict[str, subprocess.Popen] = {}
        files = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        flags = [f"--{flag}={folder / flag}" for flag in files]
        self._programs = {
            "munged": (["--foreground", "--force", *flags], ["munge", flags[1], "--no-input"]),
            "slurmctld": (["-D"], ["sinfo"]),
            "slurmd": (["-D"], ["sinfo", "--states=idle,alloc,mix", "--noheader"]),
        }

    def start(self, program: str) -> None:
        """Start it and wait until it answers."""
        flags, ready = self._programs[program]
        self.begun[program] = subprocess.Popen(
            [program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(lambda: subprocess.run(ready, capture_output=True).stdout, 30)

    def kill(self, program: str) -> None:
        """SIGKILL."""
        self.begun[program].kill()
        self.begun[program].wait()


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


def shown(*jobs: str) -> list[str]:
    """What Slurm says of these jobs, or of all that it has had, one a line."""
    line = ["scontrol", "show", "job", "--oneliner", *jobs]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    return [job for job in said.splitlines() if job.startswith("JobId=")]


@needs_slurm
def test_a_job_outlives_its_command_slurmd_and_its_time_limit(slurm, server, sweep):
    """Command and slurmd are killed while it runs, then its time is over: the same command waits
    for this job and submits no other."""
    sweep.configs = sweep.configs[1:]  # each is a process that imports everything
    sweep.killed("slurm", slurm={"time": "10", "signal_delay_s": "120"})
    slurm.kill("slurmd")
    slurm.start("slurmd")
    (batch,) = (sweep.out / "slurm").glob("*/batch.json")
    (job,) = json.loads(batch.read_text())["jobs"]
    jobs = len(shown())

    def change(*values: str) -> None:
        subprocess.run(["scontrol", "update", f"JobId={job}", *values], check=True)

    change("TimeLimit=2")  # it is warned at Slurm's next look, one in 30 seconds
    until(lambda: all(word in shown(job)[0] for word in ("Restarts=1", "JobState=PENDING")), 90)
    change("TimeLimit=10", "StartTime=now+3")  # slurmd takes no job in the second of its requeue
    sweep.finish("slurm")
    assert len(shown()) == jobs


@needs_slurm
def test_a_cancelled_job_is_named_and_goes_on_from_its_checkpoint(slurm, configs, sweep):
    (config,) = sweep.configs = sweep.configs[1:]
    work = functools.partial(children.waits_once, victim=VICTIM)

    def when_it_waits(act: Callable[[], object]) -> None:
        def wait() -> None:
            until((sweep.out / "waits").exists)
            act()

        threading.Thread(target=wait, daemon=True).start()

    with signals.listening(lambda line: None), pytest.raises(signals.RunStopped):
        when_it_waits(signals.request_stop)
        do([config], sweep.out, "slurm", work, checkpoint_every=1)
    when_it_waits(lambda: subprocess.run(["scancel", "--me"], check=True))
    (result,) = do([config], sweep.out, "slurm", work, checkpoint_every=1)
    assert "has ended without a result" in result[1]["error"]
    # The same command submits it again; here that job is not waited for.
    do([config], sweep.out, "slurm", work, detach=True, slurm={"begin": "now+1hour"})
    queue = subprocess.run(["squeue", "--me", "--noheader"], capture_output=True, text=True).stdout
    assert len(queue.splitlines()) == 1, queue
    assert run(config, sweep.out)["status"] == "done"
    sweep.check()


@needs_slurm
@needs_optuna
def test_a_search_on_slurm_is_killed_and_waits_for_its_job(slurm, server, configure, tmp_path):
    before = len(shown())
    command = tuning(configure("slda"), tmp_path, 1, executor="slurm")
    until(lambda: list(tmp_path.glob("slurm/*/batch.json")))
    command.kill()
    command.join()
    _, found = search(configure("slda"), (), tmp_path, 1, Execution(executor="slurm", quiet=True))
    assert [summary["status"] for _, summary in found] == ["done"]
    assert_each_trial_once(tmp_path, 1)
    assert len(shown()) == before + 1


def test_an_answer_that_another_command_has_removed_is_asked_for_again(
    configs, tmp_path, monkeypatch
):
    again = tmp_path / "again" / "0.json"

    def submit(self, configs):
        write_json(again, {"status": "done"})
        return dict.fromkeys(configs, ("2", again))

    monkeypatch.setattr(slurm_executor, "_queue", set)
    monkeypatch.setattr(slurm_executor.SlurmExecutor, "_submit", submit)
    doing = slurm_executor.SlurmExecutor(Context(tmp_path))
    removed = {"name": ("1", tmp_path / "removed" / "0.json")}
    assert list(doing._follow({"name": configs[0]}, removed)) == [(configs[0], {"status": "done"})]


@needs_slurm
@needs_optuna
def test_two_studies_of_a_method_have_jobs_of_their_own(slurm, configure, tmp_path):
    later = Execution(executor="slurm", quiet=True, detach=True, slurm={"begin": "now+1hour"})
    for fixed in ((), {"readout"}):
        list(search(configure("slda"), fixed, tmp_path, 2, later)[1])
    batches = [json.loads(b.read_text()) for b in tmp_path.glob("slurm/*/batch.json")]
    assert [len(batch["jobs"]) for batch in batches] == [2, 2]
    subprocess.run(["scancel", "--me"], check=True)


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
