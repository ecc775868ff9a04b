"""A run killed by SIGKILL again and again goes on each time and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import fault_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.experiments import checkpoint
from avalanche_rwf.experiments.config import run_directory

from ..runs import execute_with
from .conftest import Outcome, draw


def sigkilled(config, out: Path, at: int) -> bool:
    """Do a run in a process that kills itself at an event.

    :returns: whether it was killed; False if it came to its end before.
    """
    status = children.status_of(children.start(children.killed_at, config, out, at))
    assert status in (0, -signal.SIGKILL)
    return status != 0


# One of each kind of state: statistics, prompts, a buffer, a network of Avalanche's. That every
# method goes on with the same bits is tested in test_resume.py; here it is the files.
METHODS: dict[str, dict] = {
    "slda": {},
    "rwf": {},
    "der": {"options": {"buffer": 4}},
    "avalanche-l2p-as-shipped": {},
}
KILLS = 8


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    method, configure, do, tmp_path, monkeypatch
):
    """At random points, many inside the writing of a checkpoint; some of these are cut short.

    A run that comes to its end before it is killed is compared, and another one begun.
    """
    rng = draw("sigkill", method)
    execute_with(monkeypatch, checkpoint_every=rng.choice([1, 2]))
    config = configure(method, boundary_free=rng.random() < 0.3, **METHODS[method])
    whole = do(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    newest = run_directory(cut, config) / checkpoint.NAME
    kills = 0
    while kills < KILLS:
        if not sigkilled(config, cut, rng.randrange(5, 200)):
            Outcome(cut, config).assert_equal(whole)
            shutil.rmtree(cut)
            continue
        kills += 1
        if rng.random() < 0.25 and newest.exists():
            os.truncate(newest, rng.randrange(newest.stat().st_size + 1))
    do(config, cut).assert_equal(whole)
