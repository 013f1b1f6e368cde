"""Lattice search on the CPU: token passing in C++ (`kernels/search.cpp`), else kaldi-decoder's."""

from __future__ import annotations

import ctypes
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.fsa.checks import NOT_FINITE, check_inputs
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.kernels.build import load_kernel, pointer
from distill.search.determinise import best_path


class SearchesLattices:
    """The lattice search of an engine: the same on every device, computed on the CPU."""

    def lattice(self, log_probs: Tensor, lengths: Tensor, graph: DecodingGraph, search: Search) -> list[Lattice]:
        """The paths of a decoding graph near the best one (`Engine.lattice`)."""
        check_inputs(log_probs, lengths)
        return lattices(log_probs, lengths, graph, search)


def lattices(log_probs: Tensor, lengths: Tensor, graph: DecodingGraph, search: Search) -> list[Lattice]:
    """A lattice per utterance, on as many threads as torch uses: log_probs (B, T, V), lengths (B,) (`Engine.lattice`).

    Raises ValueError for labels outside V, or a graph in which arcs without a frame form a cycle.
    """
    graph.check_outputs(log_probs.shape[2])
    frames = log_probs.detach().to("cpu", torch.float32).numpy()

    def lattice_of(scores: np.ndarray, length: int) -> Lattice:
        ongoing = OngoingSearch(graph, search)
        ongoing.feed(scores[:length])
        return ongoing.lattice(ended=True, last=True)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lattice_of, frames, lengths.tolist()))


@cache
def _kernel() -> ctypes.CDLL | None:
    library = load_kernel("search")
    if library is not None:
        library.search_open.restype = library.search_lattice.restype = library.search_best.restype = ctypes.c_void_p
        library.path_take.argtypes, library.path_take.restype = [ctypes.c_void_p] * 4, None
        library.path_free.argtypes, library.path_free.restype = [ctypes.c_void_p], None
        library.search_close.argtypes, library.search_close.restype = [ctypes.c_void_p], None
        library.lattice_take.argtypes = [ctypes.c_void_p] * 7
        library.lattice_take.restype = library.lattice_free.restype = None
        library.lattice_free.argtypes = [ctypes.c_void_p]
    return library


@dataclass(frozen=True, eq=False)
class Partial:
    """The best path so far: label, word, frame (N,) int32 of its arcs, acoustic, graph (N,) float32 (`Lattice`).

    frame: frames before each arc. stable: number of arcs from the start that are on every path that goes on, so that
    no later frame changes them. score: log-score of the path. ending: by how much the best path that may end here is
    worse; inf without one.
    """

    label: np.ndarray
    word: np.ndarray
    frame: np.ndarray
    acoustic: np.ndarray
    graph: np.ndarray
    stable: int
    score: float
    ending: float


