"""Lists of runs: how many at a time, with how many threads, and what a failure does."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import tempfile
import threading
import time
import weakref

import executor_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.benchmarks.kept_pixels import KEPT
from avalanche_rwf.experiments import executors, signals
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.execution import Execution, current_execution
from avalanche_rwf.experiments.executors import (
    base,
    default_jobs,
    default_threads,
    execute,
    process,
)
from avalanche_rwf.experiments.executors.base import TICK, Context, shared_features, variables
from avalanche_rwf.experiments.lease import locked
from avalanche_rwf.experiments.run import run
from avalanche_rwf.experiments.store import write_json
from avalanche_rwf.models.classifier import FrozenViT
from avalanche_rwf.models.feature_cache import MEMORY

from ..runs import execute_with

pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def have(n: int) -> None:
        monkeypatch.setattr(executors, "available_cores", lambda: n)

    return have


def test_jobs_are_cores_or_runs_and_one_on_a_gpu(cores):
    cores(4)
    assert [default_jobs(Execution(), n) for n in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert default_jobs(Execution(device="cuda"), 9) == 1


def test_threads_are_the_cores_that_a_comparison_leaves_idle(cores, monkeypatch):
    cores(8)
    assert [default_threads(Execution(), n) for n in (0, 1, 3, 4, 9)] == [8, 8, 2, 2, 1]
    assert default_threads(Execution(device="cuda:0"), 9) == 8
    cores(2)
    assert [default_threads(Execution(), n) for n in (1, 2, 24)] == [2, 1, 1]
    # Together they never ask for more than there is.
    for n in range(1, 20):
        assert default_jobs(Execution(), n) * default_threads(Execution(), n) <= 2
    cores(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [default_threads(Execution(), n) for n in (1, 2, 4)] == [3, 3, 2]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_cannot_write_is_a_failed_one_and_the_next_goes_on(jobs, configure, tmp_path):
    configs = [configure("ncm"), configure("slda")]
    (tmp_path / "runs").mkdir()
    place = tmp_path / "runs" / f"folder-{configs[0].benchmark.rpartition('/')[2]}"
    place.mkdir()
    (place / "ncm").write_text("in the way")
    results = list(execute(configs, tmp_path, Execution(jobs=jobs, quiet=True)))
    assert {config.method: summary["status"] for config, summary in results} == {
        "ncm": "failed", "slda": "done",
    }  # fmt: skip
    (failed,) = (summary for config, summary in results if config.method == "ncm")
    assert failed["error_type"] == "NotADirectoryError"
    assert "Not a directory" in failed["error"]


def test_one_run_after_another_may_use_the_disk_and_leaves_nothing(
    configure, tmp_path, monkeypatch
):
    from avalanche_rwf.benchmarks.kept_pixels import KEPT

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    MEMORY.clear()
    monkeypatch.setattr(MEMORY, "limit", 1000)
    found = []
    configs = [configure("ncm"), configure("slda")]
    for _ in execute(configs, tmp_path, Execution(jobs=1, quiet=True)):
        found.append((len(list(MEMORY._folder.glob("*.npy"))), KEPT.folder == MEMORY._folder))
    assert found[0][0] > 0 and found == [(found[0][0], True)] * 2
    assert MEMORY._folder is None and KEPT.folder is None
    assert not list((tmp_path / "scratch").glob("*/*"))


def test_one_run_after_another_has_one_model_alive(configure, tmp_path, monkeypatch):
    alive = weakref.WeakSet()
    make = FrozenViT.__init__

    def noted(self, *args, **kwargs):
        make(self, *args, **kwargs)
        alive.add(self)

    monkeypatch.setattr(FrozenViT, "__init__", noted)
    configs = [configure(name) for name in ("ncm", "slda", "linear-probe")]
    counts = []
    for _ in execute(configs, tmp_path, Execution(jobs=1, quiet=True)):
        counts.append(len(alive))
    assert max(counts) <= 1


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_work_raises_is_the_failure_of_its_own_configuration(jobs, configure, tmp_path):
    configs = [configure(m) for m in ("ncm", "slda", "linear-probe")]
    results = execute(
        configs, tmp_path, Execution(jobs=jobs, quiet=True), work=children.raising
    )
    assert {config.method: summary for config, summary in results} == {
        "ncm": {"status": "failed", "error": "no way", "error_type": "OddError"},
        "slda": {"status": "failed", "error": "0", "error_type": "SystemExit"},
        "linear-probe": {"status": "done"},
    }


def test_more_jobs_than_a_queue_has_room_for(configure, tmp_path):
    (result,) = execute([configure("ncm")], tmp_path, Execution(jobs=10**12, quiet=True))
    assert result[1]["status"] == "done"


def test_the_view_is_on_stderr_and_complete_at_the_end(configure, tmp_path, capsys):
    configs = [configure("ncm"), configure("slda")]
    list(execute(configs, tmp_path, Execution(jobs=1), 24))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "2 runs: 2 done, 0 failed, 0 running, 0 waiting" in captured.err
    assert "accuracy so far" in captured.err


def test_quiet_is_quiet(configure, tmp_path, capsys):
    list(execute([configure("ncm")], tmp_path, Execution(jobs=1, quiet=True)))
    assert capsys.readouterr() == ("", "")


# ---- workers


def test_a_worker_has_the_settings_of_its_command_and_no_older_ones(monkeypatch, tmp_path):
    """The fork server may have been started under others."""
    monkeypatch.setattr(MEMORY, "_folder", None)
    monkeypatch.setattr(KEPT, "folder", None)
    monkeypatch.setenv("AVALANCHE_RWF_OLD", "1")
    monkeypatch.setenv("ANOTHER", "1")
    execute_with(monkeypatch, workers=1)
    theirs, how = {"AVALANCHE_RWF_DATA": str(tmp_path)}, Execution(fresh=True)
    Context(tmp_path, how, variables=theirs, features=tmp_path).enter()
    assert variables() == theirs
    assert current_execution() == how
    assert os.environ["ANOTHER"] == "1"
    assert MEMORY._folder == KEPT.folder == tmp_path


def test_what_a_killed_command_left_is_removed_when_a_day_has_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with shared_features() as left:
        assert left.parent.stat().st_mode & 0o077 == 0
        for name, age in (("old", 90000), ("new", 80000)):
            (left.parent / name).mkdir()
            (left.parent / name / "pixels").touch()
            os.utime(left.parent / name, (time.time() - age,) * 2)
        with shared_features() as other:
            assert sorted(left.parent.iterdir()) == sorted([left, other, left.parent / "new"])
    assert list(left.parent.iterdir()) == [left.parent / "new"]


def test_a_folder_for_features_leaves_nothing_and_is_made_beside_one_that_ends(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyError), shared_features():
        raise KeyError
    assert not list(tmp_path.iterdir())
    roots = [tmp_path / "gone", base._root()]
    monkeypatch.setattr(base, "_root", lambda: roots.pop(0))
    with shared_features() as folder:
        assert folder.is_dir() and not roots


def test_the_run_of_another_process_comes_last_and_its_outcome_counts(configure, tmp_path):
    configs = [configure(method) for method in ("ncm", "slda", "linear-probe")]
    folder = run_directory(tmp_path, configs[0])
    found = {}
    with contextlib.ExitStack() as theirs:
        assert theirs.enter_context(locked(folder))
        for config, summary in execute(configs, tmp_path, Execution(jobs=2, quiet=True)):
            found[config.method] = summary
            if len(found) == 2:
                time.sleep(2 * TICK)  # it is looked at again, and still theirs
                write_json(folder / "summary.json", {"status": "failed", "error": "theirs"})
                theirs.close()
    assert list(found)[-1] == "ncm"
    assert found.pop("ncm") == {"status": "failed", "error": "theirs"}
    assert [summary["status"] for summary in found.values()] == ["done", "done"]


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_run_whose_worker_is_killed_goes_on_from_its_checkpoint(
    number, configure, tmp_path, monkeypatch
):
    """A person's kill, or the kernel's for memory."""
    execute_with(monkeypatch, checkpoint_every=1)
    configs = [configure("linear-probe", seed=seed) for seed in range(2)]
    for config in configs:
        run(config, tmp_path / "whole")
    work = functools.partial(children.cut_once, number=getattr(signal, number), victim=1)
    execution = Execution(jobs=2, quiet=True, checkpoint_every=1)
    results = list(execute(configs, tmp_path, execution, work=work))
    assert sorted(config.seed for config, _ in results) == [0, 1]
    assert {summary["status"] for _, summary in results} == {"done"}
    for config in configs:
        folder, whole = (run_directory(out, config) for out in (tmp_path, tmp_path / "whole"))
        assert (folder / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert "resumed" in (run_directory(tmp_path, configs[1]) / "log.txt").read_text()


def test_each_gpu_has_a_worker_before_any_has_two(configure, tmp_path, monkeypatch):
    monkeypatch.setattr(process, "gpus", lambda device: ["3", "5"])
    configs = [configure("ncm", seed=seed) for seed in range(4)]
    work = functools.partial(children.where, together=4)
    execution = Execution(device="cuda", runs_per_device=2, quiet=True)
    results = execute(configs, tmp_path, execution, work=work)
    seen = {config.seed: summary for config, summary in results}
    assert [seen[seed]["gpu"] for seed in range(4)] == ["3", "5", "3", "5"]
    assert not any(summary["touched"] for summary in seen.values())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_worker_killed_while_another_run_is_waited_for_loses_neither(configure, tmp_path):
    methods = ("ncm", "slda", "linear-probe", "er", "rwf")
    configs = [configure(method) for method in methods]
    results = list(
        execute(configs, tmp_path, Execution(jobs=2, quiet=True), work=children.awkward)
    )
    assert sorted(config.method for config, _ in results) == sorted(methods)
    assert [summary for _, summary in results] == [{"status": "done"}] * 5


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("between", [0, 3 * TICK])
def test_asked_twice_workers_in_a_long_step_are_killed(between, configure, tmp_path):
    configs = [configure("ncm", seed=seed) for seed in range(2)]

    def ask_twice() -> None:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        while not signals.stop_requested():
            time.sleep(0.001)
        time.sleep(between)
        os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask_twice, daemon=True)
    with signals.listening(lambda line: None), pytest.raises(KeyboardInterrupt) as caught:
        asking.start()
        list(
            execute(configs, tmp_path, Execution(jobs=2, quiet=True), work=children.endless)
        )
    asking.join()
    assert not isinstance(caught.value, signals.RunStopped)
    for path in tmp_path.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            for _ in range(1000):
                os.kill(int(path.read_text()), 0)
                time.sleep(0.01)
            pytest.fail("a worker lives on")
