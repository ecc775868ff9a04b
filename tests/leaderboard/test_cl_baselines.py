"""The contribution to continual-learning-baselines: its script runs and reaches the target."""

from __future__ import annotations

import ast
import os

import numpy as np
import pytest
from PIL import Image

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments.config import RunConfig
from avalanche_rwf.leaderboard import aggregate, read_runs
from avalanche_rwf.leaderboard.cl_baselines import contribution, write_contribution


def test_the_script_runs_and_gives_the_number_of_the_run(tmp_path):
    from avalanche_rwf.experiments.run import run
    from avalanche_rwf.models.backbone import PACKAGED

    rng = np.random.RandomState(0)
    for split, count in (("train", 4), ("test", 3)):
        for number, name in enumerate("abcd"):
            folder = tmp_path / "set" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.randint(0, 160, (8, 8, 3))
                pixels[..., number % 3] += 30 * (1 + number // 3)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    config = RunConfig(f"folder:{tmp_path / 'set'}", "ncm", experiences=2, batch_size=4,
                       backbone=PACKAGED)  # fmt: skip
    summary = run(config, tmp_path / "out")
    assert summary["status"] == "done"
    runs = read_runs(tmp_path / "out").frame
    files, notes = contribution(aggregate(runs), runs)
    assert notes == []
    (script,) = (name for name in files if name.endswith("/ncm.py"))
    assert files["tests/target_results.csv"].splitlines()[0] == "strategy,benchmark,result"
    assert f"{summary['a_last']:.4f}" in files["tests/target_results.csv"]
    paths = write_contribution(files, tmp_path / "made")
    assert tmp_path / "made" / script in paths
    for name, text in files.items():
        if name.endswith(".py"):
            ast.parse(text)
    names: dict = {"__name__": "experiments"}
    exec(files[script], names)
    (function,) = (value for key, value in names.items() if key.startswith("ncm_folder"))
    result = function({"cuda": -1})
    accuracy = [v for k, v in result.items() if k.startswith("Top1_Acc_Stream")]
    assert accuracy == [pytest.approx(summary["a_last"])]


def test_names_cannot_leave_their_strings(make_run, tmp_path):
    make_run('x"""\nimport os', options={"head": "'\n\"\"\""})
    runs = read_runs(tmp_path).frame
    files, _ = contribution(aggregate(runs), runs)
    for name, text in files.items():
        assert ".." not in name
        if name.endswith(".py"):
            tree = ast.parse(text)
            imported = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import)
                        for a in n.names]  # fmt: skip
            assert "os" not in imported


def test_rows_that_cannot_be_contributed_are_named(make_run, tmp_path):
    make_run("mine.py:Net")
    runs = read_runs(tmp_path).frame
    with pytest.raises(UsageError, match="cl-baselines"):
        contribution(aggregate(runs), runs)
    make_run("rwf")
    runs = read_runs(tmp_path).frame
    _, notes = contribution(aggregate(runs), runs)
    assert notes == ["mine.py:Net aaaa left out: its code is a file of yours."]


def test_a_strategy_on_two_benchmarks_keeps_both_tests(make_run, tmp_path):
    make_run("ncm")
    make_run("ncm", config_hash="bbbb", stream="k-shot", stream_options={"shots": 4})
    make_run("ncm", config_hash="cccc", summary={"a_last": 0.5}, options={"head": "cosine"})
    runs = read_runs(tmp_path).frame
    files, _ = contribution(aggregate(runs), runs)
    test = files["tests/ncm/experiment.py"]
    ast.parse(test)
    assert "def test_split_digits(self)" in test
    assert "def test_split_digits_k_shot(self)" in test
    assert "'stream_options': {'shots': 4}" in files["experiments/split_digits_k_shot/ncm.py"]
    assert sorted(files["tests/target_results.csv"].splitlines()[1:]) == [
        "ncm,split_digits,0.9000", "ncm,split_digits_k_shot,0.9000",
        "ncm_cccc,split_digits,0.5000",
    ]  # fmt: skip


def test_a_checkout_keeps_what_it_has(make_run, tmp_path):
    make_run("ncm", summary={"a_last": 0.75})
    runs = read_runs(tmp_path).frame
    files, _ = contribution(aggregate(runs), runs)
    checkout = tmp_path / "checkout"
    targets = checkout / "tests" / "target_results.csv"
    targets.parent.mkdir(parents=True)
    head = "# a comment\nstrategy,benchmark,result\n"
    targets.write_text(f"{head}ncm,split_digits,0.1\nsi,smnist,0.97\n")
    names = checkout / "experiments" / "split_digits" / "__init__.py"
    names.parent.mkdir(parents=True)
    names.write_text("from .si import si\n")
    for _ in range(2):  # again changes nothing
        write_contribution(files, checkout)
        assert targets.read_text() == f"{head}si,smnist,0.97\nncm,split_digits,0.7500\n"
        assert names.read_text() == "from .si import si\nfrom .ncm import ncm_split_digits\n"
    script = checkout / "experiments" / "split_digits" / "ncm.py"
    script.write_text("theirs")
    with pytest.raises(UsageError, match=r"without another experiments/split_digits/ncm\.py"):
        write_contribution(files, checkout)
    assert script.read_text() == "theirs"


@pytest.mark.parametrize(
    "name", ["tests/target_results.csv", "experiments/split_digits/__init__.py"]
)
def test_a_list_that_cannot_be_read_is_named_and_kept(name, make_run, tmp_path):
    """Lines of others are in it: what cannot be merged is not replaced."""
    make_run("ncm")
    runs = read_runs(tmp_path).frame
    files, _ = contribution(aggregate(runs), runs)
    listing = tmp_path / "checkout" / name
    listing.parent.mkdir(parents=True)
    theirs = "# Großbuchstaben\n".encode("latin-1")
    listing.write_bytes(theirs)
    with pytest.raises(UsageError, match=r"^--out takes .* can be read.*no UTF-8") as said:
        write_contribution(files, tmp_path / "checkout")
    assert str(listing) in str(said.value)
    assert listing.read_bytes() == theirs
    assert [p for p in (tmp_path / "checkout").rglob("*") if p.is_file()] == [listing]


def test_a_checkout_that_cannot_be_written_to_keeps_its_lists(make_run, tmp_path, monkeypatch):
    make_run("ncm")
    runs = read_runs(tmp_path).frame
    files, _ = contribution(aggregate(runs), runs)
    checkout = tmp_path / "checkout"
    write_contribution(files, checkout)
    before = {p: p.read_bytes() for p in checkout.rglob("*") if p.is_file()}

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"--out takes a folder that can be written to.*No space"):
        write_contribution(files, checkout)
    assert {p: p.read_bytes() for p in checkout.rglob("*") if p.is_file()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out takes a folder that can be written to"):
        write_contribution(files, tmp_path / "file")
