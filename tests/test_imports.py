"""The floors of the package: imports go down only, and never in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import avalanche_rwf

ROOT = Path(avalanche_rwf.__file__).parent
FLOORS = (
    ("utils", "errors", "compat", "version"),
    ("routing", "models"),
    ("methods", "strategies", "benchmarks", "evaluation"),
    ("experiments",),
    ("leaderboard",),
    ("cli",),
)


def imports(root: Path = ROOT, package: str = "avalanche_rwf") -> dict[str, set[str]]:
    """Module -> modules of the package that it imports: lazily and for type checkers too."""
    files = {}
    for path in root.rglob("*.py"):
        parts = (package, *path.relative_to(root).with_suffix("").parts)
        files[".".join(parts).removesuffix(".__init__")] = path
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= inner & files.keys() or {node.module} & files.keys()
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & files.keys()
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Each module that can be reached from itself."""
    reached = {name: set(others) for name, others in graph.items()}
    for middle in graph:
        for name in graph:
            if middle in reached[name]:
                reached[name] |= reached[middle]
    return sorted(name for name in graph if name in reached[name])


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Each import of a higher floor, or of a folder that is on none."""
    floor = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}
    edges = (
        (name, other)
        for name, others in graph.items()
        for other in others
        if name.count(".") and name != "avalanche_rwf.__main__"
    )
    return sorted(
        f"{name} -> {other}"
        for name, other in edges
        if floor.get(other.split(".")[1] if "." in other else "", 99)
        > floor.get(name.split(".")[1], -1)
    )


@pytest.fixture(scope="module")
def graph():
    return imports()


def test_no_modules_import_each_other_in_a_circle(graph):
    assert len(graph) > 90 and circles(graph) == []


def test_no_module_imports_from_a_higher_floor(graph):
    # The public names are for users; the index of names is made from them.
    assert [edge for edge in upward(graph) if not edge.endswith("-> avalanche_rwf")] == []


def test_a_circle_and_an_upward_import_are_found(tmp_path):
    for name, text in {
        "models/a.py": "def f():\n    from avalanche_rwf.models import b",
        "models/b.py": "from avalanche_rwf.models.c import x",
        "models/c.py": "import avalanche_rwf.models.a\nfrom avalanche_rwf.cli import main",
        "cli/main.py": "from avalanche_rwf.models.c import x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = imports(tmp_path)
    names = ["cli.main", "models.a", "models.b", "models.c"]
    assert circles(found) == [f"avalanche_rwf.{name}" for name in names]
    assert upward(found) == ["avalanche_rwf.models.c -> avalanche_rwf.cli.main"]
