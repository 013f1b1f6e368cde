"""Decoding graphs as k2 has them: every arc takes a frame, as its intersection knows no epsilon."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from distill.fsa.formats import K2Arcs, k2_arcs
from distill.fsa.lattice import NO_FRAME, DecodingGraph

LONGEST_CHAIN = 1000  # arcs without a frame in a row; more can only be a circle


class Arcs(NamedTuple):
    """Columns of a table of arcs, all (A,)."""

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    word: np.ndarray
    score: np.ndarray

    def take(self, rows: np.ndarray) -> Arcs:
        """The arcs of these rows."""
        return Arcs(*(column[rows] for column in self))

    def followed_by(self, others: Arcs, others_first: np.ndarray) -> Arcs:
        """Every arc joined with every arc of `others` that leaves where it ends.

        others_first (S + 1,): state s has the arcs others_first[s] .. others_first[s + 1] - 1 of `others`.
        """
        count = np.diff(others_first)[self.dst]
        row = np.repeat(np.arange(len(count)), count)
        offset = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        one, two = self.take(row), others.take(others_first[self.dst[row]] + offset)
        both = (one.word != 0) & (two.word != 0)
        if both.any():
            raise ValueError(
                f"{both.sum()} paths of the decoding graph say two words in one frame, such as words"
                f" {one.word[both][0]} and {two.word[both][0]}: k2 has room for one word on an arc"
            )
        label = np.where(one.label == NO_FRAME, two.label, one.label)
        return Arcs(one.src, two.dst, label, one.word + two.word, one.score + two.score)


def decoding_graph_to_k2_dict(graph: DecodingGraph, columns: np.ndarray | None = None) -> dict[str, Any]:
    """HLG as the dict that `k2.Fsa.from_dict` reads and icefall decodes with (HLG.pt).

    Labels are output columns, 0 is blank and none is epsilon; aux_labels are words, 0 for none; final arcs
    have -1 in both. columns: output of each label, where labels are more than outputs (tied units). Raises
    ValueError as `frames_only` does.
    """
    graph = frames_only(graph)
    label = graph.label if columns is None else columns[graph.label]
    ending = np.flatnonzero(np.isfinite(graph.final))
    last = np.full(len(ending), -1)
    return k2_arcs(
        np.concatenate([np.repeat(np.arange(graph.num_states), np.diff(graph.first)), ending]),
        np.concatenate([graph.dst, np.full(len(ending), graph.num_states)]),
        np.concatenate([label, last]),
        np.concatenate([graph.score, graph.final[ending]]),
        np.concatenate([graph.word, last]),
    )


def decoding_graph_from_k2_dict(content: dict[str, Any], where: str = "k2 dict") -> DecodingGraph:
    """HLG as k2 and icefall write it (HLG.pt); the reverse of `decoding_graph_to_k2_dict`.

    aux_labels may be ragged, as icefall has them (k2 is needed to read such a file): words beyond an arc's first
    stand on arcs without a frame. Raises ValueError naming `where` for the dict of anything but a transducer.
    """
    src, dst, label, score = K2Arcs.of(content, where)
    row, word = _words(content.get("aux_labels"), label, where)
    last = label == -1
    states = int(max(src.max(initial=0), dst[~last].max(initial=0))) + 1
    place = np.arange(len(row)) - np.searchsorted(row, row)  # of a word on its arc
    more = np.bincount(row, minlength=len(src)) - 1  # words beyond the first
    fresh = states + np.cumsum(more) - more  # first of the states between them
    begins, ends = place == 0, place == more[row]
    source = np.where(begins, src[row], fresh[row] + place - 1)
    target = np.where(ends, dst[row], fresh[row] + place)
    labels = np.where(begins, label[row], NO_FRAME)
    scores = np.where(begins, score[row], 0.0)
    ending = last[row] & ends
    final = np.full(states + int(more.sum()), -np.inf)
    np.logaddexp.at(final, source[ending], scores[ending])
    arcs = Arcs(source, target, labels, np.maximum(word, 0), scores).take(~ending)
    return _decoding_graph(arcs, final)


def _words(aux: Any, label: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Arc and word id of each word, at least one for every arc (0 or -1: none), in order of the arcs."""
    count = len(label)
    if isinstance(aux, torch.Tensor) and aux.shape == (count,):
        return np.arange(count), aux.numpy()
    if not hasattr(aux, "values") or not hasattr(aux, "shape"):
        raise ValueError(f"{where}: expected aux_labels, one for each of {count} arcs, as a decoding graph has them")
    word = aux.values.numpy()
    said = word > 0
    row = np.repeat(np.arange(count), np.diff(aux.shape.row_splits(1).numpy()))[said]
    # a final arc takes no frame and ends the path, so its words stand before it
    none = np.union1d(np.setdiff1d(np.arange(count), row), np.flatnonzero(label == -1))
    row, word = np.concatenate([row, none]), np.concatenate([word[said], np.zeros(len(none), dtype=word.dtype)])
    order = np.argsort(row, kind="stable")
    return row[order], word[order]


