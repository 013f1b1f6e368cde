"""The denominator from text: what is pronounced how often, and what is left out."""

from __future__ import annotations

import logging
import random
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from distill.config.graphs import Graphs
from distill.graphs import unit_ngram as ngram
from distill.graphs.denominator import Pronouncer, build_denominator
from distill.graphs.lexicon import Lang
from distill.graphs.unit_ngram import unit_perplexity


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
    with pytest.raises(ValueError, match=r"no sentence of the text corpus can be pronounced"):
        build_denominator(text, lang, Graphs())


def endless(lang: Lang, lines: int) -> Iterator[str]:
    rng = random.Random(0)
    # longer than the tuples that Python keeps for reuse, which would count as memory in use
    return (" ".join(rng.choices(lang.lexicon.words, k=rng.randint(25, 35))) for _ in range(lines))


@pytest.mark.parametrize("settings", [Graphs(order=2), Graphs(order=3, style="chain", num_extra_states=5)])
def test_memory_does_not_grow_with_lines(lang: Lang, settings: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all n-grams were seen, ten times the text takes no more memory (held whole: 1.5 MB more)."""
    monkeypatch.setattr(ngram, "BLOCK", 1000)
    peaks = []
    for lines in (150, 1500):
        tracemalloc.start()
        build_denominator(endless(lang, lines), lang, settings)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.15 * peaks[0]


@pytest.mark.parametrize(
    ("settings", "states"),
    [(Graphs(order=2), 11), (Graphs(order=3), None), (Graphs(order=4), None), (Graphs(order=4, style="chain"), None)],
)
def test_every_setting_gives_a_graph_of_the_text(lang: Lang, settings: Graphs, states: int | None) -> None:
    text = list(endless(lang, 200))
    fsa, used = build_denominator(iter(text), lang, settings)
    fsa.validate(len(lang.tokens))
    assert states is None or fsa.num_states == states
    assert used.used == len(text)
    spoken = list(Pronouncer(lang, settings.seed)(text))
    assert 1 < unit_perplexity(fsa, spoken) < len(lang.tokens)
    again, _ = build_denominator(text, lang, settings)
    for name in ("src", "dst", "label", "weight", "final"):
        np.testing.assert_array_equal(getattr(fsa, name), getattr(again, name))


def test_silence_at_edges_and_inside_has_its_own_probability(lang: Lang) -> None:
    text, silence = ["GO TO"] * 50, lang.silence
    never = list(Pronouncer(lang, 0, silence_edge=0, silence_inside=0)(text))
    assert not any(silence in s for s in never)
    edges = list(Pronouncer(lang, 0, silence_edge=1, silence_inside=0)(text))
    assert all(s[0] == s[-1] == silence and silence not in s[1:-1] for s in edges)
    inside = list(Pronouncer(lang, 0, silence_edge=0, silence_inside=1)(text))
    assert all(silence == s[2] and s.count(silence) == 1 for s in inside)


def test_models_too_large_to_train_with_are_refused(lang: Lang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "MOST_ARCS", 300)
    text = list(endless(lang, 200))
    with pytest.raises(ValueError, match=r"3-gram of 11 units .* arcs, more than 300; .*graphs\.style=chain"):
        build_denominator(text, lang, Graphs(order=3))
    build_denominator(text, lang, Graphs(order=3, style="chain"))
