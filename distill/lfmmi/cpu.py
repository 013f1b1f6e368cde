"""The engine's C++ kernels for processors (`kernels/`), called through ctypes.

A graph shared by the batch (the denominator) runs in the probability domain, factored into sums of states and the
arcs that leave from them, with as many utterances in a register as it holds. Graphs of single utterances run in
the log semiring. Threads work on groups of utterances and on the two directions of time.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.fsa.checks import NOT_FINITE, check_inputs
from distill.fsa.graph import Hmm
from distill.kernels.build import load_kernel
from distill.lfmmi.engine import Precision, Score, check_options, in_precision
from distill.lfmmi.factored import factor
from distill.lfmmi.leaky import leak_weights
from distill.lfmmi.reference import SMALLEST_FRAME_MASS
from distill.search.beam import SearchesLattices

KERNEL = "lfmmi"
SOUND, WEAK, NOT_A_NUMBER = range(3)  # what the kernels say of an utterance


class CpuEngine(SearchesLattices):
    """Forward-backward in C++; see `distill.lfmmi.engine.Engine`.

    leaky: coefficient of the leaky HMM in shared graphs, 0 for none. precision: "float32", "float64", or "input"
    for that of the log-probabilities. threads: 0 for as many as torch uses. Raises RuntimeError where the kernels
    cannot be built.
    """

    def __init__(self, leaky: float = 0.0, precision: Precision = "input", threads: int = 0) -> None:
        check_options(leaky, precision)
        if load_kernel(KERNEL) is None:
            raise RuntimeError("the C++ kernels cannot be built here; use the engine 'torch'")
        self.leaky, self.precision, self.threads = leaky, precision, threads
        self._compiled: dict[int, tuple[Hmm, _Graph]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        shared = isinstance(graph, Hmm)
        graphs: Sequence[Hmm] = [graph] if isinstance(graph, Hmm) else graph
        check_inputs(log_probs, lengths, graphs, shared, values=False)
        threads = self.threads or torch.get_num_threads()
        compiled = self._compile(graph) if isinstance(graph, Hmm) else None
        call = _Call(compiled, graphs, self.leaky, threads)
        total, status = _ForwardBackward.apply(in_precision(log_probs, self.precision), lengths, call)
        if (status == NOT_A_NUMBER).any():
            raise ValueError(NOT_FINITE)
        return Score(total, status == SOUND, call.recomputed)

    def _compile(self, graph: Hmm) -> _Graph:
        if id(graph) not in self._compiled:
            self._compiled[id(graph)] = graph, _Graph(graph, self.leaky)  # keeps the graph, so ids stay unique
        return self._compiled[id(graph)][1]


class _ForwardBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, call: _Call) -> tuple[Tensor, Tensor]:
        total, status, ctx.posterior = call.run(log_probs.detach(), lengths, ctx.needs_input_grad[0])
        if ctx.posterior is not None:
            ctx.save_for_backward(log_probs, lengths)
        ctx.call = call
        ctx.mark_non_differentiable(status)
        return total.to(log_probs.dtype), status

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        log_probs, lengths = ctx.saved_tensors
        posterior, ctx.posterior = ctx.posterior, None  # becomes the gradient: a second array would double the memory
        if posterior is None:  # backward again, through a graph that was retained
            posterior = ctx.call.run(log_probs, lengths, True)[2]
        return posterior.mul_(gradients[0][:, None, None]), None, None


class _Call:
    """One call of `score`: the shared graph (compiled) or one graph per utterance, and how to run it."""

    def __init__(self, shared: _Graph | None, graphs: Sequence[Hmm], leaky: float, threads: int) -> None:
        self.shared, self.graphs, self.leaky, self.threads = shared, graphs, leaky, threads
        self.recomputed = 0

    def run(self, log_probs: Tensor, lengths: Tensor, needs_posterior: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Totals (B,) float64, status (B,), and posteriors (B, T, V) where they are needed."""
        batch = _Batch(log_probs, lengths, needs_posterior)
        if self.shared is None:
            batch.score_single(self.graphs, None, self.threads)
        else:
            batch.score_shared(self.shared, self.leaky, self.threads)
            weak = ((batch.status == WEAK) & (lengths > 0)).nonzero().squeeze(1)
            if len(weak):
                self._again(batch, log_probs, lengths, weak)
        return batch.total, batch.status, batch.posterior

    def _again(self, batch: _Batch, log_probs: Tensor, lengths: Tensor, weak: Tensor) -> None:
        # float64, as the totals of such utterances are large and float32 would round their posteriors
        again = _Batch(log_probs[weak].double(), lengths[weak], batch.posterior is not None)
        leak = leak_weights(self.graphs[0]).mul(self.leaky).log() if self.leaky else None
        again.score_single(list(self.graphs) * len(weak), leak, self.threads)
        batch.total[weak], batch.status[weak] = again.total, again.status
        if batch.posterior is not None and again.posterior is not None:
            batch.posterior[weak] = again.posterior.to(batch.posterior.dtype)
        self.recomputed = len(weak)


