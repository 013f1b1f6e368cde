"""Confidences against right and wrong words; their files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from distill.decode.graph_decoder import GraphDecoder
from distill.decode.nbest import candidate_lists
from distill.decode.recognise import recognise, without_blanks
from distill.decode.word_files import write_words
from distill.fsa.lattice import Search
from distill.lfmmi import NativeEngine
from distill.scoring.calibration import ScoredWord, calibration, normalised_cross_entropy, scored_words
from distill.scoring.wer import score
from distill.text import Word
from tests.support.decoding import Small, random_log_probs, spoken


def drawn(count: int, slope: float = 1.0, seed: int = 0) -> list[ScoredWord]:
    """Words that are right as often as their confidence, or, by another slope, more or less often."""
    rng = np.random.default_rng(seed)
    said = rng.uniform(0.05, 0.95, count)
    true = 1 / (1 + (1 / said - 1) ** slope)
    return [ScoredWord(float(p), bool(rng.random() < q)) for p, q in zip(said, true)]


def test_words_are_right_as_the_alignment_has_it() -> None:
    words = {"u": [Word(text, 0, 1, sure) for text, sure in (("A", 0.9), ("X", 0.2), ("C", 0.8))]}
    scored = [score("u", ["A", "B", "C", "D"], ["A", "X", "C"])]
    assert scored_words(scored, words) == [ScoredWord(0.9, True), ScoredWord(0.2, False), ScoredWord(0.8, True)]
    with pytest.raises(ValueError, match="confidences"):
        scored_words(scored, {"u": words["u"][:2]})


def test_normalised_cross_entropy_by_hand() -> None:
    words = [ScoredWord(0.9, True), ScoredWord(0.8, True), ScoredWord(0.7, False)]
    entropy = -2 * math.log(2 / 3) - math.log(1 / 3)
    left = -math.log(0.9) - math.log(0.8) - math.log(0.3)
    assert normalised_cross_entropy(words) == pytest.approx((entropy - left) / entropy)
    assert normalised_cross_entropy([ScoredWord(2 / 3, word.right) for word in words]) == pytest.approx(0)
    assert normalised_cross_entropy([ScoredWord(float(word.right), word.right) for word in words]) > 0.99
    assert normalised_cross_entropy(words[:2]) is None and normalised_cross_entropy(words[2:]) is None


def test_calibration_sees_what_is_off() -> None:
    good, bold = calibration(drawn(4000)), calibration(drawn(4000, slope=0.3))
    assert good.error < 0.03 < 0.1 < bold.error
    assert good.nce > bold.nce
    assert sum(each.words for each in good.bins) == 4000
    assert all(abs(each.confidence - each.right) < 0.08 for each in good.bins)
    with pytest.raises(ValueError, match="no word"):
        calibration([])


def test_files_of_words(tmp_path: Path) -> None:
    words = {"b": [Word("A", 0.5, 0.75, 0.98765)], "a": [], "c": [Word("BÉ", 0.0, 1.0, 1.0), Word("A", 1, 2, 0.5)]}
    write_words(tmp_path, words)
    lines = (tmp_path / "words.ctm").read_text(encoding="utf-8").splitlines()
    assert lines == ["b 1 0.500 0.250 A 0.9877", "c 1 0.000 1.000 BÉ 1.0000", "c 1 1.000 1.000 A 0.5000"]
    content = json.loads((tmp_path / "words.json").read_text(encoding="utf-8"))
    assert list(content) == ["a", "b", "c"] and content["a"] == []
    assert content["b"] == [{"text": "A", "start": 0.5, "end": 0.75, "confidence": 0.98765}]


@pytest.mark.parametrize("chunk", [1, 4])
def test_streaming_recognises_the_same(small: Small, chunk: int) -> None:
    decoder = GraphDecoder(NativeEngine(), small.hlg, small.lang, Search(15.0, 6.0, 200))
    utterances = {f"u{seed}": random_log_probs(seed, 5 + seed, len(small.lang.units)) for seed in range(5)}
    whole = dict(recognise(decoder, utterances.items(), 0.02))
    assert dict(recognise(decoder, utterances.items(), 0.02, chunk)) == whole
    streamed = dict(recognise(decoder, utterances.items(), 0.02, chunk, nbest=5))
    expected = candidate_lists(decoder, utterances.items(), 5, decoder.search.lattice_beam)
    for name, each in streamed.items():
        assert each.candidates is not None and each.candidates.words == expected[name].words
        np.testing.assert_allclose(each.candidates.features(), expected[name].features(), rtol=1e-6)
    for each in whole.values():
        assert tuple(word.text for word in each.words) == each.best.words
        times = [time for word in each.words for time in (word.start, word.end)]
        assert times == sorted(times)


def test_skipping_blanks_keeps_words_and_their_times(small: Small) -> None:
    decoder = GraphDecoder(NativeEngine(), small.hlg, small.lang, Search(15.0, 6.0, 0))
    a, silence = small.lang.tokens["A"], small.lang.silence
    log_probs = spoken([0, a, 0, a, 0, silence, 0, 0], len(small.lang.units), 4)
    assert without_blanks(log_probs, 0.99).tolist() == [0, *range(4, 9), *range(12, 17), *range(20, 25)]
    utterances = {"u": log_probs}
    whole, fewer = (dict(recognise(decoder, utterances.items(), 0.02, 0, skip))["u"] for skip in (0.0, 0.99))
    assert fewer.best.words == whole.best.words == ("A", "A")
    spans = [(word.start, word.end) for word in fewer.words]
    assert spans == [(word.start, word.end) for word in whole.words] == [(0.08, 0.16), (0.24, 0.32)]
    assert dict(recognise(decoder, utterances.items(), 0.02, 3, 0.99))["u"] == fewer
    assert without_blanks(log_probs, 1.0).tolist() == list(range(len(log_probs)))
