"""Data sets from the internet: fetched once, verified, unpacked safely and prepared under a root.

    ROOT/downloads/<data set>/<archive>   what was fetched (`.part` until it is whole) or put there
    ROOT/<data set>/                      the prepared data set, with `prepared.json`
    ROOT/<data set>.lock                  held by the process that prepares it

A data set is prepared in a temporary folder beside its place and renamed when everything was
verified: what has the name is whole. The lock is the operating system's and dies with its owner, so
that several processes may ask for one data set at once and an interrupted one leaves nothing to
clear away by hand.

What is verified: the archive's size and published hash as far as they are published; each member's
name, kind and size before a byte of it is written; then, by the data set, the number of classes
and images.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from filelock import FileLock, Timeout
from tqdm import tqdm

from avalanche_rwf.errors import UsageError
from avalanche_rwf.utils.untrusted_io import at_home
from avalanche_rwf.version import __version__

DATA_ROOT = "AVALANCHE_RWF_DATA"
"""Environment variable with the folder for data sets; `--data-root` sets it."""
MARKER = "prepared.json"
_CHUNK = 2**20
_TIMEOUT = 60.0
_ATTEMPTS = 8  # connections per address; each goes on where the last one was cut
_MEMBERS = 2_000_000  # no data set here has a tenth of that


class BadArchiveError(Exception):
    """An archive that is not what it should be: cut off, of another hash, or unsafe to unpack."""


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    :param name: file name under ROOT/downloads/<data set>; its ending says how it is unpacked
        (.tar, .tgz, .tar.gz, .zip, or .gz for a single file).
    :param urls: where it is, in the order of trying.
    :param size: bytes; None if nobody publishes it.
    :param digest: "sha256:..." or "md5:..."; None if nobody publishes it.
    :param unpacked: most bytes that unpacking may write.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None
    digest: str | None
    unpacked: int


@dataclass(frozen=True)
class DataFacts:
    """What is known of a data set before it is fetched; tests pass their own.

    :param name: its folder under the root.
    :param archives: what it is made of.
    :param images: number of images with a label.
    :param test: how many of them are test images; None where the split is this package's.
    :param classes: number of classes.
    :param page: where a person reads about it.
    :param files: published hashes, as in `Archive.digest`, of files in the prepared folder.
    """

    name: str
    archives: tuple[Archive, ...]
    images: int
    test: int | None
    classes: int
    page: str
    files: Mapping[str, str] = field(default_factory=dict)


def data_root(given: str | os.PathLike[str] | None = None) -> Path:
    """The folder for data sets: `given`, or the environment's, or ~/.avalanche/data (Avalanche's
    own)."""
    return at_home(given or os.environ.get(DATA_ROOT) or "~/.avalanche/data").absolute()


# ------------------------------------------------------------------------------------- preparation


def prepare(
    facts: DataFacts,
    root: Path,
    check: Callable[[Path], Mapping[str, Any]],
    download: bool = True,
) -> Path:
    """The folder of a data set, fetched, verified and unpacked first where that is not done yet.

    :param root: see the module's text.
    :param check: looks through the unpacked folder, may add files to it, and returns what the
        marker shall record (counts); raises `BadArchiveError` if anything is missing.
    :param download: False fetches nothing: archives must be there.
    :raises UsageError: no connection, no room, an archive that stays bad when fetched again; the
        sentence says which file to put where.
    """
    folder = root / facts.name
    if (folder / MARKER).is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{facts.name}.lock", facts.name):
            if not (folder / MARKER).is_file():
                _prepare(facts, root, folder, check, download)
    except OSError as error:
        raise UsageError(
            f"data set {facts.name!r} cannot be prepared in {str(root)!r} "
            f"({error.strerror or error}); --data-root or {DATA_ROOT} names another folder."
        ) from error
    return folder


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"Another process prepares {name}; waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _prepare(
    facts: DataFacts,
    root: Path,
    folder: Path,
    check: Callable[[Path], Mapping[str, Any]],
    download: bool,
) -> None:
    # Of a process that was killed: the lock is ours.
    for left in root.glob(f".{facts.name}.*.part"):
        shutil.rmtree(left, ignore_errors=True)
    if folder.exists():  # without a marker: not of our making
        raise UsageError(
            f"{str(folder)!r} exists and was not prepared by this program; move it away."
        )
    downloads = root / "downloads" / facts.name
    downloads.mkdir(parents=True, exist_ok=True)
    fetched: list[Path] = []
    temporary = Path(tempfile.mkdtemp(prefix=f".{facts.name}.", suffix=".part", dir=root))
    try:
        for archive in facts.archives:
            _one_archive(facts, archive, downloads / archive.name, temporary, download, fetched)
        try:
            record = check(temporary)
        except BadArchiveError as error:
            raise UsageError(
                f"data set {facts.name!r} is not as published: {error}; remove "
                f"{str(downloads)!r} to fetch it again."
            ) from error
        marker = {
            "name": facts.name,
            "archives": {a.name: {"bytes": a.size, "digest": a.digest} for a in facts.archives},
            **record,
        }
        (temporary / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
        temporary.chmod(0o755)  # mkdtemp's is for its owner alone
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for path in fetched:  # what a person put there stays
        path.unlink(missing_ok=True)


def _one_archive(
    facts: DataFacts,
    archive: Archive,
    path: Path,
    target: Path,
    download: bool,
    fetched: list[Path],
) -> None:
    """Get, verify and unpack one archive; one that is bad is fetched again, once."""
    for last in (False, True):
        if not path.is_file():
            if not download:
                raise UsageError(_by_hand(facts, archive, path, "it is not there"))
            _say(f"Fetching {facts.name}: {archive.name} ({facts.page})")
            try:
                fetch(archive, path)
            except BadArchiveError as error:
                raise UsageError(_by_hand(facts, archive, path, str(error))) from error
            fetched.append(path)
        stage = target / ".unpacking"  # so that nothing of a bad archive stays behind
        stage.mkdir()
        try:
            verify(path, archive)
            unpack(path, stage, archive.unpacked)
            for entry in sorted(stage.iterdir()):
                entry.rename(target / entry.name)
            return
        except BadArchiveError as error:
            if last or not download:
                why = f"what is there is bad: {error}"
                raise UsageError(_by_hand(facts, archive, path, why)) from error
            _say(f"{path} is bad ({error}); fetching it again.")
            # Only what was fetched is deleted; what a person put there is put aside.
            path.replace(path.with_name(f"{path.name}.bad"))
            if path in fetched:
                path.with_name(f"{path.name}.bad").unlink()
        finally:
            shutil.rmtree(stage)


def _by_hand(facts: DataFacts, archive: Archive, path: Path, why: str) -> str:
    return (
        f"data set {facts.name!r} needs the file {archive.name} ({why}): put "
        f"{archive.urls[0] if archive.urls else facts.page} at {str(path)!r} and start again."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress(items: Iterable[Any] | None, what: str, total: int | None, **how: Any) -> Any:
    """tqdm's bar on stderr; in a log, a line every ten seconds."""
    return tqdm(
        items, what, total, file=sys.stderr, dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 10, **how,
    )  # fmt: skip


