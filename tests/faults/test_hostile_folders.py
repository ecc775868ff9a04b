"""Folders of results that somebody else has made: links, pipes and names in them do no harm."""

from __future__ import annotations

import csv
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from avalanche_rwf.cli import main
from avalanche_rwf.leaderboard import read_runs

from ..leaderboard.report.conftest import fake_run

SECRET = "root:x:0:0"


def run(*words: object) -> int:
    """The command's exit status; one that waits for ever fails the test instead."""
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(main(list(map(str, words)))), daemon=True
    )
    thread.start()
    thread.join(120)
    assert status, f"{words[0]} waits for something"
    return status[0]


@pytest.fixture
def results(tmp_path) -> Path:
    out = tmp_path / "results"
    fake_run(out, "ncm", 0, "aaaaaaaaaa")
    fake_run(out, "rwf", 0, "bbbbbbbbbb")
    return out


@pytest.fixture
def outside(tmp_path) -> Iterator[Path]:
    """A folder of the reader's own, which nothing may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("secret", "row-1.js"):
        (folder / name).write_text(SECRET)
    yield folder
    assert sorted(path.name for path in folder.iterdir()) == ["row-1.js", "secret"]
    assert {path.read_text() for path in folder.iterdir()} == {SECRET}


def place(results: Path) -> Path:
    return next(results.glob("runs/*/*/bbbbbbbbbb/seed0"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
@pytest.mark.parametrize("name", ["metrics.csv", "log.txt", "config.json", "summary.json"])
def test_a_pipe_in_a_run_directory_is_waited_for_by_no_verb(name, results, tmp_path, capsys):
    (place(results) / name).unlink()
    os.mkfifo(place(results) / name)
    assert run("report", results) == 0
    assert run("leaderboard", results, "--plots", tmp_path / "plots") == 0
    assert run("submit", results, "--method", "rwf", "--out", tmp_path / "entry.json") == 2
    said = capsys.readouterr().err
    assert name == "log.txt" or name in said
    other = tmp_path / "other"
    fake_run(other, "ncm", 0, "aaaaaaaaaa")
    fake_run(other, "rwf", 0, "bbbbbbbbbb")
    (place(other) / name).unlink()
    os.mkfifo(place(other) / name)
    assert run("leaderboard", results, other) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_where_the_page_goes_is_replaced(results):
    data = results / "report" / "data"
    data.mkdir(parents=True)
    for name in ("board.js", "row-00000.js"):
        os.mkfifo(data / name)
    assert run("report", results) == 0
    assert all(path.is_file() for path in data.iterdir())


def test_a_link_in_the_place_of_a_log_is_not_published(results, outside):
    log = place(results) / "log.txt"
    log.unlink()
    log.symlink_to(outside / "secret")
    assert run("report", results) == 0
    page = results / "report"
    assert not any(SECRET in path.read_text() for path in page.glob("data/*.js"))


def test_a_log_of_any_size_is_read_from_its_end(results):
    with (place(results) / "log.txt").open("r+b") as file:
        file.truncate(2**40)
        file.seek(0, os.SEEK_END)
        file.write("the last line ä\n".encode())
    assert run("report", results) == 0
    data = results / "report" / "data"
    assert any(r"the last line \u00e4\n" in path.read_text() for path in data.iterdir())


def test_links_do_not_decide_where_the_page_is_written(results, outside):
    data, assets = results / "report" / "data", results / "report" / "assets"
    for folder in (data, assets):
        folder.mkdir(parents=True)
    links = [data / "row-00000.js", data / "board.js", assets / "plotly.min.js",
             assets / "report.js", results / "report" / "index.html",
             results / "leaderboard.csv"]  # fmt: skip
    for link in links:
        link.symlink_to(outside / "secret")
    assert run("report", results) == 0
    assert run("leaderboard", results) == 0
    assert not any(link.is_symlink() for link in links)


@pytest.mark.parametrize("part", ["report", "report/data", "report/assets"])
def test_a_folder_of_the_page_that_is_a_link_is_refused(part, results, outside, tmp_path, capsys):
    (results / part).parent.mkdir(exist_ok=True)
    (results / part).symlink_to(outside)
    assert run("report", results) == 2
    assert f"{str(results / part)!r} is a link to another place" in capsys.readouterr().err
    assert run("report", results, "--out", tmp_path / "page") == 0


def test_an_own_folder_for_the_page_may_be_a_link(results, tmp_path):
    (tmp_path / "web").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "web")
    assert run("report", results, "--out", tmp_path / "link") == 0
    assert (tmp_path / "web" / "index.html").is_file()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name", ["a\ud800b", "\x00\x07\x1b[2J", r"\$x^$", "$x^", "_hidden", "‮cba", "\u2028" * 40]
)
def test_any_name_is_drawn_and_written(name, tmp_path, capsys):
    out = tmp_path / "results"
    for seed, method in enumerate((name, "ncm")):
        fake_run(out, method, 0, str(seed) * 10, benchmark=f"folder:{name}", backbone=name)
    for verb in (("--plots", tmp_path / "plots"), ("--format", "csv"), ("--format", "latex")):
        assert run("leaderboard", out, *verb) == 0
    assert len(list((tmp_path / "plots").iterdir())) == 9
    assert run("report", out) == 0
    told = capsys.readouterr()
    assert all(line.isprintable() for line in told.err.splitlines())
    assert "\x1b" not in told.out and "\x00" not in told.out


def test_where_every_run_is_left_out_it_says_why(results, capsys):
    for path in results.glob("runs/*/*/*/seed0/summary.json"):
        path.write_text('{"status": "done", "a_last": 3}')
    assert run("leaderboard", results) == 2
    said = capsys.readouterr().err
    assert said.count("summary.json has a_last 3, which is no share of 1") == 2
    assert "holds no finished run" in said


def test_csv_on_the_terminal_is_the_file(results, capsys):
    assert run("leaderboard", results, "--format", "csv") == 0
    out = capsys.readouterr().out
    assert out == (results / "leaderboard.csv").read_text()
    assert len(list(csv.DictReader(io.StringIO(out)))) == len(read_runs(results).frame) == 2
