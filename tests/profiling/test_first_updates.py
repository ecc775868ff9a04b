"""A baseline's first updates are of the size that its authors' setting gives."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import pytest

from avalanche_rwf.strategies.registry import get_method

FILE = Path(__file__).parents[2] / "profiling" / "first_updates.py"
SPEC = importlib.util.spec_from_file_location("first_updates", FILE)
assert SPEC is not None and SPEC.loader is not None
first_updates = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(first_updates)

# The head's rate was chosen on held-out images (docs/baselines.md): the authors pass 20 times.
HEAD_CHOSEN = {"coda-prompt"}
PROMPT_METHODS = {"l2p", "dualprompt", "coda-prompt", "mvp", "single-prompt", "avalanche-l2p"}


@functools.cache
def moved(name: str, theirs: bool):
    options = first_updates.authors_options(name) if theirs else {}
    return first_updates.movement(name, options)


def test_every_prompt_method_says_how_its_authors_run_it():
    assert set(first_updates.published_methods()) >= PROMPT_METHODS


@pytest.mark.parametrize("name", first_updates.published_methods())
def test_the_defaults_first_ten_updates_are_within_a_factor_of_3_of_the_authors(name):
    ours, theirs = moved(name, False), moved(name, True)
    assert theirs.prompts / 3 < ours.prompts < theirs.prompts * 3
    if name not in HEAD_CHOSEN:
        assert theirs.head / 3 < ours.head < theirs.head * 3


def test_all_components_at_the_online_rate_are_seen_to_be_too_fast():
    """The measure tells: 100 live components at 5e-3 was the default once."""
    fast = first_updates.movement("coda-prompt", {"components": 100, "lr": 5e-3})
    assert fast.prompts > 20 * moved("coda-prompt", True).prompts


def test_a_rate_of_zero_moves_nothing_but_the_head():
    still = first_updates.movement("single-prompt", {"lr": 0.0})
    assert still.prompts == 0
    assert still.head > 0.01


def test_what_the_authors_did_are_options_of_the_method():
    for name in first_updates.published_methods():
        assert set(get_method(name).published) <= set(get_method(name).options)
