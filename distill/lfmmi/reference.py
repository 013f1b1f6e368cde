"""The torch engine: exact on any device, and the reference for faster kernels.

A graph shared by the batch (the denominator) runs in the probability domain: one matrix product a
frame, each frame rescaled. Graphs of single utterances (numerators) run in the log semiring, all
utterances packed into one block-diagonal graph. Gradients are the posteriors, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.fsa.checks import check_inputs
from distill.fsa.graph import Hmm
from distill.lfmmi.engine import Precision, Score, check_options, in_precision
from distill.lfmmi.leaky import Leak, leak_of
from distill.search.beam import SearchesLattices

# A frame whose mass falls below this (relative to its likeliest output) may have lost a path to
# float32's range that a later frame would need, so the utterance is done again in the log semiring.
SMALLEST_FRAME_MASS = 1e-12
LEAST = -1e30  # stands in for -inf where a difference of infinities would be NaN
DENSE_STATES = 512  # up to here a dense matrix product beats a sparse one


class TorchEngine(SearchesLattices):
    """Forward-backward in torch; see `distill.lfmmi.engine.Engine`.

    leaky: coefficient of the leaky HMM in shared graphs (`distill.lfmmi.leaky`), 0 for none.
    precision: "float32", "float64", or "input" for that of the log-probabilities.
    """

    def __init__(self, leaky: float = 0.0, precision: Precision = "input") -> None:
        check_options(leaky, precision)
        self.leaky, self.precision = leaky, precision
        self._compiled: dict[int, tuple[Hmm, dict[tuple[torch.device, torch.dtype], _Shared]]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        shared = isinstance(graph, Hmm)
        graphs: Sequence[Hmm] = [graph] if isinstance(graph, Hmm) else graph
        check_inputs(log_probs, lengths, graphs, shared)
        log_probs = in_precision(log_probs, self.precision)
        lengths = lengths.to(log_probs.device)
        if isinstance(graph, Hmm):
            return self._score_shared(log_probs, lengths, graph)
        return _score_packed(log_probs, lengths, graph)

    def _score_shared(self, log_probs: Tensor, lengths: Tensor, graph: Hmm) -> Score:
        compiled = self._compile(graph, log_probs.device, log_probs.dtype)
        total, sound = _SharedForwardBackward.apply(log_probs, lengths, compiled)
        weak = (~sound & (lengths > 0)).nonzero().squeeze(1)
        valid = sound
        if len(weak):
            leak = leak_of(graph, self.leaky) if self.leaky else None
            again = _score_packed(log_probs[weak], lengths[weak], [graph] * len(weak), leak)
            total = total.index_put((weak,), again.total.to(total.dtype))
            valid = sound.index_put((weak,), again.valid)
        return Score(total, valid, recomputed=len(weak))

    def _compile(self, graph: Hmm, device: torch.device, dtype: torch.dtype) -> _Shared:
        _, forms = self._compiled.setdefault(id(graph), (graph, {}))  # keeps the graph, so ids stay unique
        if (device, dtype) not in forms:
            forms[device, dtype] = _Shared(graph, leak_of(graph, self.leaky) if self.leaky else None, device, dtype)
        return forms[device, dtype]


class _Shared:
    """A graph in the probability domain: transition matrices of both directions, start and end vectors.

    Index 0 of the pairs runs forward in time (alpha), index 1 backward (beta).
    """

    def __init__(self, graph: Hmm, leak: Leak | None, device: torch.device, dtype: torch.dtype) -> None:
        self.dense = graph.num_states <= DENSE_STATES
        ahead = _transitions(graph, graph.src, graph.dst, self.dense)
        back = _transitions(graph, graph.dst, graph.src, self.dense)
        # CSR multiplies from the left, so each direction needs the other's matrix
        pair = (ahead, back) if self.dense else (back, ahead)
        self.matrices = [matrix.to(device, dtype) for matrix in pair]
        self.stacked = torch.stack(self.matrices) if self.dense else None
        self.label = graph.label.to(device)
        final = graph.final.exp() if leak is None else leak.final
        self.ends = torch.stack([graph.initial.exp(), final.to(graph.initial)]).to(device, dtype)
        self.leak = None if leak is None else [x[:, None].to(device, dtype) for x in leak[:2]]

    def step(self, x: Tensor) -> Tensor:
        """One frame onwards in both directions: (2, B, S) -> (2, B, S)."""
        if self.stacked is not None:
            onward = torch.bmm(x, self.stacked)
        else:
            onward = torch.stack([(matrix @ each.t()).t() for matrix, each in zip(self.matrices, x)])
        if self.leak is not None:
            inner, outer = self.leak
            onward += (x * inner).sum(2, keepdim=True) * outer
        return onward


def _transitions(graph: Hmm, rows: Tensor, columns: Tensor, dense: bool) -> Tensor:
    """Transition probabilities (S, S), parallel arcs summed; float64, dense or CSR."""
    size = (graph.num_states, graph.num_states)
    if dense:
        return torch.zeros(size, dtype=torch.float64).index_put_((rows, columns), graph.weight.exp(), True)
    checked = getattr(torch.sparse, "check_sparse_tensor_invariants", None)  # torch 2 warns of unchecked ones
    with checked(True) if checked else nullcontext():
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), graph.weight.exp(), size).to_sparse_csr()


class _SharedForwardBackward(torch.autograd.Function):
    """alpha[t + 1] = (alpha[t] @ W) * p[t + 1, label], every frame rescaled to sum to one.

    beta is the same recursion over W transposed and each utterance reversed in time, so both run in one loop.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, graph: _Shared) -> tuple[Tensor, Tensor]:
        valid = torch.arange(log_probs.shape[1], device=lengths.device)[:, None] < lengths  # (T, B)
        emissions, offset = _emissions(log_probs, valid, graph.label)
        reverse = _reversed_frames(lengths, len(emissions))
        ahead, alpha, mass = _both_directions(emissions, reverse, graph)
        tiny = torch.finfo(mass.dtype).tiny
        ending = _at_end(alpha, lengths, graph.ends[1])
        log_mass = (mass[:, 0].clamp_min(tiny).log() + offset).where(valid, mass.new_zeros(()))
        total = log_mass.sum(0) + ending.clamp_min(tiny).log()
        weakest = mass.where(valid[:, None], mass.new_ones(())).amin((0, 1)) if len(mass) else ending
        sound = (weakest > SMALLEST_FRAME_MASS) & (ending > SMALLEST_FRAME_MASS) & (lengths > 0)
        if ctx.needs_input_grad[0]:
            beta = ahead.gather(0, reverse[..., None].expand_as(ahead)) if len(ahead) else ahead
            occupancy = alpha * beta
            occupancy /= occupancy.sum(2, keepdim=True).clamp_min(tiny)
            occupancy *= (valid & sound)[..., None]
            ctx.save_for_backward(_by_label(occupancy, graph.label, log_probs.shape[2]))
        ctx.mark_non_differentiable(sound)
        return total.where(sound, total.new_zeros(())), sound

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (posterior,) = ctx.saved_tensors
        return posterior * gradients[0][:, None, None], None, None


