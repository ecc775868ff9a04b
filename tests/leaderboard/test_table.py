"""The rendered leaderboard: golden output, widths, escaping."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from avalanche_rwf.errors import UsageError
from avalanche_rwf.leaderboard import FORMATS, aggregate, read_runs, render
from avalanche_rwf.leaderboard.table import _count, _labels, render_text

HEADER = (
    "split-digits, stream split, 5 experiences, rwf_vit_mini_patch8_32 (3fa9c1d2), 32 px, "
    "batch 16, 1 gradient step, fp32\n"
)
# fmt: off
GOLDEN = HEADER + "\n".join([
    "#  method         head   mask       readout       A_last        A_avg        A_auc       F_cls   train img/s  fwd/img  params  n",  # noqa: E501
    "-  -------------  -----  ---------  --------  -----------  -----------  -----------  ----------  -----------  -------  ------  -",  # noqa: E501
    "1  rwf            white  decoupled  cls+mean  91.0 ± 1.4*  93.0 ± 1.4*  92.0 ± 1.4*  6.0 ± 0.0          640       1.0   25.6k  2",  # noqa: E501
    "2  ncm            ncm    -          cls       75.0 ± 0.0   76.0 ± 0.0   75.5 ± 0.0   2.0 ± 0.0*       12000*      1.0       0  2",  # noqa: E501
    "3  fine-tune      white  seen       cls        8.5         20.0         15.0           -               99.5       1.0    3.9M  1",  # noqa: E501
    "-  avalanche-l2p  white  seen       cls          -            -            -           -                  -         -       -  0",  # noqa: E501
    "* best of its column. A_* and F_cls in %: mean ± sample standard deviation over n seeds.",
    "Failed runs, in no mean: avalanche-l2p (1).",
    "The rows are not of the same seeds.",
    "",
])
GOLDEN_80 = """\
split-digits, stream split, 5 experiences, rwf_vit_mini_patch8_32 (3fa9c1d2),
32 px, batch 16, 1 gradient step, fp32
#  method         head   mask       readout       A_last        A_auc   n
-  -------------  -----  ---------  --------  -----------  -----------  -
1  rwf            white  decoupled  cls+mean  91.0 ± 1.4*  92.0 ± 1.4*  2
2  ncm            ncm    -          cls       75.0 ± 0.0   75.5 ± 0.0   2
3  fine-tune      white  seen       cls        8.5         15.0         1
-  avalanche-l2p  white  seen       cls          -            -         0
* best of its column. A_* and F_cls in %: mean ± sample standard deviation over
n seeds.
Failed runs, in no mean: avalanche-l2p (1).
The rows are not of the same seeds.
Left out for width: A_avg, F_cls, train img/s, fwd/img, params.
"""
# fmt: on


@pytest.fixture
def board(make_run, tmp_path):
    for seed, a in enumerate([0.9, 0.92]):
        make_run(
            seed=seed,
            options={"mask": "decoupled", "readout": "cls+mean"},
            summary={"a_last": a, "a_avg": a + 0.02, "a_auc": a + 0.01},
        )
        make_run(
            "ncm",
            seed=seed,
            config_hash="bbbb",
            options={"head": "ncm", "mask": None},
            summary={
                "a_last": 0.75,
                "a_avg": 0.76,
                "a_auc": 0.755,
                "forgetting_class": 0.02,
                "train_samples_per_second": 12000.4,
                "trainable_parameters": 0,
            },
        )
    make_run(
        "fine-tune",
        config_hash="cccc",
        summary={
            "a_last": 0.0849,
            "a_avg": 0.2,
            "a_auc": 0.15,
            "forgetting_class": None,
            "train_samples_per_second": 99.5,
            "trainable_parameters": 3_900_000,
        },
    )
    make_run("avalanche-l2p", config_hash="dddd", status="failed", summary={"error": "no timm"})
    return aggregate(read_runs(tmp_path).frame)


def test_the_text_table_has_not_changed(board):
    assert render_text(board, 200) == GOLDEN
    assert render_text(board, 80) == GOLDEN_80


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 120])
def test_text_fits_and_says_what_is_missing(board, width):
    text = render_text(board, width)
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    heading = next(line for line in text.splitlines() if "A_last" in line and "method" in line)
    for title in (
        *("A_avg", "A_auc", "F_cls", "train img/s", "fwd/img", "params"),
        *("head", "mask", "readout"),
    ):
        assert title in heading or title in joined.partition("Left out for width: ")[2]


def test_long_names_give_way(make_run, tmp_path):
    make_run("a-method-with-quite-a-long-name-indeed")
    text = render_text(aggregate(read_runs(tmp_path).frame), 30)
    assert "\na-method-with-quite-a…   90.0\n" in text
    assert max(map(len, text.splitlines())) <= 30


def test_set_up_that_all_rows_share_is_said_below(make_run, tmp_path):
    for method in ("rwf", "l2p", "single-prompt"):
        make_run(method)
    text = render_text(aggregate(read_runs(tmp_path).frame), 80)
    assert "In all rows: head white, mask seen, readout cls." in text
    assert "F_cls" in text.splitlines()[2]


def test_rows_of_one_method_say_what_differs(make_run, tmp_path):
    make_run("l2p", config_hash="aaaa", options={"num_prompts": 5, "lr": 0.01, "keys": True})
    make_run("l2p", config_hash="bbbb", options={"num_prompts": 10, "lr": 0.01, "keys": True})
    make_run("l2p", config_hash="cccc", options={"num_prompts": 10, "lr": 0.01, "head": "linear"})
    make_run("rwf", config_hash="dddd", options={"num_prompts": 5})
    text = render_text(aggregate(read_runs(tmp_path).frame), 200)
    labels = [line.split("  ")[1] for line in text.splitlines()[3:7]]
    assert sorted(labels) == [
        "l2p keys=true num_prompts=10",
        "l2p keys=true num_prompts=5",
        "l2p num_prompts=10",  # the head stands in its own column
        "rwf",
    ]
    # without the column of heads the label says it
    labels = _labels(aggregate(read_runs(tmp_path).frame).head(3).to_dict("records"), shown=[])
    assert "l2p head=linear num_prompts=10" in labels


TUNING = {"settings": 6, "chosen": {"lr": 0.001}, "score": 0.9, "experiences": 2}


@pytest.fixture
def tuned(make_run, tmp_path):
    """The same methods with both budgets; one of them keeps its own options."""
    make_run("rwf", options={"lr": 0.005})
    make_run("rwf", config_hash="bbbb", options={"lr": 0.001}, budget="tuned", tuning=TUNING)
    make_run("ncm", config_hash="cccc")
    own = {**TUNING, "settings": 1, "chosen": {}}
    make_run("ncm", config_hash="dddd", budget="tuned", tuning=own)
    return aggregate(read_runs(tmp_path).frame)


def test_the_budget_is_a_column_and_the_choice_is_named(tuned):
    text = render_text(tuned, 200)
    assert text.splitlines()[1].split()[:6] == ["#", "method", "head", "mask", "readout", "budget"]
    rows = {tuple(re.findall(r"ncm|rwf lr=\S+|tuned|default", line))
            for line in text.splitlines()[3:7]}  # fmt: skip
    assert rows == {
        ("rwf lr=0.005", "default"), ("rwf lr=0.001", "tuned"), ("ncm", "default"), ("ncm", "tuned")
    }  # fmt: skip
    said = " ".join(text.split())
    assert "Settings chosen on held-out training images: " in said
    assert "rwf lr=0.001 lr=0.001 (of 6)" not in said
    assert "rwf lr=0.001 (of 6)" in said
    assert "ncm unchanged (of 1)" in said


@pytest.mark.parametrize("width", [30, 50, 80])
def test_the_budget_is_not_lost_where_it_is_narrow(tuned, width):
    text = render_text(tuned, width)
    assert max(map(len, text.splitlines())) <= width
    assert "budget" in " ".join(text.split())
    if width == 80:
        assert "budget" in text.splitlines()[2]


def test_a_board_of_one_budget_says_so_below_or_not_at_all(make_run, tmp_path):
    make_run("rwf", budget="tuned", tuning=TUNING)
    text = render_text(aggregate(read_runs(tmp_path).frame), 80)
    assert "In all rows: mask seen, readout cls, budget tuned." in text
    assert "Settings chosen on held-out training images: rwf lr=0.001 (of 6)." in text
    make_run("ncm", out=tmp_path / "b")
    for fmt in FORMATS:
        if fmt != "csv":
            assert "budget" not in render(aggregate(read_runs(tmp_path / "b").frame), fmt)


def test_methods_that_read_boundaries_are_marked(make_run, tmp_path):
    make_run("shipped", boundaries=True)
    make_run("rwf")
    board = aggregate(read_runs(tmp_path).frame)
    text = render_text(board, 80)
    assert re.search(r"^\d  shipped† ", text, re.M)
    assert re.search(r"^\d  rwf ", text, re.M)
    assert "\n† reads task boundaries in training.\n" in text
    assert r"shipped$\dagger$" in render(board, "latex")


def test_rows_that_differ_in_nothing_shown_name_their_hash(make_run, tmp_path):
    make_run("rwf", config_hash="aaaa1111bbbb")
    make_run("rwf", config_hash="cccc2222dddd")
    text = render_text(aggregate(read_runs(tmp_path).frame), 120)
    assert "rwf aaaa1111 " in text
    assert "rwf cccc2222 " in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch_size": 32}, "batch 32"),
        ({"gradient_steps": 3}, "3 gradient steps"),
        ({"precision": "bf16"}, "bf16"),
        ({"sha": "77" * 32}, "(77777777)"),
        ({"backbone_args": {"depth": 9}}, "(depth=9, 3fa9c1d2)"),
        ({"eval_every_samples": 100}, "A_auc every 100 samples"),
        ({"holdout": 0.2}, "tested on 20 % held out of the training images"),
        ({"augment": "crop"}, "augment crop"),
        ({"skip_corrupt": True}, "corrupt images left out"),
        ({"stream": "si-blurry"}, "stream si-blurry"),
        ({"stream_options": {"shots": 5}}, "stream split (shots=5)"),
        ({"boundary_free": True}, "no boundaries"),
        ({"eval_every_samples": 9, "eval_subset": 50}, "A_auc every 9 samples on 50 test images"),
        ({"experiences": 1}, "1 experience,"),
    ],
)
def test_other_protocols_are_other_tables(make_run, tmp_path, change, said):
    make_run()
    make_run(config_hash="bbbb", summary={"a_last": 0.95}, **change)
    text = render_text(aggregate(read_runs(tmp_path).frame), 200)
    tables = text.split("\n\n")
    assert len(tables) == 2
    assert sum(said in table.splitlines()[0] for table in tables) == 1
    assert all("\n1  rwf" in table for table in tables)


def test_a_loss_of_next_to_nothing_has_no_sign(make_run, tmp_path):
    make_run(summary={"forgetting_class": -0.0001})
    text = render_text(aggregate(read_runs(tmp_path).frame), 200)
    assert " 0.0 " in text and "-0.0" not in text


def test_ties_are_all_marked(make_run, tmp_path):
    make_run("a", summary={"a_last": 0.90001})
    make_run("b", summary={"a_last": 0.90002})
    rows = render_text(aggregate(read_runs(tmp_path).frame), 200).splitlines()[3:5]
    assert all("90.0*" in row for row in rows)


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (912, "912"), (25_600, "25.6k"), (999_960, "1.0M"), (1.2e6, "1.2M"), (2e9, "2.0G")],
)
def test_parameters_are_written_in_six_characters(number, text):
    assert _count(number) == text


def test_csv_is_the_whole_board(board):
    read = list(csv.DictReader(io.StringIO(render(board, "csv"))))
    assert len(read) == len(board)
    assert list(read[0]) == list(board.columns)


def test_markdown_has_a_header_line_and_bold_best(board):
    lines = render(board, "md").splitlines()
    assert lines[0].startswith("split-digits, stream split, 5 experiences, rwf\\_vit\\_mini")
    assert lines[2].startswith("| \\# | method | head |")
    assert lines[3].startswith("| ---: | :--- | :--- |")
    assert lines[4].startswith("| 1 | rwf | white | decoupled | cls+mean | **91.0 ± 1.4** |")


NASTY = "a|b_c*<b>&amp;\\x{y}$%#^~`[1](u)\nz"


@pytest.fixture
def nasty(board):
    changed = board.copy()
    changed["benchmark"] = NASTY
    changed["backbone"] = NASTY
    for name in ("method", "head", "mask", "readout"):
        changed[name] = changed[name].astype("object")
        changed.loc[0, name] = NASTY
    twin = changed.iloc[[0]].copy()
    twin["options"] = json.dumps({NASTY: NASTY})
    twin["config_hash"] = "ffff"
    return pd.concat([changed, twin], ignore_index=True)


def test_html_is_escaped(nasty):
    class Tags(HTMLParser):
        found: set[str] = set()
        text = ""

        def handle_starttag(self, tag, attributes):
            self.found.add(tag)
            assert not attributes

        def handle_data(self, data):
            self.text += data

    parser = Tags()
    parser.feed(render(nasty, "html"))
    assert parser.found == {"p", "table", "thead", "tbody", "tr", "th", "td", "b"}
    assert "a|b_c*<b>&amp;\\x{y}$%#^~`[1](u) z" in parser.text
    assert render(nasty, "html").count("<b>") == render(nasty, "html").count("</b>")


def test_markdown_is_escaped(nasty):
    text = render(nasty, "md")
    assert "a\\|b\\_c\\*&lt;b&gt;&amp;amp;\\\\x{y}\\$%\\#^\\~\\`\\[1\\](u) z" in text
    assert "<" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(nasty)
    assert {line.replace("\\|", "").count("|") for line in rows} == {14}


def test_latex_is_escaped_and_uses_booktabs(nasty):
    text = render(nasty, "latex", columns=["rank", "head", "mask", "readout", "a_last", "n"])
    escaped = (
        r"a$|$b\_c*$<$b$>$\&amp;\textbackslash{}x\{y\}\$\%\#\textasciicircum{}"
        r"\textasciitilde{}`[1](u) z"
    )
    assert escaped in text
    for command in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{@{}lrlllrr@{}}"):
        assert command in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
    assert len(body) == len(nasty)
    assert all(line.endswith(r" \\") and line.replace(r"\&", "").count("&") == 6 for line in body)
    assert r"\textbf{91.0 $\pm$ 1.4}" in render(nasty, "latex")


def test_text_holds_a_nasty_name_on_one_line(nasty):
    text = render_text(nasty, 300)
    assert "`[1](u) z" in text.splitlines()[0]


@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_of_an_empty_board(tmp_path, fmt):
    text = render(aggregate(read_runs(tmp_path).frame), fmt)
    assert "No finished runs." in text or fmt == "csv"


def test_every_format_takes_a_board_read_from_csv(board):
    read = pd.read_csv(io.StringIO(render(board, "csv")), dtype={"seeds": str})
    for fmt in FORMATS:
        if fmt != "csv":
            assert render(read, fmt) == render(board, fmt)


def test_bad_arguments_are_refused(board):
    with pytest.raises(
        UsageError, match="format must be one of text, csv, md, latex, html, got 'x'"
    ):
        render(board, "x")
    with pytest.raises(UsageError, match="width must be at least 30 characters, got 10"):
        render_text(board, 10)
    with pytest.raises(UsageError, match="board must be a leaderboard, got a frame without bench"):
        render_text(pd.DataFrame({"method": ["a"]}), 80)


@pytest.mark.parametrize("fmt", [name for name in FORMATS if name != "csv"])
def test_an_argument_is_used_or_refused_but_never_passed_over(board, fmt):
    if fmt == "text":
        assert render(board, fmt, width=60) == render_text(board, 60) != render_text(board, 200)
    with pytest.raises(TypeError, match="colour"):
        render(board, fmt, colour="red")


def test_a_board_of_another_program_has_arguments_that_are_no_json_and_no_accuracy(board):
    board = board.drop(columns=[c for c in board if c.startswith("a_last")])
    board["backbone_args"] = "depth: 9"
    text = render_text(board, width=200)
    assert "depth: 9" in text
    assert all(method in text for method in board["method"])


def test_speeds_of_several_machines_are_not_ranked(board, make_run, tmp_path):
    """The accuracy of a slow machine is that of a fast one; its images per second are not."""
    assert "machines" not in render_text(board, width=200)
    paths = sorted((tmp_path / "runs").rglob("config.json"))
    for path, cpu in zip(paths, ["Small CPU", "Large CPU"] * len(paths), strict=False):
        content = json.loads(path.read_text())
        content["hardware"] = {"cpu": cpu}
        path.write_text(json.dumps(content))
    text = render_text(aggregate(read_runs(tmp_path).frame), width=200)
    assert "several machines" in text and text.count("Large CPU, Small CPU.") == 1
    assert "12000*" not in text and "12000 " in text
    assert "91.0 ± 1.4*" in text


def test_runs_of_a_folder_that_has_changed_are_named(board, make_run, tmp_path):
    """A seed fixes the stream: two runs of it with other numbers of images are of other data."""

    def note(sizes):
        for path in (tmp_path / "runs").rglob("config.json"):
            content = json.loads(path.read_text())
            place = (content["config"]["method"], content["config"]["seed"])
            train, test = sizes.get(place, (1200, 600))
            content["data"] = {"train_size": train, "test_size": test}
            path.write_text(json.dumps(content))
        found = aggregate(read_runs(tmp_path).frame)
        return found, render_text(found, width=200)

    found, text = note({})
    assert "same images" not in text and "images_differ" not in found
    # Streams that leave samples out may be shorter at another seed: no fault.
    found, text = note({(method, 1): (1100, 600) for method in ("rwf", "ncm")})
    assert "same images" not in text and "images_differ" not in found
    found, text = note({("ncm", 1): (1200, 610)})
    assert "be compared: rwf (seed 1), ncm (seed 1)." in text
    assert found.set_index("method")["images_differ"]["ncm"] == "1"
    assert found["images_differ"].notna().sum() == 2
    assert "images_differ" in render(found, "csv").splitlines()[0]


@pytest.mark.parametrize("options", [{}, {"shots": 2}])
def test_tuning_with_more_labels_than_a_few_shot_stream_has_is_said(options, make_run, tmp_path):
    make_run(stream="k-shot" if options else "split", stream_options=options, budget="tuned",
             tuning={"settings": 6, "chosen": {}})  # fmt: skip
    text = render_text(aggregate(read_runs(tmp_path).frame), width=200)
    assert "Settings chosen on held-out training images" in text
    assert ("many more labels than the stream's shots" in text) == bool(options)
