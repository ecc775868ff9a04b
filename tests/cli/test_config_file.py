"""``compare --config FILE``: the same flags from a file, and what is typed counts more."""

from __future__ import annotations

import json

import pytest
import yaml

from avalanche_rwf import cli

from .command import call, runs

YAML = """
# one of ours
benchmark: {benchmark}
methods: [ncm, rwf]
seeds: [0, 1]
batch_size: 8
backbone: vit_tiny_patch16_224
weights: {weights}
image-size: 16
backbone-arg: {{depth: 5, embed_dim: 16, num_heads: 2, patch_size: 8}}
set: {{rwf: {{num_prompts: 3, lr: 1e-3}}, rwf.stop_gradient: true}}
mean: [0.5, 0.5, 0.5]
skip-corrupt: false
quiet: true
experiences: null
"""


@pytest.fixture
def print_config(capsys):
    """The flags that a command line comes to."""

    def values(*words) -> dict:
        status, out, err = call(capsys, "compare", *words, "--print-config")
        assert (status, err) == (0, "")
        return yaml.safe_load(out)

    return values


@pytest.fixture
def file(images, weights, tmp_path):
    path = tmp_path / "exp.yaml"
    path.write_text(YAML.format(benchmark=f"folder:{images}", weights=weights))
    return path


def test_a_file_says_what_flags_say(file, print_config, images, weights):
    assert print_config("--config", file) == print_config(
        "--benchmark", f"folder:{images}", "--methods", "ncm,rwf", "--seeds", "0,1", "--batch-size",
        8, "--backbone", "vit_tiny_patch16_224", "--weights", weights, "--image-size", 16,
        "--backbone-arg", "depth=5", "--backbone-arg", "embed_dim=16", "--backbone-arg",
        "num_heads=2", "--backbone-arg", "patch_size=8", "--set", "rwf.num_prompts=3", "--set",
        "rwf.lr=1e-3", "--set", "rwf.stop_gradient=True", "--mean", "0.5,0.5,0.5", "--quiet",
    )  # fmt: skip


def test_what_is_typed_counts_more(file, print_config):
    values = print_config("--seed", 7, f"--config={file}", "--set", "rwf.lr=0.5", "--batch-size", 2)
    assert (values["seeds"], values["batch-size"]) == ("7", 2)
    assert values["set"] == ["rwf.num_prompts=3", "rwf.stop_gradient=True", "rwf.lr=0.5"]


def test_what_is_printed_can_be_read_again(file, print_config, tmp_path):
    values = print_config("--config", file, "--stream", "k-shot", "--shots", 2)
    again = tmp_path / "again.json"  # which is YAML too
    again.write_text(json.dumps(values))
    assert print_config("--config", again) == values
    assert (values["stream"], values["shots"]) == ("k-shot", "2")


def test_toml_is_read_too(print_config, tmp_path):
    text = 'methods = ["ncm"]\nseeds = "0-2"\n[set]\n"ncm.readout" = "cls"'
    (tmp_path / "exp.toml").write_text(text)
    values = print_config("--config", tmp_path / "exp.toml")
    assert (values["methods"], values["seeds"]) == ("ncm", "0-2")
    assert values["set"] == ["ncm.readout=cls"]


def test_the_configuration_of_a_run_makes_the_same_run(compared, capsys, tmp_path):
    source = runs(compared[0])["rwf", "seed1"]
    config = json.loads((source / "config.json").read_text())
    status, _, err = call(
        capsys, "compare", "--config", source / "config.json", "--jobs", 1, "--quiet",
        "--out", tmp_path,
    )  # fmt: skip
    assert status == 0, err
    (folder,) = runs(tmp_path).values()
    assert folder.relative_to(tmp_path) == source.relative_to(compared[0])
    assert folder.parent.name == config["config_hash"]
    # One run has more threads than each of six, which round the probes of routing otherwise.
    here, there = (
        [line for line in (run / "metrics.csv").read_text().splitlines() if ",a" in line]
        for run in (folder, source)
    )
    assert here == there and len(here) > 8


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("nil.yaml", None, ["nil.yaml", "No such file"]),
        ("a.txt", "methods: rwf", ["a.txt", ".yaml"]),
        ("a.yaml", "methods: [", ["a.yaml", "none"]),
        ("a.yaml", "- rwf", ["a.yaml", "flags and values"]),
        ("a.yaml", "!!python/object/apply:os.getcwd []", ["a.yaml", "none"]),
        ("a.yaml", "method: rwf", ["'method'", "'methods'"]),
        ("a.yaml", "config: other.yaml", ["'config'"]),
        ("a.yaml", "batch-size: large", ["a.yaml", "--batch-size", "'large'"]),
        ("a.yaml", "batch-size: true", ["batch-size", "True"]),
        ("a.yaml", "batch-size: [1, 2]", ["batch-size", "[1, 2]"]),
        ("a.yaml", "quiet: 1", ["quiet", "true or false"]),
        ("a.yaml", "methods: {rwf: 1}", ["methods", "{'rwf': 1}"]),
        ("a.yaml", "set: [rwf.lr=1, rwf.lr=2]", ["rwf.lr", "--grid rwf.lr=1,2"]),
        ("a.toml", "methods =", ["a.toml", "none"]),
        ("a.json", "[]", ["a.json"]),
        ("config.json", '{"config": {"method": "rwf", "colour": 1}}', ["config.json", "colour"]),
        ("config.json", '{"config": {"method": 1, "benchmark": 2}}', ["'2'", "benchmark"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence(name, text, says, capsys, tmp_path):
    if text is not None:
        (tmp_path / name).write_text(text)
    status, out, err = call(capsys, "compare", "--out", tmp_path, "--config", tmp_path / name)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert all(word in err for word in says), err


def test_a_repeated_setting_is_refused(capsys):
    twice = ("--set", "slda.shrinkage=0.1", "--set", "slda.shrinkage=1")
    status, _, err = call(capsys, "compare", *twice)
    assert status == 2
    assert "given twice, '0.1' and '1'" in err and "--grid slda.shrinkage=0.1,1" in err


def test_completion_knows_verbs_and_flags(capsys):
    pytest.importorskip("shtab")
    status, out, err = call(capsys, "completion", "bash")
    assert (status, err) == (0, "")
    assert all(verb in out for verb in cli.VERBS)
    assert "--gradient-steps" in out and "--class-order" in out
