"""The k2 engine: LF-MMI and lattices computed by k2 (https://github.com/k2-fsa/k2), where it is installed.

It gives the values of our own engines, slower and with far more memory: for users of k2, and as an independent
reference. Tested with k2 1.23.4 on torch 1.13.1 (`constraints-k2.txt`); newer ones keep the
calls used here. k2 stores scores in float32; sums over paths are made in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import k2
import numpy as np
import torch
from torch import Tensor

from distill.batch import valid_mask
from distill.fsa.checks import check_inputs
from distill.fsa.graph import Hmm
from distill.fsa.k2_format import decoding_graph_to_k2_dict, hmm_to_k2_dict
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.lfmmi.engine import Passes, Score, needs_gradient

EXACT = 1e30  # an output beam that prunes nothing
LARGEST_INT = 2**31 - 1
# intersect_dense numbers states, frames and graphs of a call in 16 bits, unchecked
MOST_NUMBERED = 2**16 - 1


class K2Engine:
    """Forward-backward and lattices through k2; see `distill.lfmmi.engine.Engine`.

    output_beam: paths this much worse than the best (natural log) may be left out of sums; none are by default.
    arcs_at_once: utterances are passed to k2 in batches of at most so many arcs (about 75 bytes each), at
    least one utterance each; k2 itself would narrow its beam for more, with a line in its log.
    Utterances are searched whole, those of streaming models too: OnlineDenseIntersecter of k2 1.23.4 loses words
    between chunks over HLG (https://github.com/k2-fsa/k2/issues/1194; its pull request 1218 mends it).
    """

    def __init__(self, output_beam: float = EXACT, arcs_at_once: int = 1 << 25) -> None:
        if output_beam <= 0 or arcs_at_once <= 0:
            raise ValueError(f"output_beam and arcs_at_once must be positive, got {output_beam} and {arcs_at_once}")
        self.output_beam, self.arcs_at_once = output_beam, arcs_at_once
        self._shared: dict[int, tuple[Hmm, k2.Fsa | None]] = {}
        self._decoding: dict[tuple[int, bool], tuple[DecodingGraph, k2.Fsa]] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`).

        Raises ValueError also for graphs of more than 65,534 states, which k2 cannot number.
        """
        check_inputs(log_probs, lengths, graph)
        if isinstance(graph, Hmm):
            _, fsa = self._shared.setdefault(id(graph), (graph, to_k2(graph)))  # keeps the graph, so ids stay unique
            fsas = [fsa] * len(lengths)
        else:
            fsas = [to_k2(each) for each in graph]
        return self._passes(log_probs.detach(), lengths.cpu(), fsas, needs_gradient(log_probs)).score(log_probs)

    def _passes(self, log_probs: Tensor, lengths: Tensor, fsas: list[k2.Fsa | None], gradient: bool) -> Passes:
        """get_tot_scores of intersect_dense, batch by batch; a batch's gradient is taken before its lattice is freed.

        The largest score of each frame is subtracted before k2 rounds to float32, and added back in float64.
        """
        offset = log_probs.double().amax(2).clamp_min(torch.finfo(torch.float64).min)
        inside = valid_mask(lengths, log_probs.shape[1]).to(offset.device)
        scores = (log_probs - offset[..., None]).float()
        total = torch.full((len(lengths),), -torch.inf, dtype=torch.float64, device=log_probs.device)
        posterior = torch.zeros_like(log_probs) if gradient else None
        for rows in _batches(lengths, fsas, self.arcs_at_once):
            part = scores[rows].requires_grad_(gradient)
            total[rows], slope = _intersect(part, lengths[rows], [fsas[row] for row in rows], self.output_beam)
            if posterior is not None and slope is not None:
                posterior[rows] = slope.to(posterior.dtype)
        valid = total > -torch.inf
        total += offset.masked_fill(~inside, 0).sum(1)
        return Passes(total.masked_fill(~valid, 0).to(log_probs.dtype), valid, posterior)

    def lattice(self, log_probs: Tensor, lengths: Tensor, graph: DecodingGraph, search: Search) -> list[Lattice]:
        """Lattices over `graph` by k2's pruned intersection: log_probs (B, T, V), lengths (B,) (`Engine.lattice`).

        k2 counts `max_active` loosely and prunes its output loosely, too, so that it is pruned again; there are no
        arcs without a frame, as k2 has none. Raises ValueError also as `distill.lfmmi.epsilons.frames_only` does.
        """
        check_inputs(log_probs, lengths)
        graph.check_outputs(log_probs.shape[2])
        lattices = [Lattice.empty()] * len(lengths)
        lengths = lengths.cpu()
        for complete in (True, False):  # those without a complete path again, with every state as an end
            rows = [row for row, lattice in enumerate(lattices) if not lattice.num_states and lengths[row]]
            if rows:
                fsa = self._decodable(graph, complete).to(log_probs.device)
                for row, lattice in zip(rows, _search(log_probs.detach()[rows], lengths[rows], fsa, search)):
                    lattices[row] = replace(lattice, complete=complete) if lattice.num_states else lattice
        return lattices

    def _decodable(self, graph: DecodingGraph, complete: bool) -> k2.Fsa:
        key = id(graph), complete
        if key not in self._decoding:
            ends = graph if complete else replace(graph, final=np.zeros_like(graph.final))
            fsa = k2.Fsa.from_dict(decoding_graph_to_k2_dict(ends))
            fsa.lm_scores = fsa.scores.clone()  # k2 carries attributes over to the lattice, so scores stay apart
            self._decoding[key] = graph, k2.create_fsa_vec([fsa])
        return self._decoding[key][1]


def to_k2(graph: Hmm) -> k2.Fsa | None:
    """The graph as k2 runs it; None where no path can end, as k2 has no graph without a final state."""
    if graph.num_states + 2 > MOST_NUMBERED:
        raise ValueError(
            f"graph of {graph.num_states} states: k2's exact intersection takes at most {MOST_NUMBERED - 2};"
            " use --engine native"
        )
    content = hmm_to_k2_dict(graph)
    return k2.Fsa.from_dict(content) if (content["arcs"][:, 2] == -1).any() else None


def _intersect(scores: Tensor, lengths: Tensor, fsas: list[k2.Fsa], output_beam: float) -> tuple[Tensor, Tensor | None]:
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


def _batches(lengths: Tensor, fsas: Sequence[k2.Fsa | None], at_once: int) -> Iterator[list[int]]:
    """Utterances with frames and a graph, longest first, cut into batches of at most `at_once` arcs."""
    batch: list[int] = []
    arcs = 0
    for utterance in torch.argsort(lengths, descending=True, stable=True).tolist():
        fsa, frames = fsas[utterance], int(lengths[utterance])
        if fsa is None or frames == 0:
            continue
        if frames > MOST_NUMBERED:
            raise ValueError(f"utterance of {frames} frames: k2's exact intersection takes at most {MOST_NUMBERED}")
        more = fsa.num_arcs * (frames + 1)
        if batch and arcs + more > at_once:
            yield batch
            batch, arcs = [], 0
        batch.append(utterance)
        arcs += more
    if batch:
        yield batch


def _search(log_probs: Tensor, lengths: Tensor, fsa: k2.Fsa, search: Search) -> Iterator[Lattice]:
    """A lattice per utterance, empty where the graph has no end in reach; lengths (B,) > 0."""
    dense = k2.DenseFsaVec(log_probs.float(), segments(lengths))
    beams = (search.beam, search.lattice_beam, 0, search.max_active)
    lattices = k2.intersect_dense_pruned(fsa, dense, *beams, frame_idx_name="frame").to("cpu")
    for scores, lattice in zip(log_probs.float().cpu().numpy(), _from_k2(lattices, search.lattice_beam)):
        yield replace(lattice, acoustic=scores[lattice.frame[lattice.src], lattice.label])


def _from_k2(lattices: k2.Fsa, beam: float) -> Iterator[Lattice]:
    """Lattices of a vector, with arcs and ends on complete paths at most `beam` worse than the best one.

    k2's final arcs become final weights, its last state goes. Acoustic scores are left at 0.
    """
    arcs = lattices.arcs.values().numpy()
    forward = lattices.get_forward_scores(use_double_scores=True, log_semiring=False).numpy()
    backward = lattices.get_backward_scores(use_double_scores=True, log_semiring=False).numpy()
    score, graph = (x.detach().numpy() for x in (lattices.scores, lattices.lm_scores))
    first_state = lattices.arcs.shape().row_splits(1).tolist()
    first_arc = lattices.arcs.shape().row_splits(2).numpy()[first_state].tolist()
    for states, columns in zip(*(map(slice, first, first[1:]) for first in (first_state, first_arc))):
        ahead, back = forward[states], backward[states]
        src, dst, label = arcs[columns, :3].T
        ended = back[:1] > -np.inf  # where no path ends, k2 may leave the beginnings of some
        keep = ended & (ahead[src] + score[columns] + back[dst] >= back[:1] - beam)
        rows = np.flatnonzero(keep) + columns.start
        words, frames = lattices.aux_labels.numpy()[rows], lattices.frame.numpy()[rows]
        yield _lattice(src[keep], dst[keep], label[keep], words, graph[rows], frames)


def _lattice(
    src: np.ndarray, dst: np.ndarray, label: np.ndarray, word: np.ndarray, graph: np.ndarray, frames: np.ndarray
) -> Lattice:
    """From the arcs that are kept, k2's final ones among them; states without arcs go."""
    if not len(src):
        return Lattice.empty()
    alive = np.unique(src)  # each state but k2's last has an arc that leaves it
    number = np.full(int(max(src.max(), dst.max())) + 1, -1, dtype=np.int32)
    number[alive] = np.arange(len(alive))
    frame, final = np.zeros(len(alive), dtype=np.int32), np.full(len(alive), -np.inf, dtype=np.float32)
    frame[number[src]] = frames
    last = label == -1
    final[number[src[last]]] = graph[last]
    src, dst, label, word, graph = (x[~last] for x in (number[src], number[dst], label, word, graph))
    return Lattice(src, dst, label, word, np.zeros_like(graph), graph, frame, final)
