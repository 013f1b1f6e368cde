"""Helpers for tests of the server: a model that maps loudness to units, a server around it, and clients."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.word_ngram import train_word_ngram
from distill.runtime.runner import BatchRunner, ChunkRequest
from distill.server.connection import Limits
from distill.server.metrics import Metrics
from distill.server.scheduler import Scheduler
from distill.server.server import Address, Server

HOP, CHUNK, HELD = 160, 8, 4  # samples of a frame; frames of a chunk, and of a unit
PATIENCE = 30.0  # seconds: far more than a step takes, also on a busy machine
WORDS = ("ABE", "BAD", "CAB", "DAB", "BEAD", "ACE")
FAILING = 0.95  # loudness at which the model fails


class Loudness:
    """A model whose output in a frame is the unit encoded by the mean sample; records batch sizes."""

    info: Any = type("Info", (), {"name": "loudness", "hop": HOP})()

    def __init__(self, outputs: int) -> None:
        self.outputs, self.sizes = outputs, list[int]()

    def open(self) -> Any:
        return 0

    def needs(self, begun: bool) -> int:
        return CHUNK * HOP

    def step(self, pieces: Sequence[ChunkRequest]) -> list[tuple[np.ndarray, Any]]:
        self.sizes.append(len(pieces))
        return [self._one(piece) for piece in pieces]

    def units(self, frames: np.ndarray) -> np.ndarray:
        """Frames (T, HOP) -> units (T,)."""
        return np.round(10 * frames.mean(1)).astype(int)

    def _one(self, piece: ChunkRequest) -> tuple[np.ndarray, Any]:
        if piece.wave.max(initial=0) > FAILING:
            raise RuntimeError("too loud")
        units = self.units(piece.wave[: len(piece.wave) // HOP * HOP].reshape(-1, HOP))
        log_probs = np.full((len(units), self.outputs), np.log(1e-3), np.float32)
        log_probs[np.arange(len(units)), units] = np.log(1 - 1e-3 * (self.outputs - 1))
        return log_probs, piece.state + len(units)


def build_decoder(folder: Path) -> OnlineDecoder:
    """A graph over `WORDS`, spelled by their letters."""
    lines = [f"{word} {' '.join(word)}\n" for word in WORDS]
    (folder / "lexicon.txt").write_text("".join(lines), encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    lang = Lang.load(folder)
    generator = np.random.default_rng(0)
    text = [" ".join(generator.choice(WORDS, 5)) for _ in range(300)]
    train_word_ngram(text, 2, lang.lexicon.words, least=1).write(folder / "lm.arpa")
    build_hlg(lang, folder / "lm.arpa").write(str(folder / "HLG.fst"))
    return OnlineDecoder.open(folder / "HLG.fst", lang, HOP / 16000)


def audio(decoder: OnlineDecoder, words: Sequence[str], rate: int = 16000) -> np.ndarray:
    """Samples (n,) that encode the words for `Loudness`, with a blank frame after each unit."""
    units = [decoder.lang.tokens[letter] for word in words for letter in word]
    labels = np.concatenate([[0] * 2, *([unit] * HELD + [0] for unit in units), [0] * 3])
    return np.repeat(labels / 10, HOP * rate // 16000).astype(np.float32)


def sentence(seed: int, count: int = 6) -> list[str]:
    return np.random.default_rng(seed).choice(WORDS, count).tolist()


def serving(
    decoder: OnlineDecoder, visit: Callable[[Server, str], Awaitable[None]], limits: Limits | None = None,
    address: Address | None = None, model: BatchRunner | None = None, seconds: float = 2 * PATIENCE,
) -> Server:  # fmt: skip
    """Run a test against a server."""

    async def run() -> Server:
        heard = model or Loudness(len(decoder.lang.outputs))
        scheduler = Scheduler(heard, partial(OnlineSearch, decoder), Metrics())
        server = Server(scheduler, address or Address(port=0), limits or Limits(leave=0.0))
        await server.start()
        try:
            await asyncio.wait_for(visit(server, f"ws://127.0.0.1:{server.port}"), seconds)
        finally:
            await server.close()
        return server

    return asyncio.run(run())


async def sherpa(url: str, samples: np.ndarray, piece: int = 1000, **options: Any) -> list[dict]:
    """As sherpa-onnx's Python client: sends and receives concurrently, and stops at Done!."""
    async with connect(url, **options) as socket:

        async def receive() -> list[dict]:
            messages = []
            async for message in socket:
                if message == "Done!":
                    return messages
                messages.append(json.loads(message))
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
        replies = []
        whole = (samples * 32767).astype(np.int16)
        for at in range(0, len(whole), rate // 5):
            await socket.send(whole[at : at + rate // 5].tobytes())
            replies.append(json.loads(await socket.recv()))
        await socket.send('{"eof" : 1}')
        return [*replies, json.loads(await socket.recv())]


def metric(server: Server, line: str) -> float:
    match = re.search(rf"^distill_{re.escape(line)} (\S+)$", server.metrics.text(), re.MULTILINE)
    return float(match[1]) if match else 0.0


def get(url: str, tls: ssl.SSLContext | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    request = urllib.request.Request(url.replace("ws://", "http://"), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE, context=tls) as response:
            return response.status, response.read().decode(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), dict(error.headers)


async def closed_with(socket: Any) -> tuple[int, str]:
    """Code and reason with which the server closes a connection."""
    try:
        while True:
            await asyncio.wait_for(socket.recv(), PATIENCE)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, closed.rcvd.reason
