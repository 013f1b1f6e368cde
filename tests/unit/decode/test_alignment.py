"""Forced alignment: the best path against all paths, and the times it gives words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill.decode.alignment import align
from distill.decode.graph_decoder import GraphDecoder
from distill.decode.viterbi import Viterbi
from distill.decode.word_times import WordTimes
from distill.graphs.numerator import transcript_graph
from distill.lfmmi import NativeEngine
from tests.support.decoding import Small, random_log_probs, spoken

FRAME = 0.02


def times(small: Small) -> WordTimes:
    return WordTimes(GraphDecoder(NativeEngine(), small.hlg, small.lang), FRAME)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("words", [("BOB",), ("A", "BE")])
def test_the_path_is_the_best_labelling_of_the_words(small: Small, words: tuple[str, ...], seed: int) -> None:
    lang, frames = small.lang, 5
    log_probs = random_log_probs(seed, frames, len(lang.units))
    spellings = [lang.pronunciation_ids(word, "test") for word in words]
    graph = transcript_graph(spellings, lang.silence)
    said = set()
    for variant in itertools.product(*spellings):
        for pauses in itertools.product((False, True), repeat=len(words) + 1):
            gaps = [(lang.silence,) if pause else () for pause in pauses]
            said.add(
                tuple(u for gap, word in itertools.zip_longest(gaps, variant, fillvalue=()) for u in (*gap, *word))
            )
    scores = {
        labels: float(log_probs[range(frames), labels].sum())
        for labels in itertools.product(range(len(lang.units)), repeat=frames)
        if tuple(lang.topology.units(labels)) in said
    }
    path = Viterbi(lang.topology.compose(graph)).labels(log_probs)
    assert path is not None and scores[tuple(path.tolist())] == pytest.approx(max(scores.values()), abs=1e-5)


def test_words_get_the_times_of_their_units(small: Small) -> None:
    units = "SIL B A B SIL <blk> A B SIL"
    ids = [small.lang.units.index(unit) for unit in units.split()]
    log_probs = spoken(ids, len(small.lang.units), 3)
    assert align(times(small), ["BOB", "AB"], log_probs) == [(0.06, 0.24), (0.36, 0.48)]


def test_the_transcript_overrides_the_emissions(small: Small) -> None:
    ids = [small.lang.units.index(unit) for unit in ("B", "A", "B")]
    found = align(times(small), ["A", "B"][:1], spoken(ids, len(small.lang.units), 4))
    assert found is not None and 0 <= found[0][0] <= 0.08 and 0.16 <= found[0][1] <= 0.24


def test_too_few_frames_give_no_alignment(small: Small) -> None:
    log_probs = random_log_probs(0, 2, len(small.lang.units))
    assert align(times(small), ["BOB"], log_probs) is None
    assert align(times(small), ["BOB"], log_probs[:0]) is None
    assert align(times(small), [], log_probs) is None
    with pytest.raises(ValueError, match="ZEBRA"):
        align(times(small), ["ZEBRA"], np.repeat(log_probs, 9, 0))
