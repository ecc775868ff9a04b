"""The page's data and files, without a browser."""

from __future__ import annotations

import importlib
import json
import math
import re

import pytest

from avalanche_rwf.cli import main
from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import aggregate, read_runs
from avalanche_rwf.leaderboard.report import script, write_report
from avalanche_rwf.leaderboard.report.data import report_rows

EVIL = "<script>alert(1)</script>"


def values_of(path):
    """The values that a data script passes on."""
    text = path.read_text()
    found = re.fullmatch(r"report\.\w+\((.*)\);\n", text, re.S)
    return json.loads(f"[{found.group(1)}]")


def test_a_script_ends_no_script_and_has_no_nan():
    text = script("f", {"a": "</script><!-- & \u2028", "b": math.nan})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text[2:-3]) == {"a": "</script><!-- & \u2028", "b": None}


@pytest.fixture
def results(tmp_path, runs):
    for seed in (0, 1):
        runs(tmp_path, "rwf", seed, "aaaa", 0.9 + 0.02 * seed)
        runs(tmp_path, EVIL, seed, "bbbb", 0.8, log=EVIL)
    runs(tmp_path, "rwf", 2, "aaaa", status="failed")
    runs(tmp_path, "other", 0, "cccc", batch_size=4)
    (tmp_path / "runs" / "split-digits" / "m" / "dddd" / "seed0").mkdir(parents=True)
    return tmp_path


def test_rows_are_the_tables_own(results):
    frame = read_runs(results).frame
    rows = report_rows(aggregate(frame), frame)
    by_method = {row.values["method"]: row for row in rows}
    assert {row.protocol for row in rows} == {0, 1}
    assert by_method["other"].protocol != by_method["rwf"].protocol == by_method[EVIL].protocol
    assert by_method["rwf"].label == "rwf"
    assert [run["seed"] for run in by_method["rwf"].runs] == [0, 1, 2]
    assert len(by_method["rwf"].metrics) == 2  # the failed one has none


