"""Epsilon removal in decoding graphs: every arc takes a frame, as k2's dense intersection requires."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from distill.fsa.graph import expand, first_arcs, on_a_path
from distill.fsa.lattice import NO_FRAME, DecodingGraph

LONGEST_CHAIN = 1000  # arcs without a frame in a row; a longer chain must be a cycle


class ArcTable(NamedTuple):
    """Columns of a table of arcs, all (A,)."""

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    word: np.ndarray
    score: np.ndarray

    def take(self, rows: np.ndarray) -> ArcTable:
        """The arcs of these rows."""
        return ArcTable(*(column[rows] for column in self))

    def followed_by(self, others: ArcTable, others_first: np.ndarray) -> ArcTable:
        """Every arc joined with every arc of `others` that leaves where it ends.

        others_first (S + 1,): state s has the arcs others_first[s] .. others_first[s + 1] - 1 of `others`.
        """
        row, offset = expand(np.diff(others_first)[self.dst])
        one, two = self.take(row), others.take(others_first[self.dst[row]] + offset)
        both = (one.word != 0) & (two.word != 0)
        if both.any():
            raise ValueError(
                f"{both.sum()} paths of the decoding graph have two words in one frame, such as words"
                f" {one.word[both][0]} and {two.word[both][0]}: k2 has room for one word on an arc"
            )
        label = np.where(one.label == NO_FRAME, two.label, one.label)
        return ArcTable(one.src, two.dst, label, one.word + two.word, one.score + two.score)

    def graph(self, final: np.ndarray) -> DecodingGraph:
        """The decoding graph of these arcs, in any order, with final weights (S,)."""
        arcs = self.take(np.argsort(self.src, kind="stable"))
        return DecodingGraph(
            first_arcs(arcs.src, len(final)), arcs.dst.astype(np.int32), arcs.label.astype(np.int32),
            arcs.word.astype(np.int32), arcs.score.astype(np.float32), final.astype(np.float32),
        )  # fmt: skip


def frames_only(graph: DecodingGraph) -> DecodingGraph:
    """The same paths without arcs that take no frame: such arcs are joined to the arc with a frame before them.

    Those at the start are joined to the arc after them. Behind, not ahead, as a back-off arc leads to
    thousands of arcs, but few lead to it. States that no path uses any more are dropped. Raises ValueError
    for a cycle of arcs without frames, and where two words would come to stand on one arc.
    """
    src = np.repeat(np.arange(graph.num_states), np.diff(graph.first))
    arcs = ArcTable(src, graph.dst.astype(np.int64), graph.label, graph.word, graph.score.astype(np.float64))
    silent = arcs.take(arcs.label == NO_FRAME)
    if not len(silent.src):
        return graph
    silent_first = first_arcs(silent.src, graph.num_states)
    arcs = _closed(arcs.take(arcs.label != NO_FRAME), silent, silent_first)
    begin = np.zeros(1, dtype=np.int64)
    nowhere = ArcTable(begin - 1, begin, np.full(1, NO_FRAME), begin, np.zeros(1))
    entries = _closed(nowhere, silent, silent_first)  # states reached before the first frame
    order = np.argsort(arcs.src, kind="stable")
    arcs = arcs.take(order)
    starting = entries.followed_by(arcs, first_arcs(arcs.src, graph.num_states))
    start_final = np.logaddexp.reduce(graph.final[entries.dst] + entries.score)
    # a start state of its own, numbered 0: other arcs may lead back to the old one
    joined = ArcTable(*(np.concatenate(pair) for pair in zip(starting, arcs)))
    joined = joined._replace(src=joined.src + 1, dst=joined.dst + 1)
    final = np.concatenate([[start_final], graph.final])
    alive = on_a_path(joined.src, joined.dst, final)
    alive[0] = True
    joined = joined.take(alive[joined.src] & alive[joined.dst])
    number = np.cumsum(alive) - 1
    return joined._replace(src=number[joined.src], dst=number[joined.dst]).graph(final[alive])


def _closed(arcs: ArcTable, silent: ArcTable, silent_first: np.ndarray) -> ArcTable:
    """The arcs, and each of them joined with every chain of arcs without a frame that follows it."""
    closed, frontier = [arcs], arcs
    for _ in range(LONGEST_CHAIN):
        frontier = frontier.followed_by(silent, silent_first)
        if not len(frontier.src):
            return ArcTable(*(np.concatenate(columns) for columns in zip(*closed)))
        closed.append(frontier)
    raise ValueError("the decoding graph has a cycle of arcs without frames; remove its epsilon cycles")
