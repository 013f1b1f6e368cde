"""A WebSocket server for streaming clients; over HTTP the page, /health and /metrics.

Sockets run in one asyncio loop, model and search in the threads of a `Scheduler`. Audio and results pass through
queues, so that no client waits for another.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import Server as SocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import InvalidMessage
from websockets.http11 import Request, Response

from distill.server import page
from distill.server.connection import CODES, Connection, Limits
from distill.server.scheduler import Scheduler

PATHS = ("/", "/sherpa", "/vosk")
LOOPBACK = ("localhost", "127.0.0.1", "::1")

logging.getLogger(f"{__name__}.sockets").setLevel(logging.CRITICAL)  # no traceback per failed handshake


@dataclass(frozen=True)
class Address:
    """Where to listen, and access. token: required of clients unless empty. origins: sites whose pages may connect."""

    host: str = "127.0.0.1"
    port: int = 6006
    token: str = ""
    origins: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class Server:
    """Listens until close(), which also closes the scheduler."""

    def __init__(self, scheduler: Scheduler, address: Address, limits: Limits | None = None) -> None:
        self.scheduler, self.address, self.limits = scheduler, address, limits or Limits()
        self.metrics = scheduler.metrics
        self.connections: set[Connection] = set()
        self._leaving = False
        self._socket: SocketServer | None = None

    @property
    def port(self) -> int:
        """The port in use, also where 0 was requested."""
        assert self._socket is not None
        return next(iter(self._socket.sockets)).getsockname()[1]

    async def start(self) -> None:
        """Listen; raises OSError where the address is taken."""
        self._socket = await serve(
            self._handle, self.address.host, self.address.port, process_request=self._process_request,
            compression=None, max_size=self.limits.message, max_queue=8, write_limit=1 << 16, ssl=self.address.tls,
            open_timeout=self.limits.opening, close_timeout=2, server_header=None,
            logger=logging.getLogger(f"{__name__}.sockets"), create_connection=_SocketConnection,
        )  # fmt: skip

    async def close(self, now: asyncio.Event | None = None) -> None:
        """Refuse new streams; open ones may end until `now` is set or the time is up, then are ended.

        Every client gets its last result.
        """
        loop, self._leaving = asyncio.get_running_loop(), True
        assert self._socket is not None
        self._socket.close(close_connections=False)
        deadline = loop.time() + self.limits.leave
        while self.connections and loop.time() < deadline and not (now and now.is_set()):
            await asyncio.sleep(0.02)
        for connection in self.connections:
            connection.leave()
        closed = asyncio.ensure_future(self._socket.wait_closed())
        if not (await asyncio.wait({closed}, timeout=self.limits.slow + 5))[0]:
            for connection in self.connections:  # clients that do not even accept the close frame
                connection.socket.transport.abort()
        await closed
        await loop.run_in_executor(None, self.scheduler.close)

    async def _handle(self, socket: ServerConnection) -> None:
        if self._leaving or len(self.connections) >= self.limits.streams:
            self.metrics.refused.labels("busy").inc()
            reason = "the server is shutting down" if self._leaving else "too many streams; try later"
            await socket.close(CODES["busy"], reason)
            return
        connection = Connection(self.scheduler, socket, self.limits)
        self.connections.add(connection)
        with self.metrics.streams_open.track_inprogress():
            try:
                await connection.run()
            finally:
                self.connections.discard(connection)

    def _process_request(self, _: ServerConnection, request: Request) -> Response | None:
        """The answer to an HTTP request, None for a WebSocket handshake that may go on."""
        try:
            return self._answer(request)
        except (ValueError, LookupError) as error:  # of urlsplit, of text that is no UTF-8, of a header given twice
            return _response(HTTPStatus.BAD_REQUEST, f"a malformed request: {ascii(str(error))[:120]}\n")

    def _answer(self, request: Request) -> Response | None:
        if getattr(request, "method", "GET") != "GET":  # older versions of the library refuse it themselves
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered here\n")
        path = urlsplit(request.path).path
        upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        if not self._origin_allowed(request):
            return _response(HTTPStatus.FORBIDDEN, "this page or host may not use this server (--origin allows one)\n")
        if path == "/health":
            fault = "shutting down" if self._leaving else "" if self.scheduler.alive else "the recognition has stopped"
            return _response(HTTPStatus.SERVICE_UNAVAILABLE if fault else HTTPStatus.OK, f"{fault or 'ok'}\n")
        if not upgrade and (file := page.file(path)) is not None:
            return _response(HTTPStatus.OK, *file)
        if not self._authorised(request):
            return _response(HTTPStatus.UNAUTHORIZED, "a token is needed: ?token=… or Authorization: Bearer …\n")
        if path == "/metrics":
            return _response(HTTPStatus.OK, self.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
        if path not in PATHS:
            return _response(HTTPStatus.NOT_FOUND, f"no {ascii(path)[:80]}; streams go to {', '.join(PATHS)}\n")
        return None if upgrade else _response(HTTPStatus.UPGRADE_REQUIRED, "open a WebSocket here\n")

    def _origin_allowed(self, request: Request) -> bool:
        """True for clients without an origin, for pages of this server, and for pages of an allowed origin.

        A server on the loopback address must be addressed by its own name: a foreign name that resolves to it
        (DNS rebinding) is refused.
        """
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin in self.address.origins:
            return True
        if self.address.host in LOOPBACK and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return False
        return origin is None or urlsplit(origin).netloc == host

    def _authorised(self, request: Request) -> bool:
        token = parse_qs(urlsplit(request.path).query).get("token", [""])[0]
        token = token or request.headers.get("Authorization", "").removeprefix("Bearer ")
        return not self.address.token or hmac.compare_digest(token.encode(), self.address.token.encode())


class _SocketConnection(ServerConnection):
    """Answers a malformed request with a status, where the library would only close the connection."""

    _answered = False

    def send_data(self) -> None:
        if isinstance(self.protocol.handshake_exc, InvalidMessage) and not self._answered:
            self._answered = True
            body = "a malformed request: expected GET … HTTP/1.1 and its headers\n"
            self.transport.write(_response(HTTPStatus.BAD_REQUEST, body).serialize())
        super().send_data()


def _response(status: HTTPStatus, body: str, kind: str = "text/plain; charset=utf-8", policy: str = "") -> Response:
    content = body.encode()
    headers = Headers({
        "Content-Type": kind, "Content-Length": str(len(content)), "Connection": "close", "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    })  # fmt: skip
    if policy:
        headers["Content-Security-Policy"] = policy
    return Response(status.value, status.phrase, headers, content)
