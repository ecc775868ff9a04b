"""The cells of the leaderboard, and the table for the terminal.

Rows are ranked within a protocol and never across: one table holds the methods that saw the same
benchmark, stream, backbone weights, batch size, gradient steps and precision, and says so above.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from avalanche_rwf.errors import UsageError, nearest
from avalanche_rwf.evaluation.metrics import METRICS
from avalanche_rwf.experiments.config import header_parts, run_settings, short
from avalanche_rwf.leaderboard.aggregate import PROTOCOL, SETUP, missing, protocols, records
from avalanche_rwf.utils.untrusted_io import printable

Row = dict[str, Any]  # of the board, by column
Rows = list[Row]

_HASH = 8
NOTE = "A_* and F_cls in %: mean ± sample standard deviation over n seeds."
MISSING = "-"
_MIN_WIDTH = 30  # a method's name, cut to what is needed, and A_last


@dataclass(frozen=True)
class Column:
    """A column of the table.

    :param title: its heading.
    :param field: the column of the board (of its mean, for a statistic).
    :param kind: "text", "share" (mean ± deviation in per cent), "points" (a signed difference),
        "interval" (in per cent), "p", "rate", "count" or "number".
    :param best: "max" or "min" for the value to mark; None marks nothing (the number of parameters
        and of seeds are facts, not scores).
    :param keep: importance where the width is short; None is always shown.
    """

    title: str
    field: str
    kind: str
    best: str | None = None
    keep: int | None = None

    @property
    def key(self) -> str:
        """How `columns` names it, if not by its field: its heading, as "f_cls"."""
        return self.title.lower().replace(" ", "_")


# How a metric's cells are written, by its kind.
_WRITTEN = {"share": "share", "change": "share", "seconds": "rate", "rate": "rate",
            "count": "count", "bytes": "count"}  # fmt: skip


def _of_metrics(wide: bool) -> list[Column]:
    """Return the columns of the metrics: those of every table, or those of wide ones."""
    return [
        Column(m.title, m.name, _WRITTEN[m.kind], m.best, None if m.keep == 100 else m.keep)
        for m in METRICS.values()
        if (m.keep is None) == wide
    ]


_COLUMNS = (
    Column("#", "rank", "number", keep=10),
    Column("method", "label", "text"),
    Column("head", "head", "text", keep=9),
    Column("mask", "mask", "text", keep=6),
    Column("readout", "readout", "text", keep=5),
    Column("budget", "budget", "text", keep=8),
    *_of_metrics(wide=False),
    Column("n", "n", "number", keep=11),
)
# Where rows were compared with a reference.
_COMPARED = (
    Column("diff", "difference", "points", keep=14),
    Column("95 % of diff", "difference", "interval", keep=12),
    Column("p", "p", "p", keep=13),
    Column("pairs", "n_pairs", "number", keep=8),
)
# What the wide form adds.
_WIDE = (
    Column("95 % of A_last", "a_last", "interval"),
    *_of_metrics(wide=True),
    Column("seeds", "seeds", "text"),
    Column("failed", "failed", "number"),
    Column("configuration", "config_hash", "text"),
    Column("version", "version", "text"),
    Column("code", "source", "text"),
)
_BOUNDARIES = "†"
_SUBMITTED = "‡"


@dataclass(frozen=True)
class Table:
    """One protocol: what stands above; each row's method and cells, and which of them are best and
    second; what stands below."""

    header: str
    columns: tuple[Column, ...]
    methods: list[str]
    cells: list[list[str]]
    best: list[list[bool]]
    second: list[list[bool]]
    notes: list[str]


# ---- from the board to cells


def _get(row: Row, name: str) -> Any:
    """Return a value of a row, None where it or its column is missing."""
    value = row.get(name)
    return None if missing(value) or value == "" else value


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


def _labels(
    rows: Rows, shown: Sequence[str], names: Mapping[str, str] | None = None
) -> list[str]:
    """Name every row by its method and, where a method has several rows, by what differs.

    :param rows: rows of one protocol.
    :param shown: columns of the table, which need not be said again.
    :param names: what to call a method in the place of its name.
    """
    all_differences = [_differences(row) for row in rows]
    by_method: dict[str, list[dict[str, Any]]] = {}
    for row, mine in zip(rows, all_differences, strict=True):
        by_method.setdefault(str(row["method"]), []).append(mine)
    # Only what differs among a method's rows is said.
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
        method = str(row["method"])
        keys = differing.get(method, ())
        said = [f"{key}={short(mine[key])}" for key in keys if mine.get(key) is not None]
        labels.append(" ".join([(names or {}).get(method, method), *said]))
    # Rows that still read the same differ in something the board does not hold: name the hash.
    visible = [
        (label, _is(row, "submitted"), *(_get(row, name) for name in SETUP if name in shown))
        for label, row in zip(labels, rows, strict=True)
    ]
    counts = Counter(visible)
    named = [
        f"{label} {str(_get(row, 'config_hash'))[:_HASH]}" if counts[seen] > 1 else label
        for label, seen, row in zip(labels, visible, rows, strict=True)
    ]
    return [
        label
        + (_BOUNDARIES if _is(row, "uses_boundaries") else "")
        + (_SUBMITTED if _is(row, "submitted") else "")
        for label, row in zip(named, rows, strict=True)
    ]


def row_labels(board: pd.DataFrame) -> list[str]:
    """Name the rows of one protocol as they are named in its table, where no column helps.

    :param board: rows of `aggregate`, of one protocol.
    :returns: a name for each row, all different.
    """
    rows = records(board)
    labels = _labels(rows, shown=())
    counts = Counter(labels)
    return [
        f"{label} {str(row['config_hash'])[:_HASH]}" if counts[label] > 1 else label
        for label, row in zip(labels, rows, strict=True)
    ]


def _is(row: Row, flag: str) -> bool:
    """Return whether a row is "submitted" or "uses_boundaries"."""
    return _get(row, flag) in (True, "True")


def _offered(rows: Rows, wide: bool = False, chosen: Sequence[str] = ()) -> list[Column]:
    """Return the columns that say something of these rows, or those that were chosen.

    The budget is there where a row is tuned, differences where there is a reference.

    :param rows: of one protocol.
    :param wide: all of them.
    :param chosen: columns by field or by heading ("a_last", "f_cls"); the method comes first.
    :raises UsageError: if there is no such column.
    """
    if chosen:
        every = [*_COLUMNS, *_COMPARED, *_WIDE]
        known = {**{c.field: c for c in reversed(every)}, **{c.key: c for c in every}}
        unknown = [name for name in chosen if name.lower() not in known]
        if unknown:
            raise UsageError(
                f"columns must be of {', '.join(sorted(known))}, got {unknown[0]!r}; "
                f"{nearest(unknown[0], list(known))}."
            )
        found = [known[name.lower()] for name in chosen]
        return found if known["label"] in found else [known["label"], *found]
    tuned = any(_get(row, "budget") not in (None, "default") for row in rows)
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
    # The label has what sets the row apart.
    more = [text for text in chosen if text not in label] if chosen else ["unchanged"]
    differs = "; of another " + ", ".join(record["differs"]) if record.get("differs") else ""
    return f"{' '.join([label, *more])} (of {record['settings']}{differs})"


def _differences(row: Row) -> dict[str, Any]:
    """Return all that may tell two configurations of a method apart, by name."""
    setup = {name: _get(row, name) for name in SETUP}
    source = _get(row, "source")
    code = {"version": _get(row, "version"), "code": source and str(source)[:_HASH]}
    return {**setup, "weights": _get(row, "weights"), **_parsed(row, "options"), **code}


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


def _column_cells(column: Column, rows: Rows, labels: list[str]) -> list[str]:
    """Return the cells of a column, aligned at the ± where it has one."""
    if column.field == "rank":
        # Rows without a result come last.
        scored = [_get(row, "a_last_mean") is not None for row in rows]
        return [str(i + 1) if there else MISSING for i, there in enumerate(scored)]
    if column.field == "label":
        return labels
    if column.kind == "share":
        pairs = [_share(row, column.field) for row in rows]
        means = max(len(mean) for mean, _ in pairs)
        deviations = max(len(deviation) for _, deviation in pairs)
        return [
            f"{mean:>{means}} ± {deviation:>{deviations}}"
            if deviation
            else f"{mean or MISSING:>{means}}" + " " * (deviations + 3 if deviations else 0)
            for mean, deviation in pairs
        ]
    cells = (_cell(column, row) for row in rows)
    return [MISSING if cell is None else cell for cell in cells]


def _cell(column: Column, row: Row) -> str | None:
    """Return what stands in one place, None where the row says nothing."""
    if column.kind == "interval":
        ends = [_get(row, f"{column.field}_ci_{end}") for end in ("low", "high")]
        write = _points if column.field == "difference" else "{:.1f}".format
        return None if None in ends else f"[{', '.join(write(100 * end) for end in ends)}]"
    measured = column.kind in ("rate", "count")
    value = _get(row, f"{column.field}_mean" if measured else column.field)
    if value is None:
        return None
    if column.kind == "points":
        return _points(100 * value)
    if column.kind == "p":
        return "<0.001" if value < 0.001 else f"{value:.3f}"
    if column.kind == "count":
        return _count(value)
    if column.kind == "rate":
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    if column.field == "source":
        return str(value)[:_HASH]
    # A missing value in a column makes its whole numbers floats: 3.0 is 3.
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _points(value: float) -> str:
    """Write a difference in per cent points, with its sign: +1.2."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def _best(column: Column, rows: Rows, cells: list[str], place: int = 1) -> list[bool]:
    """Return which cells to mark: the best value as it is shown, and all that equal it.

    :param column: of the cells.
    :param rows: of the table.
    :param cells: of the column.
    :param place: 2 marks the second best.
    """
    if column.best is None or len(rows) < 2:
        return [False] * len(rows)
    # Speeds of several machines are not compared.
    if column.kind == "rate" and METRICS[column.field].of_machine and len(hardware_of(rows)) > 1:
        return [False] * len(rows)
    shown = [cell.split("±")[0].strip() for cell in cells]
    values = [float(text) if text != MISSING else None for text in shown]
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
    if any(_is(row, "uses_boundaries") for row in rows):
        notes.append(f"{_BOUNDARIES} reads task boundaries in training.")
    if any(_is(row, "submitted") for row in rows):
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


