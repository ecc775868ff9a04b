"""A run that was killed anywhere and started again ends as the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from avalanche_rwf.benchmarks.stream_registry import list_streams
from avalanche_rwf.experiments import checkpoint
from avalanche_rwf.experiments import run as module
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.run import run
from avalanche_rwf.strategies.registry import get_method, list_methods
from avalanche_rwf.utils import atomic_io

from ..runs import execute_with
from .conftest import Outcome, draw


def steps_of(config) -> int:
    """An Avalanche strategy as shipped makes one update per mini-batch."""
    return 1 if get_method(config).origin or config.endswith("as-shipped") else 2


def killed_and_resumed(do, config, out: Path, kills: list[int]) -> Outcome:
    for kill in kills:
        do(config, out, kill)
        torch.rand(3)  # whatever the process draws in between is of no consequence
    return do(config, out)


CASES = [
    *((name, {}) for name in list_methods()),
    ("rwf", {"buffer": 7}),
    ("er", {"buffer": 5, "buffer_policy": "class-balanced"}),
    ("der", {"buffer": 3, "buffer_policy": "class-balanced"}),
    ("rwf-lda-held", {"hold_after": 9, "steps": 3}),
]


@pytest.mark.parametrize(("method", "options"), CASES)
def test_every_method_goes_on_within_an_experience(
    method, options, configure, do, tmp_path, monkeypatch
):
    rng = draw("method", method, options)
    execute_with(monkeypatch, checkpoint_every=rng.choice([1, 2]))
    config = configure(method, options=options, gradient_steps=steps_of(method))
    whole = do(config, tmp_path / "whole")
    # Within the first experience, and somewhere after that.
    kills = [rng.randrange(2, 4), rng.randrange(2, 6)]
    again = killed_and_resumed(do, config, tmp_path / "cut", kills)
    again.assert_equal(whole)
    log = (again.directory / "log.txt").read_text()
    assert "resumed in experience 0 after" in log
    assert log.count("resumed") == len(kills)
    assert re.search(r" [1-9]\d* checkpoints, [\d.]+ % of the time", log)


@pytest.mark.parametrize("stream", list_streams())
@pytest.mark.parametrize("boundary_free", [False, True])
def test_every_stream_goes_on(stream, boundary_free, configure, do, tmp_path, monkeypatch):
    rng = draw("stream", stream, boundary_free)
    execute_with(monkeypatch, checkpoint_every=1)
    options = {"shots": 3} if stream == "k-shot" else {}
    if stream == "fscil":
        options = {"base": 3, "way": 3, "shots": 3}
    method, own = rng.choice([("rwf", {}), ("er", {"buffer": 4}), ("rwf-lda", {})])
    # At seed 3 the first experience of si-blurry has no sample and the second a single one.
    config = configure(
        method, seed=3, options=own, experiences=2 if stream == "fscil" else 4, eval_subset=6,
        stream=stream, stream_options=options, boundary_free=boundary_free,
    )  # fmt: skip
    whole = do(config, tmp_path / "whole")
    killed_and_resumed(do, config, tmp_path / "cut", [rng.randrange(1, 5)]).assert_equal(whole)


@pytest.mark.parametrize("method", ["rwf", "er"])
def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    method, configure, do, tmp_path, monkeypatch
):
    rng = draw("truncated", method)
    execute_with(monkeypatch, checkpoint_every=1)
    config = configure(method)
    whole = do(config, tmp_path / "whole")
    folder = run_directory(tmp_path / "cut", config)
    for damage in ("cut", "flipped", "both"):
        do(config, tmp_path / "cut", 3)
        newest = folder / checkpoint.NAME
        content = bytearray(newest.read_bytes())
        if damage == "cut":
            newest.write_bytes(content[: rng.randrange(len(content))])
        else:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            newest.write_bytes(content)
        if damage == "both":
            (folder / checkpoint.PREVIOUS).write_bytes(b"")
        do(config, tmp_path / "cut").assert_equal(whole)
        log = (folder / "log.txt").read_text()
        assert "a checkpoint is not used: 'checkpoint.pt'" in log
        assert ("resumed in experience 0 after 8 samples" in log) == (damage != "both"), log
        shutil.rmtree(folder)


def test_at_every_write_boundary_a_run_is_absent_resumable_or_complete(
    configure, do, tmp_path, monkeypatch
):
    """Power cuts: what is on the disk whenever the run touches it, unsynced files cut short."""
    rng = draw("boundaries")
    execute_with(monkeypatch, checkpoint_every=3)
    config = configure("er", options={"buffer": 3})
    whole = do(config, tmp_path / "whole")
    snapshots: list[Path] = []
    out = tmp_path / "traced"

    def snapshot() -> None:
        if out.exists():
            snapshots.append(tmp_path / f"{len(snapshots)}")
            shutil.copytree(out, snapshots[-1])

    def traced(owner, name: str) -> None:
        call = getattr(owner, name)

        def with_snapshots(*args, **kwargs):
            snapshot()
            if name == "fsync" and snapshots:  # not all of a file that is not synced is there
                for path in run_directory(snapshots[-1], config).glob(".*"):
                    os.truncate(path, rng.randrange(path.stat().st_size + 1))
            return call(*args, **kwargs)

        patch.setattr(owner, name, with_snapshots)

    with monkeypatch.context() as patch:
        traced(atomic_io.os, "fsync")
        for name in ("replace", "unlink", "chmod"):
            traced(Path, name)
        do(config, out)
    snapshot()
    assert len(snapshots) > 40
    states = []
    for path in snapshots:
        directory = run_directory(path, config)
        summary = module.read_json(directory / "summary.json") or {}
        if not directory.exists():
            states.append("absent")
        elif summary.get("status") == "done":
            states.append("complete")
            assert (directory / "metrics.csv").read_bytes() == whole.metrics
        else:
            states.append("resumable")
    assert states == sorted(states, key=["absent", "resumable", "complete"].index)
    assert states[-1] == "complete"
    # Going on takes as long as a run: some of them.
    for path in snapshots[:: max(1, len(snapshots) // 8)]:
        do_again = run(config, path)
        assert do_again["status"] == "done"
        outcome = Outcome(path, config)
        outcome.assert_equal(whole)