class OngoingSearch:
    """The search of one utterance in chunks: feed() frames, take best() or the lattice() at any time.

    The lattice after the last frame is that of `lattices` over all frames at once, bit by bit. Past frames are kept
    as the pruned lattice only, without log-probabilities. (Without a compiler log-probabilities are kept, and each
    best() or lattice() searches all of them anew, with nothing stable.)
    Raises ValueError for a graph that uses outputs beyond V or in which arcs without a frame form a cycle.
    """

    def __init__(self, graph: DecodingGraph, search: Search) -> None:
        self.graph, self.search = graph, search
        self.frames, self.alive = 0, True  # alive: paths go on
        self._kept: list[np.ndarray] = []
        self._handle: ctypes.c_void_p | None = None

    def feed(self, log_probs: np.ndarray) -> bool:
        """The next frames (T, V) float32, T may be 0; False where the beam leaves no path that goes on."""
        self.graph.check_outputs(log_probs.shape[1])
        if not (log_probs < np.inf).all():
            raise ValueError(NOT_FINITE)
        library = _kernel()
        if library is None:
            self._kept.append(log_probs)
        elif self.alive and len(log_probs):
            if self._handle is None:
                self._handle = ctypes.c_void_p(library.search_open(
                    *map(pointer, self.graph.packed), ctypes.c_int32(log_probs.shape[1]),
                    ctypes.c_double(self.search.beam), ctypes.c_double(self.search.lattice_beam),
                    ctypes.c_int32(self.search.max_active),
                ))  # fmt: skip
                weakref.finalize(self, library.search_close, self._handle)
            frames = np.ascontiguousarray(log_probs, dtype=np.float32)
            count, workspace = ctypes.c_int32(len(frames)), pointer(_workspace(self.graph))
            self.alive = bool(library.search_feed(self._handle, pointer(frames), count, workspace))
        self.frames += len(log_probs)
        return self.alive

    def best(self) -> Partial | None:
        """The best path so far, in any state of the graph; None before the first frame or where no path goes on."""
        if not self.frames or not self.alive:
            return None
        library = _kernel()
        if library is None:
            return self._best_of_all()
        sizes, costs = np.zeros(2, dtype=np.int64), np.zeros(2)
        handle = ctypes.c_void_p(library.search_best(self._handle, pointer(sizes), pointer(costs)))
        try:
            arcs, stable = sizes.tolist()
            arc, frame = np.empty((2, arcs), dtype=np.int32)
            acoustic = np.empty(arcs, dtype=np.float32)
            library.path_take(handle, *map(pointer, (arc, frame, acoustic)))
        finally:
            library.path_free(handle)
        taken = self.graph.label[arc], self.graph.word[arc], frame, acoustic, self.graph.score[arc]
        return Partial(*taken, stable, score=-float(costs[0]), ending=float(costs[1] - costs[0]))

    def lattice(self, ended: bool, last: bool = False) -> Lattice:
        """The paths near the best one so far; ended: those that end as the graph allows, where there are any.

        last: nothing follows, so the search itself becomes the lattice instead of a copy.
        """
        if not self.frames or not (self.alive or last):
            return Lattice.empty()
        library = _kernel()
        if library is None:
            return _find_with_library(np.concatenate(self._kept), self.graph, self.search)
        sizes = np.zeros(3, dtype=np.int64)
        flags = ctypes.c_int32(not ended), ctypes.c_int32(not last)
        handle = library.search_lattice(self._handle, *flags, pointer(sizes))
        try:
            states, arcs, complete = sizes.tolist()
            if states < 0:
                raise ValueError("the decoding graph has a cycle of arcs without frames; remove its epsilon cycles")
            src, dst, arc = np.empty((3, arcs), dtype=np.int32)
            frame, acoustic = np.empty(states, dtype=np.int32), np.empty(arcs, dtype=np.float32)
            final = np.empty(states, dtype=np.float32)
            library.lattice_take(handle, *map(pointer, (src, dst, arc, acoustic, frame, final)))
        finally:
            library.lattice_free(handle)
        order = np.argsort(src, kind="stable")
        src, dst, arc, acoustic = src[order], dst[order], arc[order], acoustic[order]
        labels, words, scores = self.graph.label[arc], self.graph.word[arc], self.graph.score[arc]
        return Lattice(src, dst, labels, words, acoustic, scores, frame, final, bool(complete))

    def _best_of_all(self) -> Partial | None:
        lattice, ended = self.lattice(False), self.lattice(True)
        if not lattice.num_states:
            return None
        path, _ = best_path(lattice)
        taken = lattice.label[path], lattice.word[path], lattice.frame[lattice.src[path]]
        scores = lattice.acoustic[path], lattice.graph[path]
        score, ending = float(sum(map(np.sum, scores))), _best_score(ended) if ended.complete else -np.inf
        return Partial(*taken, *scores, stable=0, score=score, ending=score - ending)


def _best_score(lattice: Lattice) -> float:
    path, _ = best_path(lattice)
    return float(lattice.acoustic[path].sum() + lattice.graph[path].sum() + lattice.final[lattice.dst[path[-1]]])


_spaces = threading.local()


def _workspace(graph: DecodingGraph) -> np.ndarray:
    """-1 for each state of a graph, one array per thread, shared by searches that take turns."""
    if not hasattr(_spaces, "of"):
        _spaces.of = weakref.WeakKeyDictionary()
    space = _spaces.of.get(graph)
    if space is None:
        space = _spaces.of[graph] = np.full(graph.num_states, -1, dtype=np.int32)
    return space


