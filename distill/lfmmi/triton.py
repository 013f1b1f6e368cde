"""The engine on a GPU: whole forward-backward passes inside Triton kernels, no launch per frame.

One program runs one utterance in one direction over all its frames, so alpha and beta run side by side.
A shared graph (the denominator) runs in the probability domain, its state vector in registers and shared
memory and its transitions factored (`distill.lfmmi.factored`); graphs of single utterances (numerators) run
in the log semiring, packed one after another. A last kernel sums alpha * beta by output: the gradient.

This module can be imported where Triton is not; only `distill.lfmmi.triton_kernels` imports it. With TRITON_INTERPRET=1
in the environment before that, the kernels run on the CPU, slowly: that is how they are tested without a GPU.
"""

from __future__ import annotations

import logging
import os
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from distill.fsa.checks import check_inputs
from distill.fsa.graph import Hmm
from distill.lfmmi import triton_tables
from distill.lfmmi.engine import OwnEngine, Passes, Precision, Score, needs_gradient
from distill.lfmmi.reference import SMALLEST_FRAME_MASS, TorchEngine
from distill.lfmmi.triton_tables import PackedTables, Runs, SharedTables, fits, pack

log = logging.getLogger(__name__)

OLDEST = (3, 4)  # the first Triton that gathers from vectors of any size and takes tuples of tensors
FRAMES = 16  # frames of a tile of the posterior kernel
SMALLEST_MEETING = 1e-25  # of alpha times beta summed over states, each scaled to one: below, float32 loses paths


def available() -> bool:
    """True where the kernels can run given a GPU; what is missing is logged."""
    lacking = _lacking()
    if lacking:
        log.warning("LF-MMI on a GPU runs in torch, frame by frame: %s", lacking)
    return not lacking


def _lacking() -> str:
    try:
        import triton
    except ImportError:
        return "Triton is not installed"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < OLDEST:
        return f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}"
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "Triton compiles what launches its kernels, and there is no C compiler (gcc, clang or CC)"
    if not Path(sysconfig.get_config_var("INCLUDEPY"), "Python.h").is_file():
        return "Triton compiles what launches its kernels, and there are no headers of Python (python3-dev)"
    return ""


def _kernels() -> ModuleType:
    """The kernels, imported when first needed, as Triton is not everywhere."""
    from distill.lfmmi import triton_kernels

    return triton_kernels


