"""Numerator graphs: the unit sequences that count as correct, from a transcript or from a teacher's lattice.

Every unit sequence has exactly one path. `distill.graphs.numerator_weights` puts the denominator LM's weights
on the paths: then the numerator is a part of the denominator, and the LF-MMI objective is at most zero
(Povey et al. 2016; papers/001, Eq. 5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np

from distill.fsa.graph import Fsa
from distill.search.determinise import SequenceGraph


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
        entries = [before, *_silence_after(graph, before, silence)]
        after = graph.add_state()
        for units in alternatives:
            for entry in entries:
                graph.add_path(entry, units, after)
        before = after
    graph.final.update([before, *_silence_after(graph, before, silence)])
    return graph.deterministic()


def _silence_after(graph: AcyclicGraph, state: int, silence: int | None) -> list[int]:
    """The state behind an optional silence, in a list; an empty one without silence."""
    if silence is None:
        return []
    after = graph.add_state()
    graph.add_arc(state, silence, after)
    return [after]


def sequences_graph(sequences: Iterable[Sequence[int]]) -> Fsa:
    """The unit sequences of an n-best list as a prefix tree; duplicates count once."""
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


def nbest_graph(sequences: SequenceGraph, count: int, beam: float) -> Fsa:
    """The best `count` sequences within `beam` of the best, without weights of their own."""
    return sequences_graph(units for units, _ in islice(sequences.near(beam), count))


def lattice_graph(
    sequences: SequenceGraph,
    beam: float,
    graph_scale: float = 0.0,
    acoustic_scale: float = 0.0,
    tolerance: int | None = None,
    frame_ratio: float = 1.0,
) -> Fsa:
    """Sequences of a lattice within `beam` of the best, each with its scores times their scales.

    tolerance: frames (of the model that is trained) by which a unit may begin before its place in the lattice,
    or end after; None: anywhere. frame_ratio: frames of that model per frame of the lattice.
    """
    score = (sequences.graph.astype(np.float64) + sequences.acoustic).tolist()
    src, dst = sequences.src.tolist(), sequences.dst.tolist()
    ahead = [-np.inf] * sequences.num_states
    ahead[0] = 0.0
    for s, d, x in zip(src, dst, score):
        ahead[d] = max(ahead[d], ahead[s] + x)
    # The best way on from any state scores 0, so what is above the beam here also ends above it.
    best = np.array(ahead)
    keep = best[sequences.src] + score >= -beam
    final = graph_scale * sequences.final_graph.astype(np.float64) if graph_scale else np.zeros(len(best))
    final = final + acoustic_scale * sequences.final_acoustic
    total = best + sequences.final_graph + sequences.final_acoustic
    final = np.where(total >= -beam, final, -np.inf)
    weight = graph_scale * sequences.graph[keep] + acoustic_scale * sequences.acoustic[keep].astype(np.float64)
    graph = Fsa(sequences.src[keep], sequences.dst[keep], sequences.symbol[keep], weight, final)
    if tolerance is None:
        return graph
    return replace(graph, window=_windows(graph, sequences, tolerance, frame_ratio))


def _windows(graph: Fsa, sequences: SequenceGraph, tolerance: int, ratio: float) -> np.ndarray:
    """Frames in which a path may stand in each state: from the first that enters it to the last that leaves it."""
    latest = np.full(graph.num_states, -1, dtype=np.int64)
    np.maximum.at(latest, graph.src, sequences.latest[graph.dst])
    first = np.floor(sequences.earliest * ratio).astype(np.int64) - tolerance
    last = np.ceil(latest * ratio).astype(np.int64) - 1 + tolerance
    first[0] = 0
    last[np.isfinite(graph.final)] = np.iinfo(np.int32).max
    return np.stack([first, last], 1).astype(np.int32)