def _emissions(log_probs: Tensor, valid: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities relative to each frame's largest: (T, B, S), and its log (T, B); 1 and 0 in padding."""
    offset = log_probs.detach().amax(2).t().clamp_min(torch.finfo(log_probs.dtype).min)
    scaled = (log_probs.detach().transpose(0, 1) - offset[..., None]).exp()
    scaled = scaled.where(valid[..., None], scaled.new_ones(()))
    return scaled[..., label], offset


def _reversed_frames(lengths: Tensor, frames: int) -> Tensor:
    """For each frame its counterpart from the end of its utterance: lengths (B,) -> (T, B); 0 in padding."""
    return (lengths - 1 - torch.arange(frames, device=lengths.device)[:, None]).clamp_min(0)


def _both_directions(emissions: Tensor, reverse: Tensor, graph: _Shared) -> tuple[Tensor, Tensor, Tensor]:
    """Run alpha forward and beta over reversed time: emissions (T, B, S), reverse (T, B).

    Returns beta (T, B, S) in reversed time, without its own frame's emission; alpha (T, B, S), each frame
    summing to one; and the masses divided out of both (T, 2, B).
    """
    frames, batch, states = emissions.shape
    backward = emissions.gather(0, reverse[..., None].expand_as(emissions)) if frames else emissions
    both = torch.stack([emissions, backward], 1)
    ahead, mass = torch.empty_like(both), both.new_ones(frames, 2, batch)
    following = graph.ends[:, None].expand(2, batch, states)
    tiny = torch.finfo(emissions.dtype).tiny
    for t in range(frames):
        ahead[t] = following
        frame = both[t].mul_(following)
        torch.sum(frame, 2, out=mass[t])
        frame /= mass[t, ..., None].clamp_min(tiny)
        following = graph.step(frame)
    return ahead[:, 1], both[:, 0], mass


def _at_end(alpha: Tensor, lengths: Tensor, final: Tensor) -> Tensor:
    """Mass that ends each utterance at its last frame: alpha (T, B, S) -> (B,)."""
    if not len(alpha):
        return alpha.new_zeros(len(lengths))
    utterances = torch.arange(len(lengths), device=lengths.device)
    return (alpha[(lengths - 1).clamp_min(0), utterances] * final).sum(1)


def _by_label(occupancy: Tensor, label: Tensor, outputs: int) -> Tensor:
    """Sum state posteriors (T, B, S) over the states of each output: (B, T, V)."""
    frames, batch, _ = occupancy.shape
    summed = occupancy.new_zeros(frames, batch, outputs).index_add_(2, label, occupancy)
    return summed.transpose(0, 1)


class _Packed(NamedTuple):
    """Graphs of a batch side by side, S states in all, once forward in time and once backward: 2 S rows.

    utterance, label (S,). start (2 S,): initial weights, then final ones. Rows run in order of their
    degree: order (2 S,) holds the row at each position, position (2 S,) the place of each row. tiers: for
    consecutive positions, where their paths come from, as positions and weights (D, rows) both.
    leak: inner and outer terms (2 S,) of a leak, by position; None without one.
    """

    utterance: Tensor
    label: Tensor
    start: Tensor
    order: Tensor
    position: Tensor
    tiers: list[tuple[Tensor, Tensor]]
    leak: tuple[Tensor, Tensor] | None = None

    @property
    def final(self) -> Tensor:
        return self.start[len(self.utterance) :]

    def leaking(self, leak: Leak, utterances: int) -> _Packed:
        """The same with a leak in each of its utterances, all of which have the same graph."""

        def by_position(x: Tensor) -> Tensor:
            return x.log().repeat(1, utterances).reshape(-1)[self.order.cpu()].to(self.start)

        start = self.start.clone()
        start[len(self.utterance) :] = leak.final.log().repeat(utterances).to(start)
        return self._replace(start=start, leak=(by_position(leak.inner), by_position(leak.outer)))


def _score_packed(log_probs: Tensor, lengths: Tensor, graphs: Sequence[Hmm], leak: Leak | None = None) -> Score:
    # float64 whatever the input: float32 would round totals of some thousands, and with them the posteriors
    packed = _pack(graphs, log_probs.device, torch.float64)
    if leak is not None:
        packed = packed.leaking(leak, len(graphs))
    total, valid = _PackedForwardBackward.apply(log_probs.double(), lengths, packed)
    return Score(total.to(log_probs.dtype), valid)


def _pack(graphs: Sequence[Hmm], device: torch.device, dtype: torch.dtype) -> _Packed:
    sizes = torch.tensor([graph.num_states for graph in graphs], dtype=torch.int64)
    first = (sizes.cumsum(0) - sizes).tolist()
    utterance = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    states = len(utterance)

    def joined(values: list[Tensor]) -> Tensor:
        return torch.cat(values) if values else torch.zeros(0, dtype=torch.int64)

    weight = joined([graph.weight for graph in graphs])
    src = joined([graph.src + start for graph, start in zip(graphs, first)])
    dst = joined([graph.dst + start for graph, start in zip(graphs, first)])
    at, other = torch.cat([dst, src + states]), torch.cat([src, dst + states])
    degree = torch.bincount(at, minlength=2 * states)
    order = torch.argsort(degree, stable=True)
    position = torch.argsort(order)
    tiers = _tiers(position[at], position[other], weight.repeat(2), degree[order])
    start = joined([graph.initial for graph in graphs] + [graph.final for graph in graphs])
    return _Packed(
        utterance.to(device),
        joined([graph.label for graph in graphs]).to(device),
        start.to(device, dtype),
        order.to(device),
        position.to(device),
        [(ends.to(device), weights.to(device, dtype)) for ends, weights in tiers],
    )


def _tiers(at: Tensor, other: Tensor, weight: Tensor, degree: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Arcs as few rectangles: rows in order of degree (R,), cut where nine in ten are narrow enough.

    A rectangle is as wide as its largest degree; missing arcs point at row 0 with weight -inf.
    """
    rows = len(degree)
    by_row = torch.argsort(at, stable=True)
    at, other, weight = at[by_row], other[by_row], weight[by_row]
    column = torch.arange(len(at)) - (degree.cumsum(0) - degree)[at]
    narrow = int(torch.searchsorted(degree, degree[int(0.9 * rows)], right=True)) if rows else 0
    tiers = []
    for low, high in ((0, narrow), (narrow, rows)):
        if low < high:
            shape = (max(1, int(degree[high - 1])), high - low)
            ends, weights = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -torch.inf, dtype=torch.float64)
            here = (at >= low) & (at < high)
            ends[column[here], at[here] - low] = other[here]
            weights[column[here], at[here] - low] = weight[here]
            tiers.append((ends, weights))
    return tiers


class _PackedForwardBackward(torch.autograd.Function):
    """alpha[t + 1, s] = logsumexp over predecessors r of (alpha[t, r] + w[r, s]) + log p[t + 1, s].

    beta is the same recursion over successors and each utterance reversed in time: both in one loop.
    """

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, graph: _Packed) -> tuple[Tensor, Tensor]:
        batch, frames, outputs = log_probs.shape
        column = graph.utterance * outputs + graph.label
        # (T, S): what each state scores at each frame
        scores = log_probs.detach().transpose(0, 1).flatten(1).index_select(1, column)
        reverse = _reversed_frames(lengths, frames).index_select(1, graph.utterance)
        alpha, beta = _log_both_directions(scores, reverse, graph)
        last = (lengths[graph.utterance] - 1).clamp_min(0)
        ending = alpha.gather(0, last[None])[0] + graph.final if frames else graph.final - torch.inf
        total = _logsumexp_by_utterance(ending, graph.utterance, batch)
        valid = (total > -torch.inf) & (lengths > 0)
        if ctx.needs_input_grad[0]:
            shift = total.where(valid, total.new_zeros(()))[graph.utterance]
            occupancy = (alpha + beta.gather(0, reverse) - shift).exp()
            inside = torch.arange(frames, device=last.device)[:, None] <= last
            occupancy = occupancy.where(inside & valid[graph.utterance], occupancy.new_zeros(()))
            posterior = log_probs.new_zeros(frames, batch * outputs).index_add_(1, column, occupancy)
            ctx.save_for_backward(posterior.view(frames, batch, outputs).transpose(0, 1))
        ctx.mark_non_differentiable(valid)
        return total.where(valid, total.new_zeros(())), valid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (posterior,) = ctx.saved_tensors
        return posterior * gradients[0][:, None, None], None, None


def _log_both_directions(scores: Tensor, reverse: Tensor, graph: _Packed) -> tuple[Tensor, Tensor]:
    """scores, reverse (T, S) -> alpha (T, S); beta (T, S) in reversed time, without its own frame's score."""
    frames, states = scores.shape
    both = torch.cat([scores, scores.gather(0, reverse)], 1).index_select(1, graph.order)
    ahead = torch.empty_like(both)
    ahead[:1] = graph.start[graph.order]
    for t in range(frames):
        low = 0
        for ends, weights in graph.tiers if t else ():
            high = low + ends.shape[1]
            ahead[t, low:high] = _logsumexp_over(both[t - 1], ends, weights)
            low = high
        if t and graph.leak is not None:
            ahead[t] = torch.logaddexp(ahead[t], _leaked(both[t - 1], graph, graph.leak))
        both[t] += ahead[t]
    first, second = graph.position[:states], graph.position[states:]
    return both.index_select(1, first), ahead.index_select(1, second)


def _leaked(x: Tensor, graph: _Packed, leak: tuple[Tensor, Tensor]) -> Tensor:
    """What comes through a leak: log sum of exp(x + inner) over each utterance and direction, + outer; (2 S,)."""
    inner, outer = leak
    group = torch.cat([2 * graph.utterance, 2 * graph.utterance + 1])[graph.order]
    return _logsumexp_by_utterance(x + inner, group, int(group.max()) + 1)[group] + outer


def _logsumexp_over(x: Tensor, ends: Tensor, weights: Tensor) -> Tensor:
    """log sum over D of exp(x[ends] + weights), x (S,), ends and weights (D, R) -> (R,).

    By hand, as it runs three times as fast as torch.logsumexp on tensors of this size.
    """
    terms = x.index_select(0, ends.reshape(-1)).view_as(weights).add_(weights)
    top = terms.amax(0).clamp_min_(LEAST)
    return terms.sub_(top).exp_().sum(0).log_().add_(top)


def _logsumexp_by_utterance(values: Tensor, utterance: Tensor, batch: int) -> Tensor:
    top = values.new_full((batch,), -torch.inf).scatter_reduce(0, utterance, values, "amax")
    base = top.where(top > -torch.inf, top.new_zeros(()))
    summed = values.new_zeros(batch).index_add(0, utterance, (values - base[utterance]).exp())
    return summed.log() + base
