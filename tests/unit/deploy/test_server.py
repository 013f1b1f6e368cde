"""The server over real sockets: protocols, limits, bad company, leaving. Its model reads units off the loudness."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from distill.decode.online import OnlineDecoder
from distill.deploy.batching import Piece
from distill.deploy.metrics import Metrics
from distill.deploy.page import FILES, file
from distill.deploy.protocols import Sherpa, Vosk, choose
from distill.deploy.recognition import Recognition
from distill.deploy.resample import Resampler
from distill.deploy.server import Address, Limits, Server
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.word_ngram import train_word_ngram

HOP, CHUNK, HELD = 160, 8, 4
WORDS = ("ABE", "BAD", "CAB", "DAB", "BEAD", "ACE")
FAILING = 0.95  # loudness at which the model fails


class Loudness:
    """A model whose output in a frame is the unit that its mean sample says; counts what it was given."""

    facts: Any = type("Facts", (), {"name": "loudness", "hop": HOP})()

    def __init__(self, outputs: int) -> None:
        self.outputs, self.sizes = outputs, list[int]()

    def open(self) -> Any:
        return 0

    def needs(self, begun: bool) -> int:
        return CHUNK * HOP

    def step(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Any]]:
        self.sizes.append(len(pieces))
        return [self._one(piece) for piece in pieces]

    def _one(self, piece: Piece) -> tuple[np.ndarray, Any]:
        if piece.wave.max(initial=0) > FAILING:
            raise RuntimeError("too loud")
        frames = piece.wave[: len(piece.wave) // HOP * HOP].reshape(-1, HOP).mean(1)
        said = np.round(10 * frames).astype(int)
        log_probs = np.full((len(said), self.outputs), np.log(1e-3), np.float32)
        log_probs[np.arange(len(said)), said] = np.log(1 - 1e-3 * (self.outputs - 1))
        return log_probs, piece.state + len(said)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> OnlineDecoder:
    folder = tmp_path_factory.mktemp("graph")
    lines = [f"{word} {' '.join(word)}\n" for word in WORDS]
    (folder / "lexicon.txt").write_text("".join(lines), encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    lang = Lang.load(folder)
    generator = np.random.default_rng(0)
    text = [" ".join(generator.choice(WORDS, 5)) for _ in range(300)]
    train_word_ngram(text, 2, lang.lexicon.words, least=1).write(folder / "lm.arpa")
    build_hlg(lang, folder / "lm.arpa").write(str(folder / "HLG.fst"))
    return OnlineDecoder(folder / "HLG.fst", lang, HOP / 16000)


def audio(decoder: OnlineDecoder, words: Sequence[str], rate: int = 16000) -> np.ndarray:
    """Samples that say the words, a breath of blanks after each unit."""
    units = [decoder.lang.tokens[letter] for word in words for letter in word]
    labels = np.concatenate([[0] * 2, *([unit] * HELD + [0] for unit in units), [0] * 3])
    return np.repeat(labels / 10, HOP * rate // 16000).astype(np.float32)


def sentence(seed: int, count: int = 6) -> list[str]:
    return np.random.default_rng(seed).choice(WORDS, count).tolist()


def serving(
    decoder: OnlineDecoder, visit: Callable[[Server, str], Awaitable[None]], limits: Limits | None = None,
    address: Address | None = None,
) -> Server:  # fmt: skip
    """Run a visit against a server; every test is one."""

    async def run() -> Server:
        recognition = Recognition(Loudness(len(decoder.lang.outputs)), decoder, Metrics())
        server = Server(recognition, address or Address(port=0), limits or Limits(leave=0.0))
        await server.start()
        try:
            await asyncio.wait_for(visit(server, f"ws://127.0.0.1:{server.port}"), 20)
        finally:
            await server.close()
        return server

    return asyncio.run(run())


async def sherpa(url: str, samples: np.ndarray, piece: int = 1000) -> list[dict]:
    """As sherpa-onnx's Python client: sends and receives at once, and stops at Done!."""
    async with connect(url) as socket:

        async def receive() -> list[dict]:
            found = []
            async for message in socket:
                if message == "Done!":
                    return found
                found.append(json.loads(message))
            raise AssertionError("the server closed without Done!")

        receiving = asyncio.create_task(receive())
        for at in range(0, len(samples), piece):
            await socket.send(samples[at : at + piece].tobytes())
            await asyncio.sleep(0.002)
        await socket.send("Done")
        return await receiving


