"""Small archives in the published layouts, and a server on the loopback interface that gives them
whole, cut off, or in ranges."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from avalanche_rwf.benchmarks.download import Archive, DataFacts


class Server:
    """`files` by name; `ranges` holds the Range header of every request, None for none."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.cuts: list[int] = []  # of the next answers: bytes after which the connection ends
        self.knows_ranges = True
        self.says_length = True
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.ranges.append(wanted)
        data = self.files.get(request.path.lstrip("/"))
        if data is None:
            request.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(data) and wanted:
            request.send_error(416)
            return
        start = start if self.knows_ranges else 0
        request.send_response(206 if wanted and self.knows_ranges else 200)
        if wanted and self.knows_ranges:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if self.says_length:
            request.send_header("Content-Length", str(len(data) - start))
        request.end_headers()
        cut = self.cuts.pop(0) if self.cuts else len(data)
        request.wfile.write(data[start : start + cut])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


def picture(seed: int, side: int = 12, kind: str = "JPEG") -> bytes:
    values = np.random.RandomState(seed).randint(0, 256, (side, side + 2, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def facts(server, data: dict[str, bytes], images, test, classes, name="set", **changes):
    """Facts of archives that the server has from now on, with their true sizes and hashes."""
    server.files.update(data)
    archives = tuple(
        Archive(
            name=key,
            urls=(f"{server.address}/{key}",),
            **{
                "size": len(value),
                "digest": f"sha256:{hashlib.sha256(value).hexdigest()}",
                "unpacked": 10**6,
                **changes,
            },
        )
        for key, value in data.items()
    )
    return DataFacts(name, archives, images, test, classes, page="https://example.org")


@pytest.fixture
def make():
    class Make:
        picture = staticmethod(picture)
        tar = staticmethod(tar)
        zipped = staticmethod(zipped)
        facts = staticmethod(facts)

    return Make
