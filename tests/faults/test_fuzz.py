"""Entries, state files and checkpoints of nonsense: refused in a sentence, and nothing in them run.

Command lines and the files of runs are in test_fuzz_command_lines.py and test_fuzz_runs.py.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avalanche_rwf import cli
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import checkpoint
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.run import run
from avalanche_rwf.leaderboard.aggregate import read_runs
from avalanche_rwf.leaderboard.submissions import build_entry, read_entry
from avalanche_rwf.utils import atomic_io
from avalanche_rwf.utils.atomic_io import StateFileError, read_state, save_state

from ..runs import execute_with
from .nonsense import DAMAGE, World, damaged, examples, mutated, places, refused


@pytest.fixture(scope="module")
def world(configure, tmp_path_factory) -> World:
    """With the results of one method."""
    made = World(tmp_path_factory.mktemp("world"))
    assert run(configure("ncm"), made.out)["status"] == "done"
    return made


@pytest.fixture(scope="module")
def entry(world) -> dict[str, Any]:
    return build_entry(read_runs(world.out)[0], "ncm", "").model_dump(mode="json")


def is_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        read_entry(path)
    except UsageError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1000
        return True
    return False


@examples(400)
@given(st.data())
def test_entries_that_were_changed(entry, world, data):
    """By hand: what is left is an entry that says nothing wrong, or it is refused."""
    path = world.out / "entry.json"
    changed = data.draw(mutated(entry))
    if not is_refused(path, json.dumps(changed).encode()):
        # As it was, but for what is nobody's business to check: times, versions, hardware.
        assert changed["runs"][0]["accuracy_matrix"] == entry["runs"][0]["accuracy_matrix"]
        assert changed["config"]["method"] == "ncm"


@examples(200)
@given(st.data())
def test_entries_that_were_damaged(entry, world, data):
    whole = json.dumps(entry).encode()
    is_refused(world.out / "entry.json", data.draw(damaged(whole)))


ADDING = ("leaderboard", "cl-baselines", "report")


@examples(40)
@given(st.data(), st.sampled_from(ADDING))
def test_entries_on_the_command_line(entry, world, data, verb):
    """Refused there too, or shown beside the folder's own."""
    path = world.out / "entry.json"
    change = data.draw(st.sampled_from(("none", "changed", "damaged")))
    whole = json.dumps(entry).encode()
    if change == "changed":
        path.write_bytes(json.dumps(data.draw(mutated(entry, most=1))).encode())
    else:
        path.write_bytes(whole if change == "none" else data.draw(damaged(whole)))
    more = {"leaderboard": ["--format", "csv"], "cl-baselines": ["--format", "cl-baselines"],
            "report": ["--out", str(world.out / "page")]}[verb]  # fmt: skip
    first = "report" if verb == "report" else "leaderboard"
    answer = world.say([first, str(world.out), "--add", str(path), *more])
    if is_refused(path, path.read_bytes()):
        refused(answer)
    else:
        assert answer.status == 0, answer


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_classic_damage_of_an_entry(damage, entry, world):
    content = DAMAGE[damage](json.dumps(entry).encode())
    assert is_refused(world.out / "entry.json", content) or damage in ("nan",)


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_checksum(body: bytes) -> bytes:
    """What our writer would have made of a zip archive's bytes: damage that a checksum hides."""
    comment = atomic_io._COMMENT + hashlib.sha256(body[:-2]).hexdigest().encode()
    return body[:-2] + struct.pack("<H", len(comment)) + comment


PLAIN = {"x": torch.arange(50.0), "n": [1, None, {"a": (1, 2)}], "s": "text"}


@examples(500)
@given(st.data())
def test_state_files_with_a_checksum_that_fits(tmp_path_factory, data):
    """Damage that a checksum hides: a state, or a sentence, and no other file."""
    folder = tmp_path_factory.getbasetemp() / "states"
    folder.mkdir(exist_ok=True)
    path, plain = folder / "state.pt", folder / "plain.pt"
    if not plain.exists():
        torch.save(PLAIN, plain)
    path.write_bytes(with_checksum(data.draw(damaged_bytes(plain.read_bytes()))))
    try:
        assert isinstance(read_state(path), dict)
    except StateFileError as error:
        assert "\n" not in str(error)
    assert sorted(p.name for p in folder.iterdir()) == ["plain.pt", "state.pt"]


@st.composite
def damaged_bytes(draw: st.DrawFn, body: bytes) -> bytes:
    """Some bytes overwritten, or cut short."""
    if draw(st.integers(0, 9)) == 0:
        return body[: draw(st.integers(2, len(body) - 1))]
    whole = bytearray(body)
    spots = st.tuples(st.integers(0, len(body) - 1), st.integers(0, 255))
    for place, byte in draw(st.lists(spots, min_size=1, max_size=12)):
        whole[place] = byte
    return bytes(whole)


