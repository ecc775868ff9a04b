"""JSON of anybody's: an object, or a refusal in a few words, and no waiting for a pipe."""

from __future__ import annotations

import json
import os

import pytest

from avalanche_rwf.plain import read_object


def test_an_object_is_read_as_it_is(tmp_path):
    path = tmp_path / "a.json"
    value = {"a": [1, 2.5, None, {"b": "é\ud800"}], "n": 10**30}
    path.write_text(json.dumps(value))
    assert read_object(path) == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number of 5000 digits"),
        (b"[1]", "holds a list"),
        (b"null", "holds a NoneType"),
        (b"", "Expecting value"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xff"}', "decode"),
    ],
)
def test_what_is_no_plain_object_is_refused(content, says, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        read_object(path)


def test_pipes_devices_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "zero").symlink_to("/dev/zero")  # and this fill the memory
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        with pytest.raises(OSError, match=r"no file|directory"):
            read_object(path)
