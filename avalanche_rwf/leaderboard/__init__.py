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
from avalanche_rwf.leaderboard.render import (
    FORMATS,
    render,
    render_csv,
    render_html,
    render_latex,
    render_markdown,
)
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
    "render_csv",
    "render_html",
    "render_latex",
    "render_markdown",
    "render_text",
    "write_leaderboard",
]
