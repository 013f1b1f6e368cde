"""LF-MMI's scales, bounds and options against formulas written directly."""

from __future__ import annotations

import pytest
import torch

from distill.config.losses import Mmi
from distill.config.model import Model
from distill.fsa.graph import Fsa
from distill.graphs import topology
from distill.lfmmi import NativeEngine, TorchEngine
from distill.losses.mmi import LfMmi
from distill.losses.term import TermContext
from tests.unit.losses.test_objective import LENGTHS, UNITS, linear_graph, loop_graph

DENOMINATOR = topology.ctc(loop_graph())
NUMERATORS = [topology.ctc(linear_graph([1, 2])), topology.ctc(linear_graph([3]))]


def random_logits(scale: float, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(2, 9, UNITS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("leaky", [0.0, 0.1])
def test_a_numerator_within_the_denominator_is_never_above_it(scale: float, leaky: float) -> None:
    for seed in range(20):
        loss = LfMmi(NativeEngine(leaky), DENOMINATOR).loss(random_logits(scale, seed), LENGTHS, NUMERATORS)
        assert int(loss.dropped.sum()) == 0 and float(loss.terms["mmi"].total) >= -1e-9


def test_den_scale_counts_the_denominator_only() -> None:
    logits = random_logits(2.0)
    log_probs = logits.log_softmax(-1)
    engine = TorchEngine()
    num = engine.score(log_probs, LENGTHS, NUMERATORS).total.sum()
    den = engine.score(log_probs, LENGTHS, DENOMINATOR).total.sum()
    term = LfMmi(engine, DENOMINATOR, den_scale=0.7).loss(logits, LENGTHS, NUMERATORS).terms["mmi"]
    torch.testing.assert_close(term.total, 0.7 * den - num)
    assert int(term.count) == int(LENGTHS.sum())


def test_penalty_is_the_squared_excess_beyond_30_of_frames_that_count() -> None:
    logits = torch.zeros(2, 9, UNITS)
    logits[0, 2, 1], logits[0, 3, 0], logits[1, 4, 2] = 32.0, -31.0, 40.0
    logits[1, 5:] = 99.0  # beyond the second utterance
    logits.requires_grad_()
    result = LfMmi(TorchEngine(), DENOMINATOR, out_of_range=0.01).loss(logits, LENGTHS, NUMERATORS)
    assert float(result.terms["out_of_range"].total.detach()) == pytest.approx(0.01 * (4 + 1 + 100))
    assert int(result.terms["out_of_range"].count) == int(LENGTHS.sum())
    result.terms["out_of_range"].total.backward()
    expected = torch.zeros(2, 9, UNITS)
    expected[0, 2, 1], expected[0, 3, 0], expected[1, 4, 2] = 0.04, -0.02, 0.2
    torch.testing.assert_close(logits.grad, expected)
    assert set(LfMmi(TorchEngine(), DENOMINATOR).loss(logits, LENGTHS, NUMERATORS).terms) == {"mmi"}


def test_an_utterance_left_out_is_not_penalised() -> None:
    logits = torch.full((2, 9, UNITS), 31.0)
    numerators = [topology.ctc(linear_graph([1] * 9)), NUMERATORS[1]]
    result = LfMmi(TorchEngine(), DENOMINATOR, out_of_range=1.0).loss(logits, LENGTHS, numerators)
    assert float(result.terms["out_of_range"].total.detach()) == pytest.approx(UNITS * int(LENGTHS[1]))


def test_extreme_logits_give_finite_losses_and_gradients() -> None:
    logits = torch.zeros(2, 9, UNITS)
    logits[0, :, 3] = 1e4  # against the transcript 1 2
    logits[1] = -1e4
    logits.requires_grad_()
    result = LfMmi(NativeEngine(), DENOMINATOR).loss(logits, LENGTHS, NUMERATORS)
    assert int(result.dropped.sum()) == 0 and 5e3 < float(result.terms["mmi"].total.detach()) < 1e6
    result.terms["mmi"].total.backward()
    assert torch.isfinite(logits.grad).all()


def test_settings_reach_the_engine() -> None:
    settings = Mmi(leaky=0.1, precision="float64", den_scale=0.9, out_of_range=0.01)
    mmi = LfMmi.build(settings, TermContext(Model(), engine="native", denominator=DENOMINATOR))
    assert (mmi.engine.leaky, mmi.engine.precision, mmi.den_scale, mmi.out_of_range) == (0.1, "float64", 0.9, 0.01)
    with pytest.raises(ValueError, match="final"):
        endless = topology.ctc(Fsa.from_arcs([(0, 1, 1, 0.0)], {}, 2))
        LfMmi(TorchEngine(), endless).loss(random_logits(1.0), LENGTHS, NUMERATORS)
