"""A thread that listens to many streams: chunks as they get ready, through one forward, then each one's search."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.decode.online import OnlineDecoder, OnlineSearch, Word
from distill.runtime.batching import BatchRunner, Piece
from distill.runtime.session import SAMPLE_RATE
from distill.server.metrics import STREAMS, Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Words of an utterance of a stream. final: they will not change; last: the stream has ended.

    Confidences of words that are not final are nan, unless the stream asked for them; the first `settled` words
    will not change. segment: number of the utterance in its stream. samples: of the stream that have been heard.
    failed: what went wrong, the stream is then at its end.
    """

    words: tuple[Word, ...]
    segment: int
    samples: int
    final: bool
    last: bool
    settled: int = 0
    failed: str = ""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


class Stream:
    """One stream of a `Recognition`; `deliver` is called with each result, in the recognition's threads.

    sure: whether words want confidences before they are final too, which takes a lattice after each chunk.
    """

    def __init__(
        self, search: OnlineSearch, state: Any, needs: int, deliver: Callable[[Result], None], sure: bool = False
    ) -> None:
        self.search, self.state, self.needs, self.deliver, self.sure = search, state, needs, deliver, sure
        self.arrived: deque[tuple[np.ndarray, float]] = deque()
        self.waiting = self.heard = self.segment = 0
        self.ended = self.busy = self.gone = False

    @property
    def ready(self) -> bool:
        return not self.busy and not self.gone and (self.ended or self.waiting >= self.needs)

    @property
    def since(self) -> float:
        """When the oldest waiting samples came."""
        return self.arrived[0][1] if self.arrived else 0.0

    def take(self, count: int) -> tuple[np.ndarray, float]:
        """The next samples, and when the last of them came."""
        pieces, when = [np.zeros(0, np.float32)], time.monotonic()
        while count and self.arrived:
            samples, when = self.arrived.popleft()
            if len(samples) > count:
                self.arrived.appendleft((samples[count:], when))
                samples = samples[:count]
            count -= len(samples)
            self.waiting -= len(samples)
            pieces.append(samples)
        return np.concatenate(pieces), when


class Recognition:
    """The model and the search behind all streams of a server.

    threads: that search. most: streams in one forward.
    """

    def __init__(
        self, runner: BatchRunner, decoder: OnlineDecoder, metrics: Metrics, threads: int = 1, most: int = 32
    ) -> None:
        self.runner, self.decoder, self.metrics, self.most = runner, decoder, metrics, most
        metrics.histogram("batch_streams", "Streams in one forward.", STREAMS)
        metrics.histogram("forward_seconds", "Time of a forward.")
        metrics.histogram("search_seconds", "Time of the searches after a forward.")
        metrics.histogram("partial_delay_seconds", "From a chunk's last sample to its result, inside the server.")
        metrics.counter("audio_seconds_total", "Audio that was heard.")
        self._streams: list[Stream] = []
        self._wake = threading.Condition()
        self._closing = False
        self._pool = ThreadPoolExecutor(threads, "search")
        self._thread = threading.Thread(target=self._run, name="recognition", daemon=True)
        self._thread.start()

    def open(self, deliver: Callable[[Result], None], sure: bool = False) -> Stream:
        """A new stream (`Stream`)."""
        stream = Stream(OnlineSearch(self.decoder), self.runner.open(), self.runner.needs(False), deliver, sure)
        with self._wake:
            self._streams.append(stream)
        return stream

    def feed(self, stream: Stream, samples: np.ndarray) -> None:
        """Samples (n,) float32 at 16 kHz; a result comes for each chunk that they complete."""
        with self._wake:
            stream.arrived.append((samples, time.monotonic()))
            stream.waiting += len(samples)
            self._wake.notify()

    def end(self, stream: Stream) -> None:
        """No more samples will come: what is left is heard, and the last result delivered."""
        with self._wake:
            stream.ended = True
            self._wake.notify()

    def drop(self, stream: Stream) -> None:
        """Forget a stream at once; nothing is delivered any more."""
        with self._wake:
            stream.gone = True
            if stream in self._streams:
                self._streams.remove(stream)

    @property
    def alive(self) -> bool:
        """Whether streams are heard."""
        return self._thread.is_alive()

    def backlog(self, stream: Stream) -> float:
        """Seconds of audio that wait to be heard."""
        return stream.waiting / SAMPLE_RATE

    def close(self) -> None:
        """End all streams, hear what is left, stop the threads."""
        with self._wake:
            self._closing = True
            for stream in self._streams:
                stream.ended = True
            self._wake.notify()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        while True:
            with self._wake:
                chosen = self._ready()
                while not chosen and not (self._closing and not self._streams):
                    self._wake.wait()
                    chosen = self._ready()
                if not chosen:
                    return
                work = [(stream, *self._piece(stream)) for stream in chosen]
            self._hear(work)

    def _ready(self) -> list[Stream]:
        ready = [stream for stream in self._streams if stream.ready]
        return sorted(ready, key=lambda stream: stream.since)[: self.most]

    def _piece(self, stream: Stream) -> tuple[Piece, float]:
        final = stream.waiting < stream.needs
        wave, when = stream.take(stream.needs)
        stream.busy = True
        return Piece(stream.state, wave, final), when

    def _hear(self, work: Sequence[tuple[Stream, Piece, float]]) -> None:
        begun = time.monotonic()
        found = self._forward([piece for _, piece, _ in work])
        forwarded = time.monotonic()
        list(self._pool.map(self._finish, work, found))
        self.metrics.observe("batch_streams", len(work))
        self.metrics.observe("forward_seconds", forwarded - begun)
        self.metrics.observe("search_seconds", time.monotonic() - forwarded)
        self.metrics.add("audio_seconds_total", sum(len(piece.wave) for _, piece, _ in work) / SAMPLE_RATE)

    def _forward(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Any] | Exception]:
        """All together; where that fails, one by one, so that one stream's failure is its own."""
        try:
            return list(self.runner.step(pieces))
        except Exception as error:
            if len(pieces) == 1:
                return [error]
            return [self._forward([piece])[0] for piece in pieces]

    def _finish(self, work: tuple[Stream, Piece, float], found: tuple[np.ndarray, Any] | Exception) -> None:
        stream, piece, when = work
        try:
            if isinstance(found, Exception):
                raise found
            result = self._search(stream, piece, *found)
        except Exception as error:
            log.error("a stream failed: %r", error, exc_info=error)
            failed = f"{type(error).__name__}: {error}"
            result = Result((), stream.segment, stream.heard, True, True, failed=failed)
        with self._wake:
            stream.busy = False
            if result.last and stream in self._streams:
                self._streams.remove(stream)
            gone = stream.gone
        if not gone:
            self.metrics.observe("partial_delay_seconds", time.monotonic() - when)
            stream.deliver(result)

    def _search(self, stream: Stream, piece: Piece, log_probs: np.ndarray, state: Any) -> Result:
        stream.state, stream.needs = state, self.runner.needs(True)
        stream.heard += len(piece.wave)
        if len(log_probs):
            stream.search.feed(log_probs)
        progress = stream.search.progress()
        final = piece.final or progress.ended
        if final or stream.sure:
            words = tuple(stream.search.words(final)[0])
        else:
            words = tuple(Word(text, *span, math.nan) for text, span in zip(progress.words, progress.spans))
        settled = len(words) if final else progress.settled
        result = Result(words, stream.segment, stream.heard, final, piece.final, settled)
        if final:
            stream.search.restart()
            stream.segment += bool(words)
        return result
