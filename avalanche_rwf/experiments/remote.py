"""``--out URL``: results in an object store, or in whatever place :mod:`fsspec` knows.

A run is done in a folder of this user on the machine's own disk (:func:`local_folder`), and its
files are copied to the URL: checkpoint and log while it goes on, the rest when it is done.

Such places can neither rename a folder nor lock one. So ``summary.json`` is written last: a run
directory counts when that is whole, and until then it is an unfinished run. One command gives a run
to one process at a time; two commands on one URL may do a run twice, and write the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from avalanche_rwf.errors import UsageError, reason
from avalanche_rwf.experiments.background import repeated
from avalanche_rwf.experiments.store import finished

SUMMARY = "summary.json"
_EVERY = 30.0  # seconds between two copies of a checkpoint
_TABLES = ("left_out.json", "precision.json")
_CHECKPOINTS = ("checkpoint.pt", "checkpoint.previous.pt")


def is_url(text: str) -> bool:
    """Whether this names a place by its protocol, such as ``s3://bucket/sweep``."""
    return "://" in text


def local_folder(url: str) -> Path:
    """The folder of this machine that stands for a URL, below ``$XDG_CACHE_HOME`` or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16]
    return Path(home).expanduser() / "avalanche-rwf" / "out" / name


class Remote:
    """The place behind a URL.

    :param url: such as ``s3://bucket/sweep``.
    :raises UsageError: if the protocol is unknown, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        fsspec: Any = importlib.import_module("fsspec")
        self.url, self.local = url.rstrip("/"), local_folder(url)
        try:
            self.fs, root = fsspec.core.url_to_fs(self.url)
        except Exception as error:  # each protocol has its own kinds
            raise self._error(error) from None
        self.root = str(root).rstrip("/")

    def _error(self, error: Exception) -> UsageError:
        shown = self.url.rpartition("@")[2] if "@" in self.url else self.url  # no password
        return UsageError(f"{shown!r} cannot be used as a place of results ({reason(error)}).")

    def check(self) -> None:
        """Write a small file there, and remove it.

        :raises UsageError: if that cannot be done.
        """
        probe = f"{self.root}/.avalanche-rwf-{uuid.uuid4().hex}"
        try:
            self.fs.makedirs(self.root, exist_ok=True)
            self.fs.pipe_file(probe, b"")
            self.fs.rm_file(probe)
        except Exception as error:
            raise self._error(error) from None

    def get(self) -> Path:
        """Bring what is finished there into the local folder, and the other way round; gives it.

        :raises UsageError: if the place cannot be read.
        """
        try:
            for path in self._finished():
                self.pull(path)
            there = set(self._finished())
            for summary in self.local.glob(f"runs/*/*/*/seed*/{SUMMARY}"):
                path = summary.parent.relative_to(self.local).as_posix()
                if path not in there and finished(summary.parent):
                    self.push(path)
            for name in (*_TABLES, "tuning"):
                if self.fs.exists(f"{self.root}/{name}") and not (self.local / name).exists():
                    self.fs.get(f"{self.root}/{name}", str(self.local / name), recursive=True)
        except Exception as error:
            raise self._error(error) from None
        return self.local

    def _finished(self) -> list[str]:
        """Run directories with a summary, relative to the root."""
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            found = self.fs.find(f"{self.root}/runs")
            paths = [path[len(self.root) :].strip("/") for path in found]
            return [p.rpartition("/")[0] for p in paths if p.endswith(f"/{SUMMARY}")]
        return []

    def pull(self, path: str) -> None:
        """Bring a run directory here, whole or not at all.

        A finished one takes the place of an unfinished one; of that the checkpoint here is good.
        """
        folder, there = self.local / path, b""
        if finished(folder):
            return
        with contextlib.suppress(FileNotFoundError):
            there = self.fs.cat_file(f"{self.root}/{path}/{SUMMARY}")
        if not _is_done(there) and any((folder / name).exists() for name in _CHECKPOINTS):
            return
        with contextlib.suppress(FileNotFoundError):
            files = self.fs.ls(f"{self.root}/{path}", detail=False)
            part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
            part.mkdir(parents=True)
            try:
                for file in files:
                    self.fs.get_file(file, str(part / file.rpartition("/")[2]))
                if not finished(part):  # cut, or to be done again
                    (part / SUMMARY).unlink(missing_ok=True)
                if folder.exists():
                    shutil.rmtree(folder)
                part.rename(folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)

    def push(self, path: str) -> None:
        """Copy a run directory there, its summary last; of a finished one no checkpoint is left."""
        folder, there = self.local / path, f"{self.root}/{path}"
        files = [file for file in folder.iterdir() if file.is_file() and file.name[0] != "."]
        for file in sorted(files, key=lambda file: file.name == SUMMARY):
            self._put(file, f"{there}/{file.name}")
        if finished(folder):
            for name in _CHECKPOINTS:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(f"{there}/{name}")

    def push_tables(self) -> None:
        """Copy what a command writes besides runs."""
        for name in ("leaderboard.csv", *_TABLES):
            if (self.local / name).exists():
                self._put(self.local / name, f"{self.root}/{name}")
        for file in (self.local / "tuning").glob("*.json"):
            self._put(file, f"{self.root}/tuning/{file.name}")

    def _put(self, file: Path, there: str) -> None:
        self.fs.makedirs(there.rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(file), there)

    @contextlib.contextmanager
    def mirrored(self, path: str) -> Iterator[None]:
        """Bring a run's checkpoint, copy it back while the block runs, and all at the end."""
        self.pull(path)
        copied: dict[Path, int] = {}

        def copy() -> None:
            for name in (*_CHECKPOINTS, "log.txt"):
                file = self.local / path / name
                # The file may be renamed at any moment, and the place be out of reach for a while.
                with contextlib.suppress(Exception):
                    stamp = file.stat().st_mtime_ns
                    if copied.get(file) != stamp:
                        self._put(file, f"{self.root}/{path}/{name}")
                        copied[file] = stamp

        try:
            with repeated(copy, _EVERY, "mirror"):
                yield
        except BaseException:
            with contextlib.suppress(Exception):  # the run's own error is reported, not this one
                self.push(path)
            raise
        self.push(path)


def _is_done(content: bytes) -> bool:
    with contextlib.suppress(ValueError, AttributeError):
        return bool(json.loads(content).get("status") == "done")
    return False


def folders_of(names: Sequence[str]) -> list[Path]:
    """Folders of results; what is behind a URL is brought to this machine first."""
    return [Remote(name).get() if is_url(name) else Path(name) for name in names]
