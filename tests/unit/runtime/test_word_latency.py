"""Word latency of a model with known frames: words appear once their chunk is complete."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from distill.decode.online import OnlineDecoder, OnlineSearch
from distill.fsa.lattice import Search
from distill.runtime.session import Session
from distill.runtime.transcriber import NewSearch
from distill.runtime.word_latency import PartialResult, Utterance, UtteranceLatency, measure, stable_since, summary
from tests.support.decoding import LEXICON, SENTENCES, Small, make_small, spoken

HOP, CHUNK = 320, 5


class Scripted:
    """Returns prepared log-probabilities for any audio, a chunk at a time."""

    def __init__(self, log_probs: np.ndarray) -> None:
        self.info, self._all = SimpleNamespace(), log_probs
        self.reset()

    def reset(self) -> None:
        self._samples = self._given = 0

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        self._samples += len(wave)
        complete = self._samples // HOP // CHUNK * CHUNK
        until = len(self._all) if final else complete
        before, self._given = self._given, until
        return self._all[before:until]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"), LEXICON, SENTENCES, 3)


def new_search(small: Small) -> NewSearch:
    return partial(OnlineSearch, OnlineDecoder.open(small.hlg, small.lang, HOP / 16000, Search(8.0, 4.0, 0)))


def utterance_of(small: Small, units: str) -> tuple[Session, np.ndarray]:
    """Three frames for each unit; the audio of so many frames."""
    log_probs = spoken([small.lang.units.index(unit) for unit in units.split()], len(small.lang.units), 3)
    return Session(Scripted(log_probs)), np.zeros(HOP * len(log_probs), np.float32)


def test_words_appear_once_their_chunk_is_complete(small: Small) -> None:
    session, audio = utterance_of(small, "SIL B A B SIL SIL SIL A B SIL SIL SIL")
    result = measure(session, new_search(small), Utterance(audio, ("BOB", "AB"), ((0.06, 0.24), (0.42, 0.54))))
    assert result.first is not None and result.last is not None
    # BOB's last unit begins with frame 9, the last of its chunk: appears at 0.2 s; AB's with frame 24: at 0.5 s
    assert -40 <= result.first < 20 and -40 <= result.last < 20
    assert 0 <= result.finalisation < 60


def test_misrecognised_words_have_no_latency(small: Small) -> None:
    session, audio = utterance_of(small, "SIL B A B SIL")
    result = measure(session, new_search(small), Utterance(audio, ("AB",), ((0.06, 0.24),)))
    assert (result.first, result.last) == (None, None) and result.finalisation >= 0


def test_a_word_is_stable_since_its_last_change() -> None:
    partials = [
        PartialResult(at, tuple(words.split())) for at, words in enumerate(["", "A", "B", "A", "A B", "A BE", "A BE"])
    ]
    assert stable_since(partials, 1) == 3
    assert stable_since(partials, 2) == 5
    assert stable_since([PartialResult(7.0, ("A",))], 1) == 7


def test_the_summary_counts_utterances_without_errors() -> None:
    row = summary(
        [UtteranceLatency(100.0, 50.0, 1.0), UtteranceLatency(None, None, 3.0), UtteranceLatency(200.0, 70.0, 2.0)]
    )
    assert (row["utterances"], row["right"]) == (3, 2)
    assert (row["first_mean_ms"], row["last_mean_ms"], row["finalisation_mean_ms"]) == (150, 60, 2)
    assert row["first_p90_ms"] == 190
    assert summary([UtteranceLatency(None, None, 3.0)])["last_mean_ms"] is None
