"""The torch engine: exact on any device, and the reference for faster kernels.

A graph shared by the batch (the denominator) runs in the probability domain: one matrix product a
frame, each frame rescaled. Graphs of single utterances (numerators) run in the log semiring, all
utterances packed into one block-diagonal graph. Gradients are the posteriors, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from distill.batch import valid_mask
from distill.fsa.checks import check_inputs
from distill.fsa.graph import Hmm
from distill.lfmmi.engine import OwnEngine, Passes, Precision, Score, needs_gradient
from distill.lfmmi.leaky import Leak, leak_of

# A frame whose mass falls below this (relative to its likeliest output) may have lost a path to
# float32's range that a later frame would need, so the utterance is computed again in the log semiring.
SMALLEST_FRAME_MASS = 1e-12
LEAST = -1e30  # stands in for -inf where a difference of infinities would be NaN
DENSE_STATES = 512  # up to here a dense matrix product beats a sparse one


class TorchEngine(OwnEngine):
    """Forward-backward in torch; see `distill.lfmmi.engine.Engine`, options in `OwnEngine`."""

    def __init__(self, leaky: float = 0.0, precision: Precision = "input") -> None:
        super().__init__(leaky, precision)
        self._compiled: dict[int, tuple[Hmm, dict[tuple[torch.device, torch.dtype], _Shared]]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        check_inputs(log_probs, lengths, graph)
        values = self.converted(log_probs.detach())
        passes, recomputed = self.passes(values, lengths.to(values.device), graph, needs_gradient(log_probs))
        return passes.score(log_probs, recomputed)

    @torch.no_grad()
    def passes(
        self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm], gradient: bool
    ) -> tuple[Passes, int]:
        """Forward-backward outside autograd on the device of the log-probabilities; also how many were recomputed."""
        if not log_probs.numel():
            valid = torch.zeros_like(lengths, dtype=torch.bool)
            return Passes(log_probs.new_zeros(len(lengths)), valid, torch.zeros_like(log_probs)), 0
        if not isinstance(graph, Hmm):
            return _packed_passes(log_probs, lengths, graph, gradient), 0
        passes = _shared_passes(log_probs, lengths, self._compile(graph, log_probs.device, log_probs.dtype), gradient)
        weak = (~passes.valid & (lengths > 0)).nonzero().squeeze(1)
        if len(weak):
            leak = leak_of(graph, self.leaky) if self.leaky else None
            again = _packed_passes(log_probs[weak], lengths[weak], [graph] * len(weak), gradient, leak)
            passes.replace(weak, again)
        return passes, len(weak)

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
        dense = graph.num_states <= DENSE_STATES
        ahead = _transitions(graph, graph.src, graph.dst, dense)
        back = _transitions(graph, graph.dst, graph.src, dense)
        # CSR multiplies from the left, so each direction needs the other's matrix
        self.matrices = [matrix.to(device, dtype) for matrix in ((ahead, back) if dense else (back, ahead))]
        self.stacked = torch.stack(self.matrices) if dense else None
        self.label = graph.label.to(device)
        final = graph.final.exp() if leak is None else leak.final
        self.ends = torch.stack([graph.initial.exp(), final.to(graph.initial)]).to(device, dtype)
        self.leak = None if leak is None else [x[:, None].to(device, dtype) for x in leak[:2]]

    def step(self, x: Tensor) -> Tensor:
        """One frame onwards in both directions: (2, B, S) -> (2, B, S)."""
        if self.stacked is not None:
            onward = torch.bmm(x, self.stacked)
        else:
            onward = torch.stack([(matrix @ one.t()).t() for matrix, one in zip(self.matrices, x)])
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


def _shared_passes(log_probs: Tensor, lengths: Tensor, graph: _Shared, gradient: bool) -> Passes:
    """All utterances over one graph in the probability domain; utterances that underflow are not valid either."""
    batch, frames, outputs = log_probs.shape
    inside = valid_mask(lengths, frames).t()  # (T, B)
    offset = log_probs.amax(2).t().clamp_min(torch.finfo(log_probs.dtype).min)
    scaled = (log_probs.transpose(0, 1) - offset[..., None]).exp().masked_fill(~inside[..., None], 1)
    reverse = _reversed_frames(lengths, frames)
    ahead, alpha, mass = _both_directions(scaled[..., graph.label], reverse, graph)
    tiny = torch.finfo(mass.dtype).tiny
    last = alpha[(lengths - 1).clamp_min(0), torch.arange(batch, device=lengths.device)]
    ending = (last * graph.ends[1]).sum(1)
    log_mass = (mass[:, 0].clamp_min(tiny).log() + offset).masked_fill(~inside, 0)
    total = log_mass.sum(0) + ending.clamp_min(tiny).log()
    weakest = mass.masked_fill(~inside[:, None], 1).amin((0, 1))
    sound = (weakest > SMALLEST_FRAME_MASS) & (ending > SMALLEST_FRAME_MASS) & (lengths > 0)
    posterior = None
    if gradient:
        occupancy = alpha * ahead.gather(0, reverse[..., None].expand_as(ahead))
        occupancy /= occupancy.sum(2, keepdim=True).clamp_min(tiny)
        occupancy *= (inside & sound)[..., None]
        by_output = occupancy.new_zeros(frames, batch, outputs).index_add_(2, graph.label, occupancy)
        posterior = by_output.transpose(0, 1)
    return Passes(total.masked_fill(~sound, 0), sound, posterior)


def _reversed_frames(lengths: Tensor, frames: int) -> Tensor:
    """For each frame its counterpart from the end of its utterance: lengths (B,) -> (T, B); 0 in padding."""
    return (lengths - 1 - torch.arange(frames, device=lengths.device)[:, None]).clamp_min(0)


def _both_directions(emissions: Tensor, reverse: Tensor, graph: _Shared) -> tuple[Tensor, Tensor, Tensor]:
    """alpha[t + 1] = (alpha[t] @ W) * p[t + 1, label], every frame rescaled to sum to one.

    beta is the same recursion over W transposed and each utterance reversed in time, so both run in one loop.
    emissions (T, B, S), reverse (T, B). Returns beta (T, B, S) in reversed time, without its own frame's emission;
    alpha (T, B, S), each frame summing to one; and the masses divided out of both (T, 2, B).
    """
    frames, batch, states = emissions.shape
    both = torch.stack([emissions, emissions.gather(0, reverse[..., None].expand_as(emissions))], 1)
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


class _Packed(NamedTuple):
    """Graphs of a batch side by side, S states in all, once forward in time and once backward: 2 S rows.

    utterance, label (S,). start (2 S,): initial weights, then final ones. Rows run in order of their
    degree: order (2 S,) is the row at each position, position (2 S,) the place of each row. tiers: for
    consecutive positions the origins of their paths, as positions and weights (D, rows) both.
    leak: inner and outer terms (2 S,) of a leak, by position; None without one.
    """

    utterance: Tensor
    label: Tensor
    start: Tensor
    order: Tensor
    position: Tensor
    tiers: list[tuple[Tensor, Tensor]]
    leak: tuple[Tensor, ...] | None


def _pack(graphs: Sequence[Hmm], device: torch.device, leak: Leak | None) -> _Packed:
    """leak: of all utterances, which then have the same graph."""
    sizes = torch.tensor([graph.num_states for graph in graphs], dtype=torch.int64)
    first = (sizes.cumsum(0) - sizes).tolist()
    utterance = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    states = len(utterance)
    weight = torch.cat([graph.weight for graph in graphs])
    src = torch.cat([graph.src + start for graph, start in zip(graphs, first)])
    dst = torch.cat([graph.dst + start for graph, start in zip(graphs, first)])
    at, other = torch.cat([dst, src + states]), torch.cat([src, dst + states])
    degree = torch.bincount(at, minlength=2 * states)
    order = torch.argsort(degree, stable=True)
    position = torch.argsort(order)
    tiers = _tiers(position[at], position[other], weight.repeat(2), degree[order])
    finals = [graph.final if leak is None else leak.final.log() for graph in graphs]
    start = torch.cat([graph.initial for graph in graphs] + finals)
    terms = leak and tuple(x.log().repeat(1, len(graphs)).reshape(-1)[order].to(device) for x in leak[:2])
    label = torch.cat([graph.label for graph in graphs])
    return _Packed(
        utterance.to(device), label.to(device), start.to(device, torch.float64), order.to(device), position.to(device),
        [(ends.to(device), weights.to(device)) for ends, weights in tiers], terms,
    )  # fmt: skip


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


def _packed_passes(
    log_probs: Tensor, lengths: Tensor, graphs: Sequence[Hmm], gradient: bool, leak: Leak | None = None
) -> Passes:
    """Each utterance over its own graph in the log semiring; leak: of all of them, which then are one graph."""
    graph, values = _pack(graphs, log_probs.device, leak), log_probs.double()
    # float64 whatever the input: float32 would round totals of some thousands, and with them the posteriors
    batch, frames, outputs = log_probs.shape
    column = graph.utterance * outputs + graph.label
    scores = values.transpose(0, 1).flatten(1).index_select(1, column)  # (T, S)
    reverse = _reversed_frames(lengths, frames).index_select(1, graph.utterance)
    alpha, beta = _log_both_directions(scores, reverse, graph)
    last = (lengths[graph.utterance] - 1).clamp_min(0)
    ending = alpha.gather(0, last[None])[0] + graph.start[len(graph.utterance) :]
    total = _logsumexp_by_group(ending, graph.utterance, batch)
    valid = (total > -torch.inf) & (lengths > 0)
    total = total.masked_fill(~valid, 0)
    posterior = None
    if gradient:
        occupancy = (alpha + beta.gather(0, reverse) - total[graph.utterance]).exp()
        inside = torch.arange(frames, device=last.device)[:, None] <= last
        occupancy = occupancy.masked_fill(~(inside & valid[graph.utterance]), 0)
        summed = values.new_zeros(frames, batch * outputs).index_add_(1, column, occupancy)
        posterior = summed.view(frames, batch, outputs).transpose(0, 1)
    return Passes(total.to(log_probs.dtype), valid, posterior)


def _log_both_directions(scores: Tensor, reverse: Tensor, graph: _Packed) -> tuple[Tensor, Tensor]:
    """alpha[t + 1, s] = logsumexp over predecessors r of (alpha[t, r] + w[r, s]) + log p[t + 1, s].

    beta is the same recursion over successors and each utterance reversed in time: both in one loop.
    scores, reverse (T, S) -> alpha (T, S); beta (T, S) in reversed time, without its own frame's score.
    """
    frames, states = scores.shape
    both = torch.cat([scores, scores.gather(0, reverse)], 1).index_select(1, graph.order)
    ahead = torch.empty_like(both)
    ahead[:1] = graph.start[graph.order]
    group = torch.cat([2 * graph.utterance, 2 * graph.utterance + 1])[graph.order]  # by utterance and direction
    for t in range(frames):
        low = 0
        for ends, weights in graph.tiers if t else ():
            high = low + ends.shape[1]
            ahead[t, low:high] = _logsumexp_over(both[t - 1], ends, weights)
            low = high
        if t and graph.leak is not None:
            inner, outer = graph.leak
            leaked = _logsumexp_by_group(both[t - 1] + inner, group, int(group.max()) + 1)[group] + outer
            ahead[t] = torch.logaddexp(ahead[t], leaked)
        both[t] += ahead[t]
    first, second = graph.position[:states], graph.position[states:]
    return both.index_select(1, first), ahead.index_select(1, second)


def _logsumexp_over(x: Tensor, ends: Tensor, weights: Tensor) -> Tensor:
    """log sum over D of exp(x[ends] + weights), x (S,), ends and weights (D, R) -> (R,).

    By hand, as it runs three times as fast as torch.logsumexp on tensors of this size.
    """
    terms = x.index_select(0, ends.reshape(-1)).view_as(weights).add_(weights)
    top = terms.amax(0).clamp_min_(LEAST)
    return terms.sub_(top).exp_().sum(0).log_().add_(top)


def _logsumexp_by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """log sum of exp(values) of each group: values, group (S,) -> (groups,)."""
    top = values.new_full((groups,), -torch.inf).scatter_reduce(0, group, values, "amax")
    base = top.masked_fill(top == -torch.inf, 0)
    summed = values.new_zeros(groups).index_add(0, group, (values - base[group]).exp())
    return summed.log() + base
