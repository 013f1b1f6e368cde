"""Lattice search on the CPU: token passing in C++ (`kernels/search.cpp`)."""

from __future__ import annotations

import ctypes
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from distill.fsa.checks import NOT_FINITE, check_inputs
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.kernels.build import load_kernel, pointer


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
def _kernel() -> ctypes.CDLL:
    library = load_kernel("search")
    library.search_open.restype = library.search_lattice.restype = library.search_best.restype = ctypes.c_void_p
    for function, count in (("path_take", 3), ("path_free", 1), ("search_close", 1), ("lattice_take", 7),
                            ("lattice_free", 1)):  # fmt: skip
        getattr(library, function).argtypes, getattr(library, function).restype = [ctypes.c_void_p] * count, None
    return library


@dataclass(frozen=True, eq=False)
class PartialPath:
    """The best path of a partial result: label, word (N,) int32 of its arcs (`Lattice`), frame (N,) of their sources.

    stable: number of arcs at its start that all surviving paths share, so that no later frame changes them.
    """

    label: np.ndarray
    word: np.ndarray
    frame: np.ndarray
    stable: int


class OngoingSearch:
    """The search of one utterance in chunks of frames: feed(), and best() or lattice() at any time.

    The lattice after the last frame is that of `lattices` over all frames at once, bit by bit. Past frames are stored
    as a pruned lattice, without log-probabilities.
    Raises ValueError for a graph that uses outputs beyond V or in which arcs without a frame form a cycle.
    """

    def __init__(self, graph: DecodingGraph, search: Search) -> None:
        self.graph, self.search = graph, search
        self.frames, self.alive = 0, True  # alive: a path survives
        self._handle: ctypes.c_void_p | None = None

    def feed(self, log_probs: np.ndarray) -> bool:
        """Search the next frames (T, V) float32, T may be 0; False if no path survives the beam."""
        self.graph.check_outputs(log_probs.shape[1])
        if not (log_probs < np.inf).all():
            raise ValueError(NOT_FINITE)
        library = _kernel()
        if self.alive and len(log_probs):
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

    def best(self) -> PartialPath | None:
        """The best path so far, in any state of the graph; None before the first frame or if no path survives."""
        if not self.frames or not self.alive:
            return None
        library = _kernel()
        sizes = np.zeros(2, dtype=np.int64)
        handle = ctypes.c_void_p(library.search_best(self._handle, pointer(sizes)))
        try:
            arcs, stable = sizes.tolist()
            arc, frame = np.empty((2, arcs), dtype=np.int32)
            library.path_take(handle, pointer(arc), pointer(frame))
        finally:
            library.path_free(handle)
        return PartialPath(self.graph.label[arc], self.graph.word[arc], frame, stable)

    def lattice(self, ended: bool, last: bool = False) -> Lattice:
        """The paths within lattice_beam of the best one; ended: only those in final states, if there are any.

        last: no frames follow, so the search itself becomes the lattice instead of a copy.
        """
        if not self.frames or not (self.alive or last):
            return Lattice.empty()
        library = _kernel()
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


_spaces = threading.local()


def _workspace(graph: DecodingGraph) -> np.ndarray:
    """-1 for each state of a graph: one array per thread, shared by its searches."""
    if not hasattr(_spaces, "of"):
        _spaces.of = weakref.WeakKeyDictionary()
    space = _spaces.of.get(graph)
    if space is None:
        space = _spaces.of[graph] = np.full(graph.num_states, -1, dtype=np.int32)
    return space
