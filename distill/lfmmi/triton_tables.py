"""Graphs as the tables that the Triton kernels read: gathers of a factored matrix, runs of states, packed graphs.

Everything here is done once per graph (a denominator) or once per batch (numerators), in numpy; no kernel is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.fsa.graph import Hmm, expand
from distill.lfmmi.factored import Matrix, factor
from distill.lfmmi.leaky import leak_of

WIDTH = 8  # arcs in a piece, the smallest block of a chunk
MOST_THIN = 4  # arcs of a row that may lie outside the chunks: a power of two
BANKS = 32  # of a GPU's shared memory, and threads of a warp
MOST_STATES = 16384  # rows of a vector that a program holds; its places also fit 16 bits
CHUNK = 8192  # arcs gathered at once; a program's 1,024 threads take 8 each
RUN = 32  # states that the posterior kernel sums at once
BLOCK = 512  # states of a numerator that its program takes at once


class Gathers(NamedTuple):
    """A matrix times a vector as gathers: a thin part, and the rest in chunks of equal size.

    thin_source, thin_weight (P, K): row p of the result starts as the sum over K of weight * x[source].
    source, weight (C, N): N arcs a chunk, in pieces of `WIDTH`; 2**level aligned pieces are one block, summed into
    one number. level, target (C, N / WIDTH): a block's level, and at its first piece where its sum goes, else -1:
    row, or P + row, as the arcs of a row are two blocks at most.
    """

    thin_source: np.ndarray
    thin_weight: np.ndarray
    source: np.ndarray
    weight: np.ndarray
    level: np.ndarray
    target: np.ndarray

    @property
    def cost(self) -> int:
        """How many numbers are gathered, wasted ones among them."""
        return self.thin_source.size + self.source.size

    def on_device(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The six tables as tensors, indices as small as they can be: a frame reads all of them."""
        small = {"thin_source": torch.int16, "source": torch.int16, "level": torch.int8, "target": torch.int16}
        return tuple(torch.from_numpy(getattr(self, n)).to(small.get(n, dtype)).to(device) for n in self._fields)


def lay_out(matrix: Matrix, padded_rows: int, chunk: int) -> Gathers:
    """The cheapest split of a matrix into a thin part and chunks of `chunk` arcs; both sizes powers of two.

    Raises ValueError for a row that does not fit into a chunk.
    """
    order = np.lexsort((matrix.column, matrix.row))
    matrix = matrix._replace(row=matrix.row[order], column=matrix.column[order], weight=matrix.weight[order])
    degree = np.bincount(matrix.row, minlength=matrix.rows)
    if degree.max(initial=0) > chunk:
        raise ValueError(f"a state has {degree.max()} arcs, and a chunk takes {chunk}; use larger chunks")
    thin = [n for n in (1, 2, 4) if n <= MOST_THIN and n * padded_rows <= 2 * chunk]
    laid = [_lay_out(matrix, degree, n, padded_rows, chunk) for n in (0, *thin)]
    best = min(laid, key=lambda gathers: gathers.cost)
    _spread(best.source.reshape(-1, WIDTH), best.weight.reshape(-1, WIDTH))
    return best


