"""The k2 engine: LF-MMI and lattices computed by k2 (https://github.com/k2-fsa/k2), where it is installed.

It gives what our own engines give, slower and with far more memory: for whoever works with k2 already, and
to check ourselves against. Tested with k2 1.23.4 on torch 1.13.1 (`constraints-k2.txt`); newer ones keep the
calls used here. k2 stores scores in float32; sums over paths are made in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import k2
import torch
from torch import Tensor

from distill.fsa.engine import Score, check_inputs
from distill.fsa.formats import hmm_to_k2_dict
from distill.fsa.graph import Hmm

EXACT = 1e30  # an output beam that prunes nothing
LARGEST_INT = 2**31 - 1
# intersect_dense numbers states, frames and graphs of a call in 16 bits, and does not look whether they fit
MOST_NUMBERED = 2**16 - 1


class K2Engine:
    """Forward-backward and lattices through k2; see `distill.fsa.engine.Engine`.

    output_beam: paths this much worse than the best (natural log) may be left out of sums; none are by default.
    arcs_at_once: utterances are passed to k2 in pieces of at most so many arcs (about 75 bytes each), but
    always one at least. k2 itself would narrow its beam where they are too many, and say so in a line of log.
    """

    def __init__(self, output_beam: float = EXACT, arcs_at_once: int = 1 << 25) -> None:
        if output_beam <= 0 or arcs_at_once <= 0:
            raise ValueError(f"output_beam and arcs_at_once must be positive, got {output_beam} and {arcs_at_once}")
        self.output_beam, self.arcs_at_once = output_beam, arcs_at_once
        self._shared: dict[int, tuple[Hmm, k2.Fsa | None]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`).

        Raises ValueError also for graphs of more than 65,534 states, which k2 cannot number.
        """
        shared = isinstance(graph, Hmm)
        graphs: Sequence[Hmm] = [graph] if isinstance(graph, Hmm) else graph
        check_inputs(log_probs, lengths, graphs, shared)
        if isinstance(graph, Hmm):
            _, fsa = self._shared.setdefault(id(graph), (graph, to_k2(graph)))  # keeps the graph, so ids stay unique
            fsas = [fsa] * len(lengths)
        else:
            fsas = [to_k2(each) for each in graph]
        total, valid = _TotalScore.apply(log_probs, lengths.cpu(), fsas, self.output_beam, self.arcs_at_once)
        return Score(total, valid)


def to_k2(graph: Hmm) -> k2.Fsa | None:
    """The graph as k2 runs it; None where no path can end, as k2 has no graph without a final state."""
    if graph.num_states + 2 > MOST_NUMBERED:
        raise ValueError(
            f"graph of {graph.num_states} states: k2's exact intersection takes at most {MOST_NUMBERED - 2};"
            " use --engine native"
        )
    content = hmm_to_k2_dict(graph)
    return k2.Fsa.from_dict(content) if len(content["arcs"]) else None


class _TotalScore(torch.autograd.Function):
    """get_tot_scores of intersect_dense, piece by piece; each piece's gradient is taken before its lattice goes.

    The largest score of each frame is taken out before k2 rounds to float32, and comes back in float64.
    """

    @staticmethod
    def forward(
        ctx: Any, log_probs: Tensor, lengths: Tensor, fsas: list[k2.Fsa | None], output_beam: float, at_once: int
    ) -> tuple[Tensor, Tensor]:
        batch, frames, _ = log_probs.shape
        offset = log_probs.detach().double().amax(2).clamp_min(torch.finfo(torch.float64).min)
        inside = (torch.arange(frames) < lengths[:, None]).to(offset.device)
        scores = (log_probs.detach() - offset[..., None]).float()
        found = torch.full((batch,), -torch.inf, dtype=torch.float64, device=log_probs.device)
        ctx.posterior = torch.zeros_like(log_probs) if ctx.needs_input_grad[0] else None
        for piece in _pieces(lengths, fsas, at_once):
            part = scores[piece].requires_grad_(ctx.needs_input_grad[0])
            value, posterior = _piece(part, lengths[piece], [fsas[u] for u in piece], output_beam)
            found[piece] = value
            if posterior is not None:
                ctx.posterior[piece] = posterior.to(log_probs.dtype)
        valid = found > -torch.inf
        ctx.mark_non_differentiable(valid)
        total = found + offset.where(inside, offset.new_zeros(())).sum(1)
        return total.where(valid, total.new_zeros(())).to(log_probs.dtype), valid

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.posterior * gradients[0][:, None, None], None, None, None, None


def _piece(scores: Tensor, lengths: Tensor, fsas: list[k2.Fsa], output_beam: float) -> tuple[Tensor, Tensor | None]:
    """Totals (P,) float64 of utterances in order of falling length, and their gradients (P, T, V) where asked for."""
    with torch.enable_grad():
        dense = k2.DenseFsaVec(scores, segments(lengths))
        graphs = k2.create_fsa_vec(fsas).to(scores.device)
        limits = {"max_states": LARGEST_INT, "max_arcs": LARGEST_INT}  # its own would narrow the beam
        lattice = k2.intersect_dense(graphs, dense, output_beam=output_beam, **limits)
        value = lattice.get_tot_scores(use_double_scores=True, log_semiring=True)
        if not scores.requires_grad:
            return value, None
        (posterior,) = torch.autograd.grad(value[value > -torch.inf].sum(), scores)
    return value.detach(), posterior


def segments(lengths: Tensor) -> Tensor:
    """k2's (utterance, first frame, frames) rows: lengths (P,) -> (P, 3) int32."""
    return torch.stack([torch.arange(len(lengths)), torch.zeros_like(lengths), lengths], 1).to(torch.int32)


def _pieces(lengths: Tensor, fsas: Sequence[k2.Fsa | None], at_once: int) -> Iterator[list[int]]:
    """Utterances with frames and a graph, longest first, cut into pieces of at most `at_once` arcs."""
    piece: list[int] = []
    arcs = 0
    for utterance in torch.argsort(lengths, descending=True, stable=True).tolist():
        fsa, frames = fsas[utterance], int(lengths[utterance])
        if fsa is None or frames == 0:
            continue
        if frames > MOST_NUMBERED:
            raise ValueError(f"utterance of {frames} frames: k2's exact intersection takes at most {MOST_NUMBERED}")
        more = fsa.num_arcs * (frames + 1)
        if piece and arcs + more > at_once:
            yield piece
            piece, arcs = [], 0
        piece.append(utterance)
        arcs += more
    if piece:
        yield piece