def frames_only(graph: DecodingGraph) -> DecodingGraph:
    """The same paths without arcs that take no frame: such arcs are joined to the arc with a frame before them.

    Those at the start are joined to the arc after them. Behind, not ahead, as a back-off arc leads to
    thousands of arcs, but few lead to it. States that no path uses any more are dropped. Raises ValueError
    for a circle of arcs without frames, and where two words would come to stand on one arc.
    """
    src = np.repeat(np.arange(graph.num_states), np.diff(graph.first))
    arcs = Arcs(src, graph.dst.astype(np.int64), graph.label, graph.word, graph.score.astype(np.float64))
    silent = arcs.take(arcs.label == NO_FRAME)
    if not len(silent.src):
        return graph
    silent_first = first_arcs(silent.src, graph.num_states)
    arcs = _closed(arcs.take(arcs.label != NO_FRAME), silent, silent_first)
    begin = np.zeros(1, dtype=np.int64)
    nowhere = Arcs(begin - 1, begin, np.full(1, NO_FRAME), begin, np.zeros(1))
    entries = _closed(nowhere, silent, silent_first)  # states reached before the first frame
    order = np.argsort(arcs.src, kind="stable")
    arcs = arcs.take(order)
    starting = entries.followed_by(arcs, first_arcs(arcs.src, graph.num_states))
    start_final = np.logaddexp.reduce(graph.final[entries.dst] + entries.score)
    # a start state of its own, numbered 0: other arcs may lead back to the old one
    joined = Arcs(*(np.concatenate(pair) for pair in zip(starting, arcs)))
    joined = joined._replace(src=joined.src + 1, dst=joined.dst + 1)
    return _connected(joined, np.concatenate([[start_final], graph.final]))


def _closed(arcs: Arcs, silent: Arcs, silent_first: np.ndarray) -> Arcs:
    """The arcs, and each of them joined with every chain of arcs without a frame that follows it."""
    found, frontier = [arcs], arcs
    for _ in range(LONGEST_CHAIN):
        frontier = frontier.followed_by(silent, silent_first)
        if not len(frontier.src):
            return Arcs(*(np.concatenate(columns) for columns in zip(*found)))
        found.append(frontier)
    raise ValueError("the decoding graph has a circle of arcs without frames; remove its epsilons' circles")


def _connected(arcs: Arcs, final: np.ndarray) -> DecodingGraph:
    """What lies on a path from state 0 to an end; the order of states stays, state 0 is kept in any case."""
    states = len(final)
    alive = _reached(np.zeros(1, dtype=np.int64), arcs.src, arcs.dst, states)
    alive &= _reached(np.flatnonzero(np.isfinite(final)), arcs.dst, arcs.src, states)
    alive[0] = True
    arcs = arcs.take(alive[arcs.src] & alive[arcs.dst])
    number = np.cumsum(alive) - 1
    return _decoding_graph(arcs._replace(src=number[arcs.src], dst=number[arcs.dst]), final[alive])


def _decoding_graph(arcs: Arcs, final: np.ndarray) -> DecodingGraph:
    arcs = arcs.take(np.argsort(arcs.src, kind="stable"))
    return DecodingGraph(
        first_arcs(arcs.src, len(final)), arcs.dst.astype(np.int32), arcs.label.astype(np.int32),
        arcs.word.astype(np.int32), arcs.score.astype(np.float32), final.astype(np.float32),
    )  # fmt: skip


def _reached(frontier: np.ndarray, src: np.ndarray, dst: np.ndarray, states: int) -> np.ndarray:
    """Which states (S,) bool can be reached from those of `frontier`."""
    order = np.argsort(src, kind="stable")
    first, target = first_arcs(src[order], states), dst[order]
    seen = np.zeros(states, dtype=bool)
    seen[frontier] = True
    while len(frontier):
        count = first[frontier + 1] - first[frontier]
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        following = target[np.repeat(first[frontier], count) + offset]
        frontier = np.unique(following[~seen[following]])
        seen[frontier] = True
    return seen


def first_arcs(src: np.ndarray, states: int) -> np.ndarray:
    """Where each state's arcs begin in a table ordered by source: src (A,) -> (S + 1,) int64."""
    return np.concatenate([[0], np.cumsum(np.bincount(src, minlength=states))]).astype(np.int64)
