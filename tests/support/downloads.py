"""A server on this machine for tests of downloads, with faults to choose."""

from __future__ import annotations

import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator

import pytest


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path.

    limit: most bytes of an answer, after which the connection is cut. ranges: whether parts are served.
    asked: path and first byte of every request. refusals: requests that are refused first.
    """

    content: dict[str, bytes]
    limit: int | None
    ranges: bool
    asked: list[tuple[str, int]]
    refusals: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")) if self.server.ranges else None
        first = int(asked[1]) if asked else 0
        self.server.asked.append((self.path, first))
        if self.server.refusals:
            self.server.refusals -= 1
            return self.send_error(503)
        body = self.server.content.get(self.path)
        if body is None:
            return self.send_error(404)
        if asked and first >= len(body):
            return self.send_error(416)
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        self.wfile.write(body[first:][: self.server.limit])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server without content; connections that are cut are taken up again without a pause."""
    monkeypatch.setattr("distill.corpora.download.PAUSE", 0.0)
    with Server(("127.0.0.1", 0), Handler) as found:
        found.content, found.limit, found.ranges, found.asked, found.refusals = {}, None, True, [], 0
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


def tar(files: dict[str, bytes]) -> bytes:
    """A tar.gz of these files."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