def _find_with_library(log_probs: np.ndarray, graph: DecodingGraph, search: Search) -> Lattice:
    """kaldi-decoder's LatticeSimpleDecoder: the same paths, many times slower, and no max_active."""
    import kaldi_decoder

    options = kaldi_decoder.LatticeSimpleDecoderConfig(beam=search.beam, lattice_beam=search.lattice_beam)
    decoder = kaldi_decoder.LatticeSimpleDecoder(_openfst(graph), options)
    complete = decoder.decode(kaldi_decoder.DecodableCtc(log_probs))
    _, raw = decoder.get_raw_lattice()
    text = raw.to_str()
    return replace(pruned(_from_text(text), search.lattice_beam), complete=complete) if text else Lattice.empty()


@cache
def _openfst(graph: DecodingGraph) -> Any:
    return graph.to_openfst()


def _from_text(text: str) -> Lattice:
    """OpenFst's text of a raw lattice: its weights are "graph cost,acoustic cost", its states come in any order."""
    rows = [line.split() for line in text.splitlines()]
    start = int(rows[0][0])
    arcs = [row for row in rows if len(row) >= 4]
    src, dst, label, word = np.array([row[:4] for row in arcs], dtype=np.int32).reshape(-1, 4).T
    costs = np.array([_costs(row, 4) for row in arcs], dtype=np.float32).reshape(-1, 2)
    states = int(max(src.max(initial=start), dst.max(initial=start), max(int(row[0]) for row in rows))) + 1
    final = np.full(states, -np.inf, dtype=np.float32)
    for row in rows:
        if len(row) <= 2:
            final[int(row[0])] = -sum(_costs(row, 1))
    depth, frame = np.full(states, -1), np.zeros(states, dtype=np.int32)
    depth[start] = 0
    while True:  # one arc deeper in each round; an arc leads from an earlier frame or an earlier place in it
        deeper = depth.copy()
        np.maximum.at(deeper, dst, np.where(depth[src] >= 0, depth[src] + 1, -1))
        if (deeper == depth).all():
            break
        depth = deeper
    for arc in np.argsort(depth[src], kind="stable"):
        frame[dst[arc]] = frame[src[arc]] + (label[arc] > 0)
    order = np.lexsort((depth, frame))
    number = np.argsort(order).astype(np.int32)
    return Lattice(number[src], number[dst], label - 1, word, -costs[:, 1], -costs[:, 0], frame[order], final[order])


def _costs(row: list[str], place: int) -> tuple[float, float]:
    """Graph and acoustic cost of a line of text; both 0 where none stands there."""
    graph, acoustic = row[place].split(",") if len(row) > place else ("0", "0")
    return float(graph), float(acoustic)


def pruned(lattice: Lattice, beam: float) -> Lattice:
    """Without arcs and ends whose best complete path is more than `beam` worse than the best one."""
    if not lattice.num_states:
        return lattice
    order = np.argsort(lattice.src, kind="stable")
    src, dst = lattice.src[order], lattice.dst[order]
    score = (lattice.acoustic.astype(np.float64) + lattice.graph)[order]
    ahead, back = np.full(lattice.num_states, -np.inf), lattice.final.astype(np.float64)
    ahead[0] = 0.0
    for a in range(len(src)):
        ahead[dst[a]] = max(ahead[dst[a]], ahead[src[a]] + score[a])
    for a in reversed(range(len(src))):
        back[src[a]] = max(back[src[a]], score[a] + back[dst[a]])
    least = back[0] - beam
    keep = ahead[src] + score + back[dst] >= least
    alive = ahead + back >= least
    final = np.where(ahead + lattice.final >= least, lattice.final, -np.inf).astype(np.float32)
    number = (np.cumsum(alive) - 1).astype(np.int32)
    kept = order[keep]
    return Lattice(
        number[src[keep]], number[dst[keep]], lattice.label[kept], lattice.word[kept], lattice.acoustic[kept],
        lattice.graph[kept], lattice.frame[alive], final[alive],
    )  # fmt: skip