def test_the_page_and_its_data(results, capsys):
    assert main(["report", str(results)]) == 0
    page = results / "report" / "index.html"
    assert capsys.readouterr().out == f"{page}\n"
    files = {p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*") if p.is_file()}
    assert files == {
        "index.html", "assets/report.css", "assets/report.js", "assets/plotly.min.js",
        "data/board.js", "data/row-00000.js", "data/row-00001.js", "data/row-00002.js",
    }  # fmt: skip

    (board,) = values_of(page.parent / "data" / "board.js")
    assert board["runs"] == 5
    assert [len(p["rows"]) for p in board["protocols"]] in ([2, 1], [1, 2])
    both = next(p for p in board["protocols"] if len(p["rows"]) == 2)
    best, evil = both["rows"]
    fields = [column["field"] for column in both["columns"]]
    a_last = fields.index("a_last")
    assert best["cells"][a_last] == "91.0 ± 1.4"
    assert best["values"][a_last] == pytest.approx(0.91)
    assert a_last in best["best"] and a_last not in evil["best"]
    assert (best["failed"], best["seeds"]) == (1, "0,1")
    assert [point[0] for point in best["ends"]] == [100, 200, 300]  # 100 and 101, 200 and 201
    assert [point[1] for point in best["routing"]["prompt_drift"]] == [0.0, 0.1, 0.2]
    assert evil["method"] == EVIL and evil["routing"] == {}
    assert both["data"]["classes_per_experience"] == [[0, 1], [2, 3], [4, 5]]
    reasons = {one["path"]: one["reason"] for one in board["missing"]}
    assert reasons["runs/split-digits/m/aaaa/seed2"] == "failed: no luck"
    assert "unfinished" in reasons["runs/split-digits/m/dddd/seed0"]

    file, details = values_of(page.parent / "data" / best["file"])
    assert file == best["file"]
    assert details["command"].startswith("avalanche-rwf compare --benchmark split-digits")
    assert "--methods rwf --seeds 0,1,2" in details["command"]
    assert details["matrix"]["mean"][2] == pytest.approx([0.89, 0.9, 0.91])
    assert [run["config"]["config"]["seed"] for run in details["runs"]] == [0, 1, 2]
    _, details = values_of(page.parent / "data" / evil["file"])
    assert details["runs"][0]["log"] == EVIL + "\n"
    # Nothing of a run can become markup: there is none in the data, and the page has no data.
    for name in files - {"assets/plotly.min.js"}:
        assert "alert(1)</script>" not in (page.parent / name).read_text()


def test_a_report_that_is_there_is_replaced(results, runs, tmp_path):
    out = tmp_path / "elsewhere"
    write_report(results, out)
    (out / "data" / "row-00099.js").write_text("old")
    (out / "data" / "mine.txt").write_text("kept")
    write_report(results, out)
    assert sorted(p.name for p in (out / "data").iterdir()) == [
        "board.js", "mine.txt", "row-00000.js", "row-00001.js", "row-00002.js"
    ]


def test_nothing_but_broken_runs_is_a_page_too(tmp_path, runs):
    runs(tmp_path, "rwf", 0, "aaaa").joinpath("summary.json").unlink()
    page = write_report(tmp_path)
    (board,) = values_of(page.parent / "data" / "board.js")
    assert (board["protocols"], len(board["missing"])) == ([], 1)


def test_the_page_forbids_the_network_and_names_no_address(results):
    text = write_report(results).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1)
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy and "connect-src" not in policy
    for name in ("index.html", "assets/report.js", "assets/report.css"):
        assert not re.search(r"https?://|//[a-z]", (results / "report" / name).read_text()), name
    script = (results / "report" / "assets" / "report.js").read_text()
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(", script)


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "takes a folder of results" in said[0] and "holds no run" in said[1]
    module = importlib.import_module("avalanche_rwf.leaderboard.report")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install avalanche-rwf\[report\]"):
        write_report(tmp_path)


def test_several_folders_and_entries_are_one_page(tmp_path, runs):
    from avalanche_rwf.leaderboard.submissions import build_entry

    a, b, c = (tmp_path / name for name in "abc")
    runs(a, "rwf", 0, "aaaa", 0.9)
    runs(b, "rwf", 1, "aaaa", 0.92)
    runs(b, "slda", 0, "bbbb", status="failed")
    runs(b, "ncm", 0, "cccc").joinpath("summary.json").unlink()
    # 0.0.9 is another version: its hash cannot be computed again.
    path = runs(c, "rwf", 5, "0123456789", 0.8, experiences=3)
    content = json.loads((path / "config.json").read_text())
    content["versions"]["avalanche-rwf"] = "0.0.9"
    (path / "config.json").write_text(json.dumps(content))
    summary = json.loads((path / "summary.json").read_text())
    summary.update(forgetting_experience=0.0, a_avg=0.8, a_auc=0.8)
    (path / "summary.json").write_text(json.dumps(summary))
    rows = ["samples_seen,experience,metric,value"]
    for t in range(3):
        rows.append(f"{100 * t + 100},,accuracy_exposed,0.8")
        rows += [f"{100 * t + 100},{e},accuracy,0.8" for e in range(t + 1)]
    (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    entry = tmp_path / "entry.json"
    entry.write_text(build_entry(read_runs(c).frame, "rwf").model_dump_json())

    words = ["report", str(a), str(b), "--add", str(entry), "--out", str(tmp_path / "page")]
    assert main(words) == 0
    (board,) = values_of(tmp_path / "page" / "data" / "board.js")
    assert board["runs"] == 3
    rows = {row["label"]: row for one in board["protocols"] for row in one["rows"]}
    own, theirs = (next(row for label, row in rows.items() if mark == label.endswith("\u2021")
                        and row["method"] == "rwf") for mark in (False, True))  # fmt: skip
    assert own["seeds"] == "0,1"
    paths = [one["path"] for one in board["missing"]]
    assert sorted(paths) == sorted(
        (b / "runs" / "split-digits" / "m" / name / "seed0").as_posix()
        for name in ("bbbb", "cccc")
    )
    _, details = values_of(tmp_path / "page" / "data" / theirs["file"])
    (run,) = details["runs"]
    assert (run["seed"], run["summary"]["a_last"], run["log"]) == (5, 0.8, "")
    assert run["config"]["config"]["seed"] == 5
    assert "--methods rwf --seeds 5" in details["command"]
    assert details["matrix"]["mean"][2] == [0.8, 0.8, 0.8]


def test_a_report_on_somebody_elses_run_imports_nothing(tmp_path, runs, monkeypatch):
    code = tmp_path / "theirs.py"
    code.write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n")
    monkeypatch.chdir(tmp_path)
    path = runs(tmp_path, "rwf", 0, "aaaa")
    content = json.loads((path / "config.json").read_text())
    for name in ("theirs.py:Mine", "theirs:Mine", f"{code}:Mine"):
        content["config"]["method"] = name
        (path / "config.json").write_text(json.dumps(content))
        page = write_report(tmp_path)
        assert page.is_file()
    assert not (tmp_path / "ran").exists()
