"""Looks: one for each method, whatever else is drawn."""

from __future__ import annotations

import itertools

from avalanche_rwf.leaderboard.style import look, looks
from avalanche_rwf.strategies.registry import list_methods


def row(method, config_hash="a"):
    return {"method": method, "config_hash": config_hash}


def test_no_two_methods_look_alike():
    found = [look(name) for name in list_methods()]
    assert len(set(found)) == len(found)
    # Also in grey: those that are compared most often differ in marker and line.
    first = ["rwf", "slda", "rwf-lda", "l2p", "dualprompt", "rwf-mean", "ncm", "linear-probe"]
    assert len({look(name).light for name in first}) == len(first)
    assert len({(look(name).marker, look(name).line) for name in first}) == len(first)


def test_a_look_depends_on_no_neighbour_and_no_rank():
    rows = [row("slda"), row("rwf", "b"), row("rwf", "a"), row("mine.py:Mine")]
    by_hash = {tuple(one.values()): looks(rows)[i] for i, one in enumerate(rows)}
    for other in itertools.permutations(rows):
        assert looks(other) == [by_hash[tuple(one.values())] for one in other]
    for one in rows[0], rows[3]:
        assert looks([one]) == [look(one["method"])]


def test_rows_of_a_method_share_its_colour_and_nothing_else():
    found = looks([row("rwf", str(number)) for number in range(10)])
    assert {one.light for one in found} == {look("rwf").light}
    assert len({one.marker for one in found}) == 10
