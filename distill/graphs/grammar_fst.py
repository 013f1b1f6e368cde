"""G: a back-off word n-gram as a decoding graph, built while its ARPA file is read.

As Kaldi's and kaldilm's `arpa2fst --disambig-symbol=#0`: states are histories that an n-gram continues, an n-gram is an
arc to the longest history that it ends with, and back-off is an arc of label #0 (output epsilon) to the history without
its oldest word. Sentence ends are final weights.
"""

from __future__ import annotations

import logging
import math
from array import array
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import kaldifst
import numpy as np

from distill.graphs.arpa import END, START, Entry, hole, read_entries, twice

log = logging.getLogger(__name__)

UNKNOWN = {"<unk>", "<UNK>"}  # words of these names have no pronunciation
EMPTY = 0  # node of the empty history


def grammar_fst(arpa: Path, words: Mapping[str, int]) -> kaldifst.StdVectorFst:
    """Costs are negated natural logarithms. words: ids, "#0" among them.

    Arcs of probability zero are dropped, n-grams with <unk> too (counted in the log). Raises ValueError for a malformed
    file (`arpa.read_entries`), missing histories, duplicates, words without an id, and a model without any sentence.
    """
    grammar, missing, unfounded, left_out = _Grammar(words["#0"]), [], "", 0
    for entry in read_entries(arpa):
        ids = [EMPTY if word in (START, END) else words.get(word, -1) for word in entry.ngram]
        if min(ids) >= 0:
            grammar.add(entry, tuple(ids))
        elif UNKNOWN.isdisjoint(entry.ngram):
            missing += [entry.ngram[0]] if len(ids) == 1 else []
            unfounded = unfounded or f"{entry.where}: '{' '.join(entry.ngram)}'"
        else:
            left_out += 1
    if missing:
        raise ValueError(
            f"{arpa} has {len(missing)} words that the lexicon lacks, such as {sorted(missing)[:5]};"
            " train the n-gram on the lexicon's words (stage 3), or add their pronunciations to the lexicon"
        )
    if unfounded:
        raise ValueError(f"{unfounded} holds a word that has no 1-gram; make the n-gram again")
    if left_out:
        log.info("%s: %d n-grams with %s are left out", arpa, left_out, " or ".join(sorted(UNKNOWN)))
    if double := grammar.double():
        names = {id_: word for word, id_ in words.items()} | {EMPTY: START}
        ngram = tuple(names[id_] for id_ in double)
        raise twice([entry for entry in read_entries(arpa) if entry.ngram == ngram][1])
    fst = grammar.fst()
    if fst.start < 0:
        raise ValueError(f"{arpa}: no sentence has a probability above zero: has {END} one? Make the n-gram again")
    return fst


class _Grammar:
    """Nodes are n-grams that may be histories, in file order; an arc leads to the longest node that it ends with."""

    def __init__(self, back_off: int) -> None:
        self.back_off = back_off
        self.nodes: dict[tuple[int, ...], int] = {(): EMPTY}
        self.parent, self.penalty = array("q", [EMPTY]), array("d", [0.0])  # of each node: its suffix, its back-off
        self.ends, self.costs = array("q"), array("d")  # of each arc: source, label, target; cost
        self.final: dict[int, float] = {}

    def add(self, entry: Entry, ids: tuple[int, ...]) -> None:
        """Add an n-gram; ids are 0 for the start and the end of a sentence."""
        source = self.nodes.get(ids[:-1])
        if source is None:
            raise hole(entry)
        cost = -math.log(10) * entry.probability
        if entry.ngram[-1] == END:
            if source in self.final:
                raise twice(entry)
            self.final[source] = cost
            return
        target = suffix = self._longest(ids[1:])
        if ids in self.nodes:
            raise twice(entry)
        if not entry.highest:
            target = self.nodes[ids] = len(self.parent)
            self.parent.append(suffix)
            self.penalty.append(-math.log(10) * (entry.backoff or 0.0))
        if entry.ngram != (START,):
            self.ends.extend((source, ids[-1], target))
            self.costs.append(cost)

    def _longest(self, history: tuple[int, ...]) -> int:
        while history not in self.nodes:
            history = history[1:]
        return self.nodes[history]

    def double(self) -> tuple[int, ...] | None:
        """A duplicate n-gram of the highest order; `add` detects those of lower orders."""
        arcs = np.array(self.ends, np.int64).reshape(-1, 3)[:, :2]
        arcs = arcs[np.lexsort(arcs.T)]
        again = np.flatnonzero((arcs[1:] == arcs[:-1]).all(1))
        if not again.size:
            return None
        source, label = map(int, arcs[again[0]])
        return (*next(history for history, node in self.nodes.items() if node == source), label)

    def fst(self) -> kaldifst.StdVectorFst:
        """The graph, states in the order of nodes; an arc into a history without successors leads to its back-off."""
        start = self.nodes.get((EMPTY,), EMPTY)
        continued = {EMPTY, start, *self.ends[::3], *self.final}
        goal, extra = array("q"), array("d")
        for node, (parent, penalty) in enumerate(zip(self.parent, self.penalty)):
            goal.append(node if node in continued else goal[parent])
            extra.append(0.0 if node in continued else penalty + extra[parent])
        state = {node: number for number, node in enumerate(sorted(continued))}
        fst = kaldifst.StdVectorFst()
        for node in state:
            fst.set_final(fst.add_state(), self.final.get(node, math.inf))
            cost, target = self.penalty[node] + extra[self.parent[node]], goal[self.parent[node]]
            if node != EMPTY and math.isfinite(cost):
                fst.add_arc(state[node], kaldifst.StdArc(self.back_off, 0, cost, state[target]))
        for source, label, target, cost in zip(self.ends[::3], self.ends[1::3], self.ends[2::3], self.costs):
            if math.isfinite(cost + extra[target]):
                arc = kaldifst.StdArc(label, label, cost + extra[target], state[goal[target]])
                fst.add_arc(state[source], arc)
        fst.start = state[start]
        if not self.final or not all(map(math.isfinite, chain(self.costs, self.penalty, self.final.values()))):
            kaldifst.connect(fst)  # determinisation does not end where states lead nowhere
        return fst
