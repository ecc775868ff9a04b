"""Leaderboard: aggregate run directories and render the table."""

from __future__ import annotations

from avalanche_rwf.leaderboard.aggregate import (
    BrokenRun,
    Runs,
    add_reference,
    aggregate,
    protocols,
    read_runs,
    write_leaderboard,
)
from avalanche_rwf.leaderboard.render import FORMATS, render
from avalanche_rwf.leaderboard.table import render_text

__all__ = [
    "FORMATS",
    "BrokenRun",
    "Runs",
    "add_reference",
    "aggregate",
    "protocols",
    "read_runs",
    "render",
    "render_text",
    "write_leaderboard",
]
