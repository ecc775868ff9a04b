"""The leaderboard as text for the terminal, CSV, Markdown, LaTeX or HTML.

Rows are ranked within a protocol and never across: one table holds the methods that saw the same
benchmark, stream, backbone weights, batch size, gradient steps and precision, and says so above.
"""

from __future__ import annotations

import functools
import html
import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from avalanche_rwf.errors import UsageError
from avalanche_rwf.evaluation.metrics import METRICS
from avalanche_rwf.experiments.config import header_parts, run_settings, short
from avalanche_rwf.leaderboard.aggregate import PROTOCOL, SETUP, csv_text, protocols, records
from avalanche_rwf.utils.untrusted_io import printable

__all__ = [
    "FORMATS",
    "hardware_of",
    "protocol_header",
    "render",
    "render_csv",
    "render_html",
    "render_latex",
    "render_markdown",
    "render_text",
    "row_labels",
]

Row = dict[str, Any]  # of the board, by column
Rows = list[Row]

_SETUP = SETUP
_HASH = 8
_NOTE = "A_* and F_cls in %: mean ± sample standard deviation over n seeds."
_MISSING = "-"
_MIN_WIDTH = 30  # a method's name, cut to what is needed, and A_last


@dataclass(frozen=True)
class _Column:
    """A column of the table.

    Attributes:
        title: its heading.
        field: the column of the board (of its mean, for a statistic).
        kind: "text", "share" (mean ± deviation in per cent), "points" (a signed difference),
            "interval" (in per cent), "p", "rate", "count" or "number".
        best: "max" or "min" for the value to mark; None marks nothing (the number of parameters
            and of seeds are facts, not scores).
        keep: importance where the width is short; None is always shown.
    """

    title: str
    field: str
    kind: str
    best: str | None = None
    keep: int | None = None


# How a metric's cells are written, by its kind.
_WRITTEN = {"share": "share", "change": "share", "seconds": "rate", "rate": "rate",
            "count": "count", "bytes": "count"}  # fmt: skip


def _of_metrics(wide: bool) -> list[_Column]:
    """Return the columns of the metrics: those of every table, or those of wide ones."""
    return [
        _Column(m.title, m.name, _WRITTEN[m.kind], m.best, None if m.keep == 100 else m.keep)
        for m in METRICS.values()
        if (m.keep is None) == wide
    ]


_COLUMNS = (
    _Column("#", "rank", "number", keep=10),
    _Column("method", "label", "text"),
    _Column("head", "head", "text", keep=9),
    _Column("mask", "mask", "text", keep=6),
    _Column("readout", "readout", "text", keep=5),
    _Column("budget", "budget", "text", keep=8),
    *_of_metrics(wide=False),
    _Column("n", "n", "number", keep=11),
)
# Where rows were compared with a reference.
_COMPARED = (
    _Column("diff", "difference", "points", keep=14),
    _Column("95 % of diff", "difference", "interval", keep=12),
    _Column("p", "p", "p", keep=13),
    _Column("pairs", "n_pairs", "number", keep=8),
)
# What the wide form adds.
_WIDE = (
    _Column("95 % of A_last", "a_last", "interval"),
    *_of_metrics(wide=True),
    _Column("seeds", "seeds", "text"),
    _Column("failed", "failed", "number"),
    _Column("configuration", "config_hash", "text"),
    _Column("version", "version", "text"),
    _Column("code", "source", "text"),
)
_BOUNDARIES = "†"
_SUBMITTED = "‡"


@dataclass(frozen=True)
class _Table:
    """One protocol: what stands above, the cells, which are best and second, what stands below."""

    header: str
    columns: tuple[_Column, ...]
    cells: list[list[str]]
    best: list[list[bool]]
    second: list[list[bool]]
    notes: list[str]


# ---- from the board to cells


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _get(row: Row, name: str) -> Any:
    """Return a value of a row, None where it or its column is missing."""
    value = row.get(name)
    return None if _missing(value) or value == "" else value


def _options(row: Row) -> dict[str, Any]:
    """Return the options of a row, which the board holds as JSON text."""
    return _parsed(row, "options")


def _parsed(row: Row, name: str) -> dict[str, Any]:
    """Return an object that the board holds as JSON text."""
    text = _get(row, name)
    return _json(text) if isinstance(text, str) else {}


@functools.lru_cache(maxsize=4096)
def _json(text: str) -> dict[str, Any]:
    """Parse once what is asked for with every choice of columns; not to be changed."""
    return json.loads(text)


