"""Every implementation of the engine against brute force, finite differences and torch's CTC."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.fsa.graph import Fsa, Hmm
from distill.graphs import topology
from distill.lfmmi import Engine, TorchEngine, posteriors, reference
from tests.support.random_graphs import UNITS, brute_force, random_fsa, random_log_probs, score_and_gradient


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_score_is_the_sum_over_all_labellings(engine: Engine, seed: int, scale: float) -> None:
    graph = random_fsa(states=1 + seed % 4, seed=seed)
    log_probs = random_log_probs(2, 5, scale, seed)
    lengths = torch.tensor([5, 3])
    hmm = topology.ctc(graph)
    expected = [brute_force(graph, log_probs[b, :n]) for b, n in enumerate(lengths.tolist())]
    for score in (engine.score(log_probs, lengths, hmm), engine.score(log_probs, lengths, [hmm, hmm])):
        for total, valid, value in zip(score.total, score.valid, expected):
            assert bool(valid) == (value > -np.inf)
            if valid:
                assert float(total) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("shared", [True, False])
def test_gradient_equals_finite_differences(engine: Engine, shared: bool) -> None:
    hmm = topology.ctc(random_fsa(3, seed=5))
    lengths = torch.tensor([6, 4])
    logits = random_log_probs(2, 6, 2.0, seed=1).requires_grad_()

    def total(values: torch.Tensor) -> torch.Tensor:
        graph = hmm if shared else [hmm, hmm]
        return engine.score(values, lengths, graph).total

    assert torch.autograd.gradcheck(total, (logits,), eps=1e-6, atol=1e-7)


def test_posteriors_sum_to_one_in_valid_frames_only(engine: Engine) -> None:
    lengths = torch.tensor([6, 2])
    occupancy = posteriors(engine, random_log_probs(2, 6), lengths, topology.ctc(random_fsa(3, 5)))
    expected = torch.tensor([[1.0] * 6, [1.0, 1.0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(occupancy.sum(-1), expected)


def test_linear_numerator_equals_ctc(engine: Engine) -> None:
    units = [[1, 1, 2], [3]]
    graphs = []
    for sequence in units:
        arcs = [(i, i + 1, unit, -0.25) for i, unit in enumerate(sequence)]
        graphs.append(topology.ctc(Fsa.from_arcs(arcs, {len(sequence): 0.0}, len(sequence) + 1)))
    lengths = torch.tensor([9, 7])
    logits = torch.randn(2, 9, UNITS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    score = engine.score(ours.log_softmax(-1), lengths, graphs)
    targets = torch.tensor([unit for sequence in units for unit in sequence])
    target_lengths = torch.tensor([len(sequence) for sequence in units])
    ctc = F.ctc_loss(theirs.log_softmax(-1).transpose(0, 1), targets, lengths, target_lengths, reduction="none")
    constant = -0.25 * target_lengths
    torch.testing.assert_close(score.total, -ctc + constant)
    score.total.sum().backward()
    (-ctc).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_stochastic_all_final_graph_has_log_mass_zero(engine: Engine) -> None:
    generator = torch.Generator().manual_seed(0)
    states = 5
    rows = torch.rand(states, states, generator=generator, dtype=torch.float64)
    rows /= rows.sum(1, keepdim=True)
    src, dst = (grid.flatten() for grid in torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij"))
    initial = torch.full((states,), 1 / states, dtype=torch.float64).log()
    hmm = Hmm(torch.arange(5) % UNITS, initial, torch.zeros(5), src, dst, rows.flatten().log())
    score = engine.score(torch.zeros(1, 30, UNITS, dtype=torch.float64), torch.tensor([30]), hmm)
    assert float(score.total) == pytest.approx(0.0, abs=1e-12)


def test_sparse_transitions_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    hmm, log_probs = topology.ctc(random_fsa(4, 2)), random_log_probs(3, 7)
    lengths = torch.tensor([7, 1, 4])
    dense = TorchEngine().score(log_probs, lengths, hmm)
    monkeypatch.setattr(reference, "DENSE_STATES", 0)
    sparse = TorchEngine().score(log_probs, lengths, hmm)
    torch.testing.assert_close(dense.total, sparse.total)


@pytest.mark.parametrize("shared", [True, False])
def test_utterance_without_a_path_is_masked(engine: Engine, shared: bool) -> None:
    """Units 1 1 need three frames (a blank in between); two frames have no path."""
    hmm = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 2, 1, 0.0)], {2: 0.0}, 3))
    log_probs = random_log_probs(3, 4).float().requires_grad_()
    lengths = torch.tensor([2, 3, 0])
    score = engine.score(log_probs, lengths, hmm if shared else [hmm] * 3)
    assert score.valid.tolist() == [False, True, False]
    assert score.total[0] == 0 and score.total[2] == 0
    score.total.sum().backward()
    assert torch.isfinite(log_probs.grad).all()
    assert log_probs.grad[0].abs().max() == 0 and log_probs.grad[1, :3].abs().max() > 0


def test_underflow_is_recomputed_in_the_log_semiring(engine: Engine) -> None:
    """Float32 would lose a path whose frames are 1e-200 of the likeliest output; the log semiring does not."""
    hmm = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0)], {1: 0.0}, 2))
    log_probs = torch.full((2, 6, UNITS), -500.0)
    log_probs[0, :, 2] = 0.0  # an output the graph does not have takes all the mass
    log_probs[1, :, 1] = 0.0
    log_probs.requires_grad_()
    score = engine.score(log_probs, torch.tensor([6, 6]), hmm)
    assert score.recomputed == 1 and score.valid.all()
    exact = engine.score(log_probs.detach().double(), torch.tensor([6, 6]), [hmm, hmm])
    torch.testing.assert_close(score.total.detach().double(), exact.total, rtol=1e-6, atol=1e-4)
    score.total.sum().backward()
    torch.testing.assert_close(log_probs.grad.sum(-1), torch.ones(2, 6))


def test_frames_and_outputs_may_be_missing(engine: Engine) -> None:
    """One frame, no frames, no utterances."""
    hmm = topology.ctc(Fsa.from_arcs([(0, 1, 2, -0.5)], {1: 0.25}, 2))
    log_probs = random_log_probs(2, 1)
    for graph in (hmm, [hmm, hmm]):
        total, valid, gradient = score_and_gradient(engine, log_probs, torch.tensor([1, 0]), graph)
        assert valid.tolist() == [True, False]
        torch.testing.assert_close(total, torch.stack([log_probs[0, 0, 2] - 0.25, torch.zeros(()).double()]))
        expected = torch.zeros(2, 1, UNITS, dtype=torch.float64)
        expected[0, 0, 2] = 1
        torch.testing.assert_close(gradient, expected)
    for graph, frames in ((hmm, 3), (hmm, 0), ([], 3)):
        nothing = engine.score(torch.zeros(0, frames, UNITS), torch.zeros(0, dtype=torch.int64), graph)
        assert len(nothing.total) == len(nothing.valid) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [True, False])
def test_extreme_outputs_give_values_or_masks(engine: Engine, dtype: torch.dtype, shared: bool) -> None:
    """Log-probabilities of -1e4 count as they are, -inf forbids; nothing becomes NaN, infinite or 0 in silence."""
    hmm = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 2, 2, 0.0)], {2: 0.0}, 3))
    log_probs = torch.full((4, 5, UNITS), -1e4, dtype=dtype)
    log_probs[1, :, 3] = 0.0  # all mass on an output without a place in the graph
    log_probs[2, :, 1] = -torch.inf  # a unit that the graph needs is forbidden
    log_probs[3] = -torch.inf
    lengths = torch.tensor([5, 5, 5, 5])
    total, valid, gradient = score_and_gradient(engine, log_probs, lengths, hmm if shared else [hmm] * 4)
    assert valid.tolist() == [True, True, False, False]
    paths = sum(1 for a in range(5) for b in range(a, 5) for c in range(b + 1, 5) for _ in range(c, 5))
    assert total[:2].tolist() == pytest.approx([-5e4 + np.log(paths)] * 2, rel=1e-6)
    assert total[2:].abs().max() == 0 and gradient[2:].abs().max() == 0
    torch.testing.assert_close(gradient[:2].sum(-1), torch.ones(2, 5, dtype=dtype))


def test_a_numerator_without_states_is_masked(engine: Engine) -> None:
    hmm, nothing = topology.ctc(random_fsa(2, 1)), topology.ctc(Fsa.from_arcs([], {}, 1))
    total, valid, gradient = score_and_gradient(engine, random_log_probs(2, 4), torch.tensor([4, 4]), [nothing, hmm])
    assert valid.tolist() == [False, True] and total[0] == 0 and gradient[0].abs().max() == 0


@pytest.mark.parametrize("shared", [True, False])
def test_padding_and_neighbours_do_not_matter(engine: Engine, shared: bool) -> None:
    hmm = topology.ctc(random_fsa(4, 3))
    log_probs, lengths = random_log_probs(9, 8, 3.0), torch.tensor([8, 1, 3, 8, 5, 2, 7, 6, 4])
    total, _, gradient = score_and_gradient(engine, log_probs, lengths, hmm if shared else [hmm] * 9)
    filled = log_probs.masked_fill(torch.arange(8)[None, :, None] >= lengths[:, None, None], 7.0)
    again = score_and_gradient(engine, filled, lengths, hmm if shared else [hmm] * 9)
    torch.testing.assert_close((total, gradient), (again[0], again[2]), rtol=0, atol=0)
    for b, n in enumerate(lengths.tolist()):
        alone = score_and_gradient(engine, log_probs[b : b + 1, :n], lengths[b : b + 1], hmm if shared else [hmm])
        torch.testing.assert_close((total[b], gradient[b, :n]), (alone[0][0], alone[2][0]))
        assert gradient[b, n:].abs().sum() == 0


def test_precision_is_that_of_the_settings(make_engine: Callable[..., Engine]) -> None:
    hmm, log_probs, lengths = topology.ctc(random_fsa(4, 3)), random_log_probs(1, 300, 4.0), torch.tensor([300])
    exact = make_engine().score(log_probs, lengths, hmm).total
    double = make_engine(precision="float64").score(log_probs.float(), lengths, hmm).total
    single = make_engine(precision="float32").score(log_probs, lengths, hmm).total
    halves = make_engine().score(log_probs.half(), lengths, hmm).total
    assert (double.dtype, single.dtype, halves.dtype) == (torch.float64, torch.float32, torch.float32)
    expected = make_engine().score(log_probs.float().double(), lengths, hmm).total
    torch.testing.assert_close(double, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(single.double(), exact, rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="precision 'half'"):
        make_engine(precision="half")


def test_wrong_input_is_named(engine: Engine) -> None:
    hmm = topology.ctc(random_fsa(2, 1))
    good, lengths = random_log_probs(2, 4), torch.tensor([4, 4])
    with pytest.raises(ValueError, match="NaN"):
        engine.score(good * torch.nan, lengths, hmm)
    with pytest.raises(ValueError, match="lengths go up to 9"):
        engine.score(good, torch.tensor([9, 4]), hmm)
    with pytest.raises(ValueError, match="only 2 outputs"):
        engine.score(good[..., :2], lengths, hmm)
    with pytest.raises(ValueError, match="1 graphs for a batch of 2"):
        engine.score(good, lengths, [hmm])
    with pytest.raises(ValueError, match="not finite"):
        engine.score(good.index_fill(2, torch.tensor([1]), torch.inf), lengths, hmm)
    with pytest.raises(ValueError, match="down to -1"):
        engine.score(good, torch.tensor([4, -1]), hmm)
    with pytest.raises(ValueError, match="no final or no initial state"):
        engine.score(good, lengths, topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0)], {}, 2)))
    with pytest.raises(ValueError, match="without a final state"):
        Fsa.from_arcs([(0, 1, 1, 0.0)], {}, 2).validate(UNITS)
    with pytest.raises(ValueError, match=r"labels 1\.\.7"):
        Fsa.from_arcs([(0, 1, 7, 0.0), (0, 1, 1, 0.0)], {1: 0.0}, 2).validate(UNITS)
    with pytest.raises(ValueError, match=r"1 of 3 states \(the first: 2\) lie on no path"):
        Fsa.from_arcs([(0, 1, 1, 0.0), (2, 1, 1, 0.0)], {1: 0.0}, 3).validate(UNITS)
    with pytest.raises(ValueError, match=r"3 of 3 states \(the first: 0\)"):
        Fsa.from_arcs([(0, 1, 1, 0.0)], {2: 0.0}, 3).validate(UNITS)
