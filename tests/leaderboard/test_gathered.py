"""Several folders, versions of the code, references, foreign directories, the terminal's forms."""

from __future__ import annotations

import json
import math
import re
import shutil

import pandas as pd
import pytest
from pylatexenc.latexwalker import LatexEnvironmentNode, LatexWalker

from avalanche_rwf.cli import main
from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import add_reference, aggregate, read_runs, render, report
from avalanche_rwf.leaderboard.aggregate import write_leaderboard
from avalanche_rwf.leaderboard.table import render_text

SCRIPT = "<script>alert(1)</script>"


def edit(path, **values):
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **values}))


def test_folders_of_several_machines_are_one_leaderboard(make_run, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    make_run(seed=0, out=a, summary={"a_last": 0.5})
    make_run(seed=1, out=b, summary={"a_last": 0.7})
    shutil.copytree(a / "runs", b / "runs", dirs_exist_ok=True)  # seed 0 is in both, the same
    runs, broken = read_runs(a, b)
    assert broken == []
    assert list(zip(runs["folder"], runs["seed"], strict=True)) == [(str(a), 0), (str(b), 1)]
    (row,) = aggregate(runs).to_dict("records")
    assert (row["n"], row["a_last_mean"]) == (2, pytest.approx(0.6))
    low, high = row["a_last_ci_low"], row["a_last_ci_high"]
    assert (low + high) / 2 == pytest.approx(0.6)


def test_other_runs_of_one_seed_are_refused_naming_both(make_run, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    here, there = make_run(out=a), make_run(out=b, summary={"a_last": 0.7})
    with pytest.raises(UsageError) as error:
        read_runs(a, b)
    assert str(here) in str(error.value)
    assert str(there) in str(error.value)


@pytest.mark.parametrize(
    ("values", "apart"),
    [
        ({"git": "b-dirty"}, True),
        ({"versions": {"avalanche-rwf": "0.2.0", "torch": "2.8"}}, True),
        ({"source_sha256": "1" * 64, "git": "a"}, True),
        ({"versions": {"avalanche-rwf": "0.1.0", "torch": "2.9"}, "git": "a"}, False),
        ({"hardware": {"gpu": "another"}, "git": "a"}, False),
    ],
)
def test_what_separates_and_what_is_noted(make_run, tmp_path, values, apart):
    base = {"git": "a", "versions": {"avalanche-rwf": "0.1.0", "torch": "2.8"}}
    edit(make_run(seed=0), **base)
    edit(make_run(seed=1), **{**base, **values})
    board = aggregate(read_runs(tmp_path).frame)
    assert len(board) == (2 if apart else 1)
    text = render(board)
    assert ("several versions of the code" in text) == apart
    if apart:
        labels = re.findall(r"^\d  (rwf \S+)", render_text(board, 200), re.M)
        assert len(set(labels)) == 2  # the rows say why
    if values.get("versions", {}).get("torch") == "2.9":
        assert board["torch"].tolist() == ["2.8; 2.9"]
        assert "several releases of torch: 2.8, 2.9" in " ".join(text.split())


def test_the_same_sources_at_two_revisions_are_one_row(make_run, tmp_path):
    for seed, git in enumerate("ab"):
        edit(make_run(seed=seed), git=git, source_sha256="1" * 64)
    board = aggregate(read_runs(tmp_path).frame)
    assert (board["n"].tolist(), board["git"].tolist()) == ([2], ["a; b"])


def test_a_run_that_failed_before_it_said_its_code_counts_in_its_row(make_run, tmp_path):
    edit(make_run(seed=0, status="failed", summary={"a_last": None, "error": "x"}), versions={})
    edit(make_run(seed=1), versions={"avalanche-rwf": "0.1.0"}, git="a")
    board = aggregate(read_runs(tmp_path).frame)
    assert (board["n"].tolist(), board["failed"].tolist()) == ([1], [1])


def test_shots_are_a_protocol_of_their_own(make_run, tmp_path):
    for index, shots in enumerate((1, 5)):
        make_run(config_hash=f"aaa{index}", stream="k-shot", stream_options={"shots": shots})
    text = render(aggregate(read_runs(tmp_path).frame))
    assert text.count("\n1  rwf") == 2
    assert "shots=1" in text
    assert "shots=5" in text


def test_foreign_directories_are_listed(make_run, tmp_path):
    make_run()
    (tmp_path / "runs" / "photos" / "2024").mkdir(parents=True)
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs", target_is_directory=True)
    runs, broken = read_runs(tmp_path)
    assert len(runs) == 1
    assert any(
        item.path.name == "2024" and "not a run directory" in item.reason for item in broken
    )


def test_a_ranking_reads_no_metrics(make_run, tmp_path):
    path = make_run()
    (path / "metrics.csv").mkdir()  # cannot be opened at all
    assert len(read_runs(tmp_path).frame) == 1


# ---- references


@pytest.fixture
def three(make_run, tmp_path):
    values = {"rwf": (0.9, 0.8, 0.7), "ncm": (0.6, 0.7, 0.5), "slda": (0.6,)}
    for index, (method, accuracies) in enumerate(values.items()):
        for seed, a_last in enumerate(accuracies):
            make_run(method, seed, f"aaaaaa{index}", summary={"a_last": a_last})
    return read_runs(tmp_path).frame


def test_paired_by_seed(three):
    board = add_reference(aggregate(three), three, "ncm").set_index("method")
    assert board.loc["rwf", "difference"] == pytest.approx((0.3 + 0.1 + 0.2) / 3)
    assert board.loc["rwf", "n_pairs"] == 3
    # t = 0.2 / (0.1 / sqrt(3)) = 3.4641 with two degrees of freedom
    assert board.loc["rwf", "p"] == pytest.approx(0.07418, abs=1e-5)
    assert board.loc["slda", ["difference", "n_pairs"]].tolist() == [0.0, 1]
    assert math.isnan(board.loc["slda", "p"])
    assert board.loc["ncm", ["difference", "n_pairs"]].isna().all()
    text = render(board.reset_index())
    assert max(map(len, text.splitlines())) <= 80
    assert "+20.0" in text
    assert "0.074" in text
    assert "not corrected for the number of rows" in " ".join(text.split())


def test_an_unknown_or_ambiguous_reference_is_refused(three, make_run, tmp_path):
    with pytest.raises(UsageError, match=r"--reference takes a method .* not 'nmc'.*'ncm'"):
        add_reference(aggregate(three), three, "nmc")
    make_run("ncm", 0, "bbbbbb9", options={"head": "cosine"})
    runs = read_runs(tmp_path).frame
    with pytest.raises(UsageError, match="aaaaaa1, bbbbbb9"):
        add_reference(aggregate(runs), runs, "ncm")
    assert add_reference(aggregate(runs), runs, "bbbbbb9")["n_pairs"].max() == 1


# ---- forms


def test_the_wide_form_has_every_column(three):
    text = render(aggregate(three), wide=True)
    for title in ("95 % of A_last", "F_exp", "eval s", "memory", "configuration", "code", "n"):
        assert title in text.splitlines()[1]
    assert "Left out" not in text


def test_latex_parses_and_marks_the_second(three):
    for frame in (aggregate(three), add_reference(aggregate(three), three, "ncm")):
        text = render(frame, "latex")
        nodes, _, _ = LatexWalker(text, tolerant_parsing=False).get_latex_nodes()
        (table,) = (n for n in nodes if n.isNodeType(LatexEnvironmentNode))
        tabular = next(n for n in table.nodelist if n.isNodeType(LatexEnvironmentNode))
        columns = text.partition(r"\begin{tabular}{@{}")[2].partition("@")[0]
        body = tabular.latex_verbatim().partition(r"\midrule")[2].partition(r"\bottomrule")[0]
        assert {line.count("&") for line in body.strip().splitlines()} == {len(columns) - 1}
    assert r"\textbf{80.0 $\pm$ 10.0}" in text
    assert text.count(r"\underline{60.0") == 2  # both second: as shown they are equal


def test_a_method_named_as_a_script_is_text(three):
    board = aggregate(three)
    board["method"] = board["method"].replace("rwf", SCRIPT)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in render(board, "html")
    for fmt in ("html", "md"):
        assert "<script" not in render(board, fmt)
    assert r"$<$script$>$alert(1)$<$/script$>$" in render(board, "latex")
    LatexWalker(render(board, "latex"), tolerant_parsing=False).get_latex_nodes()


def test_concatenated_frames_aggregate(three):
    halves = [three[three["seed"] == 0], three[three["seed"] > 0]]
    pd.testing.assert_frame_equal(aggregate(pd.concat(halves)), aggregate(three))


def test_names_from_elsewhere_cannot_talk_to_the_terminal(make_run, tmp_path):
    path = make_run(options={"head": "\x1b[31mred", "x": 1})
    make_run(config_hash="bbbb", options={"head": "a\nb", "x": "\x1b]0;title\x07"})
    edit(path, git="\x9b2J")
    broken = make_run(seed=3, config_hash="cccc")
    edit(broken, config_hash="\x1b[2J")
    runs, listed = read_runs(tmp_path)
    for fmt in ("text", "md", "html", "latex", "csv"):
        text = render(aggregate(runs), fmt)
        assert all(sign.isprintable() or sign == "\n" for sign in text)
    lines = render_text(aggregate(runs), 200).splitlines()
    assert sum(line.startswith(("1  rwf", "2  rwf")) for line in lines) == 2  # a row is a line
    assert str(listed[0]).isprintable()
    assert "\N{REPLACEMENT CHARACTER}[2J" in str(listed[0])


def test_a_failed_run_of_others_is_told_on_one_line(make_run, tmp_path, capsys):
    make_run()
    error = "no luck\x1b]0;title\x07\nFAILED nothing"
    make_run(seed=1, status="failed", summary={"error": error}, method="\x1b[2Jrwf")
    assert main(["leaderboard", str(tmp_path)]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert line.startswith(r"FAILED \x1b[2Jrwf seed 1: no luck\x1b]0;title\x07\nFAILED nothing")


def test_no_cell_of_the_csv_is_a_formula_or_a_line_of_its_own(make_run, tmp_path):
    make_run(options={"head": '=HYPERLINK("x")', "mask": "+1", "readout": "-1"}, stream="@SUM(A1)")
    make_run(seed=1, config_hash="bbbb", options={"head": "a\nb\x1b", "mask": "\u3000x"},
             summary={"=1+1": 1.0, "cls+mean": 2.0})  # fmt: skip
    path = write_leaderboard(tmp_path)
    text = path.read_text()
    assert text == render(aggregate(read_runs(tmp_path).frame), "csv")
    assert len(text.splitlines()) == 3
    rows = pd.read_csv(path, dtype={"seeds": str}).set_index("config_hash")
    assert rows.loc["aaaa", ["head", "mask", "readout", "stream"]].tolist() == [
        "'=HYPERLINK(\"x\")", "'+1", "'-1", "'@SUM(A1)",
    ]  # fmt: skip
    assert rows.loc["bbbb", ["head", "mask"]].tolist() == [r"a\nb\x1b", "\u3000x"]
    assert rows.loc["bbbb", ["'=1+1_mean", "cls+mean_mean"]].tolist() == [1.0, 2.0]
    assert rows.loc["bbbb", "forgetting_class_mean"] == 0.06  # numbers are as they were


@pytest.mark.parametrize(
    "field",
    [
        *("benchmark", "method", "stream", "experiences", "batch_size", "gradient_steps"),
        *("precision", "image_size", "augment", "eval_every_samples", "holdout", "backbone_args"),
        *("skip_corrupt", "weights", "options", "budget", "tuning", "stream_options"),
        *("boundary_free", "eval_subset", "code", "unheard_of"),
    ],
)
def test_an_odd_file_does_not_stop_the_others(make_run, tmp_path, field):
    """Whatever a field of a foreign configuration holds, the others are ranked."""
    make_run("ncm")
    odd = make_run("rwf")
    content = json.loads((odd / "config.json").read_text())
    for value in ([1], {"a": 1}, {"chosen": 1}, "x", "", [], {}, True, 1.5, 10**30, math.inf, -1):
        content["config"][field] = value
        (odd / "config.json").write_text(json.dumps(content))
        runs, broken = read_runs(tmp_path)
        assert len(runs) + len(broken) == 2, value
        assert all(field in item.reason for item in broken)
        board = add_reference(aggregate(runs), runs, "ncm")
        for fmt in ("text", "csv"):  # the others render the cells of the first
            assert "ncm" in render(board, fmt, wide=True)
        if value in ("x", {"a": 1}) and field in ("stream", "stream_options", "experiences"):
            report.write_report(tmp_path)
