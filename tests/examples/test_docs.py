"""What the documentation says runs: Python blocks, command lines, links, the notebook."""

from __future__ import annotations

import functools
import json
import re
import shlex
import string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
STREAMS = PAGES["docs/streams.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.M | re.S)


# A block that is on two pages runs once. Blocks that are parts of a script are marked `py`.
WHOLE = {code: page for page in PAGES for code in blocks(page, "python")}


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """What a block registers is gone afterwards."""
    from avalanche_rwf.benchmarks import registry, stream_registry
    from avalanche_rwf.models import heads

    stream_registry.list_streams(), registry.list_benchmarks(), heads.list_heads()
    monkeypatch.setattr(stream_registry, "OPTIONS", dict(stream_registry.OPTIONS))
    for table in (stream_registry.STREAMS, registry.BENCHMARKS, heads.HEADS):
        monkeypatch.setattr(table, "entries", dict(table.entries))


def run(code, capsys, where="<docs>") -> str:
    capsys.readouterr()
    exec(compile(code, where, "exec"), {"__name__": "user"})
    return capsys.readouterr().out


@pytest.mark.parametrize(("code", "page"), WHOLE.items(), ids=WHOLE.values())
def test_python_block_runs_as_it_stands(code, page, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = run(code, capsys, f"<{page}>")
    numbers = r"A_last ([\d.]+), A_avg ([\d.]+)"
    if "A_avg {" in code:
        promised = re.search(f"`{numbers}`", PAGES[page]).groups()
        printed = re.search(numbers, said).groups()
        assert list(map(float, printed)) == pytest.approx(list(map(float, promised)), abs=0.015)
    if "A_auc {" in code:
        values = re.search(r"^A_auc (\d\.\d+), A_last (\d\.\d+)$", said, re.M)
        assert values and all(0.1 < float(value) < 1 for value in values.groups()), said
    if "register_stream" in code:
        assert sum(map(int, re.findall(r"\d+", said.splitlines()[-1]))) == 1347
    for value, expected in re.findall(r"^print\((.+)\)  # ([\d. ]+|True)", code, re.M):
        assert expected.strip() in said, value


@pytest.mark.parametrize("page", PAGES)
def test_part_of_a_script_is_python(page):
    for code in blocks(page, "py"):
        compile(re.sub(r"^(.*?)#.*\(\s*$", r"\1", code), page, "exec")


def test_the_output_of_inspect_is_the_real_one(capsys, monkeypatch):
    from avalanche_rwf.cli import main

    monkeypatch.setenv("COLUMNS", "100")
    assert main(["inspect", "--stream", "si-blurry", "--seed", "1"]) == 0
    assert capsys.readouterr().out in STREAMS


def command_lines(page):
    """Each `avalanche-rwf` line of a block, with the variables that the page sets."""
    text = PAGES[page].replace("\\\n", " ")
    variables = dict(re.findall(r'^(?:bash )?([A-Z])="(.+?)"$', text, re.M | re.S))
    inside = "\n".join(re.findall(r"^```(?:bash|sh)?\n(.*?)^```$", text, re.M | re.S))
    found = re.findall(r"^(?:\$ |[A-Z_]+=\S+ )*avalanche-rwf (.+)$", inside, re.M)
    return [
        shlex.split(string.Template(line).safe_substitute(variables), comments=True)
        for line in found
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if command_lines(page)])
def test_commands_name_options_that_there_are(page):
    from avalanche_rwf.cli import build_parser


    for words in command_lines(page):
        words = [word for word in words if word not in (">", "...", "&") and ".tex" not in word]
        assert build_parser().parse_args(words).verb == words[0], words


def test_commands_are_found():
    assert sum(len(command_lines(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES)
def test_no_command_needs_files_that_a_reader_does_not_have(page):
    assert "../shared" not in PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        made = path.stem.upper() in ("CHANGELOG", "CONTRIBUTING", "SECURITY")
        path = ROOT / f"{path.stem.upper()}.md" if made and not path.exists() else path
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_readme_is_short():
    text = PAGES["README.md"]
    assert len(text.splitlines()) <= 250
    assert len(text.split()) <= 2000
    assert max(map(len, text.splitlines())) <= 120


def test_every_term_of_a_table_is_in_the_glossary():
    glossary = PAGES["docs/glossary.md"]
    terms = ("A_last", "A_avg", "A_auc", "F_cls", "White head", "Decoupled mask", "Boundary-free",
             "fwd/img", "Read-out", "Dagger", "Protocol", "Head", "Mask")  # fmt: skip
    assert [term for term in terms if f"**{term}**" not in glossary] == []


def test_every_method_is_on_the_page_of_methods_and_in_readme():
    from avalanche_rwf import list_methods

    for page in ("docs/methods.md", "README.md"):
        assert [m for m in list_methods() if f"`{m}`" not in PAGES[page]] == [], page
    assert f"**{len(list_methods())} methods" in PAGES["README.md"]


def test_versions_agree():
    from avalanche_rwf import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"version = {{{__version__}}}" in PAGES["README.md"]


def test_the_notebook_runs(capsys, tmp_path, monkeypatch):
    """Its cells' code in their order, without a kernel, on 40 images a class: README's block
    trains on all of them."""
    import avalanche_rwf

    few = functools.partial(
        avalanche_rwf.create_benchmark, stream="k-shot", stream_options={"shots": 40}
    )
    monkeypatch.setattr(avalanche_rwf, "create_benchmark", few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    path = ROOT / "examples" / "quickstart.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    code = "\n".join(
        "".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"
    )
    said = run(code, capsys, "<quickstart.ipynb>")
    assert re.search(r"A_last 0\.9\d, A_avg 0\.9\d", said), said
