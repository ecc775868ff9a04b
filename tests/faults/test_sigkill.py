"""A run killed by SIGKILL again and again goes on each time and ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import fault_children as children  # by the path that conftest adds
import pytest

from avalanche_rwf.experiments import checkpoint, variables
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.strategies.registry import list_methods

from .conftest import Outcome, draw


def sigkilled(config, out: Path, at: int) -> bool:
    """Do a run in a process that kills itself at an event.

    :returns: whether it was killed; False if it came to its end before.
    """
    status = children.status_of(children.start(children.killed_at, config, out, at))
    assert status in (0, -signal.SIGKILL)
    return status != 0


# What makes a method do all it can in 30 images.
AT_WORK: dict[str, dict] = {
    "er": {"options": {"buffer": 5, "buffer_policy": "class-balanced"}},
    "er-ace": {"options": {"buffer": 4}},
    "der": {"options": {"buffer": 4}},
    "rwf-lda-held": {"options": {"hold_after": 9, "steps": 2}},
}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("method", list_methods())
def test_thirty_sigkills_change_no_bit(method, configure, do, tmp_path, monkeypatch):
    """At 30 random points, many inside the writing of a checkpoint; some of these are cut short.

    A run that comes to its end before it is killed is compared, and another one begun.
    """
    rng = draw("sigkill", method)
    monkeypatch.setenv(variables.EVERY, str(rng.choice([1, 2])))
    config = configure(method, boundary_free=rng.random() < 0.3, **AT_WORK.get(method, {}))
    whole = do(config, tmp_path / "whole")
    cut = tmp_path / "cut"
    newest = run_directory(cut, config) / checkpoint.NAME
    kills = 0
    while kills < 30:
        if not sigkilled(config, cut, rng.randrange(5, 200)):
            Outcome(cut, config).assert_equal(whole)
            shutil.rmtree(cut)
            continue
        kills += 1
        if rng.random() < 0.25 and newest.exists():
            os.truncate(newest, rng.randrange(newest.stat().st_size + 1))
    do(config, cut).assert_equal(whole)
