"""n-gram models over units by interpolated Witten-Bell, as acceptors without back-off.

p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h)), with t(h) the number of different units seen
after h and h' the history without its oldest unit (Witten and Bell 1991; Chen and Goodman 1999).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import numpy as np

from distill.fsa.graph import Fsa, expand, reachable
from distill.graphs.numerator import UnitLm

END = 0  # the sentence's start in a history, its end as a successor; blank never occurs in a sequence
BLOCK = 1_000_000  # symbols per block: bounds the memory, with the number of distinct n-grams
MOST_ARCS = 50_000_000  # of a model in which every unit can follow: some gigabytes, and too slow to train with
Tables = dict[int, tuple[np.ndarray, np.ndarray]]  # two arrays for each length of history


def train_unit_ngram(sequences: Iterable[Sequence[int]], order: int, num_units: int) -> Fsa:
    """Unit n-gram without back-off arcs: every state has an arc for every unit, and an end.

    Removing the epsilons of a back-off model would count its paths twice in the log semiring, so
    the interpolated probabilities are written out. States are the histories that were seen, and
    each unit alone; an arc leads to the longest of them that fits. State 0 is the start of a sentence.

    Raises ValueError for an order other than 2 to 4, no sequences, or a unit outside 1 .. num_units - 1.
    """
    counts = count_ngrams(sequences, order, num_units)
    _check_size(counts, num_units)
    tables = _rows(counts, num_units)
    # Length 0 is no state: there is always a last unit, or the start.
    states = {n: codes for n, (codes, _) in tables.items() if n and len(codes)}
    states[1] = np.arange(num_units)
    short = np.repeat(tables[0][1], num_units, axis=0)  # of the start and of every unit; the unigram's if never seen
    short[tables[1][0]] = tables[1][1]
    fsa = _acceptor(states, np.log(np.concatenate([short, *(tables[n][1] for n in range(2, order))])), num_units)
    alive = reachable(np.array([0]), fsa.src, fsa.dst, fsa.num_states)
    number, keep = (np.cumsum(alive) - 1).astype(np.int32), alive[fsa.src]
    return Fsa(number[fsa.src[keep]], number[fsa.dst[keep]], fsa.label[keep], fsa.weight[keep], fsa.final[alive])


def _check_size(counts: Tables, num_units: int) -> None:
    states = sum(len(np.unique(codes // num_units)) for n, (codes, _) in counts.items() if n > 1) + num_units
    if states * num_units > MOST_ARCS:
        raise ValueError(
            f"an interpolated {len(counts)}-gram of {num_units} units over this text has {states} states and"
            f" {states * num_units} arcs, more than {MOST_ARCS}; choose a lower graphs.order, fewer units"
            " (graphs.bpe_pieces), or graphs.style=chain, which has arcs for seen n-grams only"
        )


def count_ngrams(sequences: Iterable[Sequence[int]], order: int, num_units: int) -> Tables:
    """n-grams seen and how often, by length of the history: codes in base `num_units`, counts.

    A history reaches back to the sentence's start, which counts as its first symbol.
    """
    if not 2 <= order <= 4:
        raise ValueError(f"order must be 2, 3 or 4, got {order}")
    if num_units**order > np.iinfo(np.int64).max:
        raise ValueError(f"{num_units} units are too many for order {order}; choose a lower order")
    totals = [Counts() for _ in range(order)]
    for block in blocks(sequences):
        symbols, position = _padded(block, num_units)
        for n in range(order):
            at = np.flatnonzero(position >= max(n, 1))
            totals[n].add(sum((symbols[at - back] * num_units**back for back in range(n + 1)), start=np.zeros_like(at)))
    tables = {n: counts.table() for n, counts in enumerate(totals)}
    if not len(tables[0][0]):
        raise ValueError("no unit sequences to estimate an n-gram from: the text corpus is empty")
    return tables


def blocks(sequences: Iterable[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Lists of sequences of about BLOCK symbols in all."""
    block: list[Sequence[int]] = []
    size = 0
    for sequence in sequences:
        block.append(sequence)
        size += len(sequence) + 2
        if size >= BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


