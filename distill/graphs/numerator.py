"""Numerator graphs: the unit sequences that count as correct, weighted by the denominator's LM.

Every unit sequence stands on exactly one path, and each path carries the weight that the
denominator gives the same sequence. So numerator is a part of denominator, and the LF-MMI objective
is at most zero (Povey et al. 2016; papers/001, Eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from distill.fsa.graph import Fsa


class UnitLm:
    """Deterministic unit LM (the denominator's) with constant-time look-up of arcs."""

    def __init__(self, fsa: Fsa, num_units: int) -> None:
        fsa.validate(num_units)
        self.fsa = fsa
        self.next = np.full((fsa.num_states, num_units), -1, dtype=np.int64)
        self.weight = np.full((fsa.num_states, num_units), -np.inf)
        self.next[fsa.src, fsa.label] = fsa.dst
        self.weight[fsa.src, fsa.label] = fsa.weight
        if (self.next >= 0).sum() != fsa.num_arcs:
            raise ValueError("the denominator's LM must be deterministic: a state has two arcs of one label")

    def score(self, units: Sequence[int]) -> float:
        """Log-probability of a unit sequence, its end included; -inf if the LM does not allow it."""
        state, total = 0, 0.0
        for unit in units:
            total += float(self.weight[state, unit])
            state = int(self.next[state, unit])
            if state < 0:
                return -np.inf
        return total + float(self.fsa.final[state])


class AcyclicGraph:
    """Growing acyclic acceptor over units; `deterministic()` gives each sequence one path."""

    def __init__(self) -> None:
        self.arcs: list[dict[int, set[int]]] = [{}]
        self.final: set[int] = set()

    def add_state(self) -> int:
        self.arcs.append({})
        return len(self.arcs) - 1

    def add_arc(self, src: int, unit: int, dst: int) -> None:
        self.arcs[src].setdefault(unit, set()).add(dst)

    def add_path(self, src: int, units: Sequence[int], dst: int) -> None:
        """A chain of arcs from src to dst."""
        for unit in units[:-1]:
            state = self.add_state()
            self.add_arc(src, unit, state)
            src = state
        self.add_arc(src, units[-1], dst)

    def deterministic(self) -> Fsa:
        """Subset construction; all weights zero."""
        start = frozenset([0])
        numbers, queue = {start: 0}, [start]
        arcs: list[tuple[int, int, int, float]] = []
        final: dict[int, float] = {}
        for subset in queue:
            if subset & self.final:
                final[numbers[subset]] = 0.0
            units = sorted({unit for state in subset for unit in self.arcs[state]})
            for unit in units:
                reached = frozenset().union(*(self.arcs[state].get(unit, ()) for state in subset))
                if reached not in numbers:
                    numbers[reached] = len(numbers)
                    queue.append(reached)
                arcs.append((numbers[subset], numbers[reached], unit, 0.0))
        return Fsa.from_arcs(arcs, final, len(numbers))


def transcript_graph(pronunciations: Sequence[Sequence[Sequence[int]]], silence: int | None) -> Fsa:
    """All pronunciations of a word sequence, with optional silence between words and at both ends.

    pronunciations: for each word its alternatives, each a sequence of unit ids.
    """
    graph = AcyclicGraph()
    before = 0
    for alternatives in pronunciations:
        entries = [before] if silence is None else [before, _silence_after(graph, before, silence)]
        after = graph.add_state()
        for units in alternatives:
            for entry in entries:
                graph.add_path(entry, units, after)
        before = after
    graph.final.add(before)
    if silence is not None:
        graph.final.add(_silence_after(graph, before, silence))
    return graph.deterministic()


def _silence_after(graph: AcyclicGraph, state: int, silence: int) -> int:
    after = graph.add_state()
    graph.add_arc(state, silence, after)
    return after


def sequences_graph(sequences: Iterable[Sequence[int]]) -> Fsa:
    """The unit sequences of an n-best list as a prefix tree; doubles count once."""
    graph = AcyclicGraph()
    for units in sequences:
        state = 0
        for unit in units:
            following = graph.arcs[state].get(unit)
            if not following:
                graph.add_arc(state, unit, graph.add_state())
            (state,) = graph.arcs[state][unit]
        graph.final.add(state)
    return graph.deterministic()


def with_lm(graph: Fsa, lm: UnitLm) -> Fsa:
    """Intersect an acyclic deterministic graph with the denominator's LM; only complete paths stay."""
    leaving: list[list[int]] = [[] for _ in range(graph.num_states)]
    for arc, src in enumerate(graph.src):
        leaving[src].append(arc)
    numbers, queue = {(0, 0): 0}, [(0, 0)]
    arcs: list[tuple[int, int, int, float]] = []
    final: dict[int, float] = {}
    for state, history in queue:
        here = numbers[state, history]
        ending = graph.final[state] + lm.fsa.final[history]
        if ending > -np.inf:
            final[here] = ending
        for arc in leaving[state]:
            unit = int(graph.label[arc])
            following = int(lm.next[history, unit])
            if following < 0:
                continue  # the LM gives this sequence no probability
            key = (int(graph.dst[arc]), following)
            if key not in numbers:
                numbers[key] = len(numbers)
                queue.append(key)
            arcs.append((here, numbers[key], unit, graph.weight[arc] + lm.weight[history, unit]))
    return _connected(Fsa.from_arcs(arcs, final, len(numbers)))


def _connected(graph: Fsa) -> Fsa:
    """Drop states from which no end can be reached; state numbers of the rest keep their order."""
    alive = np.isfinite(graph.final)
    changed = True
    while changed:
        before = alive.copy()
        np.logical_or.at(alive, graph.src, alive[graph.dst])
        changed = bool((before != alive).any())
    alive[0] = True
    number = np.cumsum(alive) - 1
    keep = alive[graph.src] & alive[graph.dst]
    return Fsa(
        number[graph.src[keep]].astype(np.int32),
        number[graph.dst[keep]].astype(np.int32),
        graph.label[keep],
        graph.weight[keep],
        graph.final[alive],
    )
