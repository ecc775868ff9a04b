"""Fetching, verifying, unpacking and preparing, from a server on the loopback interface."""

from __future__ import annotations

import gzip
import io
import os
import re
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from dataclasses import replace

import pytest

from avalanche_rwf.benchmarks import download
from avalanche_rwf.benchmarks.download import (
    MARKER,
    Archive,
    BadArchiveError,
    data_root,
    fetch,
    prepare,
    unpack,
)
from avalanche_rwf.errors import UsageError

FILES = {"top/a.txt": b"a" * 5000, "top/b.txt": b"b" * 3000}


def count(folder):
    found = sorted(path.name for path in (folder / "top").iterdir())
    if found != ["a.txt", "b.txt"]:
        raise BadArchiveError(f"it has {found}")
    return {"files": len(found)}


def nothing_left(root):
    """No temporary folder and no half-fetched file."""
    return not [path for path in root.rglob("*") if path.name.endswith((".part", ".unpacking"))]


def test_the_root_is_given_or_the_environments_or_avalanches(monkeypatch, tmp_path):
    monkeypatch.delenv(download.DATA_ROOT, raising=False)
    assert data_root().parts[-2:] == (".avalanche", "data")
    monkeypatch.setenv(download.DATA_ROOT, str(tmp_path))
    assert data_root() == tmp_path
    assert data_root(tmp_path / "x") == tmp_path / "x"


def test_a_good_archive_is_prepared_once_and_not_kept(tmp_path, server, make, capsys):
    facts = make.facts(server, {"set.tar": make.tar(FILES)}, 2, None, 1)
    for _ in range(2):
        folder = prepare(facts, tmp_path, count)
        assert folder == tmp_path / "set"
        assert (folder / "top" / "a.txt").read_bytes() == FILES["top/a.txt"]
    assert server.ranges == [None]
    assert '"files": 2' in (folder / MARKER).read_text()
    assert not (tmp_path / "downloads" / "set" / "set.tar").exists() and nothing_left(tmp_path)
    captured = capsys.readouterr()
    assert captured.out == "" and "set.tar" in captured.err


def test_an_archive_put_there_by_hand_is_used_and_kept(tmp_path, server, make):
    data = make.tar(FILES)
    facts = make.facts(server, {"set.tar": data}, 2, None, 1)
    server.files.clear()
    (tmp_path / "downloads" / "set").mkdir(parents=True)
    (tmp_path / "downloads" / "set" / "set.tar").write_bytes(data)
    prepare(facts, tmp_path, count, download=False)
    assert server.ranges == [] and (tmp_path / "downloads" / "set" / "set.tar").exists()


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_cut_connection_is_resumed(tmp_path, server, make, knows_ranges):
    data = make.tar(FILES)
    facts = make.facts(server, {"set.tar": data}, 2, None, 1)
    server.cuts, server.knows_ranges = [4000, 2000], knows_ranges
    prepare(facts, tmp_path, count)
    assert server.ranges == [None, "bytes=4000-", f"bytes={6000 if knows_ranges else 2000}-"]


def test_a_later_call_goes_on_where_a_killed_one_stopped(tmp_path, server, make):
    data = make.tar(FILES)
    facts = make.facts(server, {"set.tar": data}, 2, None, 1)
    (tmp_path / "downloads" / "set").mkdir(parents=True)
    (tmp_path / "downloads" / "set" / "set.tar.part").write_bytes(data[:3000])
    (tmp_path / ".set.old.part").mkdir()  # what it had unpacked
    (tmp_path / ".set.old.part" / "x").write_text("x")
    prepare(facts, tmp_path, count)
    assert server.ranges == ["bytes=3000-"] and nothing_left(tmp_path)


def test_a_partial_file_of_another_archive_is_noticed_and_fetched_again(
    tmp_path, server, make, capsys
):
    data = make.tar(FILES)
    facts = make.facts(server, {"set.tar": data}, 2, None, 1)
    (tmp_path / "downloads" / "set").mkdir(parents=True)
    (tmp_path / "downloads" / "set" / "set.tar.part").write_bytes(b"?" * 3000)
    prepare(facts, tmp_path, count)
    assert server.ranges == ["bytes=3000-", None]
    assert "set.tar is bad (its sha256 is" in capsys.readouterr().err