def protocol_header(row: Row) -> str:
    """Return the line above a table: what all of its rows share."""
    values = {"benchmark": "unknown benchmark", "backbone": "unknown backbone"}
    values.update(_parsed(row, "settings"))
    for name in PROTOCOL:
        value = _get(row, name)
        if name != "settings" and value is not None:
            values[name] = _read_back(name, value)
    return ", ".join(header_parts(values))


def _read_back(name: str, value: Any) -> Any:
    """Return a setting's value from a frame, or from a CSV file, where all are texts."""
    kind = run_settings()[name].kind if name in run_settings() else "text"
    if kind == "flag":
        return value in (True, "True")
    if kind == "mapping" and isinstance(value, str):
        try:
            return _json(value)
        except json.JSONDecodeError:
            return value
    return value


def _labels(rows: Rows, shown: Sequence[str]) -> list[str]:
    """Name every row by its method and, where a method has several rows, by what differs.

    Args:
        rows: rows of one protocol.
        shown: columns of the table, which need not be said again.
    """
    all_differences = [_differences(row) for row in rows]
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row, mine in zip(rows, all_differences, strict=True):
        by_method.setdefault(str(row["method"]), []).append(mine)
    # What differs among a method's rows; a value that is the same in all need not be said.
    differing = {
        method: [
            key
            for key in dict.fromkeys(key for other in others for key in other)
            if key not in shown and any(other.get(key) != others[0].get(key) for other in others)
        ]
        for method, others in by_method.items()
        if len(others) > 1
    }
    labels = []
    for row, mine in zip(rows, all_differences, strict=True):
        label = str(row["method"])
        if label in differing:
            keys = differing[label]
            said = [f"{key}={short(mine[key])}" for key in keys if mine.get(key) is not None]
            label = " ".join([label, *said])
        labels.append(label)
    # Rows that still read the same differ in something the board does not hold: name the hash.
    visible = [
        (label, _is_submitted(row), *(_get(row, name) for name in _SETUP if name in shown))
        for label, row in zip(labels, rows, strict=True)
    ]
    counts = Counter(visible)
    named = [
        f"{label} {str(_get(row, 'config_hash'))[:_HASH]}" if counts[seen] > 1 else label
        for label, seen, row in zip(labels, visible, rows, strict=True)
    ]
    return [
        label
        + (_BOUNDARIES if _reads_boundaries(row) else "")
        + (_SUBMITTED if _is_submitted(row) else "")
        for label, row in zip(named, rows, strict=True)
    ]


def row_labels(board: pd.DataFrame) -> list[str]:
    """Name the rows of one protocol as they are named in its table, where no column helps.

    Args:
        board: rows of `aggregate`, of one protocol.

    Returns:
        a name for each row, all different.
    """
    rows = records(board)
    labels = _labels(rows, shown=())
    counts = Counter(labels)
    return [
        f"{label} {str(row['config_hash'])[:_HASH]}" if counts[label] > 1 else label
        for label, row in zip(labels, rows, strict=True)
    ]


def _reads_boundaries(row: Row) -> bool:
    return _get(row, "uses_boundaries") in (True, "True")


def _is_submitted(row: Row) -> bool:
    return _get(row, "submitted") in (True, "True")


def _offered(rows: Rows, wide: bool = False) -> list[_Column]:
    """Return the columns that say something of these rows.

    The budget is there where a row is tuned, differences where there is a reference.
    """
    tuned = any(_get(row, "budget") == "tuned" for row in rows)
    columns = [column for column in _COLUMNS if tuned or column.field != "budget"]
    if any(_get(row, "reference") is not None for row in rows):
        columns[-1:-1] = _COMPARED
    return [*columns, *_WIDE] if wide else columns


def _tuned(row: Row, label: str) -> str | None:
    """Say what was chosen for a row: "rwf lr=0.001 (of 6)"; None if nothing was."""
    text = _get(row, "tuning")
    if not isinstance(text, str):
        return None
    record = json.loads(text)
    chosen = [f"{key}={short(value)}" for key, value in record["chosen"].items()]
    # What sets a row apart stands in its label already.
    more = [text for text in chosen if text not in label] if chosen else ["unchanged"]
    return f"{' '.join([label, *more])} (of {record['settings']})"


