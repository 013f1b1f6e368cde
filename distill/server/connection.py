"""One client's connection: its messages feed a stream of the scheduler, the stream's results go back."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import numpy as np
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from distill.config.model import SAMPLE_RATE
from distill.server.protocols import choose
from distill.server.scheduler import Result, Scheduler
from distill.text import Word

CREDIT = 10.0  # seconds of waiting that a second of audio earns
CODES = {
    "malformed": 1007, "too_long": 1009, "silent": 1008, "busy": 1013, "failed": 1011, "leaving": 1001,
}  # fmt: skip
"""Close codes by reason (RFC 6455, section 7.4)."""


@dataclass(frozen=True)
class Limits:
    """Limits of the server and of each client.

    message: bytes. stream: seconds of audio. lasting: seconds from a stream's first message to its end. idle: seconds
    without audio; a second of audio earns at most `CREDIT` more, so that a client that sends a few samples at a time
    is idle too. streams: open at once. backlog: seconds of audio in the queue before reading pauses. slow: seconds
    in which a client must accept a message. leave: seconds for open streams to end at shutdown. opening: seconds of
    a handshake.
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


class Refused(Exception):
    """Closes a connection; kind: one of `CODES`."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


class Connection:
    """Serves one client until it is done, refused or gone."""

    def __init__(self, scheduler: Scheduler, socket: ServerConnection, limits: Limits) -> None:
        self.scheduler, self.socket, self.limits = scheduler, socket, limits
        self._loop = asyncio.get_running_loop()
        self._results: deque[Result] = deque()
        self._arrival = asyncio.Event()  # of a result
        self._leaving: asyncio.Future[None] = self._loop.create_future()
        self._received = self._processed = 0  # samples
        self._patience = limits.idle  # seconds left to wait for audio
        self._deadline = self._loop.time() + limits.lasting
        self._partial = Result()

    def leave(self) -> None:
        """End the stream at shutdown: received audio is processed, no more is read."""
        if not self._leaving.done():
            self._leaving.set_result(None)

    async def run(self) -> None:
        """Serve; a refused client gets the code and the reason."""
        metrics, stream = self.scheduler.metrics, None
        assert self.socket.request is not None
        url = urlsplit(self.socket.request.path)
        try:
            first = await self._receive()
            if first is None:
                raise Refused("leaving", "the server is shutting down")
            self._protocol = choose(url.path, first)
            metrics.streams.labels(self._protocol.name).inc()
            confidence = "confidence" in parse_qs(url.query, keep_blank_values=True)
            stream = self._stream = self.scheduler.open(self._deliver, confidence)
            await (self._reply(first) if self._protocol.replies else self._send_while_reading(first))
            left = self._leaving.done()
            await self.socket.close(CODES["leaving"] if left else 1000, "the server is shutting down" if left else "")
        except Refused as refusal:
            metrics.refused.labels(refusal.kind).inc()
            await self.socket.close(CODES[refusal.kind], refusal.reason.encode()[:120].decode(errors="ignore"))
        except ConnectionClosed as closed:  # by the client, or by the library for malformed or oversized frames
            for kind in ("malformed", "too_long"):
                if closed.sent and closed.sent.code == CODES[kind]:
                    metrics.refused.labels(kind).inc()
        finally:
            if stream is not None:
                self.scheduler.drop(stream)

    def _deliver(self, result: Result) -> None:
        """Called in a thread of the scheduler."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._put, result)

    def _put(self, result: Result) -> None:
        """Queue a result; it replaces a partial one that was not sent yet."""
        if self._results and not self._results[-1].final:
            self._results.pop()
        self._results.append(result)
        self._processed = result.samples
        self._arrival.set()

    async def _next(self) -> Result:
        while not self._results:
            self._arrival.clear()
            await self._arrival.wait()
        result = self._results.popleft()
        if result.error:
            raise Refused("failed", result.error)
        if result.final:
            self.scheduler.metrics.words.inc(len(result.words))
        return result

    async def _receive(self) -> str | bytes | None:
        """The next message; None at shutdown. Raises Refused for a client that is silent or takes too long."""
        start = self._loop.time()
        receiving = asyncio.ensure_future(self.socket.recv())
        try:
            wait = max(0.0, min(self._patience, self._deadline - start))
            either: set[asyncio.Future] = {receiving, self._leaving}
            await asyncio.wait(either, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            now = self._loop.time()
            self._patience -= now - start
            if receiving.done() and start <= self._deadline:
                return receiving.result()
            if self._leaving.done():
                return None
            if self._patience < self._deadline - now:
                raise Refused("silent", f"no audio came for {self.limits.idle:g} s")
            raise Refused("too_long", f"the stream lasts longer than {self.limits.lasting:g} s")
        finally:
            receiving.cancel()

    async def _send(self, message: str) -> None:
        # no asyncio.wait_for: before Python 3.12 it loses a cancellation that comes as it ends
        timer = self._loop.call_later(self.limits.slow, self._abort)
        try:
            await self.socket.send(message)
        finally:
            timer.cancel()

    def _abort(self) -> None:
        """Drop a client that accepts no message, so no close frame either."""
        self.scheduler.metrics.refused.labels("slow").inc()
        self.socket.transport.abort()

    def _decode(self, message: str | bytes | None) -> np.ndarray | None:
        """Samples of a message, None at the end of the stream. Raises Refused for malformed or too much audio."""
        try:
            samples = self._protocol.decode(message) if message is not None else None
        except ValueError as error:
            raise Refused("malformed", str(error)) from None
        count = 0 if samples is None else len(samples)
        self._patience = min(self.limits.idle, self._patience + CREDIT * count / SAMPLE_RATE)
        self._received += count
        if self._received > self.limits.stream * SAMPLE_RATE:
            raise Refused("too_long", f"the stream is longer than {self.limits.stream:g} s")
        return samples

    async def _read(self, first: str | bytes) -> None:
        """Feed the stream until the client ends it; reply to each message of audio if the protocol does."""
        message: str | bytes | None = first
        while (samples := self._decode(message)) is not None:
            if len(samples):
                self.scheduler.feed(self._stream, samples)
            if self._protocol.replies and isinstance(message, bytes):
                await self._send(self._protocol.encode(await self._current()))
            while self._stream.waiting > self.limits.backlog * SAMPLE_RATE:
                await asyncio.sleep(0.01)
            message = await self._receive()
        if len(rest := self._protocol.flush()):
            self.scheduler.feed(self._stream, rest)
        self.scheduler.end(self._stream)

    async def _send_while_reading(self, first: str | bytes) -> None:
        """Results as they come, while audio is read."""
        tasks = [asyncio.ensure_future(self._read(first)), asyncio.ensure_future(self._send_results())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send_results(self) -> None:
        last = False
        while not last:
            result = await self._next()
            await self._send(self._protocol.encode(result))
            last = result.last
        await self._send(self._protocol.goodbye)

    async def _reply(self, first: str | bytes) -> None:
        """One reply to each message of audio; the reply to the end has all words that were not final before."""
        await self._read(first)
        words: tuple[Word, ...] = ()
        result = await self._next()
        while not result.last:
            words += result.words if result.final else ()
            result = await self._next()
        words += result.words
        await self._send(self._protocol.encode(Result(words, result.segment, result.samples, True, True)))

    async def _current(self) -> Result:
        """Once all whole chunks are processed: the oldest final result not yet sent, else the newest partial one."""
        needs = self.scheduler.runner.needs
        while self._received - self._processed >= needs(self._processed > 0):
            if self._results and self._results[-1].last:
                break
            self._arrival.clear()
            await self._arrival.wait()
        result = await self._next() if self._results else self._partial
        self._partial = Result() if result.final else result
        return result