class TritonEngine(OwnEngine):
    """Forward-backward on a GPU; see `distill.lfmmi.engine.Engine`, options in `OwnEngine`."""

    def __init__(self, leaky: float = 0.0, precision: Precision = "input") -> None:
        super().__init__(leaky, precision)
        self._torch = TorchEngine(leaky)  # for what does not fit
        self._tables: dict[int, tuple[Hmm, dict[tuple[torch.device, torch.dtype], SharedTables | None]]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`).

        Raises ValueError as every engine does, and for log_probs that are not on a GPU.
        """
        values = self.converted(log_probs.detach()).contiguous()
        # packed before the checks read numbers, which waits for the GPU: so the CPU packs while the GPU is busy
        packed = None if isinstance(graph, Hmm) or not graph else pack(graph, values.device, values.dtype)
        check_inputs(log_probs, lengths, graph)
        if not (log_probs.is_cuda or _kernels().INTERPRETED):
            raise ValueError(f"the Triton engine needs log_probs on a GPU, got {log_probs.device}; use another engine")
        if not log_probs.numel():
            return Score(log_probs.sum((1, 2)), torch.zeros(len(lengths), dtype=torch.bool, device=log_probs.device))
        lengths, gradient, recomputed = lengths.to(log_probs.device, torch.int32), needs_gradient(log_probs), 0
        with torch.cuda.device_of(log_probs):  # kernels run on the current device, whatever that of the tensors
            if isinstance(graph, Hmm):
                passes, recomputed = self._run_shared(values, lengths, graph, gradient)
            else:
                assert packed is not None
                passes = _run_packed(values, lengths, packed, torch.arange(len(graph)), gradient)
        return passes._replace(total=passes.total.to(values.dtype)).score(log_probs, recomputed)

    def _run_shared(self, log_probs: Tensor, lengths: Tensor, graph: Hmm, gradient: bool) -> tuple[Passes, int]:
        tables = self._compile(graph, log_probs.device, log_probs.dtype)
        if tables is not None:
            try:
                passes = _run_shared(log_probs, lengths, tables, gradient)
            except _kernels().OutOfResources as error:
                log.warning("a graph of %d states runs in torch: %s", graph.num_states, error)
                self._tables[id(graph)][1][log_probs.device, log_probs.dtype] = tables = None
        if tables is None:
            return self._torch.passes(log_probs, lengths.long(), graph, gradient)[0], 0
        weak = (~passes.valid & (lengths > 0)).nonzero().squeeze(1)
        if len(weak):  # in the log semiring and float64; the packed kernel has no leak
            values, frames = log_probs[weak].double(), lengths[weak]
            if self.leaky:
                again, _ = self._torch.passes(values, frames.long(), graph, gradient)
            else:
                tables_of_one, which = pack([graph], values.device, values.dtype), torch.zeros_like(weak)
                again = _run_packed(values, frames, tables_of_one, which, gradient)
            passes.replace(weak, again)
        return passes, len(weak)

    def _compile(self, graph: Hmm, device: torch.device, dtype: torch.dtype) -> SharedTables | None:
        _, forms = self._tables.setdefault(id(graph), (graph, {}))  # keeps the graph, so ids stay unique
        if (device, dtype) not in forms:
            if not fits(graph):
                log.warning("a graph of %d states is too large for Triton and runs in torch", graph.num_states)
            forms[device, dtype] = SharedTables(graph, self.leaky, device, dtype) if fits(graph) else None
        return forms[device, dtype]


def _run_shared(log_probs: Tensor, lengths: Tensor, graph: SharedTables, gradient: bool) -> Passes:
    """All utterances over one graph in the probability domain; utterances that underflow are not valid either."""
    batch, frames, outputs = log_probs.shape
    directions = 2 if gradient else 1
    offset = log_probs.amax(2).clamp_min(torch.finfo(log_probs.dtype).min)
    p = (log_probs - offset[..., None]).exp()
    out = p.new_empty(directions, batch, frames, graph.stride)
    mass = p.new_ones(directions, batch, frames)
    ending = p.new_zeros(batch)
    scratch = p.new_zeros(directions * batch * 2 * (graph.hubs + graph.size))
    _kernels().shared_kernel[(batch, directions)](
        p, lengths, graph.label, graph.own, graph.ends, graph.leaking, graph.into, graph.ahead, graph.back,
        out, mass, ending, scratch, frames, outputs, graph.stride,
        LEAKY=graph.leaky, AHEAD=graph.ahead_sizes, BACK=graph.back_sizes, CHUNK=graph.chunk,
        S=graph.size, E=graph.hubs, num_warps=min(32, max(4, graph.chunk // 256)),
    )  # fmt: skip
    inside = torch.arange(frames, device=lengths.device) < lengths[:, None]
    tiny = torch.finfo(p.dtype).tiny
    log_mass = (mass[0].clamp_min(tiny).log() + offset).where(inside, offset.new_zeros(()))
    total = log_mass.double().sum(1) + ending.clamp_min(tiny).log()
    sound = (mass.amin((0, 2)) > SMALLEST_FRAME_MASS) & (ending > SMALLEST_FRAME_MASS) & (lengths > 0)
    posterior = None
    if gradient:
        utterances = torch.arange(batch, device=lengths.device)
        runs = graph.runs._replace(of_utterance=graph.runs.of_utterance.expand(batch, 2).contiguous())
        stride = torch.full_like(utterances, graph.stride)
        posterior = _posterior(out, utterances * (frames * graph.stride), stride, lengths, runs, None, log_probs.shape)
        meeting = posterior.sum(2).where(inside, offset.new_ones(()))
        sound &= meeting.amin(1) > SMALLEST_MEETING
        _normalise(posterior, sound)
    return Passes(total.masked_fill_(~sound, 0), sound, posterior)


def _run_packed(log_probs: Tensor, lengths: Tensor, graphs: PackedTables, which: Tensor, gradient: bool) -> Passes:
    """Utterance b over graph which[b] of several, in the log semiring: which (B,)."""
    batch, frames, outputs = log_probs.shape
    directions = 2 if gradient else 1
    which = which.to(log_probs.device)
    states = graphs.state_from.diff().long()[which]
    row_from, cell_from = (torch.nn.functional.pad(n.cumsum(0), (1, 0)) for n in (states, states * lengths))
    rows, cells = torch.stack([row_from[-1], cell_from[-1]]).tolist()
    offset = _best_output(log_probs, lengths, graphs, which)
    scores = log_probs - offset[..., None]
    out = log_probs.new_empty(directions, cells)
    full = log_probs.new_empty(directions * 2 * rows)
    scale = log_probs.new_zeros((directions, batch, frames), dtype=torch.float64)
    total = log_probs.new_empty(batch, dtype=torch.float64)
    _kernels().packed_kernel[(batch, directions)](
        scores, lengths, which, row_from, cell_from, graphs.state_from, graphs.block_from, graphs.label, graphs.ends,
        graphs.arc_from, graphs.most, graphs.other, graphs.weight, out, full, scale, total,
        frames, outputs, len(graphs.state_from) - 1, graphs.other.shape[1], BLOCK=triton_tables.BLOCK, num_warps=8,
    )  # fmt: skip
    valid = (total > -torch.inf) & (lengths > 0)
    posterior = None
    if gradient:
        norm = (total[:, None] - scale.sum(0)).to(log_probs.dtype)
        runs = graphs.runs._replace(of_utterance=graphs.runs.of_utterance[which])
        posterior = _posterior(out, cell_from, states, lengths, runs, norm, log_probs.shape)
        _normalise(posterior, valid)
    total += offset.double().sum(1)
    return Passes(total.masked_fill_(~valid, 0), valid, posterior)


def _best_output(log_probs: Tensor, lengths: Tensor, graphs: PackedTables, which: Tensor) -> Tensor:
    """Each frame's largest log-probability of an output that the utterance's graph has (B, T); 0 in padding.

    Subtracted before float32 rounds, which keeps rounding small even where the graph lacks a frame's likely outputs.
    """
    _, frames, outputs = log_probs.shape
    states = graphs.state_from.diff().long()
    number = torch.repeat_interleave(torch.arange(len(states), device=states.device), states)
    used = torch.zeros(len(states), outputs, dtype=torch.bool, device=states.device)
    used[number, graphs.label.long()] = True
    best = log_probs.masked_fill(~used[which][:, None], -torch.inf).amax(2)
    inside = torch.arange(frames, device=states.device) < lengths[:, None]
    return best.where(inside & (best > -torch.inf), best.new_zeros(()))


def _posterior(
    out: Tensor, cell_from: Tensor, stride: Tensor, lengths: Tensor, runs: Runs, norm: Tensor | None, shape: torch.Size
) -> Tensor:
    """Sums of alpha * beta by output (B, T, V), 0 in padding.

    out (2, ...): alpha and beta of the utterances, from `cell_from` (B,) on, rows `stride` (B,) apart; with
    norm (B, T) their logs, and norm is taken from their sum.
    """
    batch, frames, outputs = shape
    posterior = out.new_zeros(shape)
    _kernels().posterior_kernel[(batch, -(-frames // FRAMES))](
        out[0], out[1], cell_from, stride, lengths, posterior if norm is None else norm, runs.of_utterance, runs.start,
        runs.size, runs.label, runs.last, posterior, frames, outputs,
        LOG=norm is not None, FRAMES=FRAMES, STATES=triton_tables.RUN,
    )  # fmt: skip
    return posterior


def _normalise(posterior: Tensor, valid: Tensor) -> None:
    """Scale every frame of an utterance with a path to sum to one, set the others to 0, in place."""
    posterior /= posterior.sum(2, keepdim=True).clamp_min_(torch.finfo(posterior.dtype).tiny)
    posterior.masked_fill_(~valid[:, None, None], 0)
