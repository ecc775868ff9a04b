"""Files are whole or not there, and a state file tells when a bit of it has changed."""

from __future__ import annotations

import errno
import os
import random

import pytest
import torch

from avalanche_rwf.utils import atomic_io
from avalanche_rwf.utils.atomic_io import StateFileError, read_state, save_state, write_whole

STATE = {
    "x": torch.arange(3000.0),
    "b": torch.tensor([True, False]),
    "none": [None, 1, -2.5, "text ±", True, (1, 2)],
    "empty": torch.zeros(0),
    "nested": {0: {"half": torch.ones(3, dtype=torch.bfloat16)}},
}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return type(a) is type(b) and a == b


def loaded(path):
    """The state, or None if the file is absent or damaged."""
    try:
        return read_state(path)
    except StateFileError:
        return None


def test_a_state_comes_back_and_pytorch_reads_it_without_us(tmp_path):
    path = tmp_path / "a" / "state.pt"
    save_state(path, STATE)
    assert same(read_state(path), STATE)
    assert same(torch.load(path, weights_only=True), STATE)
    assert [p.name for p in path.parent.iterdir()] == ["state.pt"]


def test_states_come_back_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {"x": torch.randn(3), "n": [1, None, "a"], "d": {0: torch.tensor([True])}}
    save_state(path, state)
    read = loaded(path)
    assert read is not None
    assert torch.equal(read["x"], state["x"])
    assert (read["n"], read["d"][0].item()) == (state["n"], True)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_damaged_states_read_as_absent_and_run_nothing(tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert loaded(path) is None
    save_state(path, {"x": torch.randn(300)})
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\x80\x04cos\nsystem\n."):
        path.write_bytes(content)
        assert loaded(path) is None


def test_the_generation_before_is_kept(tmp_path):
    path, previous = tmp_path / "state.pt", tmp_path / "state.1.pt"
    for n in range(3):
        save_state(path, {"n": n}, previous)
    assert read_state(path) == {"n": 2}
    assert read_state(previous) == {"n": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state.1.pt", "state.pt"]


def test_every_cut_and_every_changed_bit_is_noticed(tmp_path):
    path = tmp_path / "state.pt"
    save_state(path, STATE)
    whole, rng = path.read_bytes(), random.Random(0)
    cuts = [0, 1, 21, 22, 100, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(40))]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(StateFileError, match=r"^'state\.pt' .*\.$"):
            read_state(path)
    for _ in range(100):
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        # The two bytes that say how long the comment is are no part of what is hashed.
        assert loaded(path) is None or same(loaded(path), STATE)
    path.write_bytes(whole + b"more")
    assert loaded(path) is None


def test_what_is_no_state_file_is_said_in_a_sentence(tmp_path):
    with pytest.raises(StateFileError, match=r"There is no file 'none\.pt'"):
        read_state(tmp_path / "none.pt")
    with pytest.raises(StateFileError, match="There is no file"):
        read_state(tmp_path)
    torch.save({"plain": 1}, tmp_path / "plain.pt")
    with pytest.raises(StateFileError, match="cut short or is no state of avalanche_rwf"):
        read_state(tmp_path / "plain.pt")


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_a_valid_checksum_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "state.pt", tmp_path / "executed"
    with path.open("wb") as file:
        digesting = atomic_io._HashingFile(file)
        torch.save({"x": Payload(trace)}, digesting)
        digesting.finish()
    with pytest.raises(StateFileError, match="more than tensors and plain values"):
        read_state(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # the payload works, for whoever runs it
    assert trace.exists()


@pytest.mark.parametrize("after", range(8))
def test_a_full_disk_leaves_the_old_file_and_nothing_else(after, tmp_path, monkeypatch):
    path, previous = tmp_path / "state.pt", tmp_path / "state.1.pt"
    save_state(path, {"n": 1}, previous)

    class Full:
        def __init__(self, file) -> None:
            self.file, self.calls = file, 0

        def write(self, data) -> int:
            if self.calls == after:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.calls += 1
            return self.file.write(data)

    init = atomic_io._HashingFile.__init__
    monkeypatch.setattr(
        atomic_io._HashingFile, "__init__", lambda self, file: init(self, Full(file))
    )
    with pytest.raises(OSError, match="No space left") as caught:
        save_state(path, STATE, previous)
    assert caught.value.errno == errno.ENOSPC
    assert read_state(path) == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_that_is_gone_is_an_error_of_the_system(tmp_path):
    folder = tmp_path / "folder"

    def write(file) -> None:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        file.write(b"x")

    with pytest.raises(FileNotFoundError):
        write_whole(folder / "file", write)
