"""Delays of words: a model of known frames, whose words must be shown when their chunk is complete."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from distill.decode.online import OnlineDecoder
from distill.fsa.lattice import Search
from distill.runtime.session import Session
from distill.runtime.word_latency import Delay, Shown, Spoken, delay, standing, summary
from tests.support.decoding import LEXICON, SENTENCES, Small, make_small, spoken

HOP, CHUNK = 320, 5


class Scripted:
    """Gives prepared log-probabilities for whatever audio comes, a chunk at a time."""

    def __init__(self, log_probs: np.ndarray) -> None:
        self.facts, self._all = SimpleNamespace(), log_probs
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


def decoder(small: Small) -> OnlineDecoder:
    return OnlineDecoder(small.hlg, small.lang, HOP / 16000, Search(8.0, 4.0, 0))


def say(small: Small, units: str) -> tuple[Session, np.ndarray]:
    """Three frames for each unit; the audio of so many frames."""
    log_probs = spoken([small.lang.units.index(unit) for unit in units.split()], len(small.lang.units), 3)
    return Session(Scripted(log_probs)), np.zeros(HOP * len(log_probs), np.float32)


def test_words_are_shown_when_their_chunk_is_complete(small: Small) -> None:
    session, audio = say(small, "SIL B A B SIL SIL SIL A B SIL SIL SIL")
    found = delay(session, decoder(small), Spoken(audio, ("BOB", "AB"), ((0.06, 0.24), (0.42, 0.54))))
    assert found.first is not None and found.last is not None
    # BOB's last unit begins with frame 9, the last of its chunk: shown at 0.2 s; AB's with frame 24: at 0.5 s
    assert -40 <= found.first < 20 and -40 <= found.last < 20
    assert 0 <= found.finalisation < 60


def test_what_was_not_recognised_has_no_delay(small: Small) -> None:
    session, audio = say(small, "SIL B A B SIL")
    found = delay(session, decoder(small), Spoken(audio, ("AB",), ((0.06, 0.24),)))
    assert (found.first, found.last) == (None, None) and found.finalisation >= 0


def test_a_word_stands_since_its_last_change() -> None:
    shown = [Shown(at, tuple(words.split())) for at, words in enumerate(["", "A", "B", "A", "A B", "A BE", "A BE"])]
    assert standing(shown, 1) == 3
    assert standing(shown, 2) == 5
    assert standing([Shown(7.0, ("A",))], 1) == 7


def test_the_summary_counts_what_was_right() -> None:
    found = summary([Delay(100.0, 50.0, 1.0), Delay(None, None, 3.0), Delay(200.0, 70.0, 2.0)])
    assert (found["utterances"], found["right"]) == (3, 2)
    assert (found["first_mean_ms"], found["last_mean_ms"], found["finalisation_mean_ms"]) == (150, 60, 2)
    assert found["first_p90_ms"] == 190
    assert summary([Delay(None, None, 3.0)])["last_mean_ms"] is None
