"""Lists of runs: how many at a time, with how many threads, and what a failure does."""

from __future__ import annotations

import pytest

from avalanche_rwf.experiments import executors
from avalanche_rwf.experiments.executors import default_jobs, default_threads, execute


@pytest.fixture
def cores(monkeypatch):
    def have(n: int) -> None:
        monkeypatch.setattr(
            executors.os, "sched_getaffinity", lambda pid: set(range(n)), raising=False
        )

    return have


def test_jobs_are_cores_or_runs_and_one_on_a_gpu(cores):
    cores(4)
    assert [default_jobs("cpu", n) for n in (0, 1, 3, 9)] == [1, 1, 3, 4]
    assert default_jobs("cuda", 9) == 1
    cores(64)
    assert default_jobs("cpu", 90) == 8


def test_threads_are_the_cores_that_a_comparison_leaves_idle(cores):
    cores(8)
    assert [default_threads("cpu", n) for n in (0, 1, 3, 4, 9)] == [8, 8, 2, 2, 1]
    assert default_threads("cuda:0", 9) == 8
    cores(2)
    assert [default_threads("cpu", n) for n in (1, 2, 24)] == [2, 1, 1]
    # Together they never ask for more than there is.
    for n in range(1, 20):
        assert default_jobs("cpu", n) * default_threads("cpu", n) <= 2


def test_a_run_that_cannot_write_is_a_failed_one_and_the_next_goes_on(configure, tmp_path):
    configs = [configure("ncm"), configure("slda")]
    (tmp_path / "runs").mkdir()
    place = tmp_path / "runs" / f"folder-{configs[0].benchmark.rpartition('/')[2]}"
    place.mkdir()
    (place / "ncm").write_text("in the way")
    results = list(execute(configs, tmp_path, "cpu", 1, lambda config: 24, quiet=True))
    assert [config for config, _ in results] == configs
    assert [summary["status"] for _, summary in results] == ["failed", "done"]
    assert results[0][1]["error_type"] == "NotADirectoryError"


def test_more_jobs_than_a_queue_has_room_for(configure, tmp_path):
    (result,) = execute([configure("ncm")], tmp_path, "cpu", 10**12, lambda config: 24, quiet=True)
    assert result[1]["status"] == "done"


def test_the_progress_bar_is_on_stderr_and_full_at_the_end(configure, tmp_path, capsys):
    list(execute([configure("ncm")], tmp_path, "cpu", 1, lambda config: 24))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100%" in captured.err
    assert "24/24 img" in captured.err
    assert "1/1 runs, last ncm seed 0" in captured.err


def test_quiet_is_quiet(configure, tmp_path, capsys):
    list(execute([configure("ncm")], tmp_path, "cpu", 1, lambda config: 24, quiet=True))
    assert capsys.readouterr() == ("", "")
