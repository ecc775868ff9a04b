"""Code from outside: benchmarks, streams and heads of `--import` are as the package's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_rwf import cli
from avalanche_rwf.experiments.build import origins_of, with_code
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.utils import user_code
from avalanche_rwf.utils.user_code import VARIABLE, add_imports, may_import

HEADER = """
import numpy as np
import torch
import torch.nn.functional as F
from avalanche_rwf import register_method
from avalanche_rwf.benchmarks import ImageSource, register_benchmark
from avalanche_rwf.benchmarks.images import TensorImages
from avalanche_rwf.benchmarks.stream_registry import add_option, register_stream, whole
from avalanche_rwf.models.heads import Head, register_head
"""
PARTS = {
    "benchmarks": """
@register_benchmark("mine", summary="greys")
def load(options):
    def part(n, seed):
        labels = [i % 4 for i in range(n)]
        noise = torch.rand(n, 1, 1, 1, generator=torch.Generator().manual_seed(seed))
        grey = (torch.tensor(labels)[:, None, None, None] + noise) / 5
        images = grey.expand(-1, 1, options.image_size, options.image_size)
        return TensorImages(images, labels, options.mean, options.std), labels
    return ImageSource(*part(64, 0), *part(32, 1), ["a", "b", "c", "d"], default_experiences=2)
""",
    "streams": """
add_option("rounds", "a whole number of at least 1", whole(1), "rounds")

@register_stream("mine", summary="equal parts")
def deal(labels, seed, experiences, rounds=2):
    order = np.random.RandomState(seed).permutation(len(labels))
    return np.array_split(order, experiences)
""",
    "heads": """
@register_head("mine")
class Mine(Head):
    \"\"\"Linear on features of one length.\"\"\"
    def __init__(self, in_features, num_classes, scale=10.0):
        super().__init__(in_features, num_classes)
        self.weight = torch.nn.Parameter(torch.zeros(num_classes, in_features))
        self.scale = scale
    def linear_form(self, features):
        return self.scale * F.normalize(features), self.weight, None
    def grow(self, num_classes):
        more = max(0, num_classes - self.num_classes)
        rows = torch.cat([self.weight.detach(), self.weight.new_zeros(more, self.in_features)])
        self.weight = torch.nn.Parameter(rows)
        super().grow(num_classes)
""",
    "methods": """
from avalanche_rwf import FrozenBackboneStrategy, FrozenViT

@register_method("mine", summary="a probe")
def build(*, backbone, num_classes, loop, head="linear", readout="cls"):
    model = FrozenViT(backbone, num_classes, head=head, readout=readout)
    return FrozenBackboneStrategy(model=model, **loop)
