"""n-grams: probabilities against the formula written directly, and their sums."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from distill.graphs import unit_ngram as ngram
from distill.graphs.numerator import UnitLm
from distill.graphs.unit_ngram import train_unit_ngram, unit_perplexity

UNITS = 6  # unit 5 is never seen


def sequences(seed: int = 0, count: int = 60, longest: int = 7) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(1, 5, rng.integers(1, longest)).tolist()) for _ in range(count)]


def witten_bell(data: list[tuple], order: int, symbols: int) -> dict:
    """p(w | h) by the recursion as it stands in the books; `data` padded with starts is looked up as strings."""
    seen: Counter = Counter()
    for sequence in data:
        padded = ("<", *sequence, ">")
        for end in range(2, len(padded) + 1):
            for begin in range(max(0, end - order), end):
                seen[padded[begin:end]] += 1

    def probability(history: tuple, word: object) -> float:
        lower = probability(history[1:], word) if history else 1 / symbols
        after = [count for gram, count in seen.items() if gram[:-1] == history]
        if not after:
            return lower
        return (seen[(*history, word)] + len(after) * lower) / (sum(after) + len(after))

    return probability


@pytest.mark.parametrize("order", [2, 3, 4])
def test_unit_ngram_equals_the_formula(order: int) -> None:
    data = sequences()
    fsa = train_unit_ngram(data, order, UNITS)
    lm = UnitLm(fsa, UNITS)
    direct = witten_bell(data, order, UNITS)
    rng = np.random.default_rng(1)
    for _ in range(20):  # most of these hold histories that were never seen, and the unseen unit
        units = tuple(rng.integers(1, UNITS, 8).tolist())
        padded = ("<", *units, ">")
        expected = sum(math.log(direct(padded[max(0, i - order + 1) : i], padded[i])) for i in range(1, len(padded)))
        assert lm.score(units) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_unit_ngram_is_stochastic_complete_and_may_end_anywhere(order: int) -> None:
    fsa = train_unit_ngram(sequences(), order, UNITS)
    fsa.validate(UNITS)
    assert np.isfinite(fsa.final).all()
    assert fsa.num_arcs == fsa.num_states * (UNITS - 1)
    total = np.exp(fsa.final)
    np.add.at(total, fsa.src, np.exp(fsa.weight))
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_bigram_has_one_state_per_unit_and_a_start() -> None:
    fsa = train_unit_ngram(sequences(), 2, UNITS)
    assert fsa.num_states == UNITS
    np.testing.assert_array_equal(fsa.dst, fsa.label)


def test_counting_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_unit_ngram(sequences(), 3, UNITS)
    monkeypatch.setattr(ngram, "BLOCK", 7)
    pieces = train_unit_ngram(iter(sequences()), 3, UNITS)
    for name in ("src", "dst", "label", "weight", "final"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))


def test_sequences_shorter_than_the_order() -> None:
    data = [(1,), (2,)]
    lm = UnitLm(train_unit_ngram(data, 4, UNITS), UNITS)
    direct = witten_bell(data, 4, UNITS)
    expected = math.log(direct(("<",), 1)) + math.log(direct(("<", 1), 3)) + math.log(direct(("<", 1, 3), ">"))
    assert lm.score((1, 3)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("data", "order", "message"),
    [([], 2, "text corpus is empty"), ([(1,)], 5, "order must be"), ([(1, 0)], 2, "unit 0"), ([(9,)], 2, "unit 9")],
)
def test_unit_ngram_refuses(data: list[tuple[int, ...]], order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_unit_ngram(data, order, UNITS)


def test_unit_perplexity() -> None:
    data = sequences()
    fsa = train_unit_ngram(data, 2, UNITS)
    expected = -sum(UnitLm(fsa, UNITS).score(s) for s in data) / sum(len(s) + 1 for s in data)
    assert unit_perplexity(fsa, data) == pytest.approx(math.exp(expected))
    assert unit_perplexity(fsa, data) < unit_perplexity(fsa, [(5, 5, 5)])
