"""A WebSocket server for streaming clients, and what it serves over HTTP: the page, /health, /metrics.

Sockets live in one asyncio loop; model and search in the threads of a `Recognition`. Audio goes over as it
comes, results come back through each connection's queue, so that no client waits for another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import ssl
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import Server as SocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidMessage
from websockets.http11 import Request, Response

from distill.runtime.session import SAMPLE_RATE
from distill.server import page
from distill.server.metrics import Metrics
from distill.server.protocols import Dialogue, choose
from distill.server.scheduler import Recognition, Result, Stream

log = logging.getLogger(__name__)

PATHS = ("/", "/sherpa", "/vosk")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
BOUGHT = 10.0  # seconds that a client may take for a second of audio, in the long run
# Why streams are closed by the server, and the code they are told (RFC 6455, section 7.4)
CODES = {
    "malformed": 1007, "too_long": 1009, "silent": 1008, "busy": 1013, "failed": 1011, "leaving": 1001,
}  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    message: bytes. stream: seconds of audio. lasting: seconds from a stream's first message to its end. idle: seconds
    waited for audio; a second of audio buys `BOUGHT` more, so that who sends drop by drop is idle too. streams: open
    at once. backlog: seconds of audio that wait for the model before no more is read. slow: seconds in which a message
    must be taken. leave: seconds that open streams have to end when the server does. opening: seconds of a handshake.
    """

    message: int = 1 << 20
    stream: float = 3600.0
    lasting: float = 7200.0
    idle: float = 30.0
    streams: int = 64
    backlog: float = 10.0
    slow: float = 10.0
    leave: float = 5.0
    opening: float = 5.0


@dataclass(frozen=True)
class Address:
    """Where to listen, who may come. token: what clients must give; empty: nothing. origins: pages of other
    sites that may connect."""

    host: str = "127.0.0.1"
    port: int = 6006
    token: str = ""
    origins: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = field(default=None, repr=False)


