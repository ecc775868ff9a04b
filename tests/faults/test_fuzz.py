"""Nonsense from a fixed seed: a sentence and a status, never a traceback, nothing run or written.

2,000 inputs: command lines, leaderboard entries, state files and checkpoints.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from avalanche_rwf import cli, files
from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import checkpoint
from avalanche_rwf.experiments.config import run_directory
from avalanche_rwf.experiments.run import run
from avalanche_rwf.files import StateFileError, read_state, save_state
from avalanche_rwf.leaderboard.aggregate import read_runs
from avalanche_rwf.leaderboard.submissions import build_entry, read_entry

NONSENSE = (
    *("", " ", "-", "--", "-1", "0x10", "1e999", "nan", "inf", "None", "null", "[]", "{}", ","),
    *("💥", "‮", "\n", "\t", "%s%n", "$(id)", "`id`", ";", "'", '"', "\\", "../../..", "/", "..."),
    *("a" * 5000, "9" * 5000, "1.5.2", "١٢x", "__import__('os')", "<script>", "a=b=c", "*", "?"),
)
# What each of these takes is none of the above; "*" and "?" are patterns of methods.
FLAGS = (
    *("--seeds", "--experiences", "--image-size", "--batch-size", "--gradient-steps", "--head"),
    *("--mask", "--readout", "--augment", "--budget", "--eval-every-samples", "--eval-subset"),
    *("--holdout", "--precision", "--device", "--jobs", "--workers", "--checkpoint-every"),
    *("--stream", "--benchmark", "--format", "--set", "--backbone-arg", "--import", "--weights"),
)


def tree(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.lstat().st_size for p in folder.rglob("*")}


def test_700_command_lines(folder, tmp_path, capsys, monkeypatch):
    rng = random.Random(1)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv(checkpoint.EVERY, raising=False)
    base = [
        *("compare", "--benchmark", f"folder:{folder}", "--methods", "ncm", "--jobs", "1"),
        *("--backbone", "vit_tiny_patch16_224", "--image-size", "16", "--seeds", "0"),
        *("--backbone-arg", "pretrained=False", "--backbone-arg", "depth=1"),
        *("--backbone-arg", "embed_dim=8", "--backbone-arg", "num_heads=2"),
        *("--backbone-arg", "patch_size=8", "--out", str(tmp_path / "out")),
    ]
    others = (
        ("leaderboard",), ("leaderboard", "--format"), ("report",), ("submit", "--method"),
        ("list",), ("inspect", "--benchmark"), ("inspect", "--seed"), ("explain", "--run"), (),
    )  # fmt: skip
    for number in range(700):
        word = rng.choice(NONSENSE)
        if number % 7 == 0:
            line = [*rng.choice(others), word, rng.choice(NONSENSE)]
        else:
            flag = rng.choice(FLAGS)
            line = [*base, flag if rng.random() < 0.05 else f"{flag}={word}"]
            if flag == "--weights" and word == "":
                continue  # as good as none
        with mock.patch.dict(os.environ):  # where --import and others leave what they were told
            status = cli.main(line)
        captured = capsys.readouterr()
        assert status in (1, 2), (line, captured)
        assert "Traceback" not in captured.err, (line, captured.err)
        assert captured.err.strip(), line
    assert tree(here) == {}
    assert all(name in ("out",) for name in tree(tmp_path / "out")) or not list(
        (tmp_path / "out").rglob("summary.json")
    )


def mutate(rng: random.Random, value: Any) -> Any:
    """The same JSON with something of it changed."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.7:
            place = inner
            continue
        kind = rng.randrange(4)
        if kind == 0:
            del place[key]
        elif kind == 1 and isinstance(place, dict):
            place[rng.choice(NONSENSE)] = inner
        else:
            place[key] = rng.choice([*NONSENSE, None, True, -1, 1e300, [], {}, [[]], 2**70])
        return value


def test_600_entries(configure, tmp_path, capsys):
    rng = random.Random(2)
    assert run(configure("ncm"), tmp_path / "out")["status"] == "done"
    entry = build_entry(read_runs(tmp_path / "out")[0], "ncm", "").model_dump(mode="json")
    path = tmp_path / "entry.json"
    refused = 0
    for number in range(600):
        if number % 3:
            text = json.dumps(mutate(rng, entry)).encode()
        else:
            whole = bytearray(json.dumps(entry).encode())
            for _ in range(rng.randrange(1, 30)):
                whole[rng.randrange(len(whole))] = rng.randrange(256)
            text = bytes(whole[: rng.randrange(len(whole))])
        path.write_bytes(text)
        try:
            read_entry(path)
        except UsageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 500
    # On the command line, too.
    status = cli.main(["leaderboard", str(tmp_path / "out"), "--add", str(path)])
    assert status == 2
    assert "Traceback" not in capsys.readouterr().err


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_checksum(body: bytes) -> bytes:
    """What our writer would have made of a zip archive's bytes: damage that a checksum hides."""
    comment = files._COMMENT + hashlib.sha256(body[:-2]).hexdigest().encode()
    return body[:-2] + struct.pack("<H", len(comment)) + comment


def test_680_state_files_with_a_checksum_that_fits(tmp_path):
    rng = random.Random(3)
    path, plain = tmp_path / "state.pt", tmp_path / "plain.pt"
    torch.save({"x": torch.arange(50.0), "n": [1, None, {"a": (1, 2)}], "s": "text"}, plain)
    body = plain.read_bytes()
    refused = 0
    for _ in range(680):
        damaged = bytearray(body)
        for _ in range(rng.randrange(1, 12)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(with_checksum(bytes(damaged)))
        try:
            assert isinstance(read_state(path), dict)
        except StateFileError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 300
    assert sorted(p.name for p in tmp_path.iterdir()) == ["plain.pt", "state.pt"]


def test_20_checkpoints_whose_content_is_nonsense(configure, do, tmp_path, monkeypatch):
    """With a checksum that fits: the run begins anew, and ends as it should."""
    rng = random.Random(4)
    monkeypatch.setenv(checkpoint.EVERY, "1")
    config = configure("er", options={"buffer": 3})
    whole = do(config, tmp_path / "whole")
    do(config, tmp_path / "cut", 2)
    path = run_directory(tmp_path / "cut", config) / checkpoint.NAME
    good = read_state(path)
    kept = path.read_bytes()
    for number in range(20):
        state = copy.deepcopy(good)
        place: Any = state
        for _ in range(rng.randrange(1, 4)):
            key = rng.choice(list(place))
            if not isinstance(place[key], dict) or not place[key]:
                break
            place = place[key]
        else:
            key = rng.choice(list(place))
        if key in ("experience", "samples") or isinstance(place[key], torch.Tensor):
            key, place = "strategy", state
        if number % 2:
            del place[key]
        else:
            place[key] = rng.choice(["💥", None, [], {}, torch.zeros(3)])
        if key in ("threads",):
            continue
        save_state(path, state)
        (path.parent / checkpoint.PREVIOUS).unlink(missing_ok=True)
        do(config, tmp_path / "cut").assert_equal(whole)
        (path.parent / "summary.json").unlink()
        path.write_bytes(kept)


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