def _differences(row: Row) -> dict[str, Any]:
    """Return all that may tell two configurations of a method apart, by name."""
    setup = {name: _get(row, name) for name in _SETUP}
    source = _get(row, "source")
    code = {"version": _get(row, "version"), "code": source and str(source)[:_HASH]}
    return {**setup, "weights": _get(row, "weights"), **_options(row), **code}


def _share(row: Row, field: str) -> tuple[str, str]:
    """Return mean and deviation of a share in per cent, each "" where it is missing."""
    mean, deviation = _get(row, f"{field}_mean"), _get(row, f"{field}_std")
    text = "" if mean is None else f"{100 * mean:.1f}"
    return (
        "0.0" if text == "-0.0" else text,
        "" if deviation is None else f"{100 * deviation:.1f}",
    )


def _count(value: float) -> str:
    """Write a number of parameters in at most six characters: 912, 25.6k, 1.2M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999,950 would be written 1000.0k
        if value >= limit * 0.99995:
            return f"{value / limit:.1f}{unit}"
    return f"{value:.0f}"


def _column_cells(column: _Column, rows: Rows, labels: list[str]) -> list[str]:
    """Return the cells of a column, aligned at the ± where it has one."""
    if column.field == "rank":
        # Rows without a result come last.
        scored = [_get(row, "a_last_mean") is not None for row in rows]
        return [str(i + 1) if there else _MISSING for i, there in enumerate(scored)]
    if column.field == "label":
        return labels
    if column.kind == "share":
        pairs = [_share(row, column.field) for row in rows]
        means = max(len(mean) for mean, _ in pairs)
        deviations = max(len(deviation) for _, deviation in pairs)
        return [
            f"{mean:>{means}} ± {deviation:>{deviations}}"
            if deviation
            else f"{mean or _MISSING:>{means}}" + " " * (deviations + 3 if deviations else 0)
            for mean, deviation in pairs
        ]
    if column.kind in ("text", "number"):
        values = [_get(row, column.field) for row in rows]
        values = [str(value)[:_HASH] if column.field == "source" and value else value
                  for value in values]  # fmt: skip
        return [_MISSING if value is None else _whole(value) for value in values]
    if column.kind in ("points", "p"):
        values = [_get(row, column.field) for row in rows]
        write = _points if column.kind == "points" else _p_value
        return [_MISSING if value is None else write(float(value)) for value in values]
    if column.kind == "interval":
        signed = column.field == "difference"
        ends = [[_get(row, f"{column.field}_ci_{end}") for end in ("low", "high")] for row in rows]
        return [
            _MISSING
            if None in pair
            else "[" + ", ".join(_points(v) if signed else f"{100 * v:.1f}" for v in pair) + "]"
            for pair in ends
        ]
    cells = []
    for row in rows:
        value = _get(row, f"{column.field}_mean")
        if value is None:
            cells.append(_MISSING)
        elif column.kind == "count":
            cells.append(_count(float(value)))
        else:
            cells.append(f"{value:.1f}" if value < 100 else f"{value:.0f}")
    return cells


def _whole(value: Any) -> str:
    """Write a text, or a number that a missing value has made a float: 3.0 is 3."""
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _points(value: float) -> str:
    """Write a difference of shares in per cent points, with its sign: +1.2."""
    text = f"{100 * value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _best(column: _Column, rows: Rows, cells: list[str], place: int = 1) -> list[bool]:
    """Return which cells to mark: the best value as it is shown, and all that equal it.

    Args:
        column: of the cells.
        rows: of the table.
        cells: of the column.
        place: 2 marks the second best.
    """
    if column.best is None or len(rows) < 2:
        return [False] * len(rows)
    # The fastest of several machines is no fastest method.
    if column.kind == "rate" and METRICS[column.field].of_machine and len(hardware_of(rows)) > 1:
        return [False] * len(rows)
    shown = [cell.split("±")[0].strip() for cell in cells]
    values = [float(text) if text != _MISSING else None for text in shown]
    there = [value for value in values if value is not None]
    ranked = sorted(set(there), reverse=column.best == "max")
    if len(ranked) < place:
        return [False] * len(rows)
    return [value == ranked[place - 1] for value in values]


def hardware_of(rows: Rows) -> list[str]:
    """Return the processors or GPUs that rows were run on, as far as they say, sorted."""
    named = {one for row in rows for one in str(_get(row, "hardware") or "").split("; ")}
    return sorted(named - {""})


def _notes(rows: Rows, labels: list[str]) -> list[str]:
    """Return what a reader has to know about the rows: failed runs, tuning, unequal seeds."""
    notes = []
    failed = [
        f"{label} ({int(row['failed'])})"
        for label, row in zip(labels, rows, strict=True)
        if (_get(row, "failed") or 0) > 0
    ]
    if failed:
        notes.append(f"Failed runs, in no mean: {', '.join(failed)}.")
    chosen = [_tuned(row, label) for label, row in zip(labels, rows, strict=True)]
    if any(chosen):
        said = ", ".join(text for text in chosen if text)
        # Held out of all training images, before the stream takes its shots of the others.
        few = _parsed(rows[0], "stream_options").get("shots") is not None
        more = ", many more labels than the stream's shots" if few else ""
        notes.append(f"Settings chosen on held-out training images{more}: {said}.")
    if any(_reads_boundaries(row) for row in rows):
        notes.append(f"{_BOUNDARIES} reads task boundaries in training.")
    if any(_is_submitted(row) for row in rows):
        notes.append(f"{_SUBMITTED} submitted, not run here.")
    references = {str(_get(row, "reference")) for row in rows} - {"None"}
    if references:
        notes.append(
            f"diff: A_last minus that of {', '.join(sorted(references))}, in points, paired by "
            "seed; 95 % of diff: Student's t; p: two-sided paired t-test, not corrected for the "
            "number of rows."
        )
    if len({(_get(row, "version"), _get(row, "source")) for row in rows}) > 1:
        notes.append("The rows are of several versions of the code.")
    releases = {release for row in rows for release in str(_get(row, "torch") or "").split("; ")}
    if len(releases - {""}) > 1:
        notes.append(f"The runs are of several releases of torch: {', '.join(sorted(releases))}.")
    other = [
        f"{label} (seed {_get(row, 'images_differ')})"
        for label, row in zip(labels, rows, strict=True)
        if _get(row, "images_differ") is not None
    ]
    if other:
        notes.append(
            "Not of the same images, as their numbers of training and test images say, and not to "
            f"be compared: {', '.join(other)}."
        )
    machines = hardware_of(rows)
    if len(machines) > 1:
        notes.append(
            f"The runs are of several machines, so that their speeds, times and memory do not "
            f"compare methods: {', '.join(machines)}."
        )
    if len({str(_get(row, "seeds")) for row in rows}) > 1:
        notes.append("The rows are not of the same seeds.")
    return notes


def _table(rows: Rows, columns: Sequence[_Column]) -> _Table:
    shown = [column.field for column in columns]
    labels = _labels(rows, shown)
    by_column = [
        [printable(cell) for cell in _column_cells(column, rows, labels)] for column in columns
    ]
    best, second = (
        [
            _best(column, rows, cells, place)
            for column, cells in zip(columns, by_column, strict=True)
        ]
        for place in (1, 2)
    )
    return _Table(
        header=printable(protocol_header(rows[0])),
        columns=tuple(columns),
        cells=[list(cells) for cells in zip(*by_column, strict=True)],
        best=[list(marks) for marks in zip(*best, strict=True)],
        second=[list(marks) for marks in zip(*second, strict=True)],
        notes=[printable(note) for note in _notes(rows, labels)],
    )


def _protocols(board: pd.DataFrame) -> list[Rows]:
    """Split a board into protocols, best A_last first in each.

    Raises:
        UsageError: if the board is no leaderboard.
    """
    missing = [name for name in ("benchmark", "method") if name not in board.columns]
    if missing:
        raise UsageError(f"board must be a leaderboard, got a frame without {', '.join(missing)}.")
    if board.empty:
        return []
    board = board.copy()
    if "a_last_mean" not in board:
        board["a_last_mean"] = math.nan
    return [
        group.sort_values(
            ["a_last_mean", "method"], ascending=[False, True], na_position="last", kind="stable"
        ).to_dict("records")
        for group in protocols(board)
    ]


# ---- from cells to text


def render_text(board: pd.DataFrame, width: int | None = None, wide: bool = False) -> str:
    """Render a leaderboard for the terminal.

    One table per protocol, best A_last first, accuracies in per cent as mean ± sample standard
    deviation, ``*`` behind the best value of a column. Where the columns do not fit, the least
    important go (the parameters first, then forward passes, speed, F_cls, A_avg) and a line below
    says which.

    Args:
        board: the frame of `aggregate`.
        width: characters per line; by default those of the terminal, 80 where there is none.
        wide: every column, however wide the lines.

    Raises:
        UsageError: if `board` is no leaderboard or `width` is under 30.
    """
    if width is not None and width < _MIN_WIDTH:
        raise UsageError(f"width must be at least {_MIN_WIDTH} characters, got {width}.")
    columns = shutil.get_terminal_size((80, 24)).columns if width is None else width
    protocols = _protocols(board)
    if not protocols:
        return "No finished runs.\n"
    return "\n".join(_text_table(rows, max(columns, _MIN_WIDTH), wide) for rows in protocols)


def _text_table(rows: Rows, width: int, wide: bool) -> str:
    offered = _offered(rows, wide)
    columns = offered if wide else _fitting(rows, width)
    table = _table(rows, columns)
    lines = _grid(table)
    width = max(map(len, lines)) if wide else width
    excess = max(map(len, lines)) - width
    if excess > 0:
        # Even the name and the score are too wide: the name gives way.
        name = [column.field for column in columns].index("label")
        limit = max(len(row[name]) for row in table.cells) - excess
        for row in table.cells:
            row[name] = row[name] if len(row[name]) <= limit else row[name][: limit - 1] + "…"
        lines = _grid(table)
    marked = any(mark for marks in table.best for mark in marks)
    notes = [("* best of its column. " if marked else "") + _NOTE, *table.notes]
    out = [column for column in offered if column not in columns]
    alike = [column for column in out if _is_alike(column, rows)]
    if alike:
        said = [(c.title, _get(rows[0], c.field)) for c in alike]
        told = [printable(f"{title} {value}") for title, value in said if value is not None]
        notes += [f"In all rows: {', '.join(told)}."] if told else []
    lost = [column.title for column in out if column not in alike]
    if lost:
        notes.append(f"Left out for width: {', '.join(lost)}.")
    # Break the header between its parts only: "32 px" stays together.
    header = table.header.replace(" ", "\xa0").replace(",\xa0", ", ")
    parts = [line.replace("\xa0", " ") for line in textwrap.wrap(header, width)] + lines
    for note in notes:
        parts += textwrap.wrap(note, width)
    return "\n".join(parts) + "\n"


def _is_alike(column: _Column, rows: Rows) -> bool:
    """Return whether a column of the set-up says the same in every row."""
    return column.field in _SETUP and len({_get(row, column.field) for row in rows}) < 2


def _fitting(rows: Rows, width: int) -> list[_Column]:
    """Choose the columns that fit, the most important first.

    A column of the set-up that is alike in all rows comes last: a line below can say it.
    """

    def wide(columns: list[_Column]) -> int:
        return max(map(len, _grid(_table(rows, columns))))

    def importance(column: _Column) -> int:
        return -1 if _is_alike(column, rows) else column.keep or 0

    offered = _offered(rows)
    chosen = [column for column in offered if column.keep is None]
    used = wide(chosen)
    for column in sorted(offered, key=importance, reverse=True):
        if column in chosen:
            continue
        more = [c for c in offered if c in chosen or c is column]
        needed = wide(more)
        # It may even save room: what a column says need not stand behind the method's name.
        if needed <= max(width, used):
            chosen, used = more, needed
    return chosen


def _grid(table: _Table) -> list[str]:
    """Return heading, rule and rows as aligned lines."""
    columns = []
    for i, column in enumerate(table.columns):
        cells = [row[i] for row in table.cells]
        if column.best is not None:
            cells = [
                cell + ("*" if marks[i] else " ")
                for cell, marks in zip(cells, table.best, strict=True)
            ]
        wide = max(len(text) for text in (column.title, *cells))
        # A heading of a number stands over its digits, not over the place of the star.
        title = column.title + (" " if column.best is not None else "")
        title = title if len(title) <= wide else column.title
        left = column.kind == "text"
        columns.append(
            [text.ljust(wide) if left else text.rjust(wide) for text in (title, "-" * wide, *cells)]
        )
    return ["  ".join(parts).rstrip() for parts in zip(*columns, strict=True)]


def render_csv(board: pd.DataFrame, wide: bool = True) -> str:
    """Render a leaderboard as CSV: the whole board, every column, full precision, always.

    Names are as :func:`.aggregate.csv_text` writes them.
    """
    return csv_text(board)


def render_markdown(board: pd.DataFrame, wide: bool = False) -> str:
    """Render a leaderboard as Markdown tables with a line above each; best values are bold."""
    blocks = []
    for rows in _protocols(board):
        table = _table(rows, _offered(rows, wide))
        lines = [
            _markdown_line([_markdown(column.title) for column in table.columns]),
            _markdown_line([":---" if c.kind == "text" else "---:" for c in table.columns]),
        ]
        for cells, marks in zip(table.cells, table.best, strict=True):
            texts = [_markdown(_one_space(cell)) for cell in cells]
            lines.append(
                _markdown_line(
                    [f"**{t}**" if mark else t for t, mark in zip(texts, marks, strict=True)]
                )
            )
        notes = " ".join(_markdown(note) for note in [f"Bold: best. {_NOTE}", *table.notes])
        blocks.append("\n".join([_markdown(table.header), "", *lines, "", notes, ""]))
    return "\n".join(blocks) or "No finished runs.\n"


def render_latex(board: pd.DataFrame, wide: bool = False) -> str:
    """Render a leaderboard as LaTeX tables (package booktabs): best bold, second underlined."""
    blocks = []
    for rows in _protocols(board):
        table = _table(rows, _offered(rows, wide))
        align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
        lines = [" & ".join(_latex(column.title) for column in table.columns) + r" \\"]
        lines.append(r"\midrule")
        for cells, best, second in zip(table.cells, table.best, table.second, strict=True):
            texts = [_latex(_one_space(cell)) for cell in cells]
            texts = [
                rf"\textbf{{{t}}}" if first else rf"\underline{{{t}}}" if next_best else t
                for t, first, next_best in zip(texts, best, second, strict=True)
            ]
            lines.append(" & ".join(texts) + r" \\")
        marks = "Bold: best; underlined: second."
        notes = " ".join(_latex(note) for note in [f"{marks} {_NOTE}", *table.notes])
        blocks.append(
            "\n".join(
                [
                    # In the text, not in a comment: a comment ends at the first line break.
                    r"\begin{table}",
                    rf"\caption{{{_latex(table.header)}. {notes}}}",
                    rf"\begin{{tabular}}{{{align}}}",
                    r"\toprule",
                    *lines,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                    "",
                ]
            )
        )
    return "\n".join(blocks) or "No finished runs.\n"


def render_html(board: pd.DataFrame, wide: bool = False) -> str:
    """Render a leaderboard as plain HTML tables, one per protocol; best values are bold."""
    blocks = []
    for rows in _protocols(board):
        table = _table(rows, _offered(rows, wide))
        lines = [f"<p>{html.escape(table.header)}</p>", "<table>", "<thead>"]
        titles = "".join(f"<th>{html.escape(column.title)}</th>" for column in table.columns)
        lines += [f"<tr>{titles}</tr>", "</thead>", "<tbody>"]
        for cells, marks in zip(table.cells, table.best, strict=True):
            texts = [html.escape(_one_space(cell)) for cell in cells]
            texts = [f"<b>{t}</b>" if mark else t for t, mark in zip(texts, marks, strict=True)]
            lines.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
        notes = " ".join(html.escape(note) for note in [f"Bold: best. {_NOTE}", *table.notes])
        blocks.append("\n".join([*lines, "</tbody>", "</table>", f"<p>{notes}</p>", ""]))
    return "\n".join(blocks) or "<p>No finished runs.</p>\n"


def _one_space(cell: str) -> str:
    """Undo the alignment of a cell."""
    return " ".join(cell.split())


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown(text: str) -> str:
    """Escape what Markdown (and the HTML it lets through) would read as markup."""
    for sign in "\\`*_[]|~#$":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    **{sign: f"${sign}$" for sign in "<>|"},
}


def _latex(text: str) -> str:
    """Escape the ten special characters of LaTeX and those that its old fonts misprint."""
    return "".join(_LATEX.get(sign, sign) for sign in text)


_RENDERERS: dict[str, Callable[..., str]] = {
    "text": render_text,
    "csv": render_csv,
    "md": render_markdown,
    "latex": render_latex,
    "html": render_html,
}
FORMATS: tuple[str, ...] = tuple(_RENDERERS)


def render(board: pd.DataFrame, fmt: str = "text", wide: bool = False) -> str:
    """Render a leaderboard in a format: text, csv, md, latex or html.

    Args:
        board: the frame of `aggregate`.
        fmt: one of `FORMATS`.
        wide: every column; text then is as wide as it needs. CSV always has all.

    Raises:
        UsageError: if the format is unknown or `board` is no leaderboard.
    """
    if fmt not in _RENDERERS:
        raise UsageError(f"format must be one of {', '.join(FORMATS)}, got {fmt!r}.")
    return _RENDERERS[fmt](board, wide=wide)
