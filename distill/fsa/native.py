"""The native engine in plain torch: exact on any device, and the reference for faster kernels.

A graph shared by the batch (the denominator) runs in the probability domain: one matrix product a
frame, each frame rescaled. Graphs of single utterances (numerators) run in the log semiring, all
utterances packed into one block-diagonal graph. Gradients are the posteriors, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from distill.fsa.engine import Score, check_inputs
from distill.fsa.graph import Hmm

# A frame whose mass falls below this (relative to its likeliest output) may have lost a path to
# float32's range that a later frame would need, so the utterance is done again in the log semiring.
SMALLEST_FRAME_MASS = 1e-12
DENSE_STATES = 512  # up to here a dense matrix product beats a sparse one


class NativeEngine:
    """Forward-backward in torch; see `distill.fsa.engine.Engine`."""

    def __init__(self) -> None:
        self._compiled: dict[int, tuple[Hmm, dict[tuple[torch.device, torch.dtype], _Shared]]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        shared = isinstance(graph, Hmm)
        graphs: Sequence[Hmm] = [graph] if isinstance(graph, Hmm) else graph
        check_inputs(log_probs, lengths, graphs, shared)
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
            # float64, as the totals of such utterances are large and float32 would round their posteriors
            again = _score_packed(log_probs[weak].double(), lengths[weak], [graph] * len(weak))
            total = total.index_put((weak,), again.total.to(total.dtype))
            valid = sound.index_put((weak,), again.valid)
        return Score(total, valid, recomputed=len(weak))

    def _compile(self, graph: Hmm, device: torch.device, dtype: torch.dtype) -> _Shared:
        _, forms = self._compiled.setdefault(id(graph), (graph, {}))  # keeps the graph, so ids stay unique
        if (device, dtype) not in forms:
            forms[device, dtype] = _Shared(graph, device, dtype)
        return forms[device, dtype]


class _Shared:
    """A graph in the probability domain: transition matrix (dense or CSR), start and end vectors."""

    def __init__(self, graph: Hmm, device: torch.device, dtype: torch.dtype) -> None:
        self.dense = graph.num_states <= DENSE_STATES
        self.matrix = _transitions(graph, graph.src, graph.dst, self.dense).to(device, dtype)
        self.transposed = _transitions(graph, graph.dst, graph.src, self.dense).to(device, dtype)
        self.label = graph.label.to(device)
        self.initial = graph.initial.exp().to(device, dtype)
        self.final = graph.final.exp().to(device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """One frame ahead: (B, S) -> (B, S)."""
        return x @ self.matrix if self.dense else (self.transposed @ x.t()).t()

    def backward(self, x: Tensor) -> Tensor:
        """One frame back: (B, S) -> (B, S)."""
        return x @ self.transposed if self.dense else (self.matrix @ x.t()).t()


def _transitions(graph: Hmm, rows: Tensor, columns: Tensor, dense: bool) -> Tensor:
    """Transition probabilities (S, S), parallel arcs summed; float64, dense or CSR."""
    size = (graph.num_states, graph.num_states)
    if dense:
        return torch.zeros(size, dtype=torch.float64).index_put_((rows, columns), graph.weight.exp(), True)
    with torch.sparse.check_sparse_tensor_invariants(True):
        return torch.sparse_coo_tensor(torch.stack([rows, columns]), graph.weight.exp(), size).to_sparse_csr()


class _SharedForwardBackward(torch.autograd.Function):
    """alpha[t + 1] = (alpha[t] @ W) * p[t + 1, label], every frame rescaled to sum to one."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, graph: _Shared) -> tuple[Tensor, Tensor]:
        valid = torch.arange(log_probs.shape[1], device=lengths.device)[:, None] < lengths  # (T, B)
        emissions, offset = _emissions(log_probs, valid, graph.label)
        alpha, mass = _alpha(emissions, graph)
        last = (lengths - 1).clamp_min(0)
        utterances = torch.arange(len(lengths), device=lengths.device)
        ending = (alpha[last, utterances] * graph.final).sum(1) if len(alpha) else mass.new_zeros(0)
        tiny = torch.finfo(mass.dtype).tiny
        log_mass = (mass.clamp_min(tiny).log() + offset).where(valid, mass.new_zeros(()))
        total = log_mass.sum(0) + ending.clamp_min(tiny).log()
        weakest = mass.where(valid, mass.new_ones(())).amin(0) if len(mass) else mass.new_zeros(len(lengths))
        sound = (weakest > SMALLEST_FRAME_MASS) & (ending > SMALLEST_FRAME_MASS) & (lengths > 0)
        if ctx.needs_input_grad[0]:
            occupancy = _occupancy(emissions, alpha, mass, lengths, graph)
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


