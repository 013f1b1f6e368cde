"""Batching of concurrent streams: chunks that are ready share one forward, then each stream's search runs in a pool."""

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

from distill.config.model import SAMPLE_RATE
from distill.decode.online import WordSearch
from distill.runtime.runner import BatchRunner, ChunkRequest
from distill.runtime.transcriber import NewSearch
from distill.server.metrics import Metrics
from distill.text import Word

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """Words of one utterance of a stream. final: the utterance has ended; last: the stream has ended.

    Confidences of partial words are nan unless the stream requests them; the first `stable` words will not change.
    segment: index of the utterance in its stream. samples: processed so far in the stream. error: set if the stream
    failed, which ends it.
    """

    words: tuple[Word, ...] = ()
    segment: int = 0
    samples: int = 0
    final: bool = False
    last: bool = False
    stable: int = 0
    error: str = ""

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


@dataclass(eq=False)
class Stream:
    """One stream of a `Scheduler`; `deliver` is called with each result, in the scheduler's threads.

    needs: samples of the next chunk. confidence: partial words have confidences, at the cost of a lattice per chunk.
    waiting: samples in the queue; samples: processed. busy: in a forward or search; dropped: the client has gone.
    """

    search: WordSearch
    state: Any
    needs: int
    deliver: Callable[[Result], None]
    confidence: bool = False
    waiting: int = 0
    samples: int = 0
    segment: int = 0
    ended: bool = False
    busy: bool = False
    dropped: bool = False

    def __post_init__(self) -> None:
        self.queue: deque[tuple[np.ndarray, float]] = deque()  # samples and the time of their arrival

    @property
    def ready(self) -> bool:
        return not self.busy and not self.dropped and (self.ended or self.waiting >= self.needs)

    def take(self) -> tuple[ChunkRequest, float]:
        """The next chunk, and the arrival time of its last samples."""
        final, missing = self.waiting < self.needs, self.needs
        blocks, arrived = [np.zeros(0, np.float32)], time.monotonic()
        while missing and self.queue:
            samples, arrived = self.queue.popleft()
            if len(samples) > missing:
                self.queue.appendleft((samples[missing:], arrived))
            blocks.append(samples[:missing])
            missing -= len(blocks[-1])
        wave = np.concatenate(blocks)
        self.waiting -= len(wave)
        self.busy = True
        return ChunkRequest(self.state, wave, final), arrived


class Scheduler:
    """Runs the model and the searches of all streams of a server.

    new_search: makes a stream's. threads: of the search. max_batch: streams in one forward.
    """

    def __init__(
        self, runner: BatchRunner, new_search: NewSearch, metrics: Metrics, threads: int = 1, max_batch: int = 32
    ) -> None:
        self.runner, self.metrics, self.max_batch, self._new_search = runner, metrics, max_batch, new_search
        self._streams: list[Stream] = []
        self._condition = threading.Condition()
        self._closing = False
        self._pool = ThreadPoolExecutor(threads, "search")
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def open(self, deliver: Callable[[Result], None], confidence: bool = False) -> Stream:
        """A new stream (`Stream`)."""
        stream = Stream(self._new_search(), self.runner.open(), self.runner.needs(False), deliver, confidence)
        with self._condition:
            self._streams.append(stream)
        return stream

    def feed(self, stream: Stream, samples: np.ndarray) -> None:
        """Samples (n,) float32 at 16 kHz; each chunk that they complete gives a result."""
        with self._condition:
            stream.queue.append((samples, time.monotonic()))
            stream.waiting += len(samples)
            self._condition.notify()

    def end(self, stream: Stream) -> None:
        """No more samples follow: the rest is processed and the last result delivered."""
        with self._condition:
            stream.ended = True
            self._condition.notify()

    def drop(self, stream: Stream) -> None:
        """Forget a stream at once; no more results are delivered."""
        with self._condition:
            stream.dropped = True
            if stream in self._streams:
                self._streams.remove(stream)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End all streams, process their rest, stop the threads."""
        with self._condition:
            self._closing = True
            for stream in self._streams:
                stream.ended = True
            self._condition.notify()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        while batch := self._next_batch():
            start = time.monotonic()
            outputs = self._forward([chunk for _, chunk, _ in batch])
            forwarded = time.monotonic()
            list(self._pool.map(self._finish, batch, outputs))
            self.metrics.batch_streams.observe(len(batch))
            self.metrics.forward_seconds.observe(forwarded - start)
            self.metrics.search_seconds.observe(time.monotonic() - forwarded)
            self.metrics.audio_seconds.inc(sum(len(chunk.wave) for _, chunk, _ in batch) / SAMPLE_RATE)

    def _next_batch(self) -> list[tuple[Stream, ChunkRequest, float]]:
        """Streams with a chunk and its arrival, longest waiting first; blocks until there are any, none at the end."""
        with self._condition:
            while not (ready := [stream for stream in self._streams if stream.ready]):
                if self._closing and not self._streams:
                    return []
                self._condition.wait()
            ready.sort(key=lambda stream: stream.queue[0][1] if stream.queue else 0.0)
            return [(stream, *stream.take()) for stream in ready[: self.max_batch]]

    def _forward(self, chunks: Sequence[ChunkRequest]) -> list[tuple[np.ndarray, Any] | Exception]:
        """All chunks at once; if that fails, one by one, so that only the stream at fault fails."""
        try:
            return list(self.runner.step(chunks))
        except Exception as error:
            return [error] if len(chunks) == 1 else [self._forward([chunk])[0] for chunk in chunks]

    def _finish(self, work: tuple[Stream, ChunkRequest, float], output: tuple[np.ndarray, Any] | Exception) -> None:
        """Search the frames of a chunk and deliver the result."""
        stream, chunk, arrived = work
        try:
            if isinstance(output, Exception):
                raise output
            result = self._search(stream, chunk, *output)
        except Exception as error:
            log.error("a stream failed: %r", error, exc_info=error)
            message = f"{type(error).__name__}: {error}"
            result = Result((), stream.segment, stream.samples, final=True, last=True, error=message)
        with self._condition:
            stream.busy = False
            if result.last and stream in self._streams:
                self._streams.remove(stream)
        if not stream.dropped:
            self.metrics.partial_delay_seconds.observe(time.monotonic() - arrived)
            stream.deliver(result)

    def _search(self, stream: Stream, chunk: ChunkRequest, log_probs: np.ndarray, state: Any) -> Result:
        stream.state, stream.needs = state, self.runner.needs(True)
        stream.samples += len(chunk.wave)
        if len(log_probs):
            stream.search.feed(log_probs)
        progress = stream.search.progress()
        final = chunk.final or progress.ended
        if final or stream.confidence:
            words = tuple(stream.search.words(final)[0])
        else:
            words = tuple(Word(text, *span, math.nan) for text, span in zip(progress.words, progress.spans))
        stable = len(words) if final else progress.stable
        result = Result(words, stream.segment, stream.samples, final, chunk.final, stable)
        if final:
            stream.search.restart()
            stream.segment += bool(words)
        return result
