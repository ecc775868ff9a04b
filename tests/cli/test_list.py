"""``list``, help and version."""

from __future__ import annotations

import pytest

from avalanche_rwf import cli

from .command import call


def test_list_streams(capsys):
    status, out, err = call(capsys, "list", "streams")
    assert (status, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["split", "fscil", "i-blurry", "k-shot", "repetition", "si-blurry"]
    assert all(len(line.split()) > 3 for line in out.splitlines())
    assert call(capsys, "list", "streams", "*blurry")[1].count("\n") == 2


def test_lists(capsys):
    status, out, err = call(capsys, "list", "methods", "rwf*")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()][:2] == ["rwf", "rwf-lda"]
    benchmarks = call(capsys, "list", "benchmarks")[1].splitlines()
    assert benchmarks[0] == "folder:PATH"
    assert {"split-digits", "split-cifar100", "split-imagenet-r"} < set(benchmarks)
    names = call(capsys, "list", "backbones", "*patch8_32")[1]
    assert names == "rwf_vit_mini_patch8_32\n"


@pytest.mark.parametrize("flags", [["--help"], ["--version"], ["compare", "--help"]])
def test_help_and_version_go_to_stdout(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(flags)
    captured = capsys.readouterr()
    assert stopped.value.code == 0
    assert captured.out
    assert captured.err == ""
