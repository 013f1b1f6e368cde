"""The server over real sockets: both protocols, concurrent streams, shutdown."""

from __future__ import annotations

import asyncio
import itertools
import json

import numpy as np
import pytest
from websockets.asyncio.client import connect

from distill.decode.online import OnlineDecoder
from distill.server.connection import Limits
from distill.server.protocols import Sherpa, Vosk, choose
from distill.server.server import Server
from tests.support.clients import CHUNK, HELD, HOP, audio, closed_with, metric, sentence, serving, sherpa, vosk


@pytest.mark.parametrize("path", ["", "/sherpa"])
def test_sherpa_protocol(decoder: OnlineDecoder, path: str) -> None:
    words = sentence(1)

    async def visit(server: Server, url: str) -> None:
        messages = await sherpa(url + path, audio(decoder, words))
        assert messages[-1]["text"].split() == words
        assert messages[-1]["is_final"] and not any(m["is_final"] for m in messages[:-1])
        assert {m["segment"] for m in messages} == {0}
        samples = [m["samples"] for m in messages]
        assert samples == sorted(samples) and all(n % (CHUNK * HOP) == 0 for n in samples[:-1])
        lengths = [len(m["tokens"]) for m in messages]
        assert lengths == [len(m["timestamps"]) for m in messages] and any(0 < n < len(words) for n in lengths)
        starts = np.cumsum([0.02, *(0.01 * (HELD + 1) * len(word) for word in words)])[:-1]
        np.testing.assert_allclose(messages[-1]["timestamps"], starts, atol=0.011)
        for word in messages[-1]["result"]:
            assert word["conf"] > 0.9 and word["end"] - word["start"] == pytest.approx(
                0.01 * ((HELD + 1) * len(word["word"]) - 1), abs=0.011
            )

    server = serving(decoder, visit)
    assert metric(server, 'streams_total{protocol="sherpa"}') == 1
    assert metric(server, "words_total") == len(words)


def test_partial_results_have_confidences_on_request(decoder: OnlineDecoder) -> None:
    words = sentence(11)

    async def visit(server: Server, url: str) -> None:
        plain = await sherpa(url, audio(decoder, words))
        scored = await sherpa(url + "/sherpa?confidence", audio(decoder, words))
        assert plain[-1]["tokens"] == scored[-1]["tokens"] == words
        tokens = [{m["samples"]: m["tokens"] for m in messages} for messages in (plain, scored)]
        common = tokens[0].keys() & tokens[1].keys()  # which partial results are merged depends on the load
        assert [tokens[0][samples] for samples in common] == [tokens[1][samples] for samples in common]
        assert all(0 < word["conf"] <= 1 for m in scored for word in m["result"])
        assert not any("conf" in word for m in plain[:-1] for word in m["result"])
        assert all("conf" in word for word in plain[-1]["result"]) and plain[-1]["settled"] == len(words)
        for messages in (plain, scored):
            settled = [m["tokens"][: m["settled"]] for m in messages]
            assert all(later[: len(earlier)] == earlier for earlier, later in itertools.pairwise(settled))
            assert any(0 < len(words) < len(m["tokens"]) for words, m in zip(settled, messages))

    serving(decoder, visit)


@pytest.mark.parametrize(("path", "rate"), [("", 16000), ("/vosk", 16000), ("/vosk", 8000), ("/vosk", 48000)])
def test_vosk_protocol(decoder: OnlineDecoder, path: str, rate: int) -> None:
    words = sentence(2)

    async def visit(server: Server, url: str) -> None:
        replies = await vosk(url + path, audio(decoder, words, rate), rate)
        assert all(reply.keys() == {"partial"} for reply in replies[:-1])
        assert replies[-2]["partial"].split()[:3] == words[:3]  # a reply includes all complete chunks
        assert replies[-1]["text"].split() == words
        assert [word["word"] for word in replies[-1]["result"]] == words
        assert all(word["start"] < word["end"] for word in replies[-1]["result"])

    serving(decoder, visit)


@pytest.mark.parametrize("rate", ['"8000"', "8000.0", '" 8000.0 "', "8e3"])
def test_a_vosk_rate_may_be_text(decoder: OnlineDecoder, rate: str) -> None:
    words = sentence(2)

    async def visit(server: Server, url: str) -> None:
        async with connect(url) as socket:
            await socket.send(f'{{"config": {{"sample_rate": {rate}}}}}')
            await socket.send((audio(decoder, words, 8000) * 32767).astype(np.int16).tobytes())
            await socket.recv()
            await socket.send('{"eof": 1}')
            assert json.loads(await socket.recv())["text"].split() == words

    serving(decoder, visit)


