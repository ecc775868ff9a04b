"""``list``."""

from __future__ import annotations

from .command import call


def test_list_shows_the_streams(capsys):
    status, out, err = call(capsys, "list", "streams")
    assert (status, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["split", "fscil", "i-blurry", "k-shot", "repetition", "si-blurry"]
    assert all(len(line.split()) > 3 for line in out.splitlines())
    assert call(capsys, "list", "streams", "*blurry")[1].count("\n") == 2


def test_list_shows_methods_benchmarks_and_backbones(capsys):
    status, out, err = call(capsys, "list", "methods", "rwf*")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()][:2] == ["rwf", "rwf-lda"]
    benchmarks = call(capsys, "list", "benchmarks")[1].splitlines()
    names = [line.split()[0] for line in benchmarks]
    assert names[0] == "folder:PATH"
    assert {"split-digits", "split-cifar100", "split-imagenet-r"} < set(names)
    names = call(capsys, "list", "backbones", "*patch8_32")[1]
    assert names == "rwf_vit_mini_patch8_32\n"


def test_options_say_type_default_and_meaning(capsys):
    status, out, err = call(capsys, "list", "options", "slda")
    assert (status, err) == (0, "")
    header, *rows = out.splitlines()
    assert header.split() == ["option", "type", "default", "meaning"]
    assert [row.split()[:2] for row in rows] == [["readout", "str"], ["shrinkage", "float"]]
    assert all(len(row.split()) > 4 for row in rows)
