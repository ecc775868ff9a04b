"""``compare --grid``: one method's values, tried on held-out training images."""

from __future__ import annotations

import json
import re

import pytest

from avalanche_rwf.experiments.command import command_words
from avalanche_rwf.experiments.config import RunConfig

from .command import call, runs


def test_the_best_of_the_given_values_runs_and_the_row_says_so(command, capsys, tmp_path):
    grids = ("--grid", "linear-probe.lr=1e-9,0.05", "--grid", "linear-probe.mask=none,seen")
    line = [*command(tmp_path), *grids, "--methods", "linear-probe,ncm"]
    status, out, err = call(capsys, *line)
    assert status == 0, err
    said = re.search(r"^linear-probe: (.*), ([\d.]+) % on held-out .* \(4 settings\)\.$", err, re.M)
    assert said and "lr=0.05" in said[1]
    assert re.search(r"linear-probe.* grid .*of 4", " ".join(out.split())), out
    assert re.search(r"ncm.* default ", out)

    (record,) = (tmp_path / "tuning").iterdir()
    tried = [one["options"] for one in json.loads(record.read_text())["settings"]]
    assert len(tried) == 4 and {one["lr"] for one in tried} == {1e-9, 0.05}
    for (method, _), folder in runs(tmp_path).items():
        config = RunConfig.from_dict(json.loads((folder / "config.json").read_text())["config"])
        assert config.budget == ("grid" if method == "linear-probe" else "default")
        if method == "linear-probe":
            assert config.options["lr"] == 0.05 and config.tuning["settings"] == 4
            words = command_words(config)
            assert "linear-probe.lr=1e-09,0.05" in words and "linear-probe.mask=none,seen" in words
            assert not any(word.startswith(("linear-probe.lr=0.05", "linear-probe.mask=s")) for word
                           in words)  # fmt: skip

    status, again, err = call(capsys, *line)
    assert (status, again) == (0, out) and "4 done already" in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--grid", "slda"], ["--grid", "method.option=value", "'slda'"]),
        (["--grid", "slda.shrinkage="], ["--grid", "'slda.shrinkage='"]),
        (["--grid", "slda.shrinkage=x"], ["slda: shrinkage", "'x'"]),
        (["--grid", "slda.shrink=1"], ["'shrink'", "'shrinkage'"]),
        (["--grid", "sdla.shrinkage=1"], ["sdla", "'slda'"]),
        (["--grid", "slda.shrinkage=0.1", "--grid", "slda.shrinkage=1"], ["twice"]),
        (["--grid", "slda.shrinkage=0.1", "--set", "slda.shrinkage=1"], ["the option is set"]),
        (["--grid", "slda.shrinkage=0.1", "--budget", "tuned"], ["--budget tuned", "--grid"]),
        (["--grid", "slda.shrinkage=0.1", "--holdout", "0.2"], ["--holdout", "0.2"]),
        (["--budget", "grid"], ["--budget grid", "--grid METHOD"]),
        (["--grid", "slda.shrinkage=" + ",".join(f"0.{n}" for n in range(1, 202))], ["most 200"]),
    ],
)  # fmt: skip
def test_a_wrong_grid_is_one_sentence(flags, says, capsys, tmp_path):
    line = ("compare", "--methods", "slda,ncm", "--jobs", 1, "--out", tmp_path)
    status, out, err = call(capsys, *line, *flags)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert all(word in err for word in says), err
