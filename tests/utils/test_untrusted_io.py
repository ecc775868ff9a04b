"""JSON of anybody's: an object, or a refusal in a few words, and no waiting for a pipe."""

from __future__ import annotations

import json
import os

import pytest

from avalanche_rwf.utils.untrusted_io import read_end, read_file, read_object


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


def test_the_end_of_a_file_is_not_read_through_a_link(tmp_path):
    (tmp_path / "log").write_bytes(b"abcdef")
    assert [read_end(tmp_path / "log", most) for most in (0, 3, 9)] == [b"", b"def", b"abcdef"]
    (tmp_path / "link").symlink_to("log")
    with pytest.raises(OSError, match="link"):
        read_end(tmp_path / "link", 3)
    assert read_file(tmp_path / "link") == b"abcdef"


def test_a_file_beyond_any_of_ours_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"more than 100,000,000 bytes"):
        read_file(tmp_path / "sparse")
    assert read_end(tmp_path / "sparse", 4) == bytes(4)