class _Batch:
    """Arrays of one call of the kernels: what they read, and what they write."""

    def __init__(self, log_probs: Tensor, lengths: Tensor, needs_posterior: bool) -> None:
        batch = len(lengths)
        dtype = log_probs.dtype if log_probs.dtype == torch.float64 else torch.float32
        self.log_probs = log_probs.to(dtype).contiguous()
        self.lengths = lengths.to(torch.int64).contiguous()
        self.shape = np.array(log_probs.shape, dtype=np.int64)
        self.posterior = torch.zeros_like(self.log_probs) if needs_posterior else None
        self.total = torch.zeros(batch, dtype=torch.float64)
        self.status = torch.full((batch,), WEAK, dtype=torch.int32)

    def _arguments(self) -> list[Any]:
        tensors = (self.log_probs, self.lengths, self.posterior, self.total, self.status)
        pointers = [None if x is None else ctypes.c_void_p(x.data_ptr()) for x in tensors]
        return [self.log_probs.element_size(), _pointer(self.shape), *pointers]

    def score_shared(self, graph: _Graph, leaky: float, threads: int, size: int = 0, segment: int = 0) -> None:
        numbers = (ctypes.c_double(SMALLEST_FRAME_MASS), ctypes.c_double(leaky))
        _check(_library().lfmmi_shared(graph.handle, *self._arguments(), *numbers, threads, size, segment))

    def score_single(self, graphs: Sequence[Hmm], leak: Tensor | None, threads: int) -> None:
        """One graph per utterance; leak (S,): log-weights of a leak in all of them."""
        keep, table = [], np.zeros((max(1, len(graphs)), 9), dtype=np.int64)
        for row, graph in zip(table, graphs):
            arrays = _arrays(graph)
            keep.append(arrays)
            row[:2] = graph.num_states, len(graph.src)
            row[2:8] = [array.data_ptr() for array in arrays]
            row[8] = leak.data_ptr() if leak is not None else 0
        _check(_library().lfmmi_single(_pointer(table), *self._arguments(), threads))


class _Arrays(NamedTuple):
    """The arrays of a graph in the order of the kernel's struct."""

    label: Tensor
    src: Tensor
    dst: Tensor
    initial: Tensor
    final: Tensor
    weight: Tensor


def _arrays(graph: Hmm) -> _Arrays:
    whole = [x.to("cpu", torch.int64).contiguous() for x in (graph.label, graph.src, graph.dst)]
    real = [x.to("cpu", torch.float64).contiguous() for x in (graph.initial, graph.final, graph.weight)]
    return _Arrays(*whole, *real)


class _Graph:
    """A shared graph as the kernels hold it; freed with this object."""

    def __init__(self, graph: Hmm, leaky: float) -> None:
        states = graph.num_states
        matrices = factor(graph, np.arange(states))
        # sums of a single state need not be made: their arcs leave from the state
        size = np.bincount(matrices.inward.row, minlength=matrices.inward.rows)
        single = (size == 1)[matrices.inward.row] & (matrices.inward.weight == 1)
        place = np.zeros(matrices.inward.rows, dtype=np.int64)
        made = np.ones(matrices.inward.rows, dtype=bool)
        made[matrices.inward.row[single]] = False
        place[made] = states + np.arange(made.sum())
        place[matrices.inward.row[single]] = matrices.inward.column[single]
        loops = np.flatnonzero(matrices.own)
        first = (place[matrices.inward.row[~single]] - states, *(x[~single] for x in matrices.inward[3:]))
        second = (
            np.concatenate([matrices.outward.row, loops]),
            np.concatenate([place[matrices.outward.column], loops]),
            np.concatenate([matrices.outward.weight, matrices.own[loops]]),
        )
        leak = leak_weights(graph).numpy() if leaky else None
        self.handle = _create(graph, int(made.sum()), leak, first, second)
        weakref.finalize(self, _library().lfmmi_graph_free, self.handle)

    def size(self) -> tuple[int, int]:
        """Products of one frame in both directions: in tiles (zeros that fill them included), and outside."""
        counts = np.zeros(2, dtype=np.int64)
        _library().lfmmi_graph_size(self.handle, _pointer(counts))
        return int(counts[0]), int(counts[1])


def _create(graph: Hmm, sums: int, leak: np.ndarray | None, *matrices: tuple[np.ndarray, ...]) -> ctypes.c_void_p:
    arrays = _arrays(graph)
    ends = [x.exp() for x in (arrays.initial, arrays.final)]
    entries = []
    for row, column, weight in matrices:
        order = np.lexsort((column, row))
        entries += [row[order].astype(np.int64), column[order].astype(np.int64), weight[order].astype(np.float64)]
    count = np.array([len(matrix[0]) for matrix in matrices], dtype=np.int64)
    handle = _library().lfmmi_graph(
        ctypes.c_int64(graph.num_states), ctypes.c_int64(sums), ctypes.c_void_p(arrays.label.data_ptr()),
        *(ctypes.c_void_p(x.data_ptr()) for x in ends), _pointer(leak), *map(_pointer, [count, *entries]),
    )  # fmt: skip
    return ctypes.c_void_p(handle)


def _pointer(array: np.ndarray | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def _check(code: int) -> None:
    if code:
        raise MemoryError("LF-MMI ran out of memory: use fewer or shorter utterances in a batch, or fewer threads")


@functools.lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = load_kernel(KERNEL)
    assert library is not None, "engines are only made where the kernels are"
    library.lfmmi_graph.restype = ctypes.c_void_p
    library.lfmmi_held.restype = ctypes.c_int64
    return library