""",
}
TINY = ["--backbone", "vit_tiny_patch16_224", "--image-size", "16", "--batch-size", "16"]
for pair in ("depth=2", "embed_dim=16", "num_heads=2", "patch_size=8", "pretrained=False"):
    TINY += ["--backbone-arg", pair]
ALL = ["--benchmark", "mine", "--stream", "mine", "--rounds", "3", "--head", "mine"]


@pytest.fixture
def mine(outside) -> Path:
    (outside / "my.py").write_text(HEADER + "".join(PARTS.values()))
    return outside / "my.py"


def call(capsys, *words):
    status = cli.main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("method", ["rwf", "avalanche:EWC", "nope", ""])
def test_names_without_other_code_are_free(method, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert may_import(method)


@pytest.mark.parametrize("method", ["mine:Method", "mine.py:Method", "./a/mine.py:Method"])
def test_other_code_is_named_by_the_user_first(method, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    assert not may_import(method)
    add_imports(["another", "another.py"])
    assert not may_import(method)
    add_imports([method.rpartition(":")[0]])
    assert may_import(method)


@pytest.mark.parametrize("kind", PARTS)
def test_what_a_file_registers_is_listed(kind, outside, capsys):
    (outside / "my.py").write_text(HEADER + PARTS[kind])
    assert call(capsys, "list", kind, "mine")[0] == 2
    status, out, err = call(capsys, "list", kind, "mine", "--im", "my.py")
    assert (status, out) == (2, "") and "the nearest names are '--import'" in err
    for flag in (["--import", "my.py"], ["--import=my.py"]):
        status, out, err = call(capsys, "list", kind, "mine", *flag)
        assert (status, out.split()[0]) == (0, "mine"), err


def test_a_stream_and_its_option_are_inspected(mine, capsys):
    words = ["--benchmark", "mine", "--stream", "mine", "--rounds", "3", "--import", "my.py"]
    status, out, err = call(capsys, "inspect", *words)
    assert status == 0 and "mine (rounds=3)" in out, err


# What a file does -> what the sentence must say.
BAD = {
    "a benchmark's name": (
        "benchmarks", ('"mine"', '"split-digits"'), ["'split-digits' is registered already"],
    ),
    "a stream's name": ("streams", ('"mine"', '"k-shot"'), ["'k-shot' is registered already"]),
    "a head's name": ("heads", ('"mine"', '"slda"'), ["head 'slda' is registered already"]),
    "a method's name": ("methods", ('"mine"', '"rwf"'), ["method 'rwf' is registered already"]),
    "an option's name": ("streams", ('"rounds", "a', '"shots", "b'), ["'shots' is registered"]),
    "a stream's option": ("streams", ("rounds=2", "rounds"), ["'rounds'", "needs a default"]),
    "an unknown option": ("streams", ("rounds=2", "turns=2"), ["'turns'", "add_option"]),
    "a flag that is there": (
        "streams", ('"rounds"', '"seeds"'), ["--seeds", "name must be another one"],
    ),
    "a head's option": ("heads", ("scale=10.0", "scale"), ["'mine'", "'scale'", "default"]),
    "no head": ("heads", ("(Head)", ""), ["made from Head"]),
    "a benchmark's option": ("benchmarks", ("(options)", "(options, side)"), ["need a default"]),
    "a method's option": ("methods", ('head="linear"', "head"), ["'head'", "needs a default"]),
    "an error": ("heads", ("import torch\n", "import torch\n1 / 0\n"), ["ZeroDivisionError"]),
    "an exit": ("heads", ("import torch\n", "raise SystemExit(3)\n"), ["SystemExit: 3"]),
    "no Python": ("heads", ("import torch\n", "import torch torch\n"), ["SyntaxError"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_registered_is_said_in_a_sentence(case, outside, capsys):
    kind, (old, new), said = BAD[case]
    code = (HEADER + PARTS[kind]).replace(old, new)
    if case == "a flag that is there":
        code = code.replace("rounds=2", "seeds=2")
    assert code != HEADER + PARTS[kind]
    (outside / "my.py").write_text(code)
    status, out, err = call(capsys, "compare", "--import", "my.py")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    for words in said:
        assert words in err
    assert not list(outside.glob("results"))
    if "name must be" not in err:  # that one is in the process's registry, not in its imports
        assert os.environ[VARIABLE] == ""


# What code returns -> what the sentence must say.
WRONG = {
    "no source": ("benchmarks", ("return ImageSource", "return list"), ["failed", "TypeError"]),
    "labels": ("benchmarks", ("i % 4 for", "i % 4 + 1 for"), ["labels 0 to 3", "from 1 to 4"]),
    "a class without images": ("benchmarks", ("i % 4 for", "i % 3 for"), ["3 labels"]),
    "one-hot": (
        "benchmarks", ("options.std), labels", "options.std), np.eye(4)[labels]"), ["[64, 4]"],
    ),
    "a crash": ("benchmarks", ("    def part", "    {}['x']\n    def part"), ["KeyError"]),
    "too few": ("streams", ("experiences)\n", "1)\n"), ["must deal 2 experiences", "deals 1"]),
    "lost samples": ("streams", ("(order,", "(order[3:],"), ["leaves out 3 of 64"]),
    "samples again": ("streams", ("(order,", "(order % 60,"), ["deals 4 again"]),
    "below 0": ("streams", ("(order,", "(order - 1,"), ["positions from 0 to 63"]),
    "a stream's crash": ("streams", ("    order =", "    1 / 0\n    order ="), ["ZeroDivision"]),
    "a head's crash": (
        "heads", ("        self.scale =", "        1 / 0\n        self.scale ="), ["division"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_code_returns_is_checked_before_any_run(case, outside, capsys):
    kind, (old, new), said = WRONG[case]
    changed = PARTS[kind].replace(old, new)
    assert changed != PARTS[kind]
    (outside / "my.py").write_text(HEADER + "".join({**PARTS, kind: changed}.values()))
    words = ["compare", "--import", "my.py", *ALL, *TINY, "--methods", "linear-probe"]
    status, out, err = call(capsys, *words, "--seeds", "0", "--jobs", "1", "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert all(words in err for words in said), err


def test_only_what_is_used_counts_in_the_configuration(mine, capsys):
    plain = RunConfig("split-digits", "linear-probe", {"head": "linear"})
    assert with_code(plain) == plain
    assert plain.config_hash() == RunConfig("split-digits", "linear-probe", {"head": "linear"},
                                            data_code={}, head_code="").config_hash()  # fmt: skip
    user_code.import_now(["my.py"])
    assert with_code(plain) == plain and origins_of(plain) == {}
    used = RunConfig("mine", "linear-probe", {"head": "mine"}, stream="mine")
    assert set(origins_of(used)) == {"benchmark", "stream", "head"}
    recorded = with_code(used)
    assert set(recorded.data_code) == {"benchmark", "stream"} and recorded.head_code
    assert recorded.config_hash() != used.config_hash()
    assert RunConfig.from_dict(json.loads(json.dumps(recorded.to_dict()))) == recorded


def test_a_comparison_with_workers_is_recorded_and_resumed(mine, capsys):
    """All kinds at once, in processes that have not imported it."""
    line = ["compare", "--import", "my.py", *ALL, *TINY, "--methods", "linear-probe,mine"]
    line += ["--seeds", "0", "--quiet", "--out", "out"]
    status, _, err = call(capsys, *line, "--jobs", "2")
    assert status == 0 and "Traceback" not in err, err
    (path,) = mine.parent.glob("out/runs/mine/mine/*/seed0/config.json")
    content = json.loads(path.read_text())
    assert set(content["origins"]) == {"method", "benchmark", "stream", "head"}
    assert {origin["file"] for origin in content["origins"].values()} == {str(mine)}
    sha256 = content["origins"]["head"]["sha256"]
    assert content["config"]["data_code"] == {"benchmark": sha256, "stream": sha256}
    assert content["config"]["head_code"] == content["config"]["code"] == sha256
    assert content["ran"]["head"] == "mine"

    status, out, err = call(capsys, *line, "--jobs", "1")
    assert status == 0 and "2 done already" in err, err
    assert "mine" in out
    from avalanche_rwf.leaderboard.report.data import _command

    command = _command(content, [0])
    assert command is not None and command.count("--import") == 1 and str(mine) in command


def test_the_tests_of_all_kinds_run_on_it(mine):
    root = Path(cli.__file__).parents[2]
    imports = [str(mine), "examples/add_your_method.py"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rp", "-p", "no:cacheprovider"),
            *("tests/benchmarks/test_stream_registry.py", "tests/models/test_heads.py"),
            *("tests/strategies/test_registry.py", "-k", "mine or my-method"),
        ],
        cwd=root, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(root), VARIABLE: os.pathsep.join(imports)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    passed = re.findall(r"^PASSED tests/\S*test_(\w+)\.py.*\b(mine|my-method)\b", done.stdout, re.M)
    assert set(passed) == {
        ("stream_registry", "mine"), ("heads", "mine"),
        ("registry", "mine"), ("registry", "my-method"),
    }, done.stdout  # fmt: skip


@pytest.mark.parametrize("kind", PARTS)
def test_an_installed_package_adds_it(kind, outside, monkeypatch, capsys):
    package = outside / "site" / "plugin"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HEADER + PARTS[kind])
    info = outside / "site" / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: plugin\nVersion: 1.0\n")
    lines = f"[avalanche_rwf.{kind}]\nmine = plugin\nlost = no_such_plugin\n"
    (info / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(package.parent))
    user_code._LOADED.discard(f"{user_code.ENTRY_POINTS}{kind}")
    with pytest.warns(UserWarning, match=f"The {kind} of 'no_such_plugin'.*left out"):
        assert cli.main(["list", kind, "mine"]) == 0
    assert capsys.readouterr().out.startswith("mine")
