"""What k2 itself computes: graphs made by its own operations, scores and gradients by its own intersection.

k2 stores scores in float32, sums paths in float64. So that the only difference left is the sum, weights and
log-probabilities here are multiples of 2^-10, of which float32 holds the sums on an arc exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import k2
import numpy as np
import torch
from torch import Tensor

from distill.fsa.graph import Fsa
from distill.graphs.topology import Topology

GRID = 2.0**-10
EXACT = 1e30  # an output beam that prunes nothing


def on_grid(values: np.ndarray) -> np.ndarray:
    """Values that float32 and float64 hold alike, and so their sums."""
    return np.round(np.asarray(values) / GRID) * GRID


def rounded(fsa: Fsa) -> Fsa:
    """The graph with all weights on the grid."""
    return Fsa(fsa.src, fsa.dst, fsa.label, on_grid(fsa.weight), on_grid(fsa.final))


def log_probs(batch: int, frames: int, outputs: int, peak: float, seed: int) -> Tensor:
    """(B, T, V) float64 on the grid: normal noise times `peak`, normalised; 1 is flat, 20 is peaky."""
    generator = torch.Generator().manual_seed(seed)
    noise = peak * torch.randn(batch, frames, outputs, generator=generator, dtype=torch.float64)
    return torch.from_numpy(on_grid(noise.log_softmax(-1).numpy()))


def acceptor(fsa: Fsa) -> k2.Fsa:
    """Through k2's text form, which is none that this project writes."""
    end = fsa.num_states
    rows = [(int(s), int(d), int(u), float(w)) for s, d, u, w in zip(fsa.src, fsa.dst, fsa.label, fsa.weight)]
    rows += [(int(s), end, -1, float(fsa.final[s])) for s in np.flatnonzero(np.isfinite(fsa.final))]
    lines = [f"{s} {d} {u} {w!r}" for s, d, u, w in sorted(rows)]
    return k2.Fsa.from_str("\n".join([*lines, str(end)]))


def frames_graph(fsa: Fsa, topology: Topology) -> k2.Fsa:
    """H o C o fsa as icefall composes it: the topology with an acceptor that has epsilon self-loops."""
    if topology.has_context or topology.kind == "two_pdf":
        inverted = two_pdf(topology)
    else:
        inverted = k2.ctc_topo(topology.num_units - 1, modified=topology.kind == "ctc_compact").invert_()
    looped = k2.arc_sort(k2.add_epsilon_self_loops(k2.arc_sort(acceptor(fsa))))
    composed = k2.intersect(k2.arc_sort(inverted), looped, treat_epsilons_specially=False).invert_()
    del composed.aux_labels
    return k2.arc_sort(k2.connect(composed))


def two_pdf(topology: Topology) -> k2.Fsa:
    """Units in, outputs out: one state for each unit and class, entered by the class' first output (Hadian et al.)."""
    rows = topology.classes if topology.has_context else np.tile(topology.classes, (topology.num_units, 1))
    assert topology.kind == "two_pdf"
    pairs = sorted({(unit, int(c)) for unit in range(1, len(rows)) for c in rows[:, unit]})
    state = {pair: number for number, pair in enumerate([(0, -1), *pairs])}
    end, arcs = len(state), []
    for (last, c), here in state.items():
        if last:
            arcs.append((here, here, 0, 2 * c + 1))
        for unit in range(1, len(rows)):
            entered = int(rows[last, unit])
            arcs.append((here, state[unit, entered], unit, 2 * entered))
        arcs.append((here, end, -1, -1))
    lines = [f"{source} {target} {unit} {output} 0.0" for source, target, unit, output in sorted(arcs)]
    return k2.Fsa.from_str("\n".join([*lines, str(end)]), num_aux_labels=1)


def score(graphs: Sequence[k2.Fsa], log_probs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """k2's exact totals (B,) float64, -inf without a path, and their gradients (B, T, V).

    graphs: one for each utterance. lengths (B,) > 0.
    """
    order = torch.argsort(lengths, descending=True)
    leaf = log_probs[order].float().requires_grad_()
    rows = [torch.arange(len(order)), torch.zeros_like(order), lengths[order]]
    dense = k2.DenseFsaVec(leaf, torch.stack(rows, 1).to(torch.int32))
    vector = k2.create_fsa_vec([graphs[i] for i in order.tolist()])
    limits = {"max_states": 2**31 - 1, "max_arcs": 2**31 - 1}
    lattice = k2.intersect_dense(vector, dense, output_beam=EXACT, **limits)
    found = lattice.get_tot_scores(use_double_scores=True, log_semiring=True)
    some = torch.isfinite(found)
    (slope,) = torch.autograd.grad(found[some].sum(), leaf) if some.any() else (torch.zeros_like(leaf),)
    total, gradient = torch.empty_like(found), torch.empty_like(slope)
    total[order], gradient[order] = found.detach(), slope
    return total, gradient.double()
