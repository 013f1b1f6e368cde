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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.fsa.checks import NOT_FINITE, check_inputs
from distill.fsa.graph import Hmm
from distill.kernels.build import load_kernel, pointer
from distill.lfmmi.engine import OwnEngine, Precision, Score
from distill.lfmmi.factored import factor
from distill.lfmmi.leaky import leak_weights
from distill.lfmmi.reference import SMALLEST_FRAME_MASS

SOUND, WEAK, NOT_A_NUMBER = range(3)  # status of an utterance


class CpuEngine(OwnEngine):
    """Forward-backward in C++; see `distill.lfmmi.engine.Engine`, options in `OwnEngine`.

    threads: 0 for as many as torch uses. Raises ValueError where the kernels cannot be compiled (`load_kernel`).
    """

    def __init__(self, leaky: float = 0.0, precision: Precision = "input", threads: int = 0) -> None:
        super().__init__(leaky, precision)
        _library()  # compiled now, so that an error is raised here
        self.threads = threads
        self._compiled: dict[int, tuple[Hmm, _Graph]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        check_inputs(log_probs, lengths, graph, values=False)
        if isinstance(graph, Hmm) and id(graph) not in self._compiled:
            self._compiled[id(graph)] = graph, _Graph(graph, self.leaky)  # keeps the graph, so ids stay unique
        total, status, recomputed = _ForwardBackward.apply(self.converted(log_probs), lengths, graph, self)
        if (status == NOT_A_NUMBER).any():
            raise ValueError(NOT_FINITE)
        return Score(total, status == SOUND, recomputed)

    def run(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm], gradient: bool) -> _Batch:
        """Forward-backward outside autograd."""
        threads = self.threads or torch.get_num_threads()
        batch = _Batch(log_probs, lengths, gradient)
        if not isinstance(graph, Hmm):
            batch.score_single(graph, None, threads)
            return batch
        batch.score_shared(self._compiled[id(graph)][1], self.leaky, threads)
        weak = ((batch.status == WEAK) & (lengths > 0)).nonzero().squeeze(1)
        if len(weak):
            # float64, as the totals of such utterances are large and float32 would round their posteriors
            again = _Batch(log_probs[weak].double(), lengths[weak], gradient)
            leak = leak_weights(graph).mul(self.leaky).log() if self.leaky else None
            again.score_single([graph] * len(weak), leak, threads)
            batch.total[weak], batch.status[weak] = again.total, again.status
            if batch.posterior is not None and again.posterior is not None:
                batch.posterior[weak] = again.posterior.to(batch.posterior.dtype)
            batch.recomputed = len(weak)
        return batch


class _ForwardBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm], engine: CpuEngine
    ) -> tuple[Tensor, Tensor, int]:
        batch = engine.run(log_probs.detach(), lengths, graph, ctx.needs_input_grad[0])
        ctx.posterior = batch.posterior
        if ctx.posterior is not None:
            ctx.save_for_backward(log_probs, lengths)
        ctx.call = engine, graph
        ctx.mark_non_differentiable(batch.status)
        return batch.total.to(log_probs.dtype), batch.status, batch.recomputed

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        log_probs, lengths = ctx.saved_tensors
        posterior, ctx.posterior = ctx.posterior, None  # becomes the gradient: a second array would double the memory
        if posterior is None:  # backward again, through a graph that was retained
            engine, graph = ctx.call
            posterior = engine.run(log_probs, lengths, graph, True).posterior
        return posterior.mul_(gradients[0][:, None, None]), None, None, None


class _Batch:
    """Input and output arrays of one call of the kernels.

    total (B,) float64, status (B,), posterior (B, T, V) or None; recomputed: utterances done again in log semiring.
    """

    def __init__(self, log_probs: Tensor, lengths: Tensor, gradient: bool) -> None:
        batch = len(lengths)
        dtype = log_probs.dtype if log_probs.dtype == torch.float64 else torch.float32
        self.log_probs = log_probs.to(dtype).contiguous()
        self.lengths = lengths.to(torch.int64).contiguous()
        self.shape = np.array(log_probs.shape, dtype=np.int64)
        self.posterior = torch.zeros_like(self.log_probs) if gradient else None
        self.total = torch.zeros(batch, dtype=torch.float64)
        self.status = torch.full((batch,), WEAK, dtype=torch.int32)
        self.recomputed = 0

    def _arguments(self) -> list[Any]:
        tensors = (self.log_probs, self.lengths, self.posterior, self.total, self.status)
        pointers = [None if x is None else ctypes.c_void_p(x.data_ptr()) for x in tensors]
        return [self.log_probs.element_size(), pointer(self.shape), *pointers]

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
        _check(_library().lfmmi_single(pointer(table), *self._arguments(), threads))


def _arrays(graph: Hmm) -> list[Tensor]:
    """label, src, dst, initial, final, weight: the arrays of the kernel's struct in its order."""
    whole = [x.to("cpu", torch.int64).contiguous() for x in (graph.label, graph.src, graph.dst)]
    return whole + [x.to("cpu", torch.float64).contiguous() for x in (graph.initial, graph.final, graph.weight)]


class _Graph:
    """A shared graph in the kernels' memory; freed with this object."""

    def __init__(self, graph: Hmm, leaky: float) -> None:
        states = graph.num_states
        own, inward, outward = factor(graph, np.arange(states))
        # sums of a single state need not be made: their arcs leave from the state
        size = np.bincount(inward.row, minlength=inward.rows)
        single = (size == 1)[inward.row] & (inward.weight == 1)
        place = np.zeros(inward.rows, dtype=np.int64)
        made = np.ones(inward.rows, dtype=bool)
        made[inward.row[single]] = False
        place[made] = states + np.arange(made.sum())
        place[inward.row[single]] = inward.column[single]
        loops = np.flatnonzero(own)
        first = (place[inward.row[~single]] - states, inward.column[~single], inward.weight[~single])
        second = (
            np.concatenate([outward.row, loops]),
            np.concatenate([place[outward.column], loops]),
            np.concatenate([outward.weight, own[loops]]),
        )
        count, entries = np.array([len(first[0]), len(second[0])], dtype=np.int64), []
        for row, column, weight in (first, second):
            order = np.lexsort((column, row))
            entries += [row[order].astype(np.int64), column[order].astype(np.int64), weight[order].astype(np.float64)]
        label, _, _, initial, final, _ = _arrays(graph)
        tensors = (label, initial.exp(), final.exp())
        leak = leak_weights(graph).numpy() if leaky else None
        self.handle = ctypes.c_void_p(_library().lfmmi_graph(
            ctypes.c_int64(states), ctypes.c_int64(int(made.sum())), *(ctypes.c_void_p(x.data_ptr()) for x in tensors),
            pointer(leak), *map(pointer, [count, *entries]),
        ))  # fmt: skip
        weakref.finalize(self, _library().lfmmi_graph_free, self.handle)


def _check(code: int) -> None:
    if code:
        raise MemoryError("LF-MMI ran out of memory: use fewer or shorter utterances in a batch, or fewer threads")


@functools.cache
def _library() -> ctypes.CDLL:
    library = load_kernel("lfmmi")
    library.lfmmi_graph.restype = ctypes.c_void_p
    library.lfmmi_held.restype = ctypes.c_int64
    return library
