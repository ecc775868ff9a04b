"""What `make docs` makes from the code: a page per method, the references, and formulas as MathML.

mkdocs calls the functions named ``on_...``; mkdocstrings takes `Docstrings` as an extension.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PACKAGE = "avalanche_rwf"
# Pages of the Python reference: title -> modules.
API = {
    "avalanche_rwf": [PACKAGE],
    "Routing": ["routing.functional", "routing.layer", "routing.model", "routing.priors"],
    "Models": ["models.backbone", "models.blockwise", "models.classifier", "models.heads",
               "models.masks"],
    "Strategies": ["strategies.base", "strategies.registry"],
    "Benchmarks": ["benchmarks.registry", "benchmarks.stream_registry"],
    "Evaluation": ["evaluation.metrics", "evaluation.recorder", "evaluation.anytime",
                   "evaluation.routing", "evaluation.dataframe_logger"],
}
FROM_ROOT = ("CHANGELOG", "CONTRIBUTING", "SECURITY")


def markdown(text: str) -> str:
    """A docstring's reStructuredText as Markdown: equations, roles and code blocks."""
    text = re.sub(r":math:`([^`]+)`", lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r":(?:class|func|meth|mod|data|attr|py:\w+):`~?\.?([^`]+)`", r"`\1`", text)

    def display(match: re.Match[str]) -> str:
        return f"\n$$\n{textwrap.dedent(match[1] + match[2]).strip()}\n$$\n\n"

    block = r"^[ ]*\.\. math::(.*)\n((?:(?:[ ]{3,}.*)?\n)*)"
    text = re.sub(block, display, text + "\n", flags=re.M)
    text = re.sub(r"::\n\n((?:[ ]{4}.*\n|\n)+)", r":\n\n\1", text).rstrip()
    # Outside of code and formulas <q, k> would be taken for HTML.
    parts = re.split(r"(``.*?``|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$)", text, flags=re.S)
    return "".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


class Docstrings(griffe.Extension):
    """Docstrings in Markdown; their fields are ``:param name:``, ``:returns:``, ``:raises X:``."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring."""
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = markdown(obj.docstring.value)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    pages = dict(method_pages()) | {"reference/cli.md": command_line()}
    for title, modules in API.items():
        pages[f"reference/{title.lower()}.md"] = api_page(title, modules)
    for name in FROM_ROOT:
        pages[f"{name.lower()}.md"] = from_root(ROOT / f"{name}.md")
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for entry in config.nav or []:
        if "Methods" in entry:
            entry["Methods"] += [path for path in pages if path.startswith("methods/")]
        if "Reference" in entry:
            entry["Reference"] += [path for path in pages if path.startswith("reference/")]
    return files


def on_page_markdown(text: str, page: Any, **kwargs: Any) -> str:
    """Put a file where ``<!-- include PATH -->`` stands; links out of docs become text."""

    def include(match: re.Match[str]) -> str:
        return f"```python\n{(ROOT / match[1]).read_text(encoding='utf-8')}```"

    text = re.sub(r"<!-- include (\S+) -->", include, text)
    if page.file.src_uri == "glossary.md":
        page.meta["search"] = {"boost": 5}  # a term is found where it is defined
    if "/" not in page.file.src_uri:
        text = re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", text)
    return text


def on_page_content(html: str, **kwargs: Any) -> str:
    """Formulas become MathML, which browsers draw without a script."""

    def formula(match: re.Match[str]) -> str:
        block = match[2] == "["
        latex = match[3].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
        latex = latex.replace(r"\bar e", r"\bar{e}").replace(r"\hat X", r"\hat{X}")
        latex = re.sub(r"\\arg(?=\W)", r"\\operatorname{arg}", latex)
        drawn = convert(latex.strip(), display="block" if block else "inline")
        if unknown := re.search(r"\\[a-zA-Z]+", drawn):
            raise PluginError(f"The formula {latex!r} has {unknown[0]}, which is not known.")
        return drawn

    pattern = r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>'
    return re.sub(pattern, formula, html, flags=re.S)


def from_root(path: Path) -> str:
    """A page of the repository's root, with its links made to fit."""
    text = re.sub(r"\]\(docs/", "](", path.read_text(encoding="utf-8"))
    root = rf"\(({'|'.join(FROM_ROOT)})\.md\)"
    return re.sub(root, lambda m: f"({m[1].lower()}.md)", text)


def _expand(name: str) -> list[str]:
    """A package's modules, or the module itself."""
    package = importlib.import_module(name)
    inner = [f"{name}.{m.name}" for m in pkgutil.iter_modules(getattr(package, "__path__", []))]
    return inner or [name]


def api_page(title: str, modules: list[str]) -> str:
    """The objects that modules export, for mkdocstrings."""
    parts = [f"# {title}"]
    for name in modules:
        path = name if name == PACKAGE else f"{PACKAGE}.{name}"
        if path == PACKAGE:
            package = importlib.import_module(path)
            rows = [f"| `{key}` | `{PACKAGE}.{home}` |" for key, home in package._HOMES.items()]
            parts.append("\n".join(["| name | module |", "| :--- | :--- |", *rows]))
            shown = {m for pages in API.values() for m in pages}
            parts += [
                f"::: {PACKAGE}.{home}.{key}"
                for key, home in package._HOMES.items() if home not in shown
            ]
        else:
            options = "\n      ".join(
                ["    options:", "heading_level: 2", "show_root_heading: false",
                 "show_root_toc_entry: false"]
            )  # fmt: skip
            parts += [f"## {inner}\n\n::: {inner}\n{options}" for inner in _expand(path)]
    return "\n\n".join(parts)


