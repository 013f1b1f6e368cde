"""The denominator from text: what is pronounced how often, and what is left out."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest

from distill.config import Graphs
from distill.graphs.denominator import Pronouncer, build_denominator
from distill.graphs.lexicon import Lang


def test_silence_and_pronunciations_are_drawn_at_their_rates(lang: Lang) -> None:
    count = 4000
    sequences = list(Pronouncer(lang, seed=3)(["A TO"] * count))
    variants = Counter(tuple(u for u in s if u != lang.silence) for s in sequences)
    ids = lang.tokens
    assert set(variants) == {(ids["AH"], ids["T"], ids["UW"]), (ids["EY"], ids["T"], ids["UW"])}
    assert variants.most_common()[0][1] / count == pytest.approx(0.5, abs=0.03)
    assert np.mean([s[0] == lang.silence for s in sequences]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([s[-1] == lang.silence for s in sequences]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([lang.silence in s[1:-2] for s in sequences]) == pytest.approx(0.1, abs=0.03)


def test_same_seed_same_draws(lang: Lang) -> None:
    text = ["A GO A", "NINE A TWO"] * 20
    first = list(Pronouncer(lang, seed=1)(text))
    assert first == list(Pronouncer(lang, seed=1)(text))
    assert first != list(Pronouncer(lang, seed=2)(text))


def test_sentences_with_unknown_words_are_counted_listed_and_logged(
    lang: Lang, caplog: pytest.LogCaptureFixture
) -> None:
    text = ["GO TO NINE", "", "GO ZEBRA ZEBRA", "XYLEM", "ANNA GO"]
    with caplog.at_level(logging.WARNING):
        fsa, used = build_denominator(text, lang, Graphs())
    assert (used.used, used.left_out, used.unknown) == (2, 2, {"ZEBRA": 2, "XYLEM": 1})
    assert "2 sentences" in caplog.text and "ZEBRA" in caplog.text
    clean, _ = build_denominator([text[0], text[4]], lang, Graphs())
    np.testing.assert_array_equal(fsa.weight, clean.weight)


@pytest.mark.parametrize("text", [[], [""], ["ZEBRA XYLEM"]])
def test_nothing_to_pronounce(lang: Lang, text: list[str]) -> None:
    with pytest.raises(ValueError, match=r"nothing of the text corpus can be pronounced"):
        build_denominator(text, lang, Graphs())
