"""Help: what there is, its defaults, examples that work, and the nearest name after a slip."""

from __future__ import annotations

import shlex

import pytest

from avalanche_rwf import cli

from .command import call


def shown(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words])
    captured = capsys.readouterr()
    assert (stopped.value.code, captured.err) == (0, "")
    return captured.out


def test_no_argument_shows_the_help(capsys):
    status, out, err = call(capsys)
    assert (status, err) == (0, "")
    assert out == shown(capsys, "--help")
    assert all(f"\n    {verb} " in out for verb in cli.VERBS)


def test_version_goes_to_stdout(capsys):
    assert shown(capsys, "--version").startswith("avalanche-rwf ")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_right_defaults_and_examples_that_parse(verb, capsys):
    out = shown(capsys, verb, "--help")
    for odd in ("None", "False", "[]", "default: default", "==SUPPRESS=="):
        assert f"(default: {odd})" not in out
    assert not any(line.count("(default") > 1 for line in out.split("\n  --"))
    lines = out[out.index("\nexamples:\n") :].replace("\\\n", " ").splitlines()
    lines = [line.partition("   ")[0] for line in map(str.strip, lines) if verb in line]
    assert lines
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])[1:]
        assert cli.build_parser(verb).parse_args(words).verb == verb


def test_colours_are_for_terminals(capsys, monkeypatch):
    plain = shown(capsys, "list", "--help")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(capsys, "list", "--help") == plain
    monkeypatch.delenv("NO_COLOR")
    coloured = shown(capsys, "list", "--help")
    assert "\x1b[36m--import\x1b[0m" in coloured and "\x1b" not in plain


def test_seed_and_seeds_are_one_flag_everywhere():
    for verb in ("compare", "inspect"):
        for flag in ("--seed", "--seeds"):
            assert cli.build_parser(verb).parse_args([verb, flag, "3"]).seeds == "3"
