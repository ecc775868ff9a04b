"""The LaTeX table: chosen columns and names, and that a real LaTeX fits it into a paper."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from avalanche_rwf.cli import main
from avalanche_rwf.leaderboard import add_reference, aggregate, read_runs, render

DOCUMENT = r"""\documentclass[%s]{article}
\usepackage[textwidth=%spt,columnsep=%spt]{geometry}
\usepackage{booktabs}
\begin{document}
%s
\end{document}
"""
# Options, width of the text and between columns. The styles themselves are nobody's to copy.
PAPERS = {
    None: ("", 345, 0),
    "two columns": ("twocolumn", 469, 10),
    "neurips": ("", 397, 0),
    "icml": ("twocolumn", 487, 18),
}


@pytest.fixture
def runs(make_run, tmp_path):
    methods = ("rwf", "rwf-lda-held", "avalanche-l2p-as-shipped", "single-prompt", "ncm")
    for index, method in enumerate(methods):
        for seed in range(3):
            make_run(
                method, seed, f"aaaaaa{index}", boundaries=index == 2,
                options={"mask": "decoupled", "readout": "cls+mean"},
                summary={"a_last": 0.4 + 0.1 * index + 0.1 * seed * (index == 1),
                         "a_avg": 0.91 + 0.01 * seed, "forgetting_class": -0.01 * index,
                         "trainable_parameters": 99_600_000},
            )  # fmt: skip
    return read_runs(tmp_path).frame


CASES = {
    "as it is": {},
    "three columns": {"columns": ["a_last", "a_avg", "f_cls"], "caption": r"Accuracy in \%."},
    "named": {"columns": ["head", "A_last"], "label": "tab:main",
              "names": {"rwf": r"RwF$^\star$ (ours)", "a_last": r"$A_T$"}},
    "compared": {"columns": ["a_last", "diff", "95_%_of_diff", "p"]},
}  # fmt: skip


@pytest.mark.parametrize("paper", PAPERS)
def test_a_table_compiles_and_fits_the_paper(paper, runs, tmp_path):
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed (apt-get install texlive-latex-recommended)")
    board = add_reference(aggregate(runs), runs, "ncm")
    target = paper if paper in ("neurips", "icml") else None
    body = "\n\\clearpage\n".join(render(board, "latex", target=target, **how)
                                  for how in CASES.values())  # fmt: skip
    (tmp_path / "paper.tex").write_text(DOCUMENT % (*PAPERS[paper], body))
    words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout
    assert f"({len(CASES)} pages" in done.stdout


def test_what_does_not_fit_is_left_out_and_said_but_for_what_was_asked_for(runs):
    board = aggregate(runs)
    text = render(board, "latex", target="icml")
    assert r"\begin{table*}" in text and "Left out for width: " in text
    text = render(board, "latex", target="icml", wide=True)
    assert "Left out" not in text and "memory" in text and "\\scriptsize\\setlength" in text
    text = render(board, "latex", target="icml", columns=["a_last", "f_cls"])
    assert r"\begin{table}" in text and "Left out" not in text


def test_headings_names_label_and_caption(runs):
    (one, *_) = CASES["named"]["names"].values()
    text = render(aggregate(runs), "latex", **CASES["named"])
    assert r"method & head & $A_T$ \\" in text
    assert f"\n{one} & white & " in text
    assert r"avalanche-l2p-as-shipped$\dagger$ & white" in text
    assert r"\centering" in text and r"\label{tab:main}" in text
    text = render(aggregate(runs), "latex", **CASES["three columns"])
    assert r"$A_{\mathrm{last}}$ & $A_{\mathrm{avg}}$ & $F_{\mathrm{cls}}$ \\" in text
    assert r"\caption{Accuracy in \%.}" in text
    assert "batch 16" in text.partition(r"\end{tabular}")[2]  # the protocol, below
    # The deviation of ten points is as wide as the others', and negative numbers have a minus.
    assert re.search(r"40\.0 \$\\pm\$ \\phantom\{0\}0\.0", text)
    assert r"$-$1.0 $\pm$ 0.0" in text


def test_names_and_columns_are_there_in_every_format(runs, tmp_path, capsys):
    names = tmp_path / "names.toml"
    names.write_text('rwf = "RwF <ours>"\na_last = "final"\n')
    words = ["leaderboard", str(tmp_path), "--names", str(names), "--columns", "a_last,head"]
    for fmt, said in {"text": "RwF <ours>", "md": "RwF &lt;ours&gt;",
                      "html": "RwF &lt;ours&gt;", "latex": "RwF <ours> "}.items():  # fmt: skip
        assert main([*words, "--format", fmt]) == 0
        text = capsys.readouterr().out
        assert said in text and "final" in text and "A_avg" not in text and "mask" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--columns a_lats", "columns must be of .* got 'a_lats'; the nearest names are 'a_last'"),
        ("--columns a_last --format csv", "--columns has no use with --format csv"),
        ("--label x", "--label has no use with --format text"),
        ("--for icml", "--for has no use with --format text and no --plots"),
        ("--for slides --format latex", "--for has no use with --format latex and no --plots"),
        ("--names none.toml", "--names takes a TOML file, not 'none.toml' .No such file"),
        ("--names bad.toml", "'bad.toml' has 'rwf' of type int"),
        ("--names worse.toml", "--names takes a TOML file, not 'worse.toml'"),
    ],
)
def test_bad_flags_are_one_sentence(words, said, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("rwf = 1\n")
    (tmp_path / "worse.toml").write_text("rwf\n")
    assert main(["leaderboard", str(tmp_path), *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
