"""Totals and gradients of every engine against the real k2's, on graphs that k2 itself composed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import Mini
from reference import acceptor, ctc_graph, log_probs, rounded, score

from distill.fsa import Engine, Fsa, Hmm, build_engine
from distill.graphs import topology
from distill.graphs.numerator import UnitLm, sequences_graph, transcript_graph
from distill.graphs.weighting import with_lm

UNITS = 5  # blank and four units
ENGINES = ("native", "torch", "k2")
FLAT, PEAKY = 1.0, 20.0


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    try:
        return build_engine(request.param)
    except ValueError as error:
        pytest.skip(str(error))


def assert_equal(engine: Engine, graph: Hmm | list[Hmm], theirs: list, probs: torch.Tensor, lengths: torch.Tensor):
    """Value within 1e-6 relative, gradient within 1e-5 absolute, and the same utterances without a path."""
    total, gradient = score(theirs, probs, lengths)
    leaf = probs.clone().requires_grad_()
    ours = engine.score(leaf, lengths, graph)
    assert ours.valid.tolist() == torch.isfinite(total).tolist()
    assert ours.total.dtype == torch.float64
    some = ours.valid
    np.testing.assert_allclose(ours.total[some].detach(), total[some], rtol=1e-6)
    if some.any():
        (slope,) = torch.autograd.grad(ours.total.sum(), leaf)
        assert (slope - gradient).abs().max() <= 1e-5


def random_fsa(seed: int) -> Fsa:
    """1 to 8 states, parallel and repeated labels, states that lead nowhere."""
    rng = np.random.default_rng(seed)
    states = int(rng.integers(1, 9))
    chosen = rng.random((states, states, UNITS - 1)) < rng.choice([0.15, 0.4, 0.8])
    src, dst, label = (x.astype(np.int32) for x in np.nonzero(chosen))
    final = np.where(rng.random(states) < 0.5, rng.normal(size=states), -np.inf)
    final[-1] = rng.normal()
    return rounded(Fsa(src, dst, label + 1, 2 * rng.normal(size=len(src)), final))


@pytest.mark.parametrize("peak", [FLAT, PEAKY])
@pytest.mark.parametrize("seed", range(50))
def test_random_graphs(engine: Engine, seed: int, peak: float) -> None:
    fsa, lengths = random_fsa(seed), torch.tensor([17, 1, 30, 6])
    hmm, theirs = topology.ctc(fsa), ctc_graph(fsa, UNITS)
    probs = log_probs(len(lengths), 30, UNITS, peak, seed)
    assert_equal(engine, hmm, [theirs] * 4, probs, lengths)
    others = [random_fsa(seed + 100 * k) for k in range(4)]
    assert_equal(
        engine, [topology.ctc(each) for each in others], [ctc_graph(each, UNITS) for each in others], probs, lengths
    )


@pytest.mark.parametrize("peak", [FLAT, PEAKY])
@pytest.mark.parametrize("order", [2, 3])
def test_denominators(engine: Engine, mini: Mini, order: int, peak: float) -> None:
    lm = rounded(mini.bigram if order == 2 else mini.trigram)
    outputs, lengths = len(mini.lang.tokens), torch.tensor([9, 40, 25])
    theirs = ctc_graph(lm, outputs)
    hmm = topology.ctc(lm)
    assert theirs.shape[0] == hmm.num_states + 2 - 1  # k2 has one start and one end, its start is our first blank
    assert_equal(engine, hmm, [theirs] * 3, log_probs(3, 40, outputs, peak, order), lengths)


def transcript(mini: Mini, sentence: str) -> Fsa:
    words = sentence.split()
    return transcript_graph([mini.lang.pronunciation_ids(word, "test") for word in words], mini.lang.silence)


@pytest.mark.parametrize("peak", [FLAT, PEAKY])
@pytest.mark.parametrize("order", [2, 3])
def test_numerators_of_transcripts(engine: Engine, mini: Mini, order: int, peak: float) -> None:
    lm = rounded(mini.bigram if order == 2 else mini.trigram)
    graphs = [with_lm(transcript(mini, sentence), UnitLm(lm, len(mini.lang.tokens))) for sentence in mini.sentences[:4]]
    outputs, lengths = len(mini.lang.tokens), torch.tensor([100, 60, 120, 5])
    theirs = [ctc_graph(graph, outputs) for graph in graphs]
    probs = log_probs(4, 120, outputs, peak, seed=order)
    assert_equal(engine, [topology.ctc(graph) for graph in graphs], theirs, probs, lengths)


def test_numerators_of_alternatives(engine: Engine, mini: Mini) -> None:
    lm = UnitLm(rounded(mini.bigram), len(mini.lang.tokens))
    rng = np.random.default_rng(0)
    outputs, lengths = len(mini.lang.tokens), torch.tensor([50, 33])
    sets = [[tuple(rng.integers(1, outputs, size=n)) for n in rng.integers(3, 20, size=10)] for _ in lengths]
    graphs = [with_lm(sequences_graph(each), lm) for each in sets]
    theirs = [ctc_graph(graph, outputs) for graph in graphs]
    probs = log_probs(2, 50, outputs, PEAKY, 3)
    assert_equal(engine, [topology.ctc(graph) for graph in graphs], theirs, probs, lengths)


def test_numerators_are_what_k2_composes(engine: Engine, mini: Mini) -> None:
    """icefall's numerator: the denominator's graph composed with the transcript, all by k2."""
    import k2

    lm, outputs = rounded(mini.bigram), len(mini.lang.tokens)
    topo = k2.arc_sort(k2.ctc_topo(outputs - 1).invert_())
    looped = k2.arc_sort(k2.add_epsilon_self_loops(k2.arc_sort(acceptor(lm))))
    den = k2.arc_sort(k2.intersect(topo, looped, treat_epsilons_specially=False).invert_())
    theirs, ours = [], []
    for sentence in mini.sentences[4:7]:
        fsa = transcript(mini, sentence)
        text = k2.arc_sort(k2.add_epsilon_self_loops(k2.arc_sort(acceptor(fsa))))
        num = k2.connect(k2.compose(den, text, treat_epsilons_specially=False))
        del num.aux_labels
        theirs.append(k2.arc_sort(num))
        ours.append(topology.ctc(with_lm(fsa, UnitLm(lm, outputs))))
    probs, lengths = log_probs(3, 110, outputs, FLAT, 4), torch.tensor([110, 90, 80])
    assert_equal(engine, ours, theirs, probs, lengths)
    value, _ = score(theirs, probs, lengths)
    whole, _ = score([ctc_graph(lm, outputs)] * 3, probs, lengths)
    assert (value <= whole).all()  # the objective is at most zero
