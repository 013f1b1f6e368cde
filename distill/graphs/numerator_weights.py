"""Numerators weighted by the denominator's LM, many graphs at once.

A path with the units u gets the log-weight

    log p(u) + x(u) - max_v x(v),   x(u) = w(u) - s log p(u)

where p is the denominator's LM, w the graph's own log-weight of u and s the share of the LM that the
graph's own scores replace (Manohar et al. 2018: lattice-lm-scale s, the normalisation FST scaled by
1 - s). The maximum, over the graph's paths, shifts a whole graph and no gradient. With it no path weighs
more than the denominator gives it, so the LF-MMI objective is at most zero whatever w is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from distill.fsa.graph import Fsa, expand
from distill.graphs.numerator import UnitLm


def with_lm_all(graphs: Sequence[Fsa], lm: UnitLm, lm_scale: float = 0.0) -> list[Fsa]:
    """Acyclic deterministic graphs, each intersected with the denominator's LM; only complete paths stay.

    lm_scale: s above. A graph of which the LM allows no sequence comes back without a final state.
    Raises ValueError for a graph with a cycle.
    """
    if not graphs:
        return []
    union = _Union.of(graphs)
    pairs = _intersect(union, lm)
    extra = pairs.own - lm_scale * pairs.lm
    ends = np.isfinite(pairs.final_own + pairs.final_lm)
    final_lm = np.where(ends, pairs.final_lm, 0.0)
    ending = np.where(ends, pairs.final_own - lm_scale * final_lm, -np.inf)
    ahead = _best_onward(union, pairs, extra, ending)
    starts = np.searchsorted(pairs.keys, union.first[:-1] * pairs.width)
    best = np.where(np.isfinite(ahead[starts]), ahead[starts], 0.0)
    weight, final = pairs.lm + extra, final_lm + ending
    begins = np.isin(pairs.src, starts)
    graph_of = np.searchsorted(starts, pairs.src, "right") - 1
    weight[begins] -= best[graph_of[begins]]
    final[starts] -= best
    alive = np.isfinite(ahead)
    alive[starts] = True
    return _split(union, pairs, weight, final, alive, starts)


class _Union(NamedTuple):
    """Graphs side by side: state s of graph k is first[k] + s; arcs in order of their source.

    depth (S,): most arcs on a path from a start to a state. leaving (S + 1,): arcs of state s are
    leaving[s] .. leaving[s + 1] - 1.
    """

    first: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    final: np.ndarray
    depth: np.ndarray
    leaving: np.ndarray
    window: np.ndarray | None

    @classmethod
    def of(cls, graphs: Sequence[Fsa]) -> _Union:
        first = np.concatenate([[0], np.cumsum([graph.num_states for graph in graphs])]).astype(np.int64)
        src = np.concatenate([graph.src + start for graph, start in zip(graphs, first)]).astype(np.int64)
        dst = np.concatenate([graph.dst + start for graph, start in zip(graphs, first)]).astype(np.int64)
        label, weight = (np.concatenate([getattr(graph, name) for graph in graphs]) for name in ("label", "weight"))
        order = np.argsort(src, kind="stable")
        src, dst = src[order], dst[order]
        leaving = np.searchsorted(src, np.arange(first[-1] + 1))
        windows = [graph.window for graph in graphs if graph.window is not None]
        window = np.concatenate(windows) if len(windows) == len(graphs) else None
        final = np.concatenate([graph.final for graph in graphs])
        return cls(
            first, src, dst, label[order], weight[order], final, _depth(src, dst, int(first[-1])), leaving, window
        )


def _depth(src: np.ndarray, dst: np.ndarray, states: int) -> np.ndarray:
    depth = np.zeros(states, dtype=np.int64)
    for _ in range(states + 1):
        deeper = depth.copy()
        np.maximum.at(deeper, dst, depth[src] + 1)
        if (deeper == depth).all():
            return depth
        depth = deeper
    raise ValueError("a numerator graph has a cycle: its sequences would never end")


class _Pairs(NamedTuple):
    """The intersection: states are pairs (state, LM state), known by key = state * width + LM state, in order.

    src, dst (A,): numbers of pairs. own, lm (A,): the graph's weight and the LM's. level (A,): depth of the
    source. final_own, final_lm (P,): of ending.
    """

    width: int
    keys: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    own: np.ndarray
    lm: np.ndarray
    level: np.ndarray
    final_own: np.ndarray
    final_lm: np.ndarray


def _intersect(union: _Union, lm: UnitLm) -> _Pairs:
    """All pairs that a start leads to, a depth of all graphs at a time."""
    width = lm.fsa.num_states
    deepest = int(union.depth.max(initial=0))
    waiting: list[list[np.ndarray]] = [[] for _ in range(deepest + 1)]
    waiting[0].append(union.first[:-1] * width)
    keys, rows = [], []
    for level, arrived in enumerate(waiting):
        here = np.unique(np.concatenate([*arrived, np.zeros(0, dtype=np.int64)]))
        keys.append(here)
        state, history = here // width, here % width
        row, offset = expand(union.leaving[state + 1] - union.leaving[state])
        arc = union.leaving[state[row]] + offset
        following = lm.next[history[row], union.label[arc]]
        known = following >= 0  # elsewhere the LM gives the sequence no probability
        arc, row, following = arc[known], row[known], following[known]
        target = union.dst[arc] * width + following
        rows.append((here[row], target, arc, lm.weight[history[row], union.label[arc]], np.full(len(arc), level)))
        depth = union.depth[union.dst[arc]]
        for deeper in np.unique(depth):
            waiting[deeper].append(target[depth == deeper])
    every = np.sort(np.concatenate(keys))
    source, target, arc, weight, level_of = (np.concatenate(column) for column in zip(*rows))
    return _Pairs(
        width, every, np.searchsorted(every, source), np.searchsorted(every, target), union.label[arc],
        union.weight[arc], weight, level_of, union.final[every // width], lm.fsa.final[every % width],
    )  # fmt: skip


def _best_onward(union: _Union, pairs: _Pairs, weight: np.ndarray, ending: np.ndarray) -> np.ndarray:
    """Best weight from each pair to an end, -inf where none can be reached."""
    best = ending.copy()
    order = np.argsort(pairs.level, kind="stable")
    bounds = np.searchsorted(pairs.level[order], np.arange(int(union.depth.max(initial=0)) + 2))
    for low, high in zip(bounds[-2::-1], bounds[:0:-1]):
        arcs = order[low:high]
        np.maximum.at(best, pairs.src[arcs], weight[arcs] + best[pairs.dst[arcs]])
    return best


def _split(
    union: _Union, pairs: _Pairs, weight: np.ndarray, final: np.ndarray, alive: np.ndarray, starts: np.ndarray
) -> list[Fsa]:
    """Graphs apart again, without pairs that are not alive."""
    number = np.cumsum(alive) - 1
    keep = np.flatnonzero(alive[pairs.src] & alive[pairs.dst])
    keep = keep[np.argsort(pairs.src[keep], kind="stable")]
    src, dst = number[pairs.src[keep]], number[pairs.dst[keep]]
    state = pairs.keys[alive] // pairs.width
    final, weight, label = final[alive], weight[keep], pairs.label[keep].astype(np.int32)
    bounds = np.append(number[starts], len(final))
    arcs = np.searchsorted(src, bounds)
    graphs = []
    for low, high, begin, end in zip(bounds[:-1], bounds[1:], arcs[:-1], arcs[1:]):
        window = None if union.window is None else union.window[state[low:high]]
        a = slice(begin, end)
        source, target = (src[a] - low).astype(np.int32), (dst[a] - low).astype(np.int32)
        graphs.append(Fsa(source, target, label[a], weight[a], final[low:high], window))
    return graphs
