"""Determinised lattices: each sequence of units (or words) once, with its best path's scores.

Nearly all paths of a lattice differ in their frames only. Determinised over units, it becomes small
enough to store, to train on and to list the best sequences of (in C++, `kernels/sequences.cpp`).
"""

from __future__ import annotations

import ctypes
import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from distill.fsa.lattice import Lattice
from distill.kernels.build import load_kernel, pointer

# Beyond these the beam is narrowed: states of a determinised lattice, and arcs of the one it is made of
MOST_STATES = 20_000
MOST_ARCS = 100_000


@dataclass(frozen=True, eq=False)
class SequenceGraph:
    """Acyclic deterministic graph of symbol sequences; state 0 is the start, and every arc goes to a later state.

    src, dst, symbol (A,) int32, arcs in order of their source. graph, acoustic (A,), final_graph,
    final_acoustic (S,) float32: scores relative to the best sequence: both are 0 all along it, and their sum
    over a path is the sequence's score relative to the best. final_graph is -inf where a sequence may not end.
    earliest, latest (S,) int32: range of the frames in which the symbols that lead into a state begin.
    best: graph and acoustic score of the best sequence. beam: sequences further below it are missing.
    """

    src: np.ndarray
    dst: np.ndarray
    symbol: np.ndarray
    graph: np.ndarray
    acoustic: np.ndarray
    final_graph: np.ndarray
    final_acoustic: np.ndarray
    earliest: np.ndarray
    latest: np.ndarray
    best: tuple[float, float]
    beam: float

    @property
    def num_states(self) -> int:
        return len(self.final_graph)

    @property
    def num_arcs(self) -> int:
        return len(self.src)

    def ranked(self) -> Iterator[tuple[tuple[int, ...], float]]:
        """Sequences and how much they score below the best (0 or less), best first."""
        first = np.searchsorted(self.src, np.arange(self.num_states + 1))
        score = (self.graph.astype(np.float64) + self.acoustic).tolist()
        final = (self.final_graph.astype(np.float64) + self.final_acoustic).tolist()
        symbol, dst = self.symbol.tolist(), self.dst.tolist()
        # The best continuation scores 0 from every state, so the sum so far bounds all sequences of a prefix.
        queue: list[tuple[float, tuple[int, ...], int]] = [(0.0, (), 0)]
        while queue:
            cost, symbols, state = heapq.heappop(queue)
            if state < 0:
                yield symbols, -cost
                continue
            if final[state] > -math.inf:
                heapq.heappush(queue, (cost - final[state], symbols, -1))
            for arc in range(first[state], first[state + 1]):
                heapq.heappush(queue, (cost - score[arc], (*symbols, symbol[arc]), dst[arc]))

    def near(self, beam: float) -> Iterator[tuple[tuple[int, ...], float]]:
        """Those of `ranked` within `beam` of the best; the others, exponentially many, are not looked for."""
        return takewhile(lambda item: item[1] >= -beam, self.ranked())


class UnitTable(NamedTuple):
    """Unit that begins with a frame's output, 0 for none: (V,) int32, after another output and after itself."""

    fresh: np.ndarray
    again: np.ndarray


def determinised(
    lattice: Lattice,
    units: UnitTable | None,
    beam: float,
    most_states: int = MOST_STATES,
    most_arcs: int = MOST_ARCS,
) -> SequenceGraph:
    """Every unit sequence (units given) or word sequence (None) of a lattice on one path.

    Sequences within `beam` of the best are kept; the beam narrows (`SequenceGraph.beam`) where that takes more than
    most_states, or most_arcs of the lattice (an untrained model's is dense).
    Raises ValueError for a lattice without paths.
    """
    if not lattice.num_states:
        raise ValueError("the lattice has no complete path, so it has no sequences")
    library = _kernel()
    sizes, scores = np.zeros(2, dtype=np.int64), np.zeros(3)
    tables = (None, None) if units is None else map(pointer, units)
    given = (lattice.src, lattice.dst, lattice.label, lattice.word, lattice.acoustic, lattice.graph)
    handle = library.sequences_make(
        *map(pointer, given), ctypes.c_int64(lattice.num_arcs), pointer(lattice.final), pointer(lattice.frame),
        ctypes.c_int64(lattice.num_states), *tables, ctypes.c_double(beam), ctypes.c_int64(most_states),
        ctypes.c_int64(most_arcs), pointer(sizes), pointer(scores),
    )  # fmt: skip
    try:
        states, arcs = sizes.tolist()
        arrays = (
            *np.empty((3, arcs), dtype=np.int32), *np.empty((2, arcs), dtype=np.float32),
            *np.empty((2, states), dtype=np.float32), *np.empty((2, states), dtype=np.int32),
        )  # fmt: skip
        library.sequences_take(handle, *map(pointer, arrays))
    finally:
        library.sequences_free(handle)
    fields: list[Any] = [*arrays, (float(scores[0]), float(scores[1])), float(scores[2])]
    return SequenceGraph(*fields)


def best_path(lattice: Lattice, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Arcs of the best path, and the posterior (T,) of its output at each frame.

    scale: of all scores when paths are summed.
    """
    if not lattice.num_states:
        raise ValueError("the lattice has no complete path, so there is no best one")
    path = np.empty(lattice.num_states, dtype=np.int32)
    posterior = np.empty(lattice.num_frames, dtype=np.float32)
    arrays = (lattice.src, lattice.dst, lattice.label, lattice.acoustic, lattice.graph)
    length = _kernel().lattice_best(
        *map(pointer, arrays), ctypes.c_int64(lattice.num_arcs), pointer(lattice.final), pointer(lattice.frame),
        ctypes.c_int64(lattice.num_states), ctypes.c_double(scale), pointer(path), pointer(posterior),
    )  # fmt: skip
    return path[:length], np.minimum(posterior, 1.0)


def arc_posteriors(lattice: Lattice, scale: float = 1.0) -> np.ndarray:
    """Share of all paths' mass that each arc has: (A,) float32. scale: of all scores when paths are summed."""
    if not lattice.num_states:
        raise ValueError("the lattice has no complete path, so its arcs have no posteriors")
    posterior = np.empty(lattice.num_arcs, dtype=np.float32)
    _kernel().lattice_posteriors(
        *map(pointer, (lattice.src, lattice.dst, lattice.acoustic, lattice.graph)), ctypes.c_int64(lattice.num_arcs),
        pointer(lattice.final), ctypes.c_int64(lattice.num_states), ctypes.c_double(scale), pointer(posterior),
    )  # fmt: skip
    return posterior


def words_of(lattice: Lattice, path: Sequence[int] | np.ndarray) -> list[int]:
    """Word ids along a path."""
    words = lattice.word[path]
    return words[words > 0].tolist()


@cache
def _kernel() -> ctypes.CDLL:
    library = load_kernel("sequences")
    library.sequences_make.restype = ctypes.c_void_p
    library.lattice_best.restype = ctypes.c_int64
    library.lattice_posteriors.restype = library.sequences_take.restype = library.sequences_free.restype = None
    library.sequences_take.argtypes = [ctypes.c_void_p] * 10
    library.sequences_free.argtypes = [ctypes.c_void_p]
    return library
