"""The leaderboard as a page for a browser: one folder, no network, no server.

``page/`` holds the page itself, which is the same for every report; what differs is data, in
scripts that call one function with JSON: a page opened from a file may load scripts beside it, but
may not fetch. Text from runs reaches the page through ``textContent`` alone.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.store import check_writable, plain_json, write_text
from avalanche_rwf.leaderboard.aggregate import aggregate, read_runs
from avalanche_rwf.leaderboard.report.data import board_data, report_rows, row_data
from avalanche_rwf.leaderboard.report.studies import studies

__all__ = ["script", "write_report"]

_ROW_FILE = re.compile(r"row-\d+\.js")


def script(function: str, *values: Any) -> str:
    """A script that calls a function with plain values.

    Signs that could end a ``<script>`` or open a comment are written as escapes, so the text is
    also safe inside a page.
    """
    arguments = ",".join(
        json.dumps(plain_json(value), separators=(",", ":"), allow_nan=False, default=str)
        for value in values
    )
    for sign in "<>&":
        arguments = arguments.replace(sign, f"\\u{ord(sign):04x}")
    return f"{function}({arguments});\n"


def _plotly() -> Path:
    """The packaged ``plotly.min.js``.

    :raises UsageError: without plotly, or the rest of the extra.
    """
    spec = find_spec("plotly")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    bundled = folder is not None and (folder / "package_data" / "plotly.min.js").is_file()
    for name, there in (("plotly", bundled), ("matplotlib", find_spec("matplotlib") is not None)):
        if not there:
            raise UsageError(
                f"report needs {name}, which is not installed: pip install avalanche-rwf[report]."
            )
    assert folder is not None
    return folder / "package_data" / "plotly.min.js"


def write_report(
    folder: Path,
    out: Path | None = None,
    *,
    more: Sequence[Path] = (),
    entries: Sequence[Path] = (),
) -> Path:
    """Write the page of all runs under a folder, or under several.

    :param folder: the ``--out`` of comparisons, which holds ``runs/``.
    :param out: where to; by default ``folder/report``. A report that is there is replaced.
    :param more: further folders, as from other machines.
    :param entries: submitted by others; rows of their own.
    :returns: the path of ``index.html``.
    :raises UsageError: if there is no run, an entry is not sound, `out` cannot be written to or is
        somewhere else, or plotly is missing.
    """
    folders = (folder, *more)
    for one in folders:
        if not one.is_dir():
            raise UsageError(f"report takes a folder of results, and {str(one)!r} is none.")
    plotly = _plotly()
    frame, broken = read_runs(*folders)
    if entries:
        from avalanche_rwf.leaderboard.submissions import read_entries

        frame = pd.concat([part for part in (frame, read_entries(list(entries))) if len(part)])
    searches = studies(folders)
    if not len(frame) and not broken and not searches:
        raise UsageError(
            f"{', '.join(repr(str(one)) for one in folders)} holds no run (runs are in "
            "DIR/runs/<benchmark>/<method>/...)."
        )
    given = out is not None
    out = folder / "report" if out is None else out
    # The folder may come from anybody: a link in it must not lead the writing elsewhere.
    for part in (*(() if given else (out,)), out / "assets", out / "data"):
        if part.is_symlink():
            raise UsageError(
                f"report writes into folders of its own, and {str(part)!r} is a link to another "
                "place: remove it, or name a folder with --out."
            )
    check_writable(out)
    rows = report_rows(aggregate(frame), frame)
    for part in ("assets", "data"):
        (out / part).mkdir(exist_ok=True)
    library = out / "assets" / plotly.name
    library.unlink(missing_ok=True)
    shutil.copyfile(plotly, library)
    for row in rows:
        _write(out / "data" / row.file, "report.row", row.file, row_data(row))
    board = {**board_data(rows, frame, broken, folders), "studies": searches}
    _write(out / "data" / "board.js", "report.board", board)
    written = {row.file for row in rows}
    for path in (out / "data").iterdir():
        if _ROW_FILE.fullmatch(path.name) and path.name not in written:
            path.unlink()
    page = resources.files(__package__) / "page"
    for name in ("assets/report.css", "assets/report.js", "index.html"):
        content = (page / name.rpartition("/")[2]).read_text(encoding="utf-8")
        write_text(out / name, content)
    return out / "index.html"


def _write(path: Path, function: str, *values: str | Mapping[str, Any]) -> None:
    # Not through `write_text`, which waits for the disk: there may be thousands. Removed first,
    # because a link would be followed and a pipe waited for.
    path.unlink(missing_ok=True)
    path.write_text(script(function, *values), encoding="utf-8")
