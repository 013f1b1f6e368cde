"""The leaky HMM against the same graph with all of its leaks written out as arcs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from distill.fsa.graph import Fsa, Hmm
from distill.graphs import topology
from distill.lfmmi import Engine, TorchEngine, reference
from distill.lfmmi.leaky import leak_weights
from tests.support.random_graphs import random_fsa, random_log_probs, score_and_gradient


def written_out(graph: Hmm, coefficient: float) -> Hmm:
    """alpha' = alpha (I + c 1 q^T) before each transition and at the end: arcs between all pairs of states."""
    states = graph.num_states
    q = leak_weights(graph)
    moves = torch.zeros(states, states, dtype=torch.float64).index_put_(
        (graph.src, graph.dst), graph.weight.exp(), True
    )
    leak = torch.eye(states, dtype=torch.float64) + coefficient * torch.ones(states, 1).double() @ q[None]
    src, dst = (grid.flatten() for grid in torch.meshgrid(torch.arange(states), torch.arange(states), indexing="ij"))
    final = (leak @ graph.final.exp()).log()
    return replace(graph, src=src, dst=dst, weight=(leak @ moves).flatten().log(), final=final)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dense", [True, False])
def test_leaks_equal_arcs_between_all_states(
    make_engine: Callable[..., Engine], seed: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "DENSE_STATES", 512 if dense else 0)
    hmm = topology.ctc(random_fsa(1 + seed, seed))
    log_probs, lengths = random_log_probs(3, 9, 2.0, seed), torch.tensor([9, 1, 6])
    expected = score_and_gradient(TorchEngine(), log_probs, lengths, written_out(hmm, 0.1))
    torch.testing.assert_close(score_and_gradient(make_engine(leaky=0.1), log_probs, lengths, hmm), expected)


def test_leaks_survive_underflow(make_engine: Callable[..., Engine]) -> None:
    """What float32 cannot hold is done again in the log semiring, its leaks too."""
    hmm, lengths = topology.ctc(random_fsa(4, 2)), torch.tensor([12, 12, 9, 1, 0])
    elsewhere = torch.zeros(5, 12, 1).double()  # an output that the graph does not have
    elsewhere[[0, 2, 3], 0] = 400
    log_probs = torch.cat([random_log_probs(5, 12, 2.0), elsewhere], 2)
    expected = score_and_gradient(TorchEngine(), log_probs, lengths, [written_out(hmm, 0.05)] * 5)
    engine = make_engine(leaky=0.05)
    assert engine.score(log_probs.float(), lengths, hmm).recomputed == 3
    total, valid, gradient = score_and_gradient(engine, log_probs.float(), lengths, hmm)
    assert torch.equal(valid, expected[1])
    torch.testing.assert_close(total.double(), expected[0], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected[2], rtol=0, atol=1e-4)


def test_numerators_do_not_leak(make_engine: Callable[..., Engine]) -> None:
    hmm, log_probs, lengths = topology.ctc(random_fsa(3, 1)), random_log_probs(2, 5), torch.tensor([5, 4])
    plain = make_engine().score(log_probs, lengths, [hmm, hmm]).total
    assert torch.equal(make_engine(leaky=0.1).score(log_probs, lengths, [hmm, hmm]).total, plain)
    assert (make_engine(leaky=0.1).score(log_probs, lengths, hmm).total > plain).all()


def test_leaks_lead_to_where_a_walk_from_the_start_is() -> None:
    one_way = Hmm(
        label=torch.tensor([0, 1]),
        initial=torch.tensor([0.0, -torch.inf]).double(),
        final=torch.tensor([-torch.inf, -3.0]).double(),
        src=torch.tensor([0]),
        dst=torch.tensor([1]),
        weight=torch.tensor([-2.0]).double(),
    )
    torch.testing.assert_close(leak_weights(one_way), torch.tensor([0.5, 0.5]).double())
    stay = topology.ctc(Fsa.from_arcs([(0, 0, 1, 0.0)], {0: 0.0}, 1))
    assert float(leak_weights(stay).sum()) == pytest.approx(1.0)


def test_a_coefficient_outside_its_range_is_refused(make_engine: Callable[..., Engine]) -> None:
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="leaky-HMM coefficient"):
            make_engine(leaky=wrong)