# ------------------------------------------------------------------------------------ methods
def method_pages() -> Iterator[tuple[str, str]]:
    """A page for each registered method: what it is, its equations and its options."""
    from avalanche_rwf import PACKAGED, create_backbone, create_strategy, list_methods
    from avalanche_rwf.strategies.registry import get_method

    for name in list_methods():
        spec = get_method(name)
        strategy = create_strategy(
            name, backbone=create_backbone(PACKAGED), num_classes=2, loop={"evaluator": None}
        )
        yield f"methods/{name}.md", method_page(spec, strategy)


def method_page(spec: Any, strategy: Any) -> str:
    from avalanche_rwf.models.heads import Head

    model, builder = strategy.model, importlib.import_module(spec.build.__module__)
    classes = [type(strategy), *(type(module) for module in model.modules())]
    ours = [c for c in dict.fromkeys(classes) if c.__module__.startswith(PACKAGE)]
    modules = [builder]
    for module in dict.fromkeys(importlib.import_module(c.__module__) for c in ours):
        modules += [m for m in (*_imported(module), module) if has_equations(m)]
    modules = [m for m in dict.fromkeys(modules) if _concerns(m, spec) or m is builder]
    head = next((m for m in model.modules() if isinstance(m, Head)), None)
    boundaries = "reads task boundaries in training (†)" if spec.uses_boundaries else "none used"
    parts = [
        f"# {spec.name}",
        f"{spec.summary[0].upper()}{spec.summary[1:]}.",
        f"| source | {spec.paper or 'this project'} |\n| :--- | :--- |\n"
        f"| boundaries | {boundaries} |\n| code | `{spec.build.__module__}`, "
        f"`{type(model).__module__}.{type(model).__name__}` |",
        f"```bash\navalanche-rwf compare --methods {spec.name}\n```",
        "## How it works",
    ]
    parts += [markdown(inspect.cleandoc(m.__doc__ or "")) for m in modules]
    if spec.build.__doc__:
        parts.append(markdown(inspect.cleandoc(spec.build.__doc__)))
    if head is not None:
        parts += [f"## The head: `{type(head).__name__}`", _body(type(head))]
    parts += ["## Options", f"Set by `--set {spec.name}.OPTION=VALUE`.", _options(spec, ours)]
    parts.append("Its authors' settings: [baselines](../baselines.md).")
    parts.append("Numbers: [results](../results.md).")
    return "\n\n".join(parts)


def _concerns(module: ModuleType, spec: Any) -> bool:
    """Not heads, which have a section, nor parts that only some methods have an option for."""
    part = module.__name__.rpartition(".")[2]
    needs = {"priors": "centre", "queries": "queries", "replay": "buffer"}
    is_head = f"{PACKAGE}.models.heads" in module.__name__
    return not is_head and (part not in needs or needs[part] in spec.options)


def has_equations(module: ModuleType) -> bool:
    return ":math:" in (module.__doc__ or "") or ".. math::" in (module.__doc__ or "")


def _imported(module: ModuleType) -> list[ModuleType]:
    names = {getattr(value, "__module__", None) for value in vars(module).values()}
    return [
        importlib.import_module(n)
        for n in sorted(n for n in names if isinstance(n, str) and n.startswith(PACKAGE))
    ]


def _body(thing: Any) -> str:
    """A docstring without its fields."""
    return markdown(inspect.cleandoc(thing.__doc__ or "")).split("\n:param")[0].strip()


def _options(spec: Any, classes: list[type]) -> str:
    meanings: dict[str, str] = {}
    documented = [spec.build, *(c for kind in classes for c in kind.__mro__)]
    for thing in documented:
        for text in (thing.__doc__, getattr(getattr(thing, "__init__", None), "__doc__", None)):
            clean = markdown(inspect.cleandoc(text or ""))
            for key, said in re.findall(r"^:param (\w+): (.*?)(?=^:|\Z)", clean, re.M | re.S):
                meanings.setdefault(key, " ".join(said.split()))
    rows = ["| option | default | meaning |", "| :--- | :--- | :--- |"]
    rows += [
        f"| `{key}` | `{default}` | {_cell(meanings.get(key, ''))} |"
        for key, default in spec.options.items()
    ]
    return "\n".join(rows) if spec.options else "It has none."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ------------------------------------------------------------------------------- command line
def command_line() -> str:
    """Each verb with its options, from the parser."""

    from avalanche_rwf.cli import build_parser

    parser = build_parser()
    (verbs,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {a.dest: a.help for a in verbs._choices_actions}
    parts = ["# Command line", parser.description or ""]
    for verb, sub in verbs.choices.items():
        parts += [f"## {verb}", sub.description or f"{(summaries[verb] or '').capitalize()}."]
        formatter = sub.formatter_class(prog=f"avalanche-rwf {verb}", width=90)
        formatter.add_usage(sub.usage, sub._actions, sub._mutually_exclusive_groups)
        parts.append(f"```text\n{formatter.format_help().strip()}\n```")
        examples = (sub.epilog or "").partition("\n")[2]
        parts.append(f"```bash\n{inspect.cleandoc(examples)}\n```")
        for group in sub._action_groups:
            actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
            if actions:
                title = (group.title or "options").capitalize()
                parts += [f"**{title}**"] if title != "Options" else []
                rows = [_row(a, formatter) for a in actions]
                parts.append("| option | meaning |\n| :--- | :--- |\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _row(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    said = formatter._expand_help(action) if action.help else ""
    value = "" if action.nargs == 0 else formatter._format_args(action, action.dest.upper())
    names = ", ".join(action.option_strings)
    return f"| `{f'{names} {value}'.strip()}` | {_cell(markdown(said))} |"
