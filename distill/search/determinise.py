"""What the paths of a lattice say: each sequence of units (or words) once, with its best path's scores.

Nearly all paths of a lattice differ in their frames only. Determinised over units, it becomes small
enough to store, to train on and to list the best sequences of. In C++ (`kernels/sequences.cpp`) where there
is a compiler, else in Python.
"""

from __future__ import annotations

import ctypes
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from distill.fsa.lattice import Lattice
from distill.kernels.build import load_kernel
from distill.search import determinise_reference as slow_sequences

ARRAYS = (
    "src", "dst", "symbol", "graph", "acoustic", "final_graph", "final_acoustic", "earliest", "latest"
)  # fmt: skip
# Beyond these the beam is narrowed: states of a determinised lattice, and arcs of the one it is made of
MOST_STATES = 20_000
MOST_ARCS = 100_000


@dataclass(frozen=True, eq=False)
class SequenceGraph:
    """Acyclic deterministic graph of symbol sequences; state 0 is the start, and every arc goes to a later state.

    src, dst, symbol (A,) int32, arcs in order of their source. graph, acoustic (A,), final_graph,
    final_acoustic (S,) float32: scores relative to the best sequence: both are 0 all along it, and their sum
    over a path says how much worse that sequence is. final_graph is -inf where a sequence may not end.
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
        # What is best to come scores 0 from every state, so the sum so far is the best a prefix can do.
        queue: list[tuple[float, tuple[int, ...], int]] = [(0.0, (), 0)]
        while queue:
            cost, said, state = heapq.heappop(queue)
            if state < 0:
                yield said, -cost
                continue
            if final[state] > -math.inf:
                heapq.heappush(queue, (cost - final[state], said, -1))
            for arc in range(first[state], first[state + 1]):
                heapq.heappush(queue, (cost - score[arc], (*said, symbol[arc]), dst[arc]))


class Hearing(NamedTuple):
    """Which unit a frame's output newly says, 0 for none: (V,) int32, after another output and after itself."""

    fresh: np.ndarray
    again: np.ndarray

    @classmethod
    def of(cls, hears: Callable[[int, int], int], num_outputs: int) -> Hearing:
        """From a topology's hears(previous output, output)."""
        fresh = [hears(-1, output) for output in range(num_outputs)]
        again = [hears(output, output) for output in range(num_outputs)]
        return cls(np.array(fresh, dtype=np.int32), np.array(again, dtype=np.int32))


def determinised(
    lattice: Lattice,
    hearing: Hearing | None,
    beam: float,
    most_states: int = MOST_STATES,
    most_arcs: int = MOST_ARCS,
) -> SequenceGraph:
    """Every unit sequence (hearing given) or word sequence (None) of a lattice on one path.

    Kept is what lies within `beam` of the best; where that takes over most_states, or over most_arcs of the
    lattice (an untrained model's is dense), within less (`SequenceGraph.beam`).
    Raises ValueError for a lattice without paths.
    """
    if not lattice.num_states:
        raise ValueError("the lattice has no complete path, so there is nothing to say")
    if _kernel() is None:
        return SequenceGraph(*slow_sequences.determinised(lattice, hearing, beam, most_states, most_arcs))
    return _determinised(lattice, hearing, beam, most_states, most_arcs)


def best_path(lattice: Lattice, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Arcs of the best path, and the posterior (T,) of its output at each frame: how sure the lattice is of it.

    scale: of all scores when paths are summed.
    """
    if not lattice.num_states:
        raise ValueError("the lattice has no complete path, so there is no best one")
    library = _kernel()
    if library is None:
        return slow_sequences.best_path(lattice, scale)
    path = np.empty(lattice.num_states, dtype=np.int32)
    posterior = np.empty(lattice.num_frames, dtype=np.float32)
    arrays = (lattice.src, lattice.dst, lattice.label, lattice.acoustic, lattice.graph)
    length = library.lattice_best(
        *map(_pointer, arrays), ctypes.c_int64(lattice.num_arcs), _pointer(lattice.final), _pointer(lattice.frame),
        ctypes.c_int64(lattice.num_states), ctypes.c_double(scale), _pointer(path), _pointer(posterior),
    )  # fmt: skip
    return path[:length], np.minimum(posterior, 1.0)


def arc_posteriors(lattice: Lattice, scale: float = 1.0) -> np.ndarray:
    """Share of all paths' mass that each arc has: (A,) float32. scale: of all scores when paths are summed."""
    if not lattice.num_states:
        raise ValueError("the lattice has no complete path, so its arcs have no posteriors")
    library = _kernel()
    if library is None:
        return slow_sequences.arc_posteriors(lattice, scale)
    posterior = np.empty(lattice.num_arcs, dtype=np.float32)
    library.lattice_posteriors(
        *map(_pointer, (lattice.src, lattice.dst, lattice.acoustic, lattice.graph)), ctypes.c_int64(lattice.num_arcs),
        _pointer(lattice.final), ctypes.c_int64(lattice.num_states), ctypes.c_double(scale), _pointer(posterior),
    )  # fmt: skip
    return posterior


def words_of(lattice: Lattice, path: Sequence[int] | np.ndarray) -> list[int]:
    """Word ids along a path."""
    words = lattice.word[path]
    return words[words > 0].tolist()


@cache
def _kernel() -> ctypes.CDLL | None:
    library = load_kernel("sequences")
    if library is not None:
        library.sequences_make.restype = ctypes.c_void_p
        library.lattice_best.restype = ctypes.c_int64
        library.lattice_posteriors.restype = None
        library.sequences_take.argtypes = [ctypes.c_void_p] * 10
        library.sequences_take.restype = library.sequences_free.restype = None
        library.sequences_free.argtypes = [ctypes.c_void_p]
    return library


def _determinised(
    lattice: Lattice, hearing: Hearing | None, beam: float, most_states: int, most_arcs: int
) -> SequenceGraph:
    library = _kernel()
    assert library is not None
    sizes, facts = np.zeros(2, dtype=np.int64), np.zeros(3)
    tables = (None, None) if hearing is None else map(_pointer, hearing)
    given = (lattice.src, lattice.dst, lattice.label, lattice.word, lattice.acoustic, lattice.graph)
    handle = library.sequences_make(
        *map(_pointer, given), ctypes.c_int64(lattice.num_arcs), _pointer(lattice.final), _pointer(lattice.frame),
        ctypes.c_int64(lattice.num_states), *tables, ctypes.c_double(beam), ctypes.c_int64(most_states),
        ctypes.c_int64(most_arcs), _pointer(sizes), _pointer(facts),
    )  # fmt: skip
    try:
        states, arcs = sizes.tolist()
        arrays = (
            *np.empty((3, arcs), dtype=np.int32), *np.empty((2, arcs), dtype=np.float32),
            *np.empty((2, states), dtype=np.float32), *np.empty((2, states), dtype=np.int32),
        )  # fmt: skip
        library.sequences_take(handle, *map(_pointer, arrays))
    finally:
        library.sequences_free(handle)
    best = float(facts[0]), float(facts[1])
    return SequenceGraph(**dict(zip(ARRAYS, arrays)), best=best, beam=float(facts[2]))


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
