"""Unit n-gram of Kaldi's chain models: maximum likelihood, without back-off, of a chosen size.

After kaldi/src/chain/language-model.{h,cc} (chain-est-phone-lm; Povey et al. 2016). States are histories of
up to order - 1 units; only successors that were seen have an arc, p(w | h) = c(h w) / c(h). A history of at
least `no_prune_order` units may be pruned: its counts go to the history without its oldest unit, and arcs
that led to it lead to the longest suffix kept. Histories with the smallest loss of log-likelihood on the
text are pruned first, until `num_extra_states` are left beyond the histories of no_prune_order - 1 units.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from distill.fsa.graph import Fsa
from distill.graphs.unit_ngram import END, Tables, count_ngrams

PHASES = 4  # after each quarter of the pruning all losses are computed anew, as Kaldi does
CLOSE = 1e-3  # relative: a queued loss that has changed by less is used as it is
ROUNDING = 1e-9  # smaller losses are 0, so that equal losses are equal in any order of summation
History = tuple[int, int]  # length, and code in base `num_units`


def train_chain_ngram(
    sequences: Iterable[Sequence[int]],
    order: int,
    num_units: int,
    no_prune_order: int = 3,
    num_extra_states: int = 2000,
) -> Fsa:
    """Unit n-gram with arcs for seen n-grams only; state 0 is the start of a sentence.

    Differs from Kaldi in ties of the loss, which are broken by the history instead of by the order of the
    text. Raises ValueError for an order other than 2 to 4, a no_prune_order outside 1 to order, a negative
    number of states, no sequences, or a unit outside 1 .. num_units - 1.
    """
    if not 1 <= no_prune_order <= order:
        raise ValueError(f"no_prune_order must be 1 to {order} (the order), got {no_prune_order}")
    if num_extra_states < 0:
        raise ValueError(f"num_extra_states must not be negative, got {num_extra_states}")
    model = _Histories(count_ngrams(sequences, order, num_units), order, num_units, no_prune_order)
    model.prune(num_extra_states)
    return model.acceptor()


@dataclass
class _State:
    """Successors of a history and their counts. above: total of it and of all longer histories that end with it."""

    counts: dict[int, int] = field(default_factory=dict)
    total: int = 0
    above: int = 0
    entropy: float = 0.0  # sum of c log c
    allowed: bool = False

    def clear(self) -> None:
        self.counts, self.total, self.above, self.entropy, self.allowed = {}, 0, 0, 0.0, False

    def add(self, other: _State) -> None:
        for unit, count in other.counts.items():
            before = self.counts.get(unit, 0)
            self.counts[unit] = before + count
            self.entropy += _xlogx(before + count) - _xlogx(before)
        self.total += other.total


class _Histories:
    """All histories with their counts, and which of them are kept."""

    def __init__(self, tables: Tables, order: int, num_units: int, no_prune_order: int) -> None:
        self.order, self.num_units, self.no_prune_order = order, num_units, no_prune_order
        self.states: dict[History, _State] = {}
        for length in range(order):
            self._take(length, *tables[length])
        for history in sorted(self.states, reverse=True):  # longest first; their suffixes come after
            suffix = self.shorter(history)
            while suffix is not None and suffix not in self.states:
                self.states[suffix] = _State()
                suffix = self.shorter(suffix)
        for history, state in list(self.states.items()):
            below: History | None = history
            while below is not None:
                self.states[below].above += state.total
                below = self.shorter(below)
        self.active = sum(state.total > 0 for state in self.states.values())

    def _take(self, length: int, codes: np.ndarray, counts: np.ndarray) -> None:
        """A history is as long as the order or the sentence's start allows: shorter ones begin with the start."""
        if length < self.order - 1:
            inside = codes < self.num_units**length if length else np.zeros(len(codes), dtype=bool)
            codes, counts = codes[inside], counts[inside]
        for code, count in zip(codes.tolist(), counts.tolist()):
            state = self.states.setdefault((length, code // self.num_units), _State())
            state.counts[code % self.num_units] = count
            state.total += count
            state.entropy += _xlogx(count)

    def shorter(self, history: History) -> History | None:
        """The history that takes the counts of a pruned one; None if it must stay."""
        length, code = history
        if length < self.no_prune_order:
            return None
        return length - 1, code % self.num_units ** (length - 1)

    def prune(self, num_extra_states: int) -> None:
        """Prune histories until so many are left beyond those of no_prune_order - 1 units."""
        basic = sum(length == self.no_prune_order - 1 for length, _ in self.states)
        surplus = self.active - (basic + num_extra_states)
        before = self.active
        for phase in range(1, PHASES + 1):
            target = before - surplus * phase // PHASES
            for history, state in self.states.items():
                state.allowed = self._may_go(history)
            queue = [(self._loss(history), history) for history, state in self.states.items() if state.allowed]
            heapq.heapify(queue)
            while self.active > target and queue:
                loss, history = heapq.heappop(queue)
                again = self._loss(history)
                if abs(loss - again) > CLOSE * (abs(loss) + abs(again)):
                    heapq.heappush(queue, (again, history))
                else:
                    self._merge(history, queue)

    def _may_go(self, history: History) -> bool:
        """No longer history below it is left, and no arc from it leads to a history that needs all of it."""
        state = self.states[history]
        if self.shorter(history) is None or state.total == 0 or state.total != state.above:
            return False
        if history[0] == self.order - 1:
            return True
        following = (self.states.get(self._then(history, unit)) for unit in state.counts if unit != END)
        return not any(after is not None and after.above for after in following)

    def _then(self, history: History, unit: int) -> History:
        return history[0] + 1, history[1] * self.num_units + unit

    def _loss(self, history: History) -> float:
        """Log-likelihood lost by pruning a history; next to nothing where the shorter one is empty."""
        state, shorter = self.states[history], self.shorter(history)
        assert shorter is not None
        below = self.states[shorter]
        if below.total == 0:
            return 1e-15 * state.total
        apart = state.entropy - _xlogx(state.total) - _xlogx(below.total)
        merged = -_xlogx(state.total + below.total)
        for unit, count in state.counts.items():
            other = below.counts.get(unit, 0)
            merged += _xlogx(count + other) - _xlogx(other)
        loss = float(np.float32(apart - merged))
        return loss if loss > ROUNDING else 0.0

    def _merge(self, history: History, queue: list[tuple[float, History]]) -> None:
        state, shorter = self.states[history], self.shorter(history)
        assert shorter is not None
        below = self.states[shorter]
        if below.total:
            self.active -= 1
        below.add(state)
        state.clear()
        waited, below.allowed = below.allowed, self._may_go(shorter)
        if below.allowed and not waited:
            heapq.heappush(queue, (self._loss(shorter), shorter))

    def kept(self, history: History) -> History:
        """The longest suffix of a history that is a state."""
        length, code = history
        while (state := self.states.get((length, code))) is None or state.total == 0:
            length -= 1
            code %= self.num_units**length
        return length, code

    def acceptor(self) -> Fsa:
        """The start first, then histories by length and code; all of them can be reached."""
        start = self.kept((1, END))
        names = [start, *sorted(h for h, state in self.states.items() if state.total and h != start)]
        number = {history: index for index, history in enumerate(names)}
        arcs, final = [], {}
        for history in names:
            state = self.states[history]
            for unit, count in sorted(state.counts.items()):
                weight = math.log(count / state.total)
                if unit == END:
                    final[number[history]] = weight
                else:
                    arcs.append((number[history], number[self.kept(self._then(history, unit))], unit, weight))
        return Fsa.from_arcs(arcs, final, len(names))


def _xlogx(count: int) -> float:
    return count * math.log(count) if count else 0.0
