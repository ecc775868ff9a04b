"""How far a list of runs is: from its folder alone, in a terminal and in a log."""

from __future__ import annotations

import io
import json
import time

import pytest

from avalanche_rwf import cli
from avalanche_rwf.experiments import view
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.executors import get_executor, list_executors
from avalanche_rwf.experiments.executors.base import needs
from avalanche_rwf.experiments.status import Reporter, State, read_running, read_state, write_list
from avalanche_rwf.experiments.store import write_json


@pytest.fixture
def begun(configure, tmp_path):
    """Four runs: one done, one failed, one going on with half of its samples, one waiting."""
    configs = [configure(method, seed=seed) for seed in range(2) for method in ("ncm", "slda")]
    write_list(tmp_path, configs, 24)
    write_json(
        run_directory(tmp_path, configs[0]) / "summary.json", {"status": "done", "a_last": 0.5}
    )
    write_json(
        run_directory(tmp_path, configs[1]) / "summary.json", {"status": "failed", "error": "no"}
    )
    with Reporter(tmp_path, configs[2]) as report:
        report(12)
        report.evaluated(0.25)
        report._write()
        yield tmp_path, configs


def test_status_says_what_is_running_waiting_done_and_failed(begun, capsys):
    out, _ = begun
    assert cli.main(["status", str(out)]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith("4 runs: 1 done, 1 failed, 1 running, 1 waiting")
    assert "accuracy so far 50.0 %" in first
    assert "ncm" in rows[0] and "seed 1" in rows[0] and "50 %" in rows[0] and "25.0 %" in rows[0]
    assert any("slda" in row and "0/2 done" in row and "1 failed" in row for row in rows)


def test_a_run_that_has_ended_is_not_running(begun):
    out, _ = begun
    (path,) = (out / "status" / "running").glob("*.json")
    assert len(read_running(out)) == 1
    path.unlink()
    assert read_running(out) == []
    assert read_state(out).waiting == 2


def test_a_run_without_a_sign_of_life_is_said_to_be_silent(begun):
    out, _ = begun
    (path,) = (out / "status" / "running").glob("*.json")
    values = json.loads(path.read_text())
    path.with_name("killed.json").write_text(json.dumps({**values, "at": time.time() - 100}))
    assert any("silent for 0:01:40" in line for line in view.table(read_state(out), None))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"at": "x"}'])
def test_damaged_signs_of_life_are_passed_over(content, begun):
    out, _ = begun
    (out / "status" / "running" / "odd.json").write_text(content)
    (out / "status" / "lists" / "odd.json").write_text(content)
    assert len(read_state(out).running) == 1


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "takes the --out of a comparison" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_table_drawn_in_place_and_a_log_lines(configure, monkeypatch):
    for stream, again in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with view.View(list, [configure("ncm")], 24) as shown:
            shown._draw()
            with shown.aside():
                print("FAILED")
            shown.ended(configure("ncm"), {"status": "done", "a_last": 1.0})
        assert ("\x1b[" in stream.getvalue()) is again
        assert stream.getvalue().rstrip().splitlines()[0].startswith("1 runs: 0 done")
        assert "1 done" in stream.getvalue()


def test_time_left_is_by_the_speed_so_far(configure):
    state = State(100)
    state.tally("ncm").total = 3
    state.tally("ncm").end({"status": "done", "a_last": 0.5})
    assert "50 img/s, 0:00:04 left" in view.summary_line(state, 50.0)


def test_each_run_has_its_own_speed_and_time_left_and_a_log_names_it(begun, monkeypatch):
    out, _ = begun
    speeds, clock = view.Speeds(), [0.0]
    monkeypatch.setattr(view.time, "monotonic", lambda: clock[0])
    for samples, now in ((0, 0.0), (12, 4.0)):
        clock[0] = now
        state = read_state(out)
        state.running[0]["samples"] = samples
        total = speeds.note(state)
    assert state.running[0]["speed"] == 3.0
    (row,) = (line for line in view.table(state, total) if "seed 1" in line)
    assert "50 %" in row and "3 img/s, 0:00:04 left" in row
    line = view.log_line(state, total)
    assert line.endswith("; now ncm seed 1 50 % (25.0 %)") and "\n" not in line


def test_executors_are_found_by_name_and_an_unknown_one_is_refused(capsys, tmp_path):
    assert {"process", "ray", "serial", "slurm"} <= set(list_executors())
    status = cli.main(["compare", "--executor", "slrum", "--out", str(tmp_path / "out")])
    assert status == 2
    assert "'slurm'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--ray-address", "auto"], "--ray-address goes with --executor ray"),
        (["--slurm", "time=5"], "--slurm goes with --executor slurm"),
        (["--executor", "slurm", "--slurm", "time"], "--slurm takes key=value"),
        (["--detach"], "--detach goes with --executor slurm"),
        (["--runs-per-device", "0"], "--runs-per-device takes a whole number from 1"),
    ],
)
def test_options_of_another_executor_are_refused(more, says, capsys, tmp_path):
    assert cli.main(["compare", *more, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing_is_named_with_its_extra():
    with pytest.raises(ValueError, match=r'pip install "avalanche-rwf\[ray\]"'):
        needs("no_such_package", "--executor ray", "ray")


def test_an_executor_of_ones_own_joins_by_import(outside, monkeypatch):
    path = outside / "mine.py"
    path.write_text(
        "from avalanche_rwf.experiments.executors import Executor, register_executor\n"
        "@register_executor('mine')\n"
        "class Mine(Executor):\n"
        "    def map(self, configs):\n"
        "        for config in configs:\n"
        "            yield config, self.context.do(config)\n"
    )
    from avalanche_rwf.experiments.executors import base
    from avalanche_rwf.utils.user_code import VARIABLE

    monkeypatch.setattr(base.EXECUTORS, "entries", dict(base.EXECUTORS.entries))
    monkeypatch.setenv(VARIABLE, str(path))
    assert get_executor("mine").name == "mine"
