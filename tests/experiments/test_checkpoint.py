"""When checkpoints are written, which ones are of use, and what is said of the others."""

from __future__ import annotations

import pytest
import torch

from avalanche_rwf.cli.values import read_every
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import checkpoint
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.checkpoint import Schedule, difference
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.run import run
from avalanche_rwf.utils.atomic_io import read_state, save_state

from ..runs import execute_with


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is told."""

    class Clock:
        now = 100.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(checkpoint.time, "perf_counter", clock)
    return clock


def test_a_checkpoint_is_due_after_so_many_steps(clock):
    schedule = Schedule(3)
    assert [schedule.step() for _ in range(3)] == [False, False, True]
    schedule.wrote(1000.0)
    assert not schedule.step()
    assert schedule.end()
    at_ends = Schedule(0)
    assert not any(at_ends.step() for _ in range(1000))
    assert at_ends.end()


def test_by_default_writing_takes_less_than_3_percent_of_the_time(clock):
    schedule, spent, start = Schedule(size=10**8), 0.0, clock.now
    writes = 0
    for step in range(20000):
        clock.now += 0.05
        if schedule.step():
            cost = 0.5 + step / 40000  # the state grows
            clock.now += cost
            spent += cost
            schedule.wrote(cost)
            writes += 1
        assert spent <= 0.03 * (clock.now - start)
    assert writes > 20


def test_a_first_checkpoint_waits_until_it_can_be_paid_for(clock):
    small, large = Schedule(size=1000), Schedule(size=10**9)
    clock.now += 1
    assert small.end()
    assert not large.end()
    clock.now += 250
    assert large.step()


@pytest.mark.parametrize(("text", "every"), [(None, None), ("auto", None), ("0", 0), ("12", 12)])
def test_checkpoint_every_is_auto_or_a_number(text, every):
    assert read_every(text) == every


@pytest.mark.parametrize("text", ["-1", "1.5", "often", "9" * 5000])
def test_a_bad_checkpoint_every_is_refused(text):
    with pytest.raises(UsageError, match="takes auto or a whole number of at least 0"):
        read_every(text)


def test_differences_are_named():
    saved = {"configuration": {"batch_size": 8, "blocks": (1, 2)}, "code": "a" * 64}
    here = {"configuration": {"batch_size": 16, "blocks": [1, 2]}, "code": "b" * 64, "device": "x"}
    assert difference(saved, saved) == []
    first, second, third = difference(saved, here)
    assert first == "configuration.batch_size (8, here 16)"
    assert second == f"code ({'a' * 37}..., here {'b' * 37}...)"
    assert third == "device (None, here x)"


class Cut(BaseException):
    pass


def cut(config, out, monkeypatch, steps: int = 4) -> None:
    execute_with(monkeypatch, checkpoint_every=1)
    seen: list[int] = []

    def progress(n: int) -> None:
        seen.append(n)
        if len(seen) == steps:
            raise Cut

    with pytest.raises(Cut):
        run(config, out, progress=progress)


def log_of(out, config) -> str:
    return (run_directory(out, config) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("what", "patch"),
    [
        ("code", lambda m: m.setattr(module, "source_sha256", lambda: "another")),
        ("libraries.torch", lambda m: m.setattr(module.metadata, "version", lambda name: "0.1")),
    ],
)
def test_a_checkpoint_of_other_code_is_refused(what, patch, configure, tmp_path, monkeypatch):
    config = configure()
    cut(config, tmp_path, monkeypatch)
    patch(monkeypatch)
    assert run(config, tmp_path)["status"] == "done"
    log = log_of(tmp_path, config)
    assert f"a checkpoint is not used: 'checkpoint.pt' is of another {what} (" in log
    assert "resumed" not in log


def test_a_machine_with_fewer_gpus_goes_on(monkeypatch):
    state, put = checkpoint.random_state(), []
    state["cuda"] = [torch.zeros(1), torch.ones(1)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put.extend)
    checkpoint.set_random_state(state)
    assert put == state["cuda"][:1]


def test_fresh_does_not_resume(configure, tmp_path, monkeypatch):
    config = configure()
    cut(config, tmp_path, monkeypatch)
    execute_with(monkeypatch, checkpoint_every=1, fresh=True)
    assert run(config, tmp_path)["status"] == "done"
    assert "resumed" not in log_of(tmp_path, config)


def test_a_run_goes_on_with_the_threads_that_it_began_with(configure, tmp_path, monkeypatch):
    config = configure()
    cut(config, tmp_path, monkeypatch)
    before, used = torch.get_num_threads(), []
    torch.set_num_threads(before + 1)
    try:
        run(config, tmp_path, progress=lambda n: used.append(torch.get_num_threads()))
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert set(used) == {before}


def test_a_checkpoint_has_the_buffers_numbers_and_not_its_images(
    configure, tmp_path, monkeypatch
):
    config = configure("er", options={"buffer": 5})
    cut(config, tmp_path, monkeypatch)
    state = read_state(run_directory(tmp_path, config) / checkpoint.NAME)
    (group,) = state["strategy"]["replay"]["groups"]
    assert len(group[2]) == 5
    assert "images" not in state["strategy"]["replay"]


def test_a_checkpoint_that_cannot_be_put_back_gives_way_to_the_one_before(
    configure, tmp_path, monkeypatch
):
    config = configure("rwf")
    whole = run(config, tmp_path / "whole")
    cut(config, tmp_path, monkeypatch)
    path = run_directory(tmp_path, config) / checkpoint.NAME
    state = read_state(path)
    del state["strategy"]["model"]["seen"]
    save_state(path, state)
    assert run(config, tmp_path)["a_last"] == whole["a_last"]
    log = log_of(tmp_path, config)
    assert "a checkpoint does not fit and was removed" in log
    assert "resumed in experience 0 after 6 samples of it" in log


def test_what_a_killed_process_left_is_removed(configure, tmp_path):
    config = configure("ncm")
    folder = run_directory(tmp_path, config)
    folder.mkdir(parents=True)
    for name in (".checkpoint.pt.ab12", ".metrics.csv.x", ".summary.json.y"):
        (folder / name).write_text("half")
    (folder / ".hidden").write_text("a user's")
    run(config, tmp_path)
    names = {path.name for path in folder.iterdir()}
    assert names == {".hidden", "config.json", "log.txt", "metrics.csv", "summary.json"}


def test_a_checkpoint_of_another_format_is_not_used(configure, tmp_path, monkeypatch):
    config = configure()
    whole = run(config, tmp_path / "whole")
    cut(config, tmp_path, monkeypatch)
    folder = run_directory(tmp_path, config)
    for name in (checkpoint.NAME, checkpoint.PREVIOUS):
        save_state(folder / name, {**read_state(folder / name), "format": 99})
    assert run(config, tmp_path)["a_last"] == whole["a_last"]
    log = log_of(tmp_path, config)
    assert "a checkpoint is not used: 'checkpoint.pt' has the format 99 and not " in log
    assert "resumed" not in log


def test_a_buffers_numbers_are_of_no_use_without_the_stream(configure, tmp_path, monkeypatch):
    config = configure("er", options={"buffer": 5})
    cut(config, tmp_path, monkeypatch)
    state = read_state(run_directory(tmp_path, config) / checkpoint.NAME)
    loop = checkpoint.RunState(module.build_strategy(config, 6), {})
    with pytest.raises(checkpoint.StaleCheckpointError, match="buffer's images are not in it"):
        loop.restore(state)


def test_a_strategy_that_cannot_be_restored_keeps_nothing_and_begins_anew(
    configure, tmp_path, monkeypatch
):
    """Such as Avalanche's own, whose plugins have states that nobody knows."""
    config = configure("avalanche:Naive", eval_every_samples=0)
    whole = run(config, tmp_path / "whole")
    assert whole["status"] == "done"
    cut(config, tmp_path, monkeypatch)
    folder = run_directory(tmp_path, config)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "log.txt"]
    again = run(config, tmp_path)
    assert "resumed" not in log_of(tmp_path, config)
    metrics = [(run_directory(out, config) / "metrics.csv").read_bytes()
               for out in (tmp_path, tmp_path / "whole")]  # fmt: skip
    assert metrics[0] == metrics[1]
    assert again["a_last"] == whole["a_last"]