# ----------------------------------------------------------------------------------------- fetching


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to an address that is less safe than HTTPS."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
                         ) -> Any:  # fmt: skip
        _check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    if parts.scheme != "https" and not (parts.scheme == "http" and local):
        raise BadArchiveError(f"{url} is no HTTPS address")


def fetch(archive: Archive, path: Path) -> None:
    """Fetch an archive to `path`, going on where an earlier call or a cut connection left off.

    :raises BadArchiveError: no address gave it, or not in the right size.
    """
    part = path.with_name(f"{path.name}.part")
    why = "it has no address"
    opener = urllib.request.build_opener(_HttpsOnly())
    for url in archive.urls:
        _check_address(url)
        with progress(None, archive.name, archive.size, unit="B", unit_scale=True) as bar:
            for _ in range(_ATTEMPTS):
                before = part.stat().st_size if part.exists() else 0
                try:
                    if _receive(opener, url, archive, part, bar):
                        part.replace(path)
                        return
                    why = f"{url} ended early"
                except urllib.error.HTTPError as error:
                    why = f"{url} answered {error.code}"
                    if error.code == 416:  # nothing beyond what is there: it is of another file
                        part.unlink(missing_ok=True)
                        continue
                    break
                except (OSError, HTTPException, ValueError) as error:
                    reason = getattr(error, "reason", None) or error
                    why = f"{urllib.parse.urlsplit(url).netloc} cannot be reached: {reason}"
                    if not part.exists() or part.stat().st_size == before:
                        break  # no connection at all
    raise BadArchiveError(" ".join(why.split()))