class Cut:
    """A run that was cut, its state, and what it ends with if it was not cut."""

    def __init__(self, configure, do, out: Path) -> None:
        self.config, self.do, self.out = configure("er", options={"buffer": 3}), do, out
        self.whole = do(self.config, out / "whole")
        do(self.config, out / "cut", 2)
        self.path = run_directory(out / "cut", self.config) / checkpoint.NAME
        self.state = read_state(self.path)

    def end(self, state: Any) -> None:
        """Go on from another state; it ends as it should."""
        folder = self.path.parent
        shutil.rmtree(folder)
        folder.mkdir()
        save_state(self.path, state)
        self.do(self.config, self.out / "cut").assert_equal(self.whole)


@pytest.fixture
def cut(configure, do, tmp_path, monkeypatch) -> Cut:
    execute_with(monkeypatch, checkpoint_every=1)
    return Cut(configure, do, tmp_path)


# Each example makes the folder anew that the fixture has made for all.
@settings(
    examples(20),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_checkpoints_whose_content_is_nonsense(cut, data):
    """With a checksum that fits: the run begins anew, and ends as it should."""
    state = copy.deepcopy(cut.state)
    # A tensor of other numbers is what a checksum is for, and so are these.
    free = [p for p in places(state) if p[-1] not in ("experience", "samples", "threads")]
    *above, key = data.draw(st.sampled_from(free))
    place: Any = state
    for step in above:
        place = place[step]
    if isinstance(place[key], torch.Tensor):
        place, key = state, "strategy"
    if data.draw(st.booleans()) and isinstance(place, dict):
        del place[key]
    else:
        # Of another type: what is well formed may be a state, which a checksum does not sign.
        others = ("x", ["x"], {"x": 1}, torch.zeros(3))
        others = tuple(v for v in others if type(v) is not type(place[key]))
        place[key] = data.draw(st.sampled_from(others))
    cut.end(state)


@pytest.mark.parametrize("suffix", [".pth", ".npz", ".safetensors"])
def test_malicious_weights_are_refused_and_not_run(suffix, folder, tmp_path, capsys):
    path, trace = tmp_path / f"weights{suffix}", tmp_path / "executed"
    if suffix == ".npz":
        np.savez(path, **{"embedding/kernel": np.array([Payload(trace)], dtype=object)})
    elif suffix == ".pth":
        torch.save({"state_dict": Payload(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(trace)))
    line = ["compare", "--benchmark", f"folder:{folder}", "--methods", "ncm", "--jobs", "1"]
    line += ["--backbone", "vit_tiny_patch16_224", "--weights", str(path), "--seeds", "0"]
    assert cli.main([*line, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert path.name in err
    assert not trace.exists()


def test_a_malicious_checkpoint_is_not_run(configure, do, tmp_path):
    config = configure("ncm")
    folder, trace = run_directory(tmp_path / "out", config), tmp_path / "executed"
    folder.mkdir(parents=True)
    torch.save({"format": 2, "strategy": Payload(trace)}, folder / "plain.pt")
    (folder / checkpoint.NAME).write_bytes(with_checksum((folder / "plain.pt").read_bytes()))
    (folder / checkpoint.PREVIOUS).write_bytes(pickle.dumps(Payload(trace)))
    (folder / "plain.pt").unlink()
    do(config, tmp_path / "out").assert_equal(do(config, tmp_path / "whole"))
    assert (folder / "log.txt").read_text().count("a checkpoint is not used") == 2
    assert not trace.exists()


@pytest.mark.parametrize("verb", ["leaderboard", "report", "compare", "explain"])
def test_code_that_a_run_of_others_names_is_not_imported(verb, configure, folder, tmp_path):
    """A method's name may be FILE.py:NAME; only who is asked to `--import` it runs it."""
    world = World(tmp_path / "world")
    config = configure("rwf")
    assert run(config, world.out)["status"] == "done"
    place, trace = run_directory(world.out, config), world.here / "executed"
    (place / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    content = json.loads((place / "config.json").read_text())
    content["config"]["method"] = f"{place / 'evil.py'}:Evil"
    (place / "config.json").write_text(json.dumps(content))
    line = {
        "leaderboard": ["leaderboard", str(world.out), "--wide"],
        "report": ["report", str(world.out)],
        "compare": [
            *("compare", "--benchmark", f"folder:{folder}", "--methods", "ncm", "--seeds", "0"),
            *("--jobs", "1", "--out", str(world.out)),
        ],
        "explain": [
            *("explain", str(next(folder.rglob("*.png"))), "--run", str(place)),
            *("--out", str(world.out / "figures")),
        ],
    }[verb]
    answer = world.say(line)
    assert answer.status == (2 if verb == "explain" else 0), answer
    assert not trace.exists()