def _table(
    rows: Rows, columns: Sequence[Column], names: Mapping[str, str] | None = None
) -> Table:
    shown = [column.field for column in columns]
    labels = _labels(rows, shown, names)
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
    return Table(
        header=printable(protocol_header(rows[0])),
        columns=tuple(replace(c, title=printable(_title(c, names or {}))) for c in columns),
        methods=[str(row["method"]) for row in rows],
        cells=[list(cells) for cells in zip(*by_column, strict=True)],
        best=[list(marks) for marks in zip(*best, strict=True)],
        second=[list(marks) for marks in zip(*second, strict=True)],
        notes=[printable(note) for note in _notes(rows, labels)],
    )


def _title(column: Column, names: Mapping[str, str]) -> str:
    by_field = {} if column.kind == "interval" else names
    return names.get(column.key, by_field.get(column.field, column.title))


def ranked(board: pd.DataFrame) -> list[Rows]:
    """Split a board into protocols, best A_last first in each.

    :raises UsageError: if the board is no leaderboard.
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


def tables(
    board: pd.DataFrame,
    wide: bool = False,
    columns: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> list[Table]:
    """Return the table of each protocol, best A_last first; arguments as `render` has them."""
    return [_table(rows, _offered(rows, wide, columns), names) for rows in ranked(board)]


def render_text(
    board: pd.DataFrame,
    width: int | None = None,
    wide: bool = False,
    columns: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
) -> str:
    """Render a leaderboard for the terminal.

    One table per protocol, best A_last first, accuracies in per cent as mean ± sample standard
    deviation, ``*`` behind the best value of a column. Where the columns do not fit, the least
    important go (the parameters first, then forward passes, speed, F_cls, A_avg) and a line below
    says which.

    :param board: the frame of `aggregate`.
    :param width: characters per line; by default those of the terminal, 80 where there is none.
    :param wide: every column, however wide the lines.
    :param columns: these columns, however wide the lines.
    :param names: what to call methods and columns.
    :raises UsageError: if `board` is no leaderboard, `width` is under 30 or there is no such
        column.
    """
    if width is not None and width < _MIN_WIDTH:
        raise UsageError(f"width must be at least {_MIN_WIDTH} characters, got {width}.")
    room = shutil.get_terminal_size((80, 24)).columns if width is None else width
    texts = []
    for rows in ranked(board):
        offered = _offered(rows, wide, columns)
        fixed = wide or bool(columns)
        shown = offered if fixed else _fitting(rows, max(room, _MIN_WIDTH))
        table = _table(rows, shown, names)
        left_out = [column for column in offered if column not in shown]
        texts.append(_text_table(rows, table, left_out, max(room, _MIN_WIDTH), fixed))
    return "\n".join(texts) or "No finished runs.\n"


def _text_table(
    rows: Rows, table: Table, out: Sequence[Column], width: int, wide: bool
) -> str:
    columns = table.columns
    lines = _grid(table)
    width = max(map(len, lines)) if wide else width
    excess = max(map(len, lines)) - width
    if excess > 0:
        # Even the name and the score are too wide: the name is cut.
        name = [column.field for column in columns].index("label")
        limit = max(len(row[name]) for row in table.cells) - excess
        for row in table.cells:
            row[name] = row[name] if len(row[name]) <= limit else row[name][: limit - 1] + "…"
        lines = _grid(table)
    marked = any(mark for marks in table.best for mark in marks)
    notes = [("* best of its column. " if marked else "") + NOTE, *table.notes]
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


def _is_alike(column: Column, rows: Rows) -> bool:
    """Return whether a column of the set-up says the same in every row."""
    return column.field in SETUP and len({_get(row, column.field) for row in rows}) < 2


def _fitting(rows: Rows, width: int) -> list[Column]:
    """Choose the columns that fit, the most important first.

    A column of the set-up that is alike in all rows comes last: a line below can say it.
    """

    def wide(columns: list[Column]) -> int:
        return max(map(len, _grid(_table(rows, columns))))

    def importance(column: Column) -> int:
        return -1 if _is_alike(column, rows) else column.keep or 0

    offered = _offered(rows)
    chosen = [column for column in offered if column.keep is None]
    used = wide(chosen)
    for column in sorted(offered, key=importance, reverse=True):
        if column in chosen:
            continue
        more = [c for c in offered if c in chosen or c is column]
        needed = wide(more)
        # A column can save room: what it says is then left out of the names.
        if needed <= max(width, used):
            chosen, used = more, needed
    return chosen


def _grid(table: Table) -> list[str]:
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


def one_space(cell: str) -> str:
    """Undo the alignment of a cell."""
    return " ".join(cell.split())
