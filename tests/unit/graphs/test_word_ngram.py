"""Word n-grams: against the formula and a naive version, their sums, blocks, memory and files."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from distill.graphs import word_ngram
from distill.graphs.arpa import read_arpa
from distill.graphs.word_ngram import train_word_ngram
from tests.support.lang import trained_lm
from tests.unit.graphs.test_unit_ngram import witten_bell

SENTENCES = ["GO TO NINE", "GO TO NINE", "GO TO ANNA", "TWO AN NINE", "A GO", "ANNA", "GO TO NINE TOO TOO TOO"]
Ngram = tuple[str, ...]


def naive(sentences: Iterable[str], order: int, words: Iterable[str], least: int) -> tuple[dict, dict]:
    """Probabilities and back-off weights, written with dictionaries of strings."""
    counts: dict[Ngram, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        padded = ("<s>", *sentence.split(), "</s>")
        for position in range(1, len(padded)):
            for length in range(min(order, position + 1)):
                counts[padded[position - length : position]][padded[position]] += 1
    vocabulary = {*counts[()], *words, "</s>"}
    probability: dict[Ngram, float] = {}
    backoff: dict[Ngram, float] = {}
    for history in sorted(counts, key=len):
        seen = counts[history]
        kept = {w: c for w, c in seen.items() if len(history) < 2 or c >= least}
        if not kept:
            continue
        scale = 1 / (sum(seen.values()) + len(seen))
        share = 1 - sum(kept.values()) * scale
        if history:
            backoff[history] = share
        for word in kept if history else vocabulary:
            lower = probability[(*history[1:], word)] if history else 1 / len(vocabulary)
            probability[(*history, word)] = kept.get(word, 0) * scale + share * lower
    return probability, backoff


def some_text(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    names = [f"W{n}" for n in range(12)]
    return [" ".join(rng.choices(names, [1 / (n + 1) for n in range(12)], k=rng.randint(0, 9))) for _ in range(count)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("least", [1, 2, 3])
def test_file_equals_the_naive_version(order: int, least: int, tmp_path: Path) -> None:
    text, words = some_text(order, 150), ["ZEBRA", "W3"]
    lm = train_word_ngram(text, order, words, least)
    lm.write(tmp_path / "lm.arpa")
    found, (probability, backoff) = read_arpa(tmp_path / "lm.arpa"), naive(text, order, words, least)
    assert found.order == lm.order == order
    assert found.probability.keys() == probability.keys() | {("<s>",)}
    assert lm.size == len(found.probability)
    assert found.backoff.keys() == backoff.keys()
    for ngram, value in probability.items():
        assert found.probability[ngram] == pytest.approx(math.log10(value), abs=2e-6)
    for ngram, value in backoff.items():
        assert found.backoff[ngram] == pytest.approx(math.log10(value), abs=2e-6)
    entries = [line.split("\t")[1] for line in (tmp_path / "lm.arpa").read_text().splitlines() if "\t" in line]
    by_order = [list(group) for _, group in itertools.groupby(entries, lambda entry: len(entry.split()))]
    assert by_order == [sorted(group, key=str.split) for group in by_order]


@pytest.mark.parametrize("block", [1, 5, 64])
def test_blocks_change_nothing(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = some_text(7, 60)  # most sentences are longer than the first two blocks
    train_word_ngram(text, 4).write(tmp_path / "whole.arpa")
    monkeypatch.setattr(word_ngram, "BLOCK", block)
    train_word_ngram(iter(text), 4).write(tmp_path / "pieces.arpa")
    assert (tmp_path / "whole.arpa").read_bytes() == (tmp_path / "pieces.arpa").read_bytes()


def test_memory_does_not_grow_with_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once all n-grams were seen, ten times the text takes no more memory (its words: 0.2 MB, on disk)."""
    monkeypatch.setattr(word_ngram, "BLOCK", 500)
    peaks = []
    for lines in (200, 2000):
        rng = random.Random(0)
        sentences = (" ".join(rng.choices("ABC", k=25)) for _ in range(lines))
        tracemalloc.start()
        train_word_ngram(sentences, 3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.15 * peaks[0]


@pytest.mark.parametrize(("order", "least"), [(1, 1), (2, 2), (3, 1), (3, 2), (4, 2)])
def test_word_probabilities_of_every_context_sum_to_one(order: int, least: int, tmp_path: Path) -> None:
    lm = trained_lm(tmp_path, SENTENCES, order, ["ZEBRA"], least)
    vocabulary = sorted({*" ".join(SENTENCES).split(), "ZEBRA", "</s>"})
    contexts = itertools.chain(
        ((w,) for w in ("<s>", *vocabulary)), itertools.product(("<s>", "GO", "TO", "TOO", "ZEBRA"), repeat=3)
    )
    for context in contexts:
        assert sum(10 ** lm.score(context, word) for word in vocabulary) == pytest.approx(
            1, abs=5e-6
        )  # the file has six decimals


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_word_ngram_equals_the_formula(order: int, tmp_path: Path) -> None:
    lm = trained_lm(tmp_path, SENTENCES, order, least=1)
    words = {*" ".join(SENTENCES).split(), "</s>"}
    direct = witten_bell([tuple(s.split()) for s in SENTENCES], order, len(words))
    for sentence in ("GO TO NINE", "ANNA TWO GO TO", "TOO TOO NINE AN A GO"):
        padded = ("<", *sentence.split(), ">")
        expected = sum(math.log10(direct(padded[max(0, i - order + 1) : i], padded[i])) for i in range(1, len(padded)))
        got = lm.perplexity([sentence])
        assert math.log10(got) * -(len(padded) - 1) == pytest.approx(expected, abs=1e-5)


def test_words_outside_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ZEBRA'"):
        trained_lm(tmp_path, SENTENCES, 3).perplexity(["GO ZEBRA"])
    with pytest.raises(ValueError, match="empty"):
        train_word_ngram([], 3)
