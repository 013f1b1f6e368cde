"""How late words are shown: from where a forced alignment ends them to where a session shows them for good.

Audio comes in pieces at the speed at which it is spoken. What is shown after a piece is late by the audio that its
chunk waited for, and by the time that model and search then took.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.runtime.session import SAMPLE_RATE, Session

PIECE = 320  # samples that come at once: 20 ms


@dataclass(frozen=True, eq=False)
class Spoken:
    """An utterance: audio (n,) at 16 kHz, its words, and the (begin, end) of each in seconds."""

    audio: np.ndarray
    words: tuple[str, ...]
    spans: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Shown:
    """The words on the screen from `at` on, in seconds from the first sample."""

    at: float
    words: tuple[str, ...]


@dataclass(frozen=True)
class Delay:
    """Milliseconds of one utterance, None where it was not recognised as it was spoken.

    first, last: from the end of the first and last word to when it is shown for good. finalisation: from the last
    sample to the final words.
    """

    first: float | None
    last: float | None
    finalisation: float


def delay(session: Session, decoder: OnlineDecoder, utterance: Spoken) -> Delay:
    """Play an utterance to a session and its search."""
    shown = play(session, decoder, utterance.audio)
    finalisation = 1000 * (shown[-1].at - len(utterance.audio) / SAMPLE_RATE)
    if shown[-1].words != utterance.words or not utterance.words:
        return Delay(None, None, finalisation)
    first, last = (1000 * (standing(shown, n) - utterance.spans[n - 1][1]) for n in (1, len(utterance.words)))
    return Delay(first, last, finalisation)


def play(session: Session, decoder: OnlineDecoder, audio: np.ndarray) -> list[Shown]:
    """What is shown while an utterance is spoken; its final words last. Time spent is that of the processor."""
    search, shown = OnlineSearch(decoder), []
    for start in range(0, len(audio), PIECE):
        piece = audio[start : start + PIECE]
        begun = time.process_time()
        heard = session.feed(piece)
        if len(heard.log_probs):
            search.feed(heard.log_probs)
            words = search.progress().words
            shown.append(Shown(heard.samples / SAMPLE_RATE + time.process_time() - begun, words))
    begun = time.process_time()
    search.feed(session.flush().log_probs)
    best, _ = search.finish()
    shown.append(Shown(len(audio) / SAMPLE_RATE + time.process_time() - begun, best.words))
    return shown


def standing(shown: Sequence[Shown], count: int) -> float:
    """Since when the first `count` of the final words have been on the screen without a change."""
    wanted, since = shown[-1].words[:count], shown[-1].at
    for each in reversed(shown):
        if each.words[:count] != wanted:
            break
        since = each.at
    return since


def summary(delays: Iterable[Delay]) -> dict[str, float | int | None]:
    """Mean and 90th percentile in ms; of first and last words where all words were right. None without any."""
    every = list(delays)
    right = [each for each in every if each.first is not None]
    found: dict[str, float | int | None] = {"utterances": len(every), "right": len(right)}
    for name, some in (("first", right), ("last", right), ("finalisation", every)):
        values = [getattr(each, name) for each in some]
        found[f"{name}_mean_ms"] = round(statistics.mean(values), 1) if values else None
        found[f"{name}_p90_ms"] = round(float(np.percentile(values, 90)), 1) if values else None
    return found