class Refused(Exception):
    """A connection that the server closes; kind: one of `CODES`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Server:
    """Listens until close(). recognition: started; the server closes it."""

    def __init__(self, recognition: Recognition, address: Address, limits: Limits | None = None) -> None:
        self.recognition, self.address, self.limits = recognition, address, limits or Limits()
        self.metrics: Metrics = recognition.metrics
        self.metrics.gauge("streams_open", "Streams that are open now.")
        self.metrics.counter("streams_total", "Streams that were opened.")
        self.metrics.counter("streams_refused_total", "Streams that were closed by the server, by reason.")
        self.metrics.counter("words_total", "Words of final results.")
        self._open: set[_Connection] = set()
        self._leaving = False
        self._socket: SocketServer | None = None

    @property
    def port(self) -> int:
        """The port that is listened on; of interest where 0 was asked for."""
        assert self._socket is not None
        return next(iter(self._socket.sockets)).getsockname()[1]

    async def start(self) -> None:
        """Listen; raises OSError where the address is taken."""
        limits = self.limits
        self._socket = await serve(
            self._handle, self.address.host, self.address.port, process_request=self._request, compression=None,
            max_size=limits.message, max_queue=8, write_limit=1 << 16, ssl=self.address.tls,
            open_timeout=limits.opening, close_timeout=2, server_header=None, logger=_quiet(),
            create_connection=_Socket,
        )  # fmt: skip

    async def close(self, now: asyncio.Event | None = None) -> None:
        """Take no more streams, let the open ones end or end them, and tell each its last result.

        now: set when they are to be ended at once.
        """
        self._leaving = True
        assert self._socket is not None
        self._socket.close(close_connections=False)
        deadline = asyncio.get_running_loop().time() + self.limits.leave
        while self._open and asyncio.get_running_loop().time() < deadline and not (now and now.is_set()):
            await asyncio.sleep(0.02)
        for connection in list(self._open):
            connection.leave()
        closed = asyncio.ensure_future(self._socket.wait_closed())
        if not (await asyncio.wait({closed}, timeout=self.limits.slow + 5))[0]:
            for connection in list(self._open):  # who does not even take a farewell
                connection.socket.transport.abort()
        await closed
        await asyncio.get_running_loop().run_in_executor(None, self.recognition.close)

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """HTTP before WebSocket: who may come in, and what needs no socket."""
        try:
            return self._answered(request)
        except (ValueError, LookupError) as error:  # as of urlsplit, of text that is no UTF-8, of a header given twice
            return _answer(HTTPStatus.BAD_REQUEST, f"a malformed request: {ascii(str(error))[:120]}\n")

    def _answered(self, request: Request) -> Response | None:
        if getattr(request, "method", "GET") != "GET":  # older versions of the library refuse it themselves
            return _answer(HTTPStatus.METHOD_NOT_ALLOWED, "only GET is answered here\n")
        path = urlsplit(request.path).path
        upgrade = request.headers.get("Upgrade", "").lower() == "websocket"
        if not self._known(request):
            return _answer(HTTPStatus.FORBIDDEN, "this page or host may not use this server (--origin allows one)\n")
        if path == "/health":
            wrong = "leaving" if self._leaving else "" if self.recognition.alive else "the recognition has stopped"
            return _answer(HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK, f"{wrong or 'ok'}\n")
        if not upgrade and (found := page.file(path)) is not None:
            return _answer(HTTPStatus.OK, *found)
        if not self._trusted(request):
            return _answer(HTTPStatus.UNAUTHORIZED, "a token is needed: ?token=… or Authorization: Bearer …\n")
        if path == "/metrics":
            return _answer(HTTPStatus.OK, self.metrics.text(), "text/plain; version=0.0.4; charset=utf-8")
        if path not in PATHS:
            return _answer(HTTPStatus.NOT_FOUND, f"no {ascii(path)[:80]}; streams go to {', '.join(PATHS)}\n")
        if not upgrade:
            return _answer(HTTPStatus.UPGRADE_REQUIRED, "open a WebSocket here\n")
        return None

    def _known(self, request: Request) -> bool:
        """Whether a browser's page may connect: one served from here, or from an allowed origin.

        A server on the loopback address also wants to be called by its name, so that no foreign name that
        resolves to it passes for it.
        """
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin in self.address.origins:
            return True
        if self.address.host in LOOPBACK and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return False
        return origin is None or urlsplit(origin).netloc == host

    def _trusted(self, request: Request) -> bool:
        if not self.address.token:
            return True
        given = parse_qs(urlsplit(request.path).query).get("token", [""])[0]
        given = given or request.headers.get("Authorization", "").removeprefix("Bearer ")
        return hmac.compare_digest(given.encode(), self.address.token.encode())

    async def _handle(self, socket: ServerConnection) -> None:
        if self._leaving or len(self._open) >= self.limits.streams:
            self.metrics.add("streams_refused_total", reason="busy")
            reason = "the server is leaving" if self._leaving else "too many streams; try later"
            await socket.close(CODES["busy"], reason)
            return
        connection = _Connection(self, socket)
        self._open.add(connection)
        self.metrics.add("streams_open")
        try:
            await connection.run()
        finally:
            self._open.discard(connection)
            self.metrics.add("streams_open", -1)


class _Socket(ServerConnection):
    """Answers a malformed request with a status, where the library would only close the connection."""

    _told = False

    def send_data(self) -> None:
        if isinstance(self.protocol.handshake_exc, InvalidMessage) and not self._told:
            self._told = True
            answer = _answer(HTTPStatus.BAD_REQUEST, "a malformed request: expected GET … HTTP/1.1 and its headers\n")
            self.transport.write(answer.serialize())
        super().send_data()


class _Connection:
    """One client: what it sends goes to its stream, what is heard goes back."""

    def __init__(self, server: Server, socket: ServerConnection) -> None:
        self.server, self.socket, self.limits = server, socket, server.limits
        self._loop = asyncio.get_running_loop()
        self._results: deque[Result] = deque()
        self._news = asyncio.Event()
        self._left: asyncio.Future[None] = self._loop.create_future()
        self._given = self._heard = 0  # samples
        self._patience = self.limits.idle  # seconds that are still waited for audio
        self._until = self._loop.time() + self.limits.lasting
        self._partial: Result | None = None
        assert socket.request is not None
        address = urlsplit(socket.request.path)
        self._path, self._asked = address.path, parse_qs(address.query, keep_blank_values=True)

    def leave(self) -> None:
        """The server leaves: what has come is heard, and that is the end."""
        if not self._left.done():
            self._left.set_result(None)

    async def run(self) -> None:
        """Until the client is done, is refused, or is gone."""
        stream = None
        try:
            first = await self._receive()
            if first is None:
                raise Refused("leaving", "the server is leaving")
            dialogue = choose(self._path, first)
            self.server.metrics.add("streams_total", protocol=type(dialogue).__name__.lower())
            stream = self.server.recognition.open(self._deliver, sure="confidence" in self._asked)
            talk = self._answering if dialogue.answers else self._telling
            await talk(dialogue, stream, first)
            left = self._left.done()
            await self.socket.close(CODES["leaving"] if left else 1000, "the server is leaving" if left else "")
        except Refused as refusal:
            self.server.metrics.add("streams_refused_total", reason=refusal.kind)
            await self._hang_up(refusal)
        except ConnectionClosed as closed:  # by the client, or for what its frames were like
            kind = next((kind for kind, code in CODES.items() if closed.sent and closed.sent.code == code), "")
            if kind in ("malformed", "too_long"):
                self.server.metrics.add("streams_refused_total", reason=kind)
        finally:
            if stream is not None:
                self.server.recognition.drop(stream)

    async def _hang_up(self, refusal: Refused) -> None:
        await self.socket.close(CODES[refusal.kind], refusal.reason.encode()[:120].decode(errors="ignore"))

    def _deliver(self, result: Result) -> None:
        """From a thread of the recognition."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, result)

    def _put(self, result: Result) -> None:
        """Newer partial results take the place of older ones that nobody has taken yet."""
        if self._results and not self._results[-1].final:
            self._results.pop()
        self._results.append(result)
        self._heard = result.samples
        self._news.set()

    async def _receive(self) -> str | bytes | None:
        """The next message; None where the server leaves. Raises Refused for a silent client."""
        begun = self._loop.time()
        if begun > self._until:
            raise self._overdue()
        receiving = asyncio.ensure_future(self.socket.recv())
        try:
            either: set[asyncio.Future] = {receiving, self._left}
            wait = min(self._patience, self._until - begun)
            done, _ = await asyncio.wait(either, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            self._patience -= self._loop.time() - begun
            if receiving in done:
                return receiving.result()
            if done:
                return None
            raise self._silent() if self._patience <= 0 else self._overdue()
        finally:
            receiving.cancel()

    def _overdue(self) -> Refused:
        return Refused("too_long", f"the stream lasts longer than {self.limits.lasting:g} s")

    def _silent(self) -> Refused:
        return Refused("silent", f"no audio came for {self.limits.idle:g} s")

    async def _send(self, message: str) -> None:
        # no asyncio.wait_for: before Python 3.12 it loses a cancellation that comes as it ends
        watch = self._loop.call_later(self.limits.slow, self._abandon)
        try:
            await self.socket.send(message)
        finally:
            watch.cancel()

    def _abandon(self) -> None:
        """Who takes nothing would not take a farewell either."""
        self.server.metrics.add("streams_refused_total", reason="slow")
        self.socket.transport.abort()

    def _taken(self, dialogue: Dialogue, message: str | bytes | None) -> np.ndarray | None:
        """Samples of a message, None for the stream's end; counts them."""
        try:
            samples = dialogue.hear(message) if message is not None else None
        except ValueError as error:
            raise Refused("malformed", str(error)) from None
        count = 0 if samples is None else len(samples)
        self._patience = min(self.limits.idle, self._patience + BOUGHT * count / SAMPLE_RATE)
        self._given += count
        if self._given > self.limits.stream * SAMPLE_RATE:
            raise Refused("too_long", f"the stream is longer than {self.limits.stream:g} s")
        return samples

    async def _telling(self, dialogue: Dialogue, stream: Stream, first: str | bytes) -> None:
        """Each result as it comes, while audio comes."""
        reading = asyncio.ensure_future(self._read(dialogue, stream, first))
        telling = asyncio.ensure_future(self._tell(dialogue))
        try:
            await asyncio.wait({reading, telling}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (reading, telling):
                if task.done():
                    task.result()
        finally:
            for task in (reading, telling):
                task.cancel()
            await asyncio.gather(reading, telling, return_exceptions=True)

    async def _read(self, dialogue: Dialogue, stream: Stream, first: str | bytes) -> None:
        message: str | bytes | None = first
        while (samples := self._taken(dialogue, message)) is not None:
            if len(samples):
                self.server.recognition.feed(stream, samples)
            while self.server.recognition.backlog(stream) > self.limits.backlog:
                await asyncio.sleep(0.01)
            message = await self._receive()
        self._finish(dialogue, stream)

    def _finish(self, dialogue: Dialogue, stream: Stream) -> None:
        if len(rest := dialogue.rest()):
            self.server.recognition.feed(stream, rest)
        self.server.recognition.end(stream)

    async def _tell(self, dialogue: Dialogue) -> None:
        while True:
            result = await self._next()
            await self._send(dialogue.say(result))
            if result.last:
                break
        if (farewell := dialogue.farewell()) is not None:
            await self._send(farewell)

    async def _next(self) -> Result:
        while not self._results:
            self._news.clear()
            await self._news.wait()
        result = self._results.popleft()
        if result.failed:
            raise Refused("failed", result.failed)
        if result.final:
            self.server.metrics.add("words_total", len(result.words))
        return result

    async def _answering(self, dialogue: Dialogue, stream: Stream, first: str | bytes) -> None:
        """One reply to each message of audio, what is known by then; at the end all that has not been told."""
        message: str | bytes | None = first
        while (samples := self._taken(dialogue, message)) is not None:
            if isinstance(message, bytes):
                if len(samples):
                    self.server.recognition.feed(stream, samples)
                    await self._until_heard()
                await self._send(dialogue.say(await self._current()))
            message = await self._receive()
        self._finish(dialogue, stream)
        told = [await self._next()]
        while not told[-1].last:
            told.append(await self._next())
        words = tuple(word for result in told if result.final for word in result.words)
        last = told[-1]
        await self._send(dialogue.say(Result(words, last.segment, last.samples, True, True)))

    async def _until_heard(self) -> None:
        """Until less than a chunk waits: the reply then knows of all chunks that were sent."""
        needs = self.server.recognition.runner.needs
        while self._given - self._heard >= needs(self._heard > 0) and not (self._results and self._results[-1].last):
            self._news.clear()
            await self._news.wait()

    async def _current(self) -> Result:
        """What is to be replied: the oldest end of an utterance that has not been told, else the newest words."""
        if self._results:
            self._partial = await self._next()
            if self._partial.final:
                final, self._partial = self._partial, None
                return final
        return self._partial or Result((), 0, 0, False, False)


def _answer(status: HTTPStatus, body: str, kind: str = "text/plain; charset=utf-8", policy: str = "") -> Response:
    content = body.encode()
    headers = Headers({
        "Content-Type": kind, "Content-Length": str(len(content)), "Connection": "close", "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    })  # fmt: skip
    if policy:
        headers["Content-Security-Policy"] = policy
    return Response(status.value, status.phrase, headers, content)


def _quiet() -> logging.Logger:
    """The library tells of every failed handshake with a traceback; one line on request is enough."""
    logger = logging.getLogger("distill.server.server.sockets")
    logger.setLevel(logging.CRITICAL)
    return logger