@pytest.mark.parametrize("size_is_known", [True, False])
def test_a_truncated_archive_is_named_put_aside_and_fetched_again(
    tmp_path, server, make, capsys, size_is_known
):
    data = make.zipped(FILES)
    known = {} if size_is_known else {"size": None, "digest": None}
    facts = make.facts(server, {"set.zip": data}, 2, None, 1, **known)
    (tmp_path / "downloads" / "set").mkdir(parents=True)
    path = tmp_path / "downloads" / "set" / "set.zip"
    path.write_bytes(data[: len(data) // 2])
    prepare(facts, tmp_path, count)
    said = capsys.readouterr().err
    assert str(path) in said and "fetching it again" in said
    assert path.with_name("set.zip.bad").exists()  # a person's own file is not deleted


def test_a_wrong_hash_at_the_source_is_an_error_that_leaves_nothing(tmp_path, server, make):
    facts = make.facts(server, {"set.tar": make.tar(FILES)}, 2, None, 1, digest="md5:" + "0" * 32)
    with pytest.raises(UsageError, match=r"its md5 is [0-9a-f]{32} instead of 0{32}"):
        prepare(facts, tmp_path, count)
    assert len(server.ranges) == 2 and not (tmp_path / "set").exists() and nothing_left(tmp_path)


def test_a_set_that_is_not_as_published_is_an_error_that_leaves_nothing(tmp_path, server, make):
    facts = make.facts(server, {"set.tar": make.tar({"top/a.txt": b"a"})}, 2, None, 1)
    with pytest.raises(UsageError, match=r"'set' is not as published: it has \['a.txt'\]; "):
        prepare(facts, tmp_path, count)
    assert not (tmp_path / "set").exists() and nothing_left(tmp_path)


def test_an_interruption_leaves_nothing_that_looks_finished(tmp_path, server, make):
    facts = make.facts(server, {"set.tar": make.tar(FILES)}, 2, None, 1)

    def interrupted(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(facts, tmp_path, interrupted)
    assert not (tmp_path / "set").exists() and nothing_left(tmp_path)
    prepare(facts, tmp_path, count)
    (tmp_path / "other").mkdir()  # no marker: not ours
    with pytest.raises(UsageError, match="was not prepared by this program; move it away"):
        prepare(replace(facts, name="other"), tmp_path, count)


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("why", ["no connection", "not found", "http", "told not to"])
def test_without_network_the_sentence_says_which_file_goes_where(tmp_path, server, make, why):
    url = {
        "no connection": f"http://127.0.0.1:{closed_port()}/set.tar",
        "not found": f"{server.address}/nowhere.tar",
        "http": "http://example.org/set.tar",
        "told not to": f"{server.address}/set.tar",
    }[why]
    facts = make.facts(server, {"set.tar": make.tar(FILES)}, 2, None, 1)
    facts = replace(facts, archives=(replace(facts.archives[0], urls=(url,)),))
    with pytest.raises(UsageError) as error:
        prepare(facts, tmp_path, count, download=why != "told not to")
    said = str(error.value)
    place = tmp_path / "downloads" / "set" / "set.tar"
    assert said.endswith(f"put {url} at {str(place)!r} and start again.")
    assert "\n" not in said
    cause = {"no connection": "cannot be reached", "not found": "answered 404",
             "http": "is no HTTPS address", "told not to": "is not there"}  # fmt: skip
    assert cause[why] in said


def test_the_next_address_is_tried_and_too_many_bytes_are_refused(tmp_path, server, make):
    data = make.tar(FILES)
    facts = make.facts(server, {"set.tar": data}, 2, None, 1)
    urls = (f"{server.address}/nowhere", *facts.archives[0].urls)
    fetch(replace(facts.archives[0], urls=urls), tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    server.says_length = False
    with pytest.raises(BadArchiveError, match="more bytes"):
        fetch(replace(facts.archives[0], size=len(data) - 1), tmp_path / "y")
    with pytest.raises(BadArchiveError, match="more bytes"):
        fetch(replace(facts.archives[0], size=None, unpacked=100), tmp_path / "y")
    assert not (tmp_path / "y").exists()


def test_a_redirection_away_from_https_is_not_followed(monkeypatch):
    follow = download._HttpsOnly().redirect_request
    request = download.urllib.request.Request("https://example.org/a")
    assert follow(request, None, 302, "", {}, "https://example.com/b").host == "example.com"
    for url in ("http://example.com/b", "ftp://example.com/b", "file:///etc/passwd"):
        with pytest.raises(BadArchiveError, match="is no HTTPS address"):
            follow(request, None, 302, "", {}, url)


def test_threads_and_processes_that_ask_at_once_prepare_once(tmp_path, server, make):
    facts = make.facts(server, {"set.tar": make.tar(FILES)}, 2, None, 1)
    prepared, folders = [], []

    def slow(folder):
        prepared.append(folder)
        time.sleep(0.1)
        return count(folder)

    threads = [
        threading.Thread(target=lambda: folders.append(prepare(facts, tmp_path, slow)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "set"] * 3 and len(prepared) == 1


def test_the_lock_is_the_systems_and_dies_with_its_owner(tmp_path, server, make, capsys):
    facts = make.facts(server, {"set.tar": make.tar(FILES)}, 2, None, 1)
    code = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]);"
        "lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "set.lock")], stdout=subprocess.PIPE
    )
    assert owner.stdout.readline().strip() == b"held"
    waiting = threading.Thread(target=prepare, args=(facts, tmp_path, count))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and not (tmp_path / "set").exists()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    waiting.join(20)
    assert (tmp_path / "set" / MARKER).exists()
    assert "Another process prepares set; waiting" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- unpacking


def member(name, kind=tarfile.REGTYPE, **values):
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in values.items():
        setattr(info, key, value)
    return info


def write_tar(path, *members):
    with tarfile.open(path, "w") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(b"x" * info.size))


@pytest.mark.parametrize("name", ["../out", "/out.txt", "a/../../out", "a\\..\\out", "C:/x"])
@pytest.mark.parametrize("ending", [".tar", ".zip"])
def test_no_member_leaves_the_target(tmp_path, make, name, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes((make.tar if ending == ".tar" else make.zipped)({name: b"x"}))
    (tmp_path / "in").mkdir()
    with pytest.raises(BadArchiveError, match=re.escape("lies outside of it")):
        unpack(path, tmp_path / "in", 10**6)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "in"]
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize(
    "info",
    [
        member("link", tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("link", tarfile.SYMTYPE, linkname="inside"),
        member("link", tarfile.LNKTYPE, linkname="inside"),
        member("pipe", tarfile.FIFOTYPE),
        member("device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("disk", tarfile.BLKTYPE, devmajor=8, devminor=0),
    ],
    ids=["link out", "link in", "hard link", "pipe", "character device", "block device"],
)
def test_no_link_or_special_file_of_a_tar(tmp_path, info):
    write_tar(tmp_path / "a.tar", member("inside", size=3), info)
    with pytest.raises(BadArchiveError, match=f"member '{info.name}' is no plain file"):
        unpack(tmp_path / "a.tar", tmp_path / "in", 10**6)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["inside"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(BadArchiveError, match="member 'link' is no plain file"):
        unpack(tmp_path / "a.zip", tmp_path / "in", 10**6)


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip", ".gz"])
def test_no_more_is_written_than_the_known_size(tmp_path, make, ending):
    files = {"zeros": b"\0" * 2**21, "more": b"\0" * 2**21}
    data = {
        ".tar": lambda: make.tar(files),
        ".tgz": lambda: make.tar(files, "w:gz"),
        ".zip": lambda: make.zipped(files),
        ".gz": lambda: gzip.compress(files["zeros"] * 2),
    }[ending]()
    (tmp_path / f"a{ending}").write_bytes(data)
    (tmp_path / "in").mkdir()
    with pytest.raises(BadArchiveError, match="unpacks to more than 3000000 bytes"):
        unpack(tmp_path / f"a{ending}", tmp_path / "in", 3_000_000)
    assert sum(p.stat().st_size for p in (tmp_path / "in").iterdir()) <= 3_000_000


@pytest.mark.parametrize("ending", [".tar", ".tgz", ".zip", ".gz"])
def test_what_is_cut_off_or_damaged_is_bad(tmp_path, make, ending):
    noise = {"a": os.urandom(5000), "b": os.urandom(5000)}
    data = {
        ".tar": lambda: make.tar(noise),
        ".tgz": lambda: make.tar(noise, "w:gz"),
        ".zip": lambda: make.zipped(noise),
        ".gz": lambda: gzip.compress(noise["a"]),
    }[ending]()
    path = tmp_path / f"a{ending}"
    (tmp_path / "in").mkdir()
    path.write_bytes(data)
    unpack(path, tmp_path / "in", 10**6)
    path.write_bytes(data[:4000])
    with pytest.raises(BadArchiveError):
        unpack(path, tmp_path / "in", 10**6)
    if ending != ".tar":  # a plain one has no sums of its data
        path.write_bytes(data[:3000] + bytes([data[3000] ^ 255]) + data[3001:])
        with pytest.raises(BadArchiveError):
            unpack(path, tmp_path / "in", 10**6)


def test_folders_and_dots_in_names_are_fine(tmp_path):
    (tmp_path / "in").mkdir()
    for name in (".", "d"):  # a file in the place of a folder
        write_tar(tmp_path / "a.tar", member("d", tarfile.DIRTYPE), member(name, size=3))
        with pytest.raises(BadArchiveError, match="cannot be unpacked"):
            unpack(tmp_path / "a.tar", tmp_path / "in", 100)
    write_tar(
        tmp_path / "b.tar",
        member(".", tarfile.DIRTYPE), member("./d", tarfile.DIRTYPE), member("./d/e.x", size=3),
    )  # fmt: skip
    unpack(tmp_path / "b.tar", tmp_path / "in2", 100)
    assert (tmp_path / "in2" / "d" / "e.x").read_bytes() == b"xxx"


def test_published_facts_are_complete():
    """Every archive that is registered: HTTPS addresses, and hashes where the docstring says so."""
    from avalanche_rwf.benchmarks.datasets import (
        cifar100,
        cub200,
        imagenet_r,
        imagenet_sketch,
        mnist,
        tiny_imagenet,
    )

    every = [m.FACTS for m in (cifar100, cub200, imagenet_r, imagenet_sketch, tiny_imagenet)]
    every += mnist.FACTS.values()
    for facts in every:
        for archive in facts.archives:
            assert isinstance(archive, Archive)
            assert archive.urls and all(url.startswith("https://") for url in archive.urls)
            unpublished = facts.name == "imagenet-sketch"
            assert (archive.digest is None) == (archive.size is None) == unpublished
            if archive.digest is not None:
                assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.digest)
    assert len({facts.name for facts in every}) == len(every) == 7