def _alpha(emissions: Tensor, graph: _Shared) -> tuple[Tensor, Tensor]:
    """Forward probabilities (T, B, S), each frame summing to one, and the mass (T, B) divided out."""
    alpha = torch.empty_like(emissions)
    mass = emissions.new_ones(emissions.shape[:2])
    ahead = graph.initial.expand_as(emissions[0]) if len(emissions) else emissions
    for t in range(len(emissions)):
        frame = ahead * emissions[t]
        torch.sum(frame, 1, out=mass[t])
        torch.div(frame, mass[t, :, None].clamp_min(torch.finfo(frame.dtype).tiny), out=alpha[t])
        ahead = graph.forward(alpha[t])
    return alpha, mass


def _occupancy(emissions: Tensor, alpha: Tensor, mass: Tensor, lengths: Tensor, graph: _Shared) -> Tensor:
    """Posterior of each state (T, B, S); beta is rescaled by the forward pass' masses."""
    occupancy = torch.empty_like(alpha)
    beta = graph.final.expand_as(alpha[0]) if len(alpha) else alpha
    tiny = torch.finfo(alpha.dtype).tiny
    for t in range(len(alpha) - 1, -1, -1):
        if t < len(alpha) - 1:
            behind = graph.backward(beta * emissions[t + 1]) / mass[t + 1, :, None].clamp_min(tiny)
            beta = torch.where((lengths <= t + 1)[:, None], graph.final, behind)
        gamma = alpha[t] * beta
        total = gamma.sum(1, keepdim=True).clamp_min(tiny)
        torch.div(gamma, total, out=occupancy[t])
        beta = beta / total  # keeps beta near one; occupancy is normalised anyway
    return occupancy


def _by_label(occupancy: Tensor, label: Tensor, outputs: int) -> Tensor:
    """Sum state posteriors (T, B, S) over the states of each output: (B, T, V)."""
    frames, batch, _ = occupancy.shape
    summed = occupancy.new_zeros(frames, batch, outputs).index_add_(2, label, occupancy)
    return summed.transpose(0, 1)


class _Packed(NamedTuple):
    """Graphs of a batch side by side; S counts the states of all of them.

    utterance, label (S,); initial, final (S,); neighbours (S, D) as state index and weight, where
    missing ones point at the state itself with weight -inf.
    """

    utterance: Tensor
    label: Tensor
    initial: Tensor
    final: Tensor
    previous: Tensor
    previous_weight: Tensor
    following: Tensor
    following_weight: Tensor


def _score_packed(log_probs: Tensor, lengths: Tensor, graphs: Sequence[Hmm]) -> Score:
    packed = _pack(graphs, log_probs.device, log_probs.dtype)
    total, valid = _PackedForwardBackward.apply(log_probs, lengths, packed)
    return Score(total, valid)


def _pack(graphs: Sequence[Hmm], device: torch.device, dtype: torch.dtype) -> _Packed:
    sizes = torch.tensor([graph.num_states for graph in graphs])
    first = (sizes.cumsum(0) - sizes).tolist()
    utterance = torch.repeat_interleave(torch.arange(len(graphs)), sizes)

    def joined(values: list[Tensor]) -> Tensor:
        return torch.cat(values) if values else torch.zeros(0, dtype=torch.int64)

    weight = joined([graph.weight for graph in graphs])
    src = joined([graph.src + start for graph, start in zip(graphs, first)])
    dst = joined([graph.dst + start for graph, start in zip(graphs, first)])
    previous, previous_weight = _neighbours(dst, src, weight, len(utterance))
    following, following_weight = _neighbours(src, dst, weight, len(utterance))
    return _Packed(
        utterance.to(device),
        joined([graph.label for graph in graphs]).to(device),
        joined([graph.initial for graph in graphs]).to(device, dtype),
        joined([graph.final for graph in graphs]).to(device, dtype),
        previous.to(device),
        previous_weight.to(device, dtype),
        following.to(device),
        following_weight.to(device, dtype),
    )


