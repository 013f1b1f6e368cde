"""Word latency: time from a word's forced-alignment end to its final appearance in the partial result.

Audio arrives in real time. A partial result is late by the audio that its chunk waits for, and by the computing time
of model and search.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.config.model import SAMPLE_RATE
from distill.runtime.session import Session
from distill.runtime.transcriber import NewSearch

BLOCK = 320  # samples that arrive at once: 20 ms


@dataclass(frozen=True, eq=False)
class Utterance:
    """Audio (n,) at 16 kHz, its words, and the (start, end) of each in seconds."""

    audio: np.ndarray
    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class PartialResult:
    """A partial result, `time` seconds after the first sample."""

    time: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class UtteranceLatency:
    """Milliseconds for one utterance; None for words if the result has errors.

    first, last: from the end of the first and last word to their final appearance. finalisation: from the last
    sample to the final result.
    """

    first: float | None
    last: float | None
    finalisation: float


def measure(session: Session, new_search: NewSearch, utterance: Utterance) -> UtteranceLatency:
    """Word latency of an utterance that arrives in real time."""
    partials = stream(session, new_search, utterance.audio)
    finalisation = 1000 * (partials[-1].time - len(utterance.audio) / SAMPLE_RATE)
    if partials[-1].words != utterance.words or not utterance.words:
        return UtteranceLatency(None, None, finalisation)
    counts = (1, len(utterance.words))
    first, last = (1000 * (stable_since(partials, n) - utterance.spans[n - 1][1]) for n in counts)
    return UtteranceLatency(first, last, finalisation)


def stream(session: Session, new_search: NewSearch, audio: np.ndarray) -> list[PartialResult]:
    """Partial results over audio (n,), the final one last; computing time is CPU time."""
    search, partials = new_search(), []
    for at in range(0, len(audio), BLOCK):
        start = time.process_time()
        output = session.feed(audio[at : at + BLOCK])
        if len(output.log_probs):
            search.feed(output.log_probs)
            words = search.progress().words
            partials.append(PartialResult(output.samples / SAMPLE_RATE + time.process_time() - start, words))
    start = time.process_time()
    search.feed(session.flush().log_probs)
    words = tuple(word.text for word in search.words(ended=True)[0])
    return [*partials, PartialResult(len(audio) / SAMPLE_RATE + time.process_time() - start, words)]


def stable_since(partials: Sequence[PartialResult], count: int) -> float:
    """Time from which the first `count` of the final words do not change any more."""
    since = partials[-1]
    for partial in reversed(partials):
        if partial.words[:count] != partials[-1].words[:count]:
            break
        since = partial
    return since.time


def summary(latencies: Iterable[UtteranceLatency]) -> dict[str, float | int | None]:
    """Mean and 90th percentile in ms, of words over utterances without errors; None if there are none."""
    every = list(latencies)
    right = [latency for latency in every if latency.first is not None]
    row: dict[str, float | int | None] = {"utterances": len(every), "right": len(right)}
    for name, some in (("first", right), ("last", right), ("finalisation", every)):
        values = [getattr(latency, name) for latency in some]
        row[f"{name}_mean_ms"] = round(statistics.mean(values), 1) if values else None
        row[f"{name}_p90_ms"] = round(float(np.percentile(values, 90)), 1) if values else None
    return row
