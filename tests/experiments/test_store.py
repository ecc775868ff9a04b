"""Files are whole or not there; damaged ones read as absent."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import torch

from avalanche_rwf.errors import UsageError
from avalanche_rwf.experiments import lease, store


def test_text_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a" / "b.txt"
    store.write_text(path, "one")
    store.write_text(path, "two ±")
    assert path.read_text(encoding="utf-8") == "two ±"
    assert [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "b.txt"
    store.write_text(path, "one")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.write_text(path, "two")
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["b.txt"]


def test_others_may_read_what_the_umask_lets_them(tmp_path):
    before = os.umask(0o027)
    try:
        store.write_text(tmp_path / "b.txt", "one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "b.txt").stat().st_mode) == 0o640


def test_json_is_strict(tmp_path):
    path = tmp_path / "a.json"
    store.write_json(path, {"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": (1, None)}})
    assert json.loads(path.read_text()) == {"a": None, "b": [1.5, None], "c": {"d": [1, None]}}
    assert "NaN" not in path.read_text()
    assert store.read_json(path) == {"a": None, "b": [1.5, None], "c": {"d": [1, None]}}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_damaged_json_reads_as_absent(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    assert store.read_json(tmp_path / "a.json") is None
    assert store.read_json(tmp_path / "none.json") is None


def test_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    store.check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_writable_refuses_what_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").write_text("")
    for bad in (tmp_path / "file", tmp_path / "file" / "out", tmp_path / "out"):
        with pytest.raises(UsageError, match="--out takes a folder"):
            store.check_writable(bad)


def test_the_environment_names_what_numbers_depend_on():
    found = store.environment("cpu")
    assert set(found) == {"versions", "hardware", "git"}
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in (
        found["versions"]["torch"]
    )
    assert found["hardware"]["threads"] == torch.get_num_threads()
    json.dumps(found)


def test_where_nothing_tells_they_are_left_out(monkeypatch, tmp_path):
    """As on macOS, in an installed wheel, and without git."""
    read = Path.read_text

    def no_proc(self, *args, **kwargs):
        if self.parts[:2] == ("/", "proc"):
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", no_proc)
        patch.setattr(store.platform, "processor", lambda: "arm")
        assert store.environment("cpu")["hardware"]["cpu"] == "arm"
        patch.setattr(store.platform, "processor", lambda: "")
        assert store.environment("cpu")["hardware"]["cpu"] == store.platform.machine()
    with monkeypatch.context() as patch:
        (tmp_path / ".git").mkdir()  # of no repository
        patch.setattr(store, "__file__", str(tmp_path / "package" / "floor" / "store.py"))
        assert store.environment("cpu")["git"] is None
        patch.setenv("PATH", "")
        assert store.environment("cpu")["git"] is None
        (tmp_path / ".git").rmdir()
        assert store.environment("cpu")["git"] is None


def test_on_a_file_system_without_locks_one_is_in_at_a_time(monkeypatch, tmp_path):
    def acquire(self, *args, **kwargs):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(lease.FileLock, "acquire", acquire)
    with lease.locked(tmp_path / "seed0") as mine, lease.locked(tmp_path / "seed0") as too:
        assert mine and not too
    with lease.locked(tmp_path / "seed0") as mine:
        assert mine


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("folder:\udcff\u00e9", "folder:\\udcff\u00e9"),
        ("ncm on folder:b\udcffd", "ncm on folder:b\\udcffd"),
    ],
)
def test_a_text_that_names_a_folder_of_any_bytes_is_written(text, written, tmp_path):
    store.write_text(tmp_path / "log.txt", text)
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == written