class Counts:
    """Counts of codes. Blocks are merged once as large as the table, which amortises the sorting."""

    def __init__(self) -> None:
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, codes: np.ndarray) -> None:
        self.waiting.append(np.unique(codes, return_counts=True))
        if sum(len(codes) for codes, _ in self.waiting[1:]) >= len(self.waiting[0][0]):
            self.waiting = [self.table()]

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Codes, sorted, and their counts."""
        empty = np.zeros(0, dtype=np.int64)
        codes, numbers = (np.concatenate(arrays) for arrays in zip((empty, empty), *self.waiting))
        codes, which = np.unique(codes, return_inverse=True)
        counts = np.zeros(len(codes), dtype=np.int64)
        np.add.at(counts, which, numbers)
        return codes, counts


def _padded(block: list[Sequence[int]], num_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences end to end, each between start and end; and each symbol's position within its own."""
    lengths = np.array([len(sequence) + 2 for sequence in block])
    symbols = np.fromiter(chain.from_iterable((END, *s, END) for s in block), dtype=np.int64, count=lengths.sum())
    row, position = expand(lengths)
    inner = (position > 0) & (position < lengths[row] - 1)
    wrong = inner & ((symbols < 1) | (symbols >= num_units))
    if wrong.any():
        raise ValueError(f"unit {symbols[wrong][0]} in a sequence, expected 1..{num_units - 1}; blank is not a unit")
    return symbols, position


def _rows(counts: Tables, num_units: int) -> Tables:
    """By length: codes (H,) of the histories seen, and p(. | history) (H, num_units), the end in column 0."""
    tables: Tables = {}
    for n in sorted(counts):
        codes, numbers = counts[n]
        histories, which = np.unique(codes // num_units, return_inverse=True)
        seen = np.zeros((len(histories), num_units))
        seen[which, codes % num_units] = numbers
        if n:
            shorter, lower = tables[n - 1]
            lower = lower[np.searchsorted(shorter, histories % num_units ** (n - 1))]
        else:
            lower = np.full((1, num_units), 1 / num_units)  # below the unigram lies the uniform distribution
        kinds = (seen > 0).sum(1, keepdims=True)
        tables[n] = histories, (seen + kinds * lower) / (seen.sum(1, keepdims=True) + kinds)
    return tables


def _acceptor(states: Mapping[int, np.ndarray], rows: np.ndarray, num_units: int) -> Fsa:
    """states: sorted codes of the histories by length, numbered in that order; rows (S, num_units) log-weights."""
    lengths = sorted(states)
    first = dict(zip(lengths, np.cumsum([0, *(len(states[n]) for n in lengths)])))
    units = np.arange(1, num_units)
    targets = []
    for n in lengths:
        code = states[n][:, None] * num_units + units
        target = np.full(code.shape, -1)
        for longest in range(min(n + 1, lengths[-1]), 0, -1):
            suffix = code % num_units**longest
            place = np.searchsorted(states[longest], suffix).clip(max=len(states[longest]) - 1)
            fits = (target < 0) & (states[longest][place] == suffix)
            target[fits] = first[longest] + place[fits]
        targets.append(target)
    count = len(rows)
    src = np.repeat(np.arange(count, dtype=np.int32), len(units))
    label = np.tile(units.astype(np.int32), count)
    dst = np.concatenate(targets).astype(np.int32).reshape(-1)
    return Fsa(src, dst, label, rows[:, 1:].reshape(-1), rows[:, END].copy())


def unit_perplexity(fsa: Fsa, sequences: Iterable[Sequence[int]]) -> float:
    """Perplexity per unit, ends counted, of sequences under a deterministic unit n-gram."""
    lm = UnitLm(fsa, int(fsa.label.max()) + 1)
    total, count = 0.0, 0
    for sequence in sequences:
        total += lm.score(sequence)
        count += len(sequence) + 1
    return math.exp(-total / max(1, count))