def _receive(
    opener: urllib.request.OpenerDirector, url: str, archive: Archive, part: Path, bar: Any
) -> bool:
    """One connection: add to `part` what it gives; whether the file is complete."""
    have = part.stat().st_size if part.exists() else 0
    if archive.size is not None and have >= archive.size:
        if have == archive.size:
            return True
        part.unlink()
        have = 0
    headers = {"User-Agent": f"avalanche-rwf/{__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with opener.open(request, timeout=_TIMEOUT) as answer:
        resumed = answer.status == 206 and str(answer.headers.get("Content-Range", "")).startswith(
            f"bytes {have}-"
        )
        have = have if resumed else 0  # a server that knows no ranges starts from the beginning
        total, length = archive.size, answer.headers.get("Content-Length")
        if total is None and length is not None:
            total = have + int(length)
        bar.total = total
        bar.n = have
        with part.open("ab" if resumed else "wb") as file:
            while chunk := answer.read(_CHUNK):
                have += len(chunk)
                if have > (archive.unpacked if total is None else total):
                    part.unlink()
                    raise BadArchiveError(f"{url} gives more bytes than it should")
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or have == total


# ------------------------------------------------------------------------------------- verification


def verify(path: Path, archive: Archive) -> None:
    """Check size and hash of an archive.

    :raises BadArchiveError: saying what it has and what it should have.
    """
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise BadArchiveError(f"it has {size} bytes instead of {archive.size}")
    if archive.digest is not None:
        check_digest(path, archive.digest)


def check_digest(path: Path, digest: str) -> None:
    """Compare a file's hash with "algorithm:hexdigits".

    :raises BadArchiveError: if they differ.
    """
    algorithm, _, wanted = digest.partition(":")
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    if hasher.hexdigest() != wanted:
        raise BadArchiveError(f"its {algorithm} is {hasher.hexdigest()} instead of {wanted}")


# ---------------------------------------------------------------------------------------- unpacking


def unpack(path: Path, target: Path, limit: int) -> None:
    """Unpack an archive into a folder: plain files and folders inside it, and nothing else.

    :param limit: most bytes that are written.
    :raises BadArchiveError: cut off, damaged, larger than `limit`, or with a member that is a link,
        a device, or outside of `target`.
    """
    left = limit
    try:
        for number, member in enumerate(_members(path)):
            if number == _MEMBERS:
                raise BadArchiveError(f"it has more than {_MEMBERS} members")
            # No link is ever made below `target`: what is inside by its name stays inside.
            if not is_inside(member.name):
                raise BadArchiveError(f"its member {member.name!r} lies outside of it")
            if not member.plain:
                raise BadArchiveError(f"its member {member.name!r} is no plain file")
            place = target.joinpath(*PurePosixPath(member.name).parts)
            (place if member.folder else place.parent).mkdir(parents=True, exist_ok=True)
            if member.folder:
                continue
            before = left
            with member.open() as source, place.open("wb") as file:
                while chunk := source.read(_CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise BadArchiveError(f"it unpacks to more than {limit} bytes")
                    file.write(chunk)
            if member.size not in (None, before - left):
                raise BadArchiveError(f"its member {member.name!r} is cut off")
    except (
        tarfile.TarError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile, EOFError,
        RuntimeError,  # of zipfile: a password, or (a kind of it) an unknown compression
        FileExistsError, IsADirectoryError, NotADirectoryError,  # one name for file and folder
    ) as error:  # fmt: skip
        raise BadArchiveError(f"it cannot be unpacked ({error or type(error).__name__})") from error


class _Member(NamedTuple):
    """What an archive says of one member; `plain`: it is a file or a folder."""

    name: str
    plain: bool
    folder: bool
    size: int | None
    open: Callable[[], Any]


def _members(path: Path) -> Iterator[_Member]:
    """Members in their order; each is opened before the next is asked for."""
    name = path.name.lower()
    if name.endswith(".zip"):
        with zipfile.ZipFile(path) as zipped:  # checks a member's CRC-32 at its end
            for one in zipped.infolist():
                kind = stat.S_IFMT(one.external_attr >> 16)
                plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
                opener = functools.partial(zipped.open, one)
                yield _Member(one.filename, plain, one.is_dir(), one.file_size, opener)
    elif name.endswith((".tar", ".tgz", ".tar.gz")):
        with tarfile.open(path, "r:*") as tar:
            for entry in tar:
                plain = entry.isdir() or (entry.isreg() and not entry.issparse())
                reader = functools.partial(tar.extractfile, entry)
                yield _Member(entry.name, plain, entry.isdir(), entry.size, reader)
            # To the end, where gzip has its sum: tarfile stops at the archive's own end.
            while cast("IO[bytes]", tar.fileobj).read(_CHUNK):
                pass
    elif name.endswith(".gz"):
        single = functools.partial(gzip.open, path, "rb")
        yield _Member(path.name[: -len(".gz")], True, False, None, single)
    else:
        raise ValueError(f"{path.name} is no archive that is known here.")


def is_inside(name: str) -> bool:
    """Whether a path in a folder, as POSIX writes it on every system, stays there without links."""
    path = PurePosixPath(name)
    return not path.is_absolute() and not any(
        part == ".." or "\\" in part or ":" in part or "\0" in part for part in path.parts
    )
