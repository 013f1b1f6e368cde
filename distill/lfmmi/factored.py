"""A graph's transition matrix as a product of two sparser ones.

The states of one n-gram state under a topology (its units, its blank) have the same outgoing arcs. So their
masses are summed into one *hub*, from which the arcs leave: under CTC that halves the arcs, and nothing is
subtracted, so nothing cancels. Hubs are found in the graph itself, however it was made.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.fsa.graph import Hmm

LOOKS = 4  # at each arc on average: n-gram graphs need one; bounds the search in graphs without hubs
SAME = 1e-12  # weights this close (relative) count as equal


class Matrix(NamedTuple):
    """Sparse matrix of shape (rows, columns): entries `weight` (A,) at (row, column), (A,) both."""

    rows: int
    columns: int
    row: np.ndarray
    column: np.ndarray
    weight: np.ndarray

    @property
    def t(self) -> Matrix:
        """The transposed matrix."""
        return Matrix(self.columns, self.rows, self.column, self.row, self.weight)


class Factored(NamedTuple):
    """The step x -> own * x + outward @ (inward @ x) of one frame, in probabilities.

    own (S,): weights of self-loops; inward (E, S) sums states into hubs; outward (S, E) are the arcs left over.
    """

    own: np.ndarray
    inward: Matrix
    outward: Matrix


def factor(graph: Hmm, order: np.ndarray) -> Factored:
    """Factor the transitions of `graph`, whose state order[i] becomes state i."""
    states = graph.num_states
    place = np.argsort(order)
    src, dst, weight = _merged(place[graph.src.numpy()], place[graph.dst.numpy()], graph.weight.numpy(), states)
    hubs, into, covered = _hubs(src, dst, weight, states)
    own = np.zeros(states)
    left = ~covered
    loop = left & (src == dst)
    own[src[loop]] = weight[loop]
    left &= ~loop
    direct, number = np.unique(src[left], return_inverse=True)
    count = len(hubs)
    inward = [(np.full(len(h), i), h, w) for i, (h, w) in enumerate(hubs)]
    inward.append((count + np.arange(len(direct)), direct, np.ones(len(direct))))
    outward = [(v, np.full(len(v), i), c) for i, (v, c) in enumerate(into)]
    outward.append((dst[left], count + number.reshape(-1), weight[left]))
    entries = count + len(direct)
    ahead, onward = ([np.concatenate(columns) for columns in zip(*parts)] for parts in (inward, outward))
    return Factored(own, Matrix(entries, states, *ahead), Matrix(states, entries, *onward))


def _merged(src: np.ndarray, dst: np.ndarray, weight: np.ndarray, states: int) -> tuple[np.ndarray, ...]:
    """Probabilities of arcs, parallel ones summed and those of weight 0 left out; sorted by source."""
    key, at = np.unique(src.astype(np.int64) * max(states, 1) + dst, return_inverse=True)
    summed = np.bincount(at.reshape(-1), np.exp(weight), minlength=len(key))
    key, summed = key[summed > 0], summed[summed > 0]
    return key // max(states, 1), key % max(states, 1), summed


def _hubs(
    src: np.ndarray, dst: np.ndarray, weight: np.ndarray, states: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Disjoint sets of states that feed several targets in one proportion, found by trying the sources of each state.

    Returns per hub: its states and their weights, its targets and theirs; and which arcs (A,) they replace.
    """
    out_start = np.searchsorted(src, np.arange(states + 1))
    by_target = np.argsort(dst, kind="stable")
    in_start = np.searchsorted(dst[by_target], np.arange(states + 1))
    taken, covered = np.zeros(states, dtype=bool), np.zeros(len(src), dtype=bool)
    members, targets = [], []
    budget = LOOKS * len(src)
    for state in np.argsort(np.diff(in_start), kind="stable"):
        feeding = by_target[in_start[state] : in_start[state + 1]]
        sources, share = src[feeding], weight[feeding]
        cost = int(np.diff(out_start)[sources].sum())
        if len(sources) < 2 or cost > budget or taken[sources].any():
            continue
        budget -= cost
        arcs = np.concatenate([np.arange(out_start[s], out_start[s + 1]) for s in sources])
        ratio = weight[arcs] / np.repeat(share, np.diff(out_start)[sources])
        fed, scale, full = _proportional(dst[arcs], ratio, len(sources))
        if (len(sources) - 1) * len(fed) <= len(sources):  # arcs saved, against arcs into the hub
            continue
        taken[sources] = True
        covered[arcs[full]] = True
        members.append((sources, share))
        targets.append((fed, scale))
    return members, targets, covered


def _proportional(dst: np.ndarray, ratio: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets reached by all `count` sources in one ratio: targets, ratios, and which arcs (A,) these are."""
    order = np.lexsort((ratio, dst))
    first = np.flatnonzero(np.diff(dst[order], prepend=-1))
    size = np.diff(first, append=len(dst))
    low, high = ratio[order][first], ratio[order][first + size - 1]
    chosen = (size == count) & (high - low <= SAME * high)
    full = np.empty(len(dst), dtype=bool)
    full[order] = np.repeat(chosen, size)
    return dst[order][first[chosen]], low[chosen], full
