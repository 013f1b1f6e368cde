"""The native engine against brute force, finite differences and torch's CTC."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.fsa import Fsa, Hmm, NativeEngine, posteriors
from distill.fsa import native as native_module
from distill.graphs import topology

UNITS = 4  # blank and three units


def random_fsa(states: int, seed: int, density: float = 0.5) -> Fsa:
    rng = np.random.default_rng(seed)
    arcs = [
        (src, dst, int(label), float(rng.normal()))
        for src in range(states)
        for dst in range(states)
        for label in range(1, UNITS)
        if rng.random() < density
    ]
    final = {state: float(rng.normal()) for state in range(states) if rng.random() < 0.5 or state == states - 1}
    return Fsa.from_arcs(arcs, final, states)


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


def random_log_probs(batch: int, frames: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, frames, UNITS, generator=generator, dtype=torch.float64)
    return (scale * noise).log_softmax(-1)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_score_is_the_sum_over_all_labellings(seed: int, scale: float) -> None:
    graph = random_fsa(states=1 + seed % 4, seed=seed)
    log_probs = random_log_probs(2, 5, scale, seed)
    lengths = torch.tensor([5, 3])
    hmm = topology.ctc(graph)
    expected = [brute_force(graph, log_probs[b, :n]) for b, n in enumerate(lengths.tolist())]
    engine = NativeEngine()
    for score in (engine.score(log_probs, lengths, hmm), engine.score(log_probs, lengths, [hmm, hmm])):
        for total, valid, value in zip(score.total, score.valid, expected):
            assert bool(valid) == (value > -np.inf)
            if valid:
                assert float(total) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_equals_finite_differences(shared: bool) -> None:
    hmm = topology.ctc(random_fsa(3, seed=5))
    lengths = torch.tensor([6, 4])
    logits = random_log_probs(2, 6, 2.0, seed=1).requires_grad_()

    def total(values: torch.Tensor) -> torch.Tensor:
        graph = hmm if shared else [hmm, hmm]
        return NativeEngine().score(values, lengths, graph).total

    assert torch.autograd.gradcheck(total, (logits,), eps=1e-6, atol=1e-7)


def test_posteriors_sum_to_one_in_valid_frames_only() -> None:
    lengths = torch.tensor([6, 2])
    occupancy = posteriors(NativeEngine(), random_log_probs(2, 6), lengths, topology.ctc(random_fsa(3, 5)))
    expected = torch.tensor([[1.0] * 6, [1.0, 1.0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(occupancy.sum(-1), expected)


def test_linear_numerator_equals_ctc() -> None:
    units = [[1, 1, 2], [3]]
    graphs = []
    for sequence in units:
        arcs = [(i, i + 1, unit, -0.25) for i, unit in enumerate(sequence)]
        graphs.append(topology.ctc(Fsa.from_arcs(arcs, {len(sequence): 0.0}, len(sequence) + 1)))
    lengths = torch.tensor([9, 7])
    logits = torch.randn(2, 9, UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    score = NativeEngine().score(ours.log_softmax(-1), lengths, graphs)
    targets = torch.tensor([unit for sequence in units for unit in sequence])
    target_lengths = torch.tensor([len(sequence) for sequence in units])
    ctc = F.ctc_loss(theirs.log_softmax(-1).transpose(0, 1), targets, lengths, target_lengths, reduction="none")
    constant = -0.25 * target_lengths
    torch.testing.assert_close(score.total, -ctc + constant)
    score.total.sum().backward()
    (-ctc).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_stochastic_all_final_graph_has_log_mass_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    states = 5
    rows = torch.rand(states, states, generator=generator, dtype=torch.float64)
    rows /= rows.sum(1, keepdim=True)
    src, dst = (grid.flatten() for grid in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    initial = torch.full((states,), 1 / states, dtype=torch.float64).log()
    hmm = Hmm(torch.arange(5) % UNITS, initial, torch.zeros(5), src, dst, rows.flatten().log())
    score = NativeEngine().score(torch.zeros(1, 30, UNITS, dtype=torch.float64), torch.tensor([30]), hmm)
    assert float(score.total) == pytest.approx(0.0, abs=1e-12)


def test_sparse_transitions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hmm, log_probs = topology.ctc(random_fsa(4, 2)), random_log_probs(3, 7)
    lengths = torch.tensor([7, 1, 4])
    dense = NativeEngine().score(log_probs, lengths, hmm)
    monkeypatch.setattr(native_module, "DENSE_STATES", 0)
    sparse = NativeEngine().score(log_probs, lengths, hmm)
    torch.testing.assert_close(dense.total, sparse.total)


@pytest.mark.parametrize("shared", [True, False])
def test_utterance_without_a_path_is_masked(shared: bool) -> None:
    """Units 1 1 need three frames (a blank in between); two frames have no path."""
    hmm = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 2, 1, 0.0)], {2: 0.0}, 3))
    assert hmm.shortest_path() == 3
    log_probs = random_log_probs(3, 4).float().requires_grad_()
    lengths = torch.tensor([2, 3, 0])
    score = NativeEngine().score(log_probs, lengths, hmm if shared else [hmm] * 3)
    assert score.valid.tolist() == [False, True, False]
    assert score.total[0] == 0 and score.total[2] == 0
    score.total.sum().backward()
    assert torch.isfinite(log_probs.grad).all()
    assert log_probs.grad[0].abs().max() == 0 and log_probs.grad[1, :3].abs().max() > 0


def test_underflow_is_recomputed_in_the_log_semiring() -> None:
    """Float32 would lose a path whose frames are 1e-200 of the likeliest output; the log semiring does not."""
    hmm = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0)], {1: 0.0}, 2))
    log_probs = torch.full((2, 6, UNITS), -500.0)
    log_probs[0, :, 2] = 0.0  # an output the graph does not have takes all the mass
    log_probs[1, :, 1] = 0.0
    log_probs.requires_grad_()
    score = NativeEngine().score(log_probs, torch.tensor([6, 6]), hmm)
    assert score.recomputed == 1 and score.valid.all()
    exact = NativeEngine().score(log_probs.detach().double(), torch.tensor([6, 6]), [hmm, hmm])
    torch.testing.assert_close(score.total.detach().double(), exact.total, rtol=1e-6, atol=1e-4)
    score.total.sum().backward()
    torch.testing.assert_close(log_probs.grad.sum(-1), torch.ones(2, 6))


def test_wrong_input_is_named() -> None:
    engine, hmm = NativeEngine(), topology.ctc(random_fsa(2, 1))
    good, lengths = random_log_probs(2, 4), torch.tensor([4, 4])
    with pytest.raises(ValueError, match="NaN"):
        engine.score(good * torch.nan, lengths, hmm)
    with pytest.raises(ValueError, match="lengths go up to 9"):
        engine.score(good, torch.tensor([9, 4]), hmm)
    with pytest.raises(ValueError, match="only 2 outputs"):
        engine.score(good[..., :2], lengths, hmm)
    with pytest.raises(ValueError, match="1 graphs for a batch of 2"):
        engine.score(good, lengths, [hmm])
    with pytest.raises(ValueError, match="without a final state"):
        Fsa.from_arcs([(0, 1, 1, 0.0)], {}, 2).validate(UNITS)
    with pytest.raises(ValueError, match=r"labels 1\.\.7"):
        Fsa.from_arcs([(0, 1, 7, 0.0), (0, 1, 1, 0.0)], {1: 0.0}, 2).validate(UNITS)
