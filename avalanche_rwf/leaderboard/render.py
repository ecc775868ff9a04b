"""The leaderboard as CSV, Markdown, HTML and LaTeX, or as text for the terminal."""

from __future__ import annotations

import functools
import html
import importlib
import os
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard.aggregate import csv_text
from avalanche_rwf.leaderboard.table import (
    MISSING,
    NOTE,
    Column,
    Table,
    one_space,
    render_text,
    tables,
)
from avalanche_rwf.utils.untrusted_io import read_file

FORMATS = ("text", "csv", "md", "latex", "html")
Names = Mapping[str, str]
_BOLD = f"Bold: best. {NOTE}"


def read_names(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read what to call methods and columns from a TOML file: ``slda = "SLDA"``.

    :raises UsageError: if it cannot be read, or a value is no text.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        names = tomllib.loads(read_file(path).decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--names takes a TOML file, not {os.fspath(path)!r} ({reason})."
        ) from None
    for key, value in names.items():
        if not isinstance(value, str):
            raise UsageError(
                f'--names takes lines such as slda = "SLDA", and {os.fspath(path)!r} has {key!r} '
                f"of type {type(value).__name__}."
            )
    return names


def _marked(cells: Sequence[str], marks: Sequence[bool], write: Callable[[str], str]) -> list[str]:
    return [write(cell) if mark else cell for cell, mark in zip(cells, marks, strict=True)]


# ---- Markdown


def _markdown_table(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    lines = [
        line([_markdown(column.title) for column in table.columns]),
        line([":---" if c.kind == "text" else "---:" for c in table.columns]),
    ]
    for cells, best in zip(table.cells, table.best, strict=True):
        texts = [_markdown(one_space(cell)) for cell in cells]
        lines.append(line(_marked(texts, best, "**{}**".format)))
    notes = " ".join(map(_markdown, [_BOLD, *table.notes]))
    return "\n".join([_markdown(table.header), "", *lines, "", notes, ""])


def _markdown(text: str) -> str:
    """Escape what Markdown (and the HTML it lets through) would read as markup."""
    for sign in "\\`*_[]|~#$":
        text = text.replace(sign, "\\" + sign)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# ---- HTML


def _html_table(table: Table) -> str:
    lines = [f"<p>{html.escape(table.header)}</p>", "<table>", "<thead>"]
    titles = "".join(f"<th>{html.escape(column.title)}</th>" for column in table.columns)
    lines += [f"<tr>{titles}</tr>", "</thead>", "<tbody>"]
    for cells, best in zip(table.cells, table.best, strict=True):
        texts = [html.escape(one_space(cell)) for cell in cells]
        texts = _marked(texts, best, "<b>{}</b>".format)
        lines.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    notes = " ".join(map(html.escape, [_BOLD, *table.notes]))
    return "\n".join([*lines, "</tbody>", "</table>", f"<p>{notes}</p>", ""])


# ---- LaTeX

# The widths of a column and of the page in points. Without a target a table fits a plain article,
# of one column or of two.
_TARGETS: dict[str | None, tuple[float, float]] = {
    None: (229.0, 345.0),
    "neurips": (397.0, 397.0),
    "icml": (234.0, 487.0),
}
# Letters and the space beside a column, the largest that fit are taken: command, width as a share
# of that at 10 points, `\tabcolsep` in points.
_SIZES = (("", 1.0, 6), (r"\small", 0.93, 5), (r"\footnotesize", 0.86, 4), (r"\scriptsize", 0.8, 3))
_READABLE = 3  # sizes down to \footnotesize
# The width of signs in Computer Modern at 10 points; of all others 5.1.
_WIDTHS = {
    **dict.fromkeys(".,:;i l|'!", 2.9), **dict.fromkeys("fjrt-()[]", 3.9), " ": 3.4,
    **dict.fromkeys("mwMW±%@", 8.4), **dict.fromkeys("ABCDEFGHKNOPQRUVXYZ+=<>", 7.6), "\\": 0.0,
}  # fmt: skip


def _latex_table(
    whole: Table,
    fixed: bool,
    names: Names,
    label: str = "",
    caption: str = "",
    target: str | None = None,
) -> str:
    """Write a table with booktabs, as :func:`render` says; fixed: no column may be left out."""
    table, left_out, (size, _, gap), star = _fitting(whole, fixed, target)
    title = _latex(table.header)
    notes = ["Bold: best; underlined: second.", NOTE, *table.notes]
    notes += [f"Left out for width: {', '.join(left_out)}."] if left_out else []
    below = [f"{title}."] * bool(caption) + list(map(_latex, notes))
    lines = [
        rf"\begin{{table{star}}}",
        r"\centering",
        rf"\caption{{{caption or title}}}",
        *([rf"\label{{{label}}}"] if label else []),
        rf"{size}\setlength{{\tabcolsep}}{{{gap}pt}}",
        *_tabular(table, names),
        # In the text, not in a comment: a comment ends at the first line break.
        r"\par\smallskip",
        rf"\parbox{{\linewidth}}{{\scriptsize\raggedright {' '.join(below)}}}",
        rf"\end{{table{star}}}",
        "",
    ]
    return "\n".join(lines)


def _tabular(table: Table, names: Names) -> list[str]:
    def heading(column: Column) -> str:
        if column.title in names.values():  # is LaTeX already
            return column.title
        # A_last is A with an index; what stands for a number is in italics.
        texts = re.split(r"(\b[A-Z]_\w+|\b[pn]$)", column.title)
        for i in range(1, len(texts), 2):
            sign, _, index = texts[i].partition("_")
            texts[i] = rf"${sign}_{{\mathrm{{{index}}}}}$" if index else f"${sign}$"
        return "".join(text if i % 2 else _latex(text) for i, text in enumerate(texts))

    def cell(column: Column, text: str, method: str) -> str:
        if column.field == "label":
            name = names.get(method, "")
            return name + _latex(text.removeprefix(name))
        written = _latex_cell(text)
        return written if column.kind == "text" else re.sub(r"-(?=\d)", "$-$", written)

    align = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [" & ".join(map(heading, table.columns)) + r" \\"]
    lines.append(r"\midrule")
    for cells, method, best, second in zip(
        table.cells, table.methods, table.best, table.second, strict=True
    ):
        texts = [cell(c, t, method) for c, t in zip(table.columns, cells, strict=True)]
        texts = _marked(texts, best, r"\textbf{{{}}}".format)
        lines.append(" & ".join(_marked(texts, second, r"\underline{{{}}}".format)) + r" \\")
    return [rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}", r"\toprule", *lines, r"\bottomrule",
            r"\end{tabular}"]  # fmt: skip


def _latex_cell(text: str) -> str:
    """Write a cell; what aligns a mean and its deviation is as wide as the digits it stands for."""
    if text == MISSING:
        return "--"
    if "±" in text or text.endswith("   "):
        mean, _, deviation = text.strip().partition(" ± ")
        pad = len(deviation) - len(deviation.lstrip())
        behind = len(text) - len(text.rstrip())
        digits = rf"\phantom{{{'0' * pad}}}{deviation.lstrip()}" if pad else deviation
        if not deviation:
            return rf"{mean if mean != MISSING else '--'}\phantom{{ $\pm$ {'0' * (behind - 4)}.}}"
        return rf"{mean} $\pm$ {digits}"
    return _latex(one_space(text))


def _fitting(
    whole: Table, fixed: bool, target: str | None
) -> tuple[Table, list[str], tuple[str, float, int], str]:
    """Choose a table's columns, those left out, its letters and its width ("*": the page's).

    :param whole: the table.
    :param fixed: no column may be left out.
    :param target: one of `_TARGETS`.
    """
    column_width, page_width = _TARGETS[target]
    order = sorted((c.keep, i) for i, c in enumerate(whole.columns) if c.keep is not None)
    for n in range(1 if fixed else len(order) + 1):
        gone = {i for _, i in order[:n]}
        table = _without(whole, gone)
        for room, star in ((column_width, ""), (page_width, "*")):
            for size in _SIZES[:_READABLE]:
                if _width(table, *size[1:]) <= room:
                    return table, [whole.columns[i].title for i in sorted(gone)], size, star
    return table, [], _SIZES[-1], "*" if page_width > column_width else ""


def _without(table: Table, gone: Collection[int]) -> Table:
    """Return a table without some of its columns."""

    def left(values: Sequence[Any]) -> list[Any]:
        return [value for i, value in enumerate(values) if i not in gone]

    columns = tuple(left(table.columns))
    cells, best, second = (
        list(map(left, rows)) for rows in (table.cells, table.best, table.second)
    )
    return replace(table, columns=columns, cells=cells, best=best, second=second)


def _width(table: Table, scale: float, gap: float) -> float:
    """Estimate the width of a table in points, from above."""
    total = 2.0 * gap * (len(table.columns) - 1)
    for i, column in enumerate(table.columns):
        bold = [1.15 if marks[i] else 1.0 for marks in table.best]
        texts = [(column.title, 1.0), *zip((row[i] for row in table.cells), bold, strict=True)]
        total += scale * max(
            # Commands have no width, and a minus is as wide as a plus.
            weight * sum(_WIDTHS.get(sign, 5.1) for sign in re.sub(r"-(?=\d)", "+",
                                                                   re.sub(r"\\\w+", "", text)))
            for text, weight in texts
        )
    return total


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


def render(
    board: pd.DataFrame,
    fmt: str = "text",
    wide: bool = False,
    columns: Sequence[str] = (),
    names: Names | None = None,
    **how: Any,
) -> str:
    """Render a leaderboard in a format, one table a protocol, best values marked.

    CSV is the whole board, every column in full precision, always. A table in LaTeX (package
    booktabs) is as wide as a column of the target, or as its page (``table*``); letters get smaller
    down to ``\\footnotesize``. What still does not fit is left out, the least important first and
    none that was asked for, and a line below says so.

    :param board: the frame of `aggregate`.
    :param fmt: one of `FORMATS`.
    :param wide: every column; text then is as wide as it needs.
    :param columns: these columns, by field or heading.
    :param names: what to call methods and columns, for LaTeX written in LaTeX.
    :param how: for text, `width` in characters. For LaTeX, `label` of the table; those of further
        protocols have their number behind it. `caption`, written in LaTeX, in the place of the
        protocol, which then stands below the table. `target`: "neurips", "icml", or None for a
        plain article.
    :raises UsageError: if the format is unknown, `board` is no leaderboard or there is no such
        column.
    """
    if fmt not in FORMATS:
        raise UsageError(f"format must be one of {', '.join(FORMATS)}, got {fmt!r}.")
    if fmt == "csv":
        return csv_text(board)
    if fmt == "text":
        return render_text(board, wide=wide, columns=columns, names=names, **how)
    write: Callable[..., str] = _html_table if fmt == "html" else _markdown_table
    if fmt == "latex":
        write = functools.partial(_latex_table, fixed=wide or bool(columns), names=names or {})
    blocks, label = [], how.get("label")
    for number, table in enumerate(tables(board, wide, columns, names), 1):
        if label and number > 1:
            how["label"] = f"{label}-{number}"
        blocks.append(write(table, **how))
    nothing = "No finished runs."
    return "\n".join(blocks) or (f"<p>{nothing}</p>\n" if fmt == "html" else f"{nothing}\n")
