"""Small random graphs and outputs, and the sum over all labellings that engines are held to."""

from __future__ import annotations

import itertools

import kaldifst
import numpy as np
import torch

from distill.fsa.graph import Fsa, Hmm
from distill.lfmmi import Engine

UNITS = 4  # blank and three units


def random_fsa(states: int, seed: int, density: float = 0.5, units: int = UNITS) -> Fsa:
    rng = np.random.default_rng(seed)
    arcs = [
        (src, dst, int(label), float(rng.normal()))
        for src in range(states)
        for dst in range(states)
        for label in range(1, units)
        if rng.random() < density
    ]
    final = {state: float(rng.normal()) for state in range(states) if rng.random() < 0.5 or state == states - 1}
    return Fsa.from_arcs(arcs, final, states)


def random_log_probs(batch: int, frames: int, scale: float = 1.0, seed: int = 0, units: int = UNITS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, frames, units, generator=generator, dtype=torch.float64)
    return (scale * noise).log_softmax(-1)


def score_and_gradient(
    engine: Engine, log_probs: torch.Tensor, lengths: torch.Tensor, graph: Hmm | list[Hmm]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Totals (B,), validity (B,), and the gradient of the totals' sum (B, T, V)."""
    leaf = log_probs.clone().requires_grad_()
    score = engine.score(leaf, lengths, graph)
    score.total.sum().backward()
    return score.total.detach(), score.valid, leaf.grad


def brute_force(graph: Fsa, log_probs: torch.Tensor) -> float:
    """Sum over every labelling of the frames of (its paths' weights in the unit graph) x (its score)."""
    total = []
    for labels in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        units = [u for u, _ in itertools.groupby(labels) if u]
        weight = unit_sequence_weight(graph, units)
        score = sum(float(log_probs[t, label]) for t, label in enumerate(labels))
        total.append(weight + score)
    return float(np.logaddexp.reduce(total))


def unit_sequence_weight(graph: Fsa, units: list[int]) -> float:
    reached = np.full(graph.num_states, -np.inf)
    reached[0] = 0.0
    for unit in units:
        step = np.full(graph.num_states, -np.inf)
        for src, dst, label, weight in zip(graph.src, graph.dst, graph.label, graph.weight):
            if label == unit:
                step[dst] = np.logaddexp(step[dst], reached[src] + weight)
        reached = step
    return float(np.logaddexp.reduce(reached + graph.final))


def unsorted_fsa(seed: int = 0, states: int = 5, labels: int = 4) -> Fsa:
    """Random acceptor with an arc of every label from every state, arcs in no order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(states * (labels - 1))
    src, label = np.divmod(order, labels - 1)
    final = np.where(rng.random(states) < 0.5, -rng.random(states), -np.inf)
    final[-1] = -0.25
    dst = rng.integers(0, states, len(order)).astype(np.int32)
    return Fsa(src.astype(np.int32), dst, (label + 1).astype(np.int32), -rng.random(len(order)), final)


def assert_same(left: Fsa, right: Fsa) -> None:
    def rows(fsa: Fsa) -> np.ndarray:
        return np.array(sorted(zip(fsa.src, fsa.label, fsa.dst, fsa.weight)))

    np.testing.assert_allclose(rows(left), rows(right), rtol=1e-6)
    np.testing.assert_allclose(left.final, right.final, rtol=1e-6)


def transducer(start: int = 2) -> kaldifst.StdVectorFst:
    fst = kaldifst.StdVectorFst()
    for _ in range(3):
        fst.add_state()
    fst.start = start
    fst.add_arc(2, kaldifst.StdArc(5, 9, 0.5, 1))
    fst.add_arc(1, kaldifst.StdArc(0, 8, 1.5, 0))
    fst.add_arc(1, kaldifst.StdArc(4, 0, 2.5, 1))
    fst.set_final(0, 0.25)
    return fst