@pytest.mark.parametrize("size", [1, 999, 6401])
def test_samples_may_cross_messages_and_the_last_may_be_incomplete(size: int, caplog: pytest.LogCaptureFixture) -> None:
    samples = np.arange(-3000, 3000, dtype="<i2")
    content, vosk = samples.tobytes() + b"\7", Vosk()
    pieces = [vosk.decode(content[at : at + size]) for at in range(0, len(content), size)]
    assert all(piece is not None for piece in pieces) and len(vosk.flush()) == 0
    np.testing.assert_array_equal(np.concatenate(pieces), samples.astype(np.float32) / 32768)
    assert "its last byte is left out" in caplog.text


def test_a_pause_ends_an_utterance(decoder: OnlineDecoder) -> None:
    first, second = sentence(3), sentence(4)
    pause = np.zeros(2 * 16000, np.float32)
    samples = np.concatenate([audio(decoder, first), pause, audio(decoder, second)])

    async def visit(server: Server, url: str) -> None:
        messages = await sherpa(url, samples)
        final = [m for m in messages if m["is_final"]]
        assert [m["text"].split() for m in final] == [first, second]
        assert [m["segment"] for m in final] == [0, 1]
        assert final[1]["timestamps"][0] == pytest.approx(
            len(samples) / 16000 - len(audio(decoder, second)) / 16000, abs=0.04
        )
        replies = await vosk(url, samples)
        assert [reply["text"].split() for reply in replies if "result" in reply] == [first, second]

    serving(decoder, visit)


def test_concurrent_streams_keep_their_words(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        sentences = [sentence(seed, 4 + seed % 5) for seed in range(40)]
        clients = [
            sherpa(url, audio(decoder, words), 300 + 7 * i) if i % 2 else vosk(url, audio(decoder, words))
            for i, words in enumerate(sentences)
        ]
        received = await asyncio.gather(*clients)
        assert [messages[-1]["text"].split() for messages in received] == sentences
        assert max(server.scheduler.runner.sizes) > 4  # streams were batched

    server = serving(decoder, visit)
    assert metric(server, "streams_open") == 0
    assert metric(server, "batch_streams_sum") == sum(server.scheduler.runner.sizes)


def test_shutdown_finishes_open_streams(decoder: OnlineDecoder) -> None:
    words = sentence(8)

    async def visit(server: Server, url: str) -> None:
        speaking, dictating, silent = [await connect(url) for _ in range(3)]
        await speaking.send(audio(decoder, words).tobytes())
        await dictating.send('{"config": {"sample_rate": 16000}}')
        await dictating.send((audio(decoder, words) * 32767).astype(np.int16).tobytes())
        assert "partial" in json.loads(await dictating.recv())
        closing = asyncio.create_task(server.close())
        messages = [message async for message in speaking]
        assert messages[-1] == "Done!" and json.loads(messages[-2])["text"].split() == words
        assert json.loads(await dictating.recv())["text"].split() == words
        for socket in (speaking, dictating, silent):
            assert (await closed_with(socket))[0] == 1001
        await closing
        with pytest.raises(OSError):
            await connect(url)

    serving(decoder, visit)


def test_shutdown_waits_for_a_stream_to_end(decoder: OnlineDecoder) -> None:
    words = sentence(9)

    async def visit(server: Server, url: str) -> None:
        async with connect(url) as socket:
            whole = audio(decoder, words)
            await socket.send(whole[:5000].tobytes())
            await socket.recv()
            closing = asyncio.create_task(server.close())
            await asyncio.sleep(0.1)
            await socket.send(whole[5000:].tobytes())
            await socket.send("Done")
            messages = [message async for message in socket]
            assert json.loads(messages[-2])["text"].split() == words and socket.close_code == 1000
            await closing

    serving(decoder, visit, Limits(leave=5.0))


def test_protocol_is_chosen_by_path_or_first_message() -> None:
    assert isinstance(choose("/", b"\0\0\0\0"), Sherpa) and isinstance(choose("/", "Done"), Sherpa)
    assert isinstance(choose("/", ' {"config": {}}'), Vosk) and isinstance(choose("/vosk", b"\0\0"), Vosk)
    assert isinstance(choose("/sherpa", "{}"), Sherpa)
