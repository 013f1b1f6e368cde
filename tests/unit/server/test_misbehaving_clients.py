"""Slow, silent, oversized, malformed, abrupt or too many clients: a clear end for them, no effect on others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from distill.decode.online import OnlineDecoder
from distill.server.connection import Limits
from distill.server.protocols import Sherpa
from distill.server.server import Server
from tests.support.clients import CHUNK, HOP, audio, closed_with, metric, sentence, serving, sherpa, vosk

BAD = {
    "text amid audio": ([np.zeros(800, np.float32).tobytes(), "hello"], 1007, "Done at the end"),
    "half a sample": ([b"\0\0\0"], 1007, "3 bytes"),
    "not finite": ([np.array([np.nan], np.float32).tobytes()], 1007, "1 NaN"),
    "integers as floats": ([np.full(10, 3000, np.float32).tobytes()], 1007, "divide 16-bit"),
    "no JSON": (["{{"], 1007, "config"),
    "deep JSON": (["{" + '"a":[' * 10000], 1007, "config"),
    "a rate of text": (['{"config": {"sample_rate": "fast"}}'], 1007, "sample_rate 'fast'"),
    "a rate of no use": (['{"config": {"sample_rate": 15999}}', b"\0\0"], 1007, "a simple ratio"),
    "oversized": ([bytes(70000)], 1009, ""),
    "a rate of a longer text": ([f'{{"config": {{"sample_rate": "{"9" * 5000}"}}}}'], 1007, "sample_rate '9"),
    "a rate that is none": (['{"config": {"sample_rate": [16000]}}'], 1007, "sample_rate [16000]"),
    "a rate without a bound": (['{"config": {"sample_rate": Infinity}}'], 1007, "sample_rate inf"),
    "endless": ([np.zeros(8000, np.float32).tobytes()] * 9, 1009, "longer than 4 s"),
    "too loud for the model": ([np.full(4000, 0.99, np.float32).tobytes()], 1011, "too loud"),
}  # fmt: skip
SILENT = {
    "silent": ([], 1008, "no audio came for 0.5 s"),
    "silent amid audio": ([np.zeros(800, np.float32).tobytes()], 1008, "no audio came"),
}


async def bad(url: str, messages: Sequence[str | bytes], code: int, reason: str) -> None:
    async with connect(url) as socket:
        for message in messages:
            try:
                await socket.send(message)
            except ConnectionClosed:
                break
        close = await closed_with(socket)
        assert close[0] == code and reason in close[1], close


def test_misbehaving_clients_do_not_affect_others(decoder: OnlineDecoder) -> None:
    async def abrupt(url: str, after: int) -> None:
        socket = await connect(url)
        for _ in range(after):
            await socket.send(np.full(2000, 0.3, np.float32).tobytes())
        socket.transport.abort()

    async def invalid(url: str) -> None:
        socket = await connect(url)
        await socket.send(b"\xff\xfe{", text=True)
        code, reason = await closed_with(socket)
        assert code == 1007 and "invalid start byte at position 0" in reason

    async def visit(server: Server, url: str) -> None:
        await asyncio.gather(
            *(bad(url, *case) for case in BAD.values()), *(abrupt(url, n) for n in range(6)), invalid(url),
            good(decoder, url), good(decoder, url),
        )  # fmt: skip
        await good(decoder, url)

    server = serving(decoder, visit, Limits(message=65536, stream=4.0, leave=0.0))
    assert metric(server, 'streams_refused_total{reason="malformed"}') == 12
    assert metric(server, "streams_open") == 0 and not server.scheduler._streams


def test_silent_clients_do_not_affect_others(decoder: OnlineDecoder) -> None:
    async def empty(url: str) -> None:
        async with connect(url) as socket:
            with pytest.raises(ConnectionClosed, match="no audio came"):
                for _ in range(50):
                    await socket.send(b"")
                    await asyncio.sleep(0.05)

    async def mute(url: str) -> None:
        """Connects and sends nothing."""
        reader, writer = await asyncio.open_connection(*url.removeprefix("ws://").split(":"))
        assert await asyncio.wait_for(reader.read(), 8) == b""
        writer.close()

    async def visit(server: Server, url: str) -> None:
        await asyncio.gather(*(bad(url, *case) for case in SILENT.values()), empty(url), mute(url), good(decoder, url))

    server = serving(decoder, visit, Limits(idle=0.5, leave=0.0, opening=1.5))
    assert metric(server, 'streams_refused_total{reason="silent"}') == 3 and not server.scheduler._streams


async def good(decoder: OnlineDecoder, url: str) -> None:
    words = sentence(5, 20)
    for _ in range(4):
        messages = await sherpa(url, audio(decoder, words), 400)
        assert messages[-1]["text"].split() == words


async def drip(url: str, message: bytes, seconds: float) -> tuple[int, str]:
    """Send a message again and again; how the server ends it."""
    async with connect(url) as socket:

        async def send() -> None:
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await socket.send(message)
                    await asyncio.sleep(seconds)

        sending = asyncio.create_task(send())
        try:
            return await closed_with(socket)
        finally:
            sending.cancel()


def test_clients_that_send_a_few_samples_at_a_time_are_silent(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        one, second = np.zeros(1, np.float32).tobytes(), np.zeros(1600, np.float32).tobytes()
        closes = await asyncio.gather(drip(url, one, 0.1), drip(url + "/vosk", b"\0", 0.1), drip(url, second, 0.3))
        assert [code for code, _ in closes] == [1008, 1008, 1009]  # a third of real time is not silent
        assert closes[2][1] == "the stream lasts longer than 4 s"

    serving(decoder, visit, Limits(idle=0.8, lasting=4.0, leave=0.0))


def test_an_endless_message_is_silence(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        async def fragments():
            while True:
                yield b"\0" * 4
                await asyncio.sleep(0.1)

        async with connect(url) as socket:
            sending = asyncio.create_task(socket.send(fragments()))
            assert (await closed_with(socket))[0] == 1008
            sending.cancel()

    serving(decoder, visit, Limits(idle=0.5, leave=0.0))


ODD = "bad\nINFO all is well\r\x1b[31m\u202e\x00\u2028" + "x" * 5000


def test_text_of_clients_is_escaped_and_short_in_the_log(
    decoder: OnlineDecoder, caplog: pytest.LogCaptureFixture
) -> None:
    async def visit(server: Server, url: str) -> None:
        async with connect(url) as socket:
            for _ in range(3):
                await socket.send(json.dumps({"config": {"sample_rate": 16000, ODD: 1}}))
            await socket.send('{"eof": 1}')
            await socket.recv()
        for message in (ODD, json.dumps({"config": {"sample_rate": ODD}}), json.dumps({ODD: 1})):
            async with connect(url + "/vosk") as socket:
                await socket.send(message)
                assert (await closed_with(socket))[0] == 1007

    with caplog.at_level(logging.INFO):
        serving(decoder, visit)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("distill")]
    assert len(lines) == 1 and "bad\\nINFO" in lines[0]
    assert len(lines[0]) < 250 and lines[0].isascii() and lines[0].isprintable()


def test_clients_that_accept_no_messages_are_dropped(decoder: OnlineDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Sherpa.encode
    monkeypatch.setattr(Sherpa, "encode", lambda self, result: plain(self, result) + " " * 3_000_000)
    words = sentence(6)

    async def visit(server: Server, url: str) -> None:
        async with connect(url, max_size=None, max_queue=1, close_timeout=0.1) as slow:
            with contextlib.suppress(ConnectionClosed):  # it may be dropped before it has sent all
                for _ in range(40):
                    await slow.send(np.full(CHUNK * HOP, 0.2, np.float32).tobytes())
                    await asyncio.sleep(0.005)
            for _ in range(200):
                if metric(server, 'streams_refused_total{reason="slow"}'):
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError("the slow client was not dropped")
        replies = await vosk(url, audio(decoder, words))
        assert replies[-1]["text"].split() == words

    serving(decoder, visit, Limits(slow=0.3, leave=0.0))


def test_streams_are_limited(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        async with connect(url) as first, connect(url):
            await first.send(np.zeros(10, np.float32).tobytes())
            async with connect(url) as third:
                assert await closed_with(third) == (1013, "too many streams; try later")
        words = sentence(7)
        await asyncio.sleep(0.05)
        assert (await sherpa(url, audio(decoder, words)))[-1]["text"].split() == words

    serving(decoder, visit, Limits(streams=2, leave=0.0))
