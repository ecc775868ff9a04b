"""Files of finished runs that somebody damaged: the other runs are read, the damaged one is named.

They are read as a user reads them: by `compare`, `leaderboard`, `report`, `submit`, `explain`.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ..runs import make_folder
from .nonsense import DAMAGE, Answer, World, damaged, examples, mutated, tiny

FILES = ("config.json", "summary.json", "metrics.csv", "weights.safetensors")


class Results:
    """An output folder with a run that stays sound (ncm) and one that is damaged (rwf)."""

    def __init__(self, root: Path) -> None:
        self.world = World(root)
        self.images = make_folder(root / "images", 2)
        self.compare = [*tiny(self.images, self.out, "ncm"), "--experiences", "2"]
        # Few prompts in one block: `explain` draws each.
        self.both = ["--methods", "ncm,rwf", "--set", "rwf.num_prompts=2"]
        self.both += ["--set", "rwf.routed_blocks=last 1"]
        done = self.world.say([*self.compare, *self.both], train=True)
        assert done.status == 0, done
        self.folder = next(self.out.glob("runs/*/rwf/*/seed0"))
        self.sound = {name: (self.folder / name).read_bytes() for name in FILES}

    @property
    def out(self) -> Path:
        return self.world.out

    def restore(self) -> None:
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        for name, content in self.sound.items():
            (self.folder / name).write_bytes(content)

    def read(self, verb: str) -> Answer:
        """Read the folder as it is now."""
        return self.world.say(
            {
                "leaderboard": ["leaderboard", str(self.out), "--format", "csv"],
                "text": ["leaderboard", str(self.out), "--wide", "--reference", "ncm"],
                "cl-baselines": ["leaderboard", str(self.out), "--format", "cl-baselines"],
                "plots": ["leaderboard", str(self.out), "--plots", str(self.out / "plots")],
                "compare": [*self.compare, "--format", "csv"],
                "again": [*self.compare, *self.both, "--format", "csv"],
                "report": ["report", str(self.out)],
                "submit": [
                    *("submit", str(self.out), "--method", "rwf"),
                    *("--out", str(self.out / "entry.json")),
                ],
                "explain": [
                    *("explain", str(self.images / "test" / "a" / "0.png")),
                    *("--run", str(self.folder), "--out", str(self.out / "figures")),
                ],
            }[verb]
        )

    def check(self, verb: str) -> None:
        """The sound run is there, and the other one is there or named."""
        answer = self.read(verb)
        if verb in ("submit", "explain"):
            assert answer.status in (0, 2), answer
            return
        assert answer.status == 0, answer
        if verb in ("leaderboard", "compare", "again"):
            rows = list(csv.DictReader(io.StringIO(answer.out)))
            assert "ncm" in [row["method"] for row in rows], answer
            if verb == "leaderboard":
                named = answer.err.count("left out: ")
                assert len(rows) + named == 2, answer
        elif verb == "report":
            board = (self.out / "report" / "data" / "board.js").read_text()
            assert '"ncm"' in board
        else:
            assert "ncm" in answer.out, answer


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    return Results(tmp_path_factory.mktemp("results"))


READ = ("leaderboard", "text", "cl-baselines", "compare", "again", "report", "submit")


@st.composite
def content(draw: st.DrawFn, results: Results, name: str) -> bytes:
    """Something in the place of a file's content."""
    whole = results.sound[name]
    if name.endswith(".json") and draw(st.integers(0, 2)):
        return json.dumps(draw(mutated(json.loads(whole)))).encode()
    if name == "metrics.csv" and draw(st.booleans()):
        lines = whole.decode().splitlines()
        cell = st.sampled_from(("", "nan", "inf", "-1", "1e999", "9" * 400, "x", '"', "\0", "0.5"))
        row = st.lists(cell, min_size=1, max_size=6).map(",".join)
        at = draw(st.integers(0, len(lines)))
        return "\n".join([*lines[:at], draw(row), *lines[at + draw(st.integers(0, 2)) :]]).encode()
    return draw(damaged(whole))


@examples(150)
@given(st.data(), st.sampled_from(READ))
def test_damaged_files_of_a_run(results, data, verb):
    results.restore()
    for name in data.draw(st.lists(st.sampled_from(FILES[:3]), min_size=1, max_size=2)):
        (results.folder / name).write_bytes(data.draw(content(results, name)))
    results.check(verb)


@pytest.mark.parametrize("verb", READ)
def test_each_classic_damage(results, verb):
    for damage in DAMAGE.values():
        for name in FILES[:3]:
            results.restore()
            (results.folder / name).write_bytes(damage(results.sound[name]))
            results.check(verb)


@examples(15)
@given(st.data(), st.sampled_from(("config.json", "weights.safetensors")))
def test_explain_of_a_damaged_run(results, data, name):
    results.restore()
    (results.folder / name).write_bytes(data.draw(content(results, name)))
    results.check("explain")