def _lay_out(matrix: Matrix, degree: np.ndarray, thin: int, padded_rows: int, chunk: int) -> Gathers:
    _, column = expand(degree)
    thin_source, thin_weight = np.zeros((padded_rows, thin), dtype=np.int64), np.zeros((padded_rows, thin))
    early = column < thin
    thin_source[matrix.row[early], column[early]] = matrix.column[early]
    thin_weight[matrix.row[early], column[early]] = matrix.weight[early]

    blocks = _blocks(-(-np.maximum(degree - thin, 0) // WIDTH))
    sizes = blocks.reshape(-1)
    by_size = np.argsort(-sizes, kind="stable")  # so each block starts at a multiple of its size
    start = np.empty_like(sizes)
    start[by_size] = np.cumsum(sizes[by_size]) - sizes[by_size]
    chunks = -(-int(sizes.sum()) * WIDTH // chunk)
    row, late = matrix.row[~early], column[~early] - thin
    second = late >= blocks[0, row] * WIDTH
    place = np.where(second, start[matrix.rows + row] + -blocks[0, row], start[row]) * WIDTH + late
    index, weight = np.zeros((chunks, chunk), dtype=np.int64), np.zeros((chunks, chunk))
    index.flat[place], weight.flat[place] = matrix.column[~early], matrix.weight[~early]

    level = np.zeros((chunks, chunk // WIDTH), dtype=np.int64)
    target = np.full_like(level, -1)
    used = np.flatnonzero(sizes)
    largest_first = sizes[by_size[: len(used)]]
    level.flat[: sizes.sum()] = np.repeat(np.log2(largest_first).astype(np.int64), largest_first)
    target.flat[start[used]] = used + (used >= matrix.rows) * (padded_rows - matrix.rows)
    return Gathers(thin_source, thin_weight, index, weight, level, target)


def _spread(index: np.ndarray, weight: np.ndarray) -> None:
    """Reorder arcs within pieces so that 32 neighbouring pieces seldom meet in a bank of shared memory; (P, WIDTH).

    The threads of a warp take a piece each and gather its arcs one after another; those that want different
    numbers of one bank (index modulo 32) wait for each other. Each arc in turn goes where its bank is least wanted:
    a trigram's gathers then take 2.1 rounds in place of 3.0.
    """
    if len(index) % BANKS:
        return
    places, weights = index.reshape(-1, BANKS, WIDTH), weight.reshape(-1, BANKS, WIDTH)  # views
    bank, real = places % BANKS, weights != 0
    warp = np.arange(len(places))
    wanted = np.zeros((len(places), WIDTH, BANKS), dtype=np.int64)
    for thread in range(BANKS):
        turns = np.empty((len(places), WIDTH), dtype=np.int64)
        taken = np.zeros((len(places), WIDTH), dtype=bool)
        for arc in range(WIDTH):
            here = bank[:, thread, arc]
            turns[:, arc] = turn = np.where(taken, len(places) * BANKS, wanted[warp, :, here]).argmin(1)
            taken[warp, turn] = True
            wanted[warp, turn, here] += real[:, thread, arc]
        for array in (places, weights):
            array[warp[:, None], thread, turns] = array[:, thread].copy()


def _blocks(pieces: np.ndarray) -> np.ndarray:
    """Sizes (2, rows) of one or two blocks, powers of two, that hold so many pieces with least waste."""
    whole = _power_above(pieces)
    half = whole // 2
    rest = _power_above(pieces - half)
    split = (half > 0) & (half + rest < whole)
    return np.stack([np.where(split, half, whole), np.where(split, rest, 0)])


def _power_above(counts: np.ndarray) -> np.ndarray:
    """Smallest power of two not below each count, 0 for 0."""
    return np.where(counts > 0, 1 << np.ceil(np.log2(np.maximum(counts, 1))).astype(np.int64), 0)


class Runs(NamedTuple):
    """States in runs of at most `RUN` with one output each, as `posterior_kernel` reads them.

    start, size, label, last (R,): first state (within its graph), how many, their output, whether no further run
    of that output follows. of_utterance (B, 2): first run of each utterance, and the end of its runs.
    """

    start: Tensor
    size: Tensor
    label: Tensor
    last: Tensor
    of_utterance: Tensor


def cut_runs(label: np.ndarray, utterance: np.ndarray, batch: int) -> list[np.ndarray]:
    """Cut states, sorted by utterance and label, into the columns of `Runs`; label, utterance (S,)."""
    states = len(label)
    change = np.ones(states, dtype=bool)
    change[1:] = (label[1:] != label[:-1]) | (utterance[1:] != utterance[:-1])
    group = np.flatnonzero(change)
    size = np.diff(group, append=states)
    row, part = expand(-(-size // RUN))
    start = group[row] + part * RUN
    count = np.minimum((group + size)[row] - start, RUN)
    last = part == (-(-size // RUN) - 1)[row]
    bounds = np.searchsorted(utterance[start], np.arange(batch + 1))
    local = start - np.searchsorted(utterance, utterance[start])
    return [local, count, label[start], last, np.stack([bounds[:-1], bounds[1:]], 1)]


class SharedTables:
    """A graph of the whole batch on a device: factored transitions of both directions, states sorted by output.

    stride: length of a row of alpha. size, hubs: padded to powers of two. label, own (size,): `own` are self-loops.
    ends (2, size): initial and final weights. leaking, into (2, size): `distill.lfmmi.leaky.Leak`, 0 without a leak.
    ahead, back: two `Gathers` each on the device, and their sizes as compile-time constants.
    """

    def __init__(self, graph: Hmm, leaky: float, device: torch.device, dtype: torch.dtype) -> None:
        graph = graph.to("cpu")
        order = np.argsort(graph.label.numpy(), kind="stable")
        parts = factor(graph, order)
        inward, outward = parts.inward, parts.outward
        self.leaky = leaky > 0
        self.stride = max(16, -(-graph.num_states // 16) * 16)
        self.size, self.hubs = _padded(graph.num_states), _padded(inward.rows)
        degree = max(int(np.bincount(m.row).max(initial=1)) for m in (inward, outward, outward.t, inward.t))
        self.chunk = max(min(CHUNK, _padded(len(outward.row))), _padded(degree))
        self._kind = device, dtype
        label = graph.label.numpy()[order]
        self.label, self.own = self._rows([label]).to(torch.int32), self._rows([parts.own])
        leak = leak_of(graph, leaky)
        self.ends = self._rows([graph.initial.exp().numpy()[order], leak.final.numpy()[order]])
        self.leaking, self.into = (self._rows(x.numpy()[:, order]) for x in leak[:2])
        self.ahead, self.ahead_sizes = self._maps(inward, outward)
        self.back, self.back_sizes = self._maps(outward.t, inward.t)
        self.runs = Runs._make(in_one_copy(cut_runs(label, np.zeros_like(label), 1), torch.int32, device))

    def _rows(self, values: Sequence[np.ndarray] | np.ndarray) -> Tensor:
        """Rows over states, each 0 beyond them."""
        padded = np.zeros((len(values), self.size))
        for row, value in zip(padded, values):
            row[: len(value)] = value
        return torch.from_numpy(padded).to(*self._kind)

    def _maps(self, inner: Matrix, outer: Matrix) -> tuple[tuple[tuple[Tensor, ...], ...], tuple[int, ...]]:
        """Tables of hubs from states and of states from hubs, and per table: rows (of 16), thin, chunks, levels."""
        tables, sizes = [], []
        for matrix, padded in ((inner, self.hubs), (outer, self.size)):
            laid = lay_out(matrix, padded, self.chunk)
            rows = -(-matrix.rows // 16) * 16  # so that a thread's loads beyond them are masked together, and stay wide
            sizes += [rows, laid.thin_source.shape[1], len(laid.source), int(laid.level.max(initial=0))]
            tables.append(laid.on_device(*self._kind))
        return tuple(tables), tuple(sizes)


def fits(graph: Hmm) -> bool:
    """True where a program can hold a vector over the graph's states, and over twice as many hubs at worst."""
    return graph.num_states <= MOST_STATES // 2


def _padded(size: int) -> int:
    return max(16, int(_power_above(np.array(size))))


class PackedTables(NamedTuple):
    """G graphs one after another, S states and A arcs in all, states sorted by output within a graph.

    state_from, block_from (G + 1,): where a graph's states begin, and its blocks of `BLOCK` states. label (S,).
    ends (2, S): initial weights, then final ones. arc_from (2, S + 1), other, weight (2, A): arcs by target with
    their sources, then by source with their targets (places in the graph). most (2, blocks): most arcs of a state.
    """

    state_from: Tensor
    block_from: Tensor
    label: Tensor
    arc_from: Tensor
    other: Tensor
    most: Tensor
    ends: Tensor
    weight: Tensor
    runs: Runs


def pack(graphs: Sequence[Hmm], device: torch.device, dtype: torch.dtype) -> PackedTables:
    """Put graphs side by side, at least one."""
    sizes = np.array([graph.num_states for graph in graphs], dtype=np.int64)
    state_from = np.concatenate([[0], np.cumsum(sizes)])
    block_from = np.concatenate([[0], np.cumsum(-(-sizes // BLOCK))])
    utterance = np.repeat(np.arange(len(graphs)), sizes)
    label = _joined(graphs, "label")
    order = np.lexsort((label, utterance))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    base = np.repeat(state_from[:-1], [len(graph.src) for graph in graphs])
    src, dst = (place[_joined(graphs, end) + base] for end in ("src", "dst"))
    block = block_from[utterance] + (np.arange(len(order)) - state_from[utterance]) // BLOCK
    both = [_by_state(at, far - base, _joined(graphs, "weight"), block) for at, far in ((dst, src), (src, dst))]
    arc_from, other, weight, most = (np.stack(pair) for pair in zip(*both))
    ends = np.stack([_joined(graphs, end)[order] for end in ("initial", "final")])
    integers = in_one_copy([state_from, block_from, label[order], arc_from, other, most], torch.int32, device)
    floats = in_one_copy([ends, weight], dtype, device)
    runs = in_one_copy(cut_runs(label[order], utterance, len(graphs)), torch.int32, device)
    return PackedTables._make([*integers, *floats, Runs._make(runs)])


def _by_state(at: np.ndarray, other: np.ndarray, weight: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, ...]:
    """Arcs (A,) in order of the state they are at: where each state's begin, others, weights; most in each block."""
    order = np.argsort(at, kind="stable")
    degree = np.bincount(at, minlength=len(block))
    most = np.zeros(int(block.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(most, block, degree)
    return np.concatenate([[0], np.cumsum(degree)]), other[order], weight[order], most


def _joined(graphs: Sequence[Hmm], name: str) -> np.ndarray:
    return torch.cat([getattr(graph, name) for graph in graphs]).cpu().numpy()


def in_one_copy(arrays: Sequence[np.ndarray], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Move arrays to a device in a single transfer that nothing waits for; each begins at a multiple of 16 numbers."""
    sizes = [-(-array.size // 16) * 16 for array in arrays]
    joined = torch.zeros(sum(sizes), dtype=dtype, pin_memory=device.type == "cuda")
    for array, part in zip(arrays, joined.split(sizes)):
        part[: array.size] = torch.from_numpy(np.ascontiguousarray(array)).reshape(-1)
    parts = joined.to(device, non_blocking=True).split(sizes)
    return [part[: array.size].view(array.shape) for array, part in zip(arrays, parts)]