async def vosk(url: str, samples: np.ndarray, rate: int = 16000) -> list[dict]:
    """As Vosk's Python client: one reply to each message."""
    async with connect(url) as socket:
        await socket.send(f'{{ "config" : {{ "sample_rate" : {rate} }} }}')
        found = []
        whole = (samples * 32767).astype(np.int16)
        for at in range(0, len(whole), rate // 5):
            await socket.send(whole[at : at + rate // 5].tobytes())
            found.append(json.loads(await socket.recv()))
        await socket.send('{"eof" : 1}')
        return [*found, json.loads(await socket.recv())]


def metric(server: Server, line: str) -> float:
    found = re.search(rf"^distill_{re.escape(line)} (\S+)$", server.metrics.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("path", ["", "/sherpa"])
def test_a_sherpa_client_gets_its_words(decoder: OnlineDecoder, path: str) -> None:
    said = sentence(1)

    async def visit(server: Server, url: str) -> None:
        messages = await sherpa(url + path, audio(decoder, said))
        assert messages[-1]["text"].split() == said
        assert messages[-1]["is_final"] and not any(m["is_final"] for m in messages[:-1])
        assert {m["segment"] for m in messages} == {0}
        samples = [m["samples"] for m in messages]
        assert samples == sorted(samples) and all(n % (CHUNK * HOP) == 0 for n in samples[:-1])
        lengths = [len(m["tokens"]) for m in messages]
        assert lengths == [len(m["timestamps"]) for m in messages] and any(0 < n < len(said) for n in lengths)
        starts = np.cumsum([0.02, *(0.01 * (HELD + 1) * len(word) for word in said)])[:-1]
        np.testing.assert_allclose(messages[-1]["timestamps"], starts, atol=0.011)
        for word in messages[-1]["result"]:
            assert word["conf"] > 0.9 and word["end"] - word["start"] == pytest.approx(
                0.01 * ((HELD + 1) * len(word["word"]) - 1), abs=0.011
            )

    server = serving(decoder, visit)
    assert metric(server, 'streams_total{protocol="sherpa"}') == 1
    assert metric(server, "words_total") == len(said)


@pytest.mark.parametrize(("path", "rate"), [("", 16000), ("/vosk", 16000), ("/vosk", 8000), ("/vosk", 48000)])
def test_a_vosk_client_gets_its_words(decoder: OnlineDecoder, path: str, rate: int) -> None:
    said = sentence(2)

    async def visit(server: Server, url: str) -> None:
        replies = await vosk(url + path, audio(decoder, said, rate), rate)
        assert all(reply.keys() == {"partial"} for reply in replies[:-1])
        assert replies[-2]["partial"].split()[:3] == said[:3]  # a reply knows the chunks that were sent
        assert replies[-1]["text"].split() == said
        assert [word["word"] for word in replies[-1]["result"]] == said
        assert all(word["start"] < word["end"] for word in replies[-1]["result"])

    serving(decoder, visit)


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


def test_streams_do_not_mix(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        said = [sentence(seed, 4 + seed % 5) for seed in range(40)]
        talks = [
            sherpa(url, audio(decoder, words), 300 + 7 * i) if i % 2 else vosk(url, audio(decoder, words))
            for i, words in enumerate(said)
        ]
        found = await asyncio.gather(*talks)
        assert [messages[-1]["text"].split() for messages in found] == said
        assert max(server.recognition.runner.sizes) > 4  # they did go together

    server = serving(decoder, visit)
    assert metric(server, "streams_open") == 0
    assert metric(server, "batch_streams_sum") == sum(server.recognition.runner.sizes)


async def closed_with(socket: Any) -> tuple[int, str]:
    """Code and reason with which the server closes a connection."""
    try:
        while True:
            await asyncio.wait_for(socket.recv(), 5)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, closed.rcvd.reason


BAD = {
    "text amid audio": ([np.zeros(800, np.float32).tobytes(), "what?"], 1007, "Done at the end"),
    "half a sample": ([b"\0\0\0"], 1007, "3 bytes"),
    "not finite": ([np.array([np.nan], np.float32).tobytes()], 1007, "1 NaN"),
    "integers as floats": ([np.full(10, 3000, np.float32).tobytes()], 1007, "divide 16-bit"),
    "no JSON": (["{{"], 1007, "config"),
    "deep JSON": (["{" + '"a":[' * 10000], 1007, "config"),
    "a rate of text": (['{"config": {"sample_rate": "fast"}}'], 1007, "sample_rate 'fast'"),
    "a rate of no use": (['{"config": {"sample_rate": 15999}}', b"\0\0"], 1007, "no simple ratio"),
    "oversized": ([bytes(70000)], 1009, ""),
    "silent": ([], 1008, "nothing came"),
    "silent amid audio": ([np.zeros(800, np.float32).tobytes()], 1008, "nothing came"),
    "endless": ([np.zeros(8000, np.float32).tobytes()] * 9, 1009, "longer than 4 s"),
    "too loud for the model": ([np.full(4000, 0.99, np.float32).tobytes()], 1011, "too loud"),
}  # fmt: skip


def test_bad_company_harms_nobody(decoder: OnlineDecoder) -> None:
    said = sentence(5, 20)

    async def bad(url: str, messages: Sequence[str | bytes], code: int, reason: str) -> None:
        async with connect(url) as socket:
            for message in messages:
                try:
                    await socket.send(message)
                except ConnectionClosed:
                    break
            found = await closed_with(socket)
            assert found[0] == code and reason in found[1], found

    async def abrupt(url: str, after: int) -> None:
        socket = await connect(url)
        for _ in range(after):
            await socket.send(np.full(2000, 0.3, np.float32).tobytes())
        socket.transport.abort()

    async def invalid(url: str) -> None:
        socket = await connect(url)
        await socket.send(b"\xff\xfe{", text=True)
        assert (await closed_with(socket))[0] == 1007

    async def good(url: str) -> None:
        for _ in range(4):
            messages = await sherpa(url, audio(decoder, said), 400)
            assert messages[-1]["text"].split() == said

    async def visit(server: Server, url: str) -> None:
        await asyncio.gather(
            *(bad(url, *case) for case in BAD.values()), *(abrupt(url, n) for n in range(6)), invalid(url), good(url),
            good(url),
        )  # fmt: skip
        await good(url)

    server = serving(decoder, visit, Limits(message=65536, stream=4.0, idle=0.5, leave=0.0))
    counts = {kind: metric(server, f'streams_refused_total{{reason="{kind}"}}') for kind in ("malformed", "silent")}
    assert counts == {"malformed": 9, "silent": 2}
    assert metric(server, "streams_open") == 0 and not server.recognition._streams


def test_who_takes_nothing_is_let_go(decoder: OnlineDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Sherpa.say
    monkeypatch.setattr(Sherpa, "say", lambda self, result: plain(self, result) + " " * 3_000_000)
    said = sentence(6)

    async def visit(server: Server, url: str) -> None:
        async with connect(url, max_size=None, max_queue=1, close_timeout=0.1) as slow:
            for _ in range(40):
                await slow.send(np.full(CHUNK * HOP, 0.2, np.float32).tobytes())
                await asyncio.sleep(0.005)
            for _ in range(200):
                if metric(server, 'streams_refused_total{reason="slow"}'):
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError("the slow client was not let go")
        replies = await vosk(url, audio(decoder, said))
        assert replies[-1]["text"].split() == said

    serving(decoder, visit, Limits(slow=0.3, leave=0.0))


def test_no_more_streams_than_allowed(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        async with connect(url) as first, connect(url):
            await first.send(np.zeros(10, np.float32).tobytes())
            async with connect(url) as third:
                assert await closed_with(third) == (1013, "too many streams; try later")
        said = sentence(7)
        await asyncio.sleep(0.05)
        assert (await sherpa(url, audio(decoder, said)))[-1]["text"].split() == said

    serving(decoder, visit, Limits(streams=2, leave=0.0))


def test_leaving_finishes_open_streams(decoder: OnlineDecoder) -> None:
    said = sentence(8)

    async def visit(server: Server, url: str) -> None:
        speaking, dictating, silent = [await connect(url) for _ in range(3)]
        await speaking.send(audio(decoder, said).tobytes())
        await dictating.send('{"config": {"sample_rate": 16000}}')
        await dictating.send((audio(decoder, said) * 32767).astype(np.int16).tobytes())
        assert "partial" in json.loads(await dictating.recv())
        closing = asyncio.create_task(server.close())
        messages = [message async for message in speaking]
        assert messages[-1] == "Done!" and json.loads(messages[-2])["text"].split() == said
        assert json.loads(await dictating.recv())["text"].split() == said
        for socket in (speaking, dictating, silent):
            assert (await closed_with(socket))[0] == 1001
        await closing
        with pytest.raises(OSError):
            await connect(url)

    serving(decoder, visit)


def test_leaving_lets_a_stream_end_by_itself(decoder: OnlineDecoder) -> None:
    said = sentence(9)

    async def visit(server: Server, url: str) -> None:
        async with connect(url) as socket:
            whole = audio(decoder, said)
            await socket.send(whole[:5000].tobytes())
            await socket.recv()
            closing = asyncio.create_task(server.close())
            await asyncio.sleep(0.1)
            await socket.send(whole[5000:].tobytes())
            await socket.send("Done")
            messages = [message async for message in socket]
            assert json.loads(messages[-2])["text"].split() == said and socket.close_code == 1000
            await closing

    serving(decoder, visit, Limits(leave=5.0))


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(url.replace("ws://", "http://"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, response.read().decode(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


def test_http_beside_the_sockets(decoder: OnlineDecoder) -> None:
    async def visit(server: Server, url: str) -> None:
        async def fetch(path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
            return await asyncio.to_thread(get, url + path, **headers)

        assert (await fetch("/health"))[:2] == (200, "ok\n")
        status, text, headers = await fetch("/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
        assert re.search(r"^distill_streams_open 0$", text, re.MULTILINE)
        for path in FILES:
            status, text, headers = await fetch(path)
            assert status == 200 and text and "default-src 'none'" in headers["Content-Security-Policy"]
        assert (await fetch("/nothing"))[0] == 404
        assert (await fetch("/sherpa"))[0] == 426
        assert (await fetch("/", Host="evil.example"))[0] == 403
        assert (await fetch("/", Origin="http://evil.example"))[0] == 403

    serving(decoder, visit)


def test_a_token_and_an_origin_are_asked_for(decoder: OnlineDecoder) -> None:
    said = sentence(10)

    async def visit(server: Server, url: str) -> None:
        for wrong in (url, url + "/?token=no", url + "/metrics"):
            with pytest.raises(InvalidStatus, match="401"):
                await connect(wrong)
        with pytest.raises(InvalidStatus, match="403"):
            await connect(url + "/?token=secret", origin="https://evil.example")
        assert (await sherpa(url + "/?token=secret", audio(decoder, said)))[-1]["text"].split() == said
        async with connect(url, additional_headers={"Authorization": "Bearer secret"}, origin="https://good.example"):
            pass
        assert (await asyncio.to_thread(get, url + "/"))[0] == 200  # the page itself asks for the token

    serving(decoder, visit, address=Address(port=0, token="secret", origins=("https://good.example",)))


def test_the_page_loads_nothing_from_elsewhere() -> None:
    for path in FILES:
        found = file(path)
        assert found is not None
        assert not re.search(r"""(?:https?:)?//(?!\s)[\w-]+\.[\w.]+""", found[0]), path
    assert file("/../server.py") is None


def test_protocols_are_told_apart() -> None:
    assert isinstance(choose("/", b"\0\0\0\0"), Sherpa) and isinstance(choose("/", "Done"), Sherpa)
    assert isinstance(choose("/", ' {"config": {}}'), Vosk) and isinstance(choose("/vosk", b"\0\0"), Vosk)
    assert isinstance(choose("/sherpa", "{}"), Sherpa)


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_resampling_keeps_a_tone_in_any_pieces(rate: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    resampler = Resampler(rate)
    pieces = [resampler(piece) for piece in np.split(tone, [1, 3, 500, 501, 4000])]
    found = np.concatenate([*pieces, resampler.rest()])
    assert abs(len(found) - 16000) <= 1
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(found)) / 16000)
    np.testing.assert_allclose(found[40:-40], expected[40:-40], atol=1e-3)
    np.testing.assert_array_equal(found[: len(found) // 2], Resampler(rate)(tone)[: len(found) // 2])


def test_a_port_that_is_taken_and_folders_that_lack_something(decoder: OnlineDecoder, tmp_path: Path) -> None:
    from distill.deploy import serving as setup

    async def visit(server: Server, url: str) -> None:
        second = Recognition(Loudness(4), decoder, Metrics())
        with pytest.raises(ValueError, match="cannot listen on 127"):
            await setup.run(second, Address(port=server.port), Limits(), lambda port: None)

    serving(decoder, visit)
    with pytest.raises(FileNotFoundError, match="train it first"):
        setup.open_recognition(setup.Setup(tmp_path / "exp" / "ss"))
    with pytest.raises(ValueError, match="--token"):
        setup.check(Address(host="0.0.0.0"))
    with pytest.raises(FileNotFoundError, match="PEM"):
        setup.tls_context(tmp_path / "cert.pem", None)
    assert setup.data_folder(tmp_path / "exp-mini" / "ss") == tmp_path.resolve() / "data-mini"