def _neighbours(at: Tensor, other: Tensor, weight: Tensor, states: int) -> tuple[Tensor, Tensor]:
    """Arcs as a rectangle: for each state its other ends and weights, (S, D) both, D the largest degree."""
    order = torch.argsort(at, stable=True)
    at, other, weight = at[order], other[order], weight[order]
    degree = torch.bincount(at, minlength=states)
    column = torch.arange(len(at)) - (degree.cumsum(0) - degree)[at]
    width = max(1, int(degree.max())) if states else 1
    ends = torch.arange(states)[:, None].repeat(1, width)
    weights = torch.full((states, width), -torch.inf, dtype=torch.float64)
    ends[at, column] = other
    weights[at, column] = weight
    return ends, weights


class _PackedForwardBackward(torch.autograd.Function):
    """alpha[t + 1, s] = logsumexp over predecessors r of (alpha[t, r] + w[r, s]) + log p[t + 1, s]."""

    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, lengths: Tensor, graph: _Packed) -> tuple[Tensor, Tensor]:
        batch, _, outputs = log_probs.shape
        # (T, S): what each state scores at each frame
        scores = log_probs.detach().transpose(0, 1).flatten(1)[:, graph.utterance * outputs + graph.label]
        alpha = _log_alpha(scores, graph)
        last = (lengths[graph.utterance] - 1).clamp_min(0)
        ending = alpha.gather(0, last[None])[0] + graph.final if len(alpha) else graph.final - torch.inf
        total = _logsumexp_by_utterance(ending, graph.utterance, batch)
        valid = (total > -torch.inf) & (lengths > 0)
        if ctx.needs_input_grad[0]:
            beta = _log_beta(scores, last, graph)
            shift = total.where(valid, total.new_zeros(()))[graph.utterance]
            occupancy = (alpha + beta - shift).exp()
            inside = torch.arange(len(scores), device=last.device)[:, None] <= last
            occupancy = occupancy.where(inside & valid[graph.utterance], occupancy.new_zeros(()))
            posterior = log_probs.new_zeros(len(scores), batch * outputs)
            posterior.index_add_(1, graph.utterance * outputs + graph.label, occupancy)
            ctx.save_for_backward(posterior.view(len(scores), batch, outputs).transpose(0, 1))
        ctx.mark_non_differentiable(valid)
        return total.where(valid, total.new_zeros(())), valid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (posterior,) = ctx.saved_tensors
        return posterior * gradients[0][:, None, None], None, None


def _log_alpha(scores: Tensor, graph: _Packed) -> Tensor:
    alpha = torch.empty_like(scores)
    for t in range(len(scores)):
        if t == 0:
            ahead = graph.initial
        else:
            ahead = torch.logsumexp(alpha[t - 1][graph.previous] + graph.previous_weight, 1)
        torch.add(ahead, scores[t], out=alpha[t])
    return alpha


def _log_beta(scores: Tensor, last: Tensor, graph: _Packed) -> Tensor:
    beta = torch.empty_like(scores)
    for t in range(len(scores) - 1, -1, -1):
        if t == len(scores) - 1:
            beta[t] = graph.final
        else:
            behind = (scores[t + 1] + beta[t + 1])[graph.following] + graph.following_weight
            beta[t] = torch.where(last <= t, graph.final, torch.logsumexp(behind, 1))
    return beta


def _logsumexp_by_utterance(values: Tensor, utterance: Tensor, batch: int) -> Tensor:
    top = values.new_full((batch,), -torch.inf).scatter_reduce(0, utterance, values, "amax")
    base = top.where(top > -torch.inf, top.new_zeros(()))
    summed = values.new_zeros(batch).index_add(0, utterance, (values - base[utterance]).exp())
    return summed.log() + base
