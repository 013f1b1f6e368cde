"""Kaldi-chain n-gram: against the algorithm written naively, and against what Kaldi's own source gives."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from distill.fsa.graph import Fsa
from distill.graphs.numerator import UnitLm
from distill.graphs.unit_chain_ngram import train_chain_ngram
from distill.graphs.unit_ngram import train_unit_ngram, unit_perplexity

UNITS = 7
Histories = dict[tuple[int, ...], Counter]


def text(seed: int, count: int, units: int = UNITS) -> list[tuple[int, ...]]:
    """Sequences in which a unit depends on the two before it."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        sequence: list[int] = []
        while rng.random() < 0.9:
            before = sequence[-1] * 7 + (sequence[-2] if len(sequence) > 1 else 0) if sequence else None
            shape = 1.5 + (2 if before is None else before % 5 * 0.4)
            sequence.append(1 + int((units - 1) * rng.random() ** shape))
        found.append(tuple(sequence))
    return found


def log_likelihood(counts: Counter) -> float:
    total = sum(counts.values())
    return sum(count * math.log(count / total) for count in counts.values())


def naive(data: list[tuple[int, ...]], order: int, no_prune_order: int, extra: int) -> tuple[Histories, list]:
    """kaldi/src/chain/language-model.cc step by step, every loss from scratch; "end" is 0. Also what was given up."""
    seen: Histories = {}
    for sequence in data:
        history: tuple[int, ...] = (0,)
        for unit in (*sequence, 0):
            seen.setdefault(history, Counter())[unit] += 1
            history = (*history, unit)[-(order - 1) :]
    active = len(seen)
    for history in list(seen):
        while len(history) >= no_prune_order:
            history = history[1:]
            seen.setdefault(history, Counter())
    basic = sum(len(history) == no_prune_order - 1 for history in seen)

    def longer(history: tuple[int, ...]) -> bool:
        """Whether it, or any history that ends with it and may be given up to it, has counts."""
        return any(seen[h] for h in seen if h[len(h) - len(history) :] == history and len(h) >= len(history))

    def allowed(history: tuple[int, ...]) -> bool:
        if len(history) < no_prune_order or not seen[history]:
            return False
        if any(seen[h] for h in seen if len(h) > len(history) and h[len(h) - len(history) :] == history):
            return False
        return not any(unit and (*history, unit) in seen and longer((*history, unit)) for unit in seen[history])

    def loss(history: tuple[int, ...]) -> float:
        below = seen[history[1:]]
        if not below:
            return 1e-15 * sum(seen[history].values())
        apart = log_likelihood(seen[history]) + log_likelihood(below)
        found = float(np.float32(apart - log_likelihood(seen[history] + below)))
        return found if found > 1e-9 else 0.0

    given_up, first = [], active
    for phase in range(1, 5):
        target = first - (first - basic - extra) * phase // 4
        waiting = {history: loss(history) for history in seen if allowed(history)}
        while active > target and waiting:
            history = min(waiting, key=lambda h: (waiting[h], len(h), h))
            old, new = waiting.pop(history), loss(history)
            if abs(old - new) > 1e-3 * (old + new):
                waiting[history] = new
                continue
            active -= bool(seen[history[1:]])
            was_allowed = history[1:] in waiting
            seen[history[1:]] += seen[history]
            seen[history] = Counter()
            given_up.append(history)
            if not was_allowed and allowed(history[1:]):
                waiting[history[1:]] = loss(history[1:])
    return {history: counts for history, counts in seen.items() if counts}, given_up


def same(fsa: Fsa, kept: Histories) -> bool:
    """Whether a graph is the model of these histories, walked from the start."""

    def state(history: tuple[int, ...]) -> tuple[int, ...]:
        while history not in kept:
            history = history[1:]
        return history

    lm = UnitLm(fsa, UNITS)
    number, queue = {state((0,)): 0}, [state((0,))]
    for history in queue:
        here, counts = number[history], kept[history]
        assert {int(u) for u in np.flatnonzero(lm.next[here] >= 0)} == {u for u in counts if u}
        total = sum(counts.values())
        assert math.exp(fsa.final[here]) == pytest.approx(counts[0] / total)
        for unit in sorted(u for u in counts if u):
            assert math.exp(lm.weight[here, unit]) == pytest.approx(counts[unit] / total)
            after = state((*history, unit))
            assert number.setdefault(after, int(lm.next[here, unit])) == lm.next[here, unit]
            if after not in queue:
                queue.append(after)
    return len(set(number.values())) == len(kept) == fsa.num_states


@pytest.mark.parametrize(
    ("order", "no_prune_order", "extra"),
    [(2, 1, 0), (2, 2, 0), (3, 1, 2), (3, 2, 5), (4, 2, 20), (4, 3, 8), (4, 3, 0), (4, 1, 10), (4, 4, 3), (3, 2, 999)],
)
@pytest.mark.parametrize("count", [12, 90])
def test_pruning_equals_the_naive_algorithm(order: int, no_prune_order: int, extra: int, count: int) -> None:
    data = text(count, count)
    kept, given_up = naive(data, order, no_prune_order, extra)
    assert bool(given_up) == (no_prune_order < order and extra < 999)
    assert same(train_chain_ngram(data, order, UNITS, no_prune_order, extra), kept)


@pytest.mark.parametrize(
    ("order", "no_prune_order", "extra", "expected"),
    # states, arcs and perplexity by Kaldi's language-model.cc, compiled, for `text(1, 5000)`
    [(4, 3, 10, (52, 303, 5.33097)), (4, 2, 20, (27, 162, 5.35864)), (3, 1, 4, (5, 30, 5.41297)),
     (4, 3, 30, (72, 416, 5.31848)), (4, 1, 25, (26, 156, 5.36937))],
)  # fmt: skip
def test_kaldi_gives_the_same(order: int, no_prune_order: int, extra: int, expected: tuple[int, int, float]) -> None:
    data = text(1, 5000)
    fsa = train_chain_ngram(data, order, UNITS, no_prune_order, extra)
    assert (fsa.num_states, fsa.num_arcs) == expected[:2]
    assert unit_perplexity(fsa, data) == pytest.approx(expected[2], rel=2e-6)


def test_order_of_the_text_does_not_matter() -> None:
    data = text(3, 300)
    one, other = train_chain_ngram(data, 4, UNITS, 2, 9), train_chain_ngram(data[::-1], 4, UNITS, 2, 9)
    for name in ("src", "dst", "label", "weight", "final"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_rows_sum_to_one_and_only_what_was_seen_has_an_arc() -> None:
    data = text(4, 200)
    fsa = train_chain_ngram(data, 3, UNITS, 3, 0)
    total = np.exp(fsa.final)
    np.add.at(total, fsa.src, np.exp(fsa.weight))
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert fsa.num_arcs < train_unit_ngram(data, 3, UNITS).num_arcs
    lm = UnitLm(fsa, UNITS)
    assert all(lm.score(sequence) > -np.inf for sequence in data)


@pytest.mark.parametrize(
    ("options", "message"),
    [((3, UNITS, 4, 1), "no_prune_order must be 1 to 3"), ((3, UNITS, 0, 1), "no_prune_order"),
     ((3, UNITS, 2, -1), "negative"), ((5, UNITS, 2, 1), "order must be")],
)  # fmt: skip
def test_wrong_options(options: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_chain_ngram([(1, 2)], *options)


def test_no_text() -> None:
    with pytest.raises(ValueError, match="text corpus is empty"):
        train_chain_ngram([], 3, UNITS)
