"""Totals and gradients of every engine against the real k2's, on graphs that k2 itself composed."""

from __future__ import annotations

import k2
import numpy as np
import pytest
import torch
from conftest import Mini, spoken
from reference import acceptor, frames_graph, log_probs, rounded, score
from torch import Tensor

from distill.fsa.graph import Fsa, Hmm
from distill.fsa.lattice import DecodingGraph, Search
from distill.graphs.biphones import count_pairs, tied_left_biphones
from distill.graphs.denominator import Pronouncer
from distill.graphs.numerator import UnitLm, lattice_graph, sequences_graph, transcript_graph
from distill.graphs.topology import Topology, monophones
from distill.lfmmi import Engine, build_engine
from distill.losses.mmi import LfMmi
from distill.search.determinise import determinised
from tests.support.k2_readers import hmm_from_k2_dict
from tests.support.lattices import with_lm

UNITS = 5  # blank and four units
ENGINES = ("native", "torch", "k2")
FLAT, PEAKY = 1.0, 20.0


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    try:
        return build_engine(request.param)
    except ValueError as error:
        pytest.skip(str(error))


def assert_equal(engine: Engine, graph: Hmm | list[Hmm], theirs: list, probs: Tensor, lengths: Tensor) -> None:
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
    fsa, lengths, topology = random_fsa(seed), torch.tensor([17, 1, 30, 6]), monophones("ctc", UNITS)
    probs = log_probs(len(lengths), 30, UNITS, peak, seed)
    assert_equal(engine, topology.compose(fsa), [frames_graph(fsa, topology)] * 4, probs, lengths)
    others = [random_fsa(seed + 100 * k) for k in range(4)]
    theirs = [frames_graph(each, topology) for each in others]
    assert_equal(engine, [topology.compose(each) for each in others], theirs, probs, lengths)


@pytest.mark.parametrize("seed", range(20))
def test_graphs_that_k2_composed(engine: Engine, seed: int) -> None:
    """A graph over frames read from k2's dict scores as it does in k2."""
    fsa, lengths = random_fsa(seed), torch.tensor([17, 1, 30, 6])
    theirs = frames_graph(fsa, monophones("ctc_compact" if seed % 2 else "ctc", UNITS))
    hmm = hmm_from_k2_dict(theirs.as_dict())
    assert_equal(engine, hmm, [theirs] * 4, log_probs(4, 30, UNITS, FLAT, seed), lengths)


def topologies(mini: Mini) -> dict[str, Topology]:
    """The topologies of the recipe: for biphones tied as in stage 2, by counts of the text."""
    units = len(mini.lang.tokens)
    counts = count_pairs(Pronouncer(mini.lang)(mini.sentences), units)
    biphones = tied_left_biphones("two_pdf", counts, 100, 20)
    assert units < biphones.num_classes < units * (units - 1)  # some pairs share, some do not
    kinds = {kind: monophones(kind, units) for kind in ("ctc", "ctc_compact", "two_pdf")}
    return kinds | {"biphones": biphones}


@pytest.mark.parametrize("peak", [FLAT, PEAKY])
@pytest.mark.parametrize("kind", ["ctc", "ctc_compact", "two_pdf", "biphones"])
@pytest.mark.parametrize("order", [2, 3])
def test_denominators(engine: Engine, mini: Mini, order: int, kind: str, peak: float) -> None:
    lm, topology = rounded(mini.bigram if order == 2 else mini.trigram), topologies(mini)[kind]
    hmm, theirs, lengths = topology.compose(lm), frames_graph(lm, topology), torch.tensor([9, 30, 17])
    if kind == "ctc":  # k2 has one start and one end, its start is our first blank
        assert theirs.shape[0] == hmm.num_states + 2 - 1
    assert_equal(engine, hmm, [theirs] * 3, log_probs(3, 30, topology.num_outputs, peak, order), lengths)


def transcript(mini: Mini, sentence: str) -> Fsa:
    words = sentence.split()
    return transcript_graph([mini.lang.pronunciation_ids(word, "test") for word in words], mini.lang.silence)


@pytest.mark.parametrize("peak", [FLAT, PEAKY])
@pytest.mark.parametrize("kind", ["ctc", "biphones"])
@pytest.mark.parametrize("order", [2, 3])
def test_numerators_of_transcripts(engine: Engine, mini: Mini, order: int, kind: str, peak: float) -> None:
    lm = UnitLm(rounded(mini.bigram if order == 2 else mini.trigram), len(mini.lang.tokens))
    graphs = [rounded(with_lm(transcript(mini, sentence), lm)) for sentence in mini.sentences[:4]]
    topology, lengths = topologies(mini)[kind], torch.tensor([100, 60, 120, 5])
    theirs = [frames_graph(graph, topology) for graph in graphs]
    probs = log_probs(4, 120, topology.num_outputs, peak, seed=order)
    assert_equal(engine, [topology.compose(graph) for graph in graphs], theirs, probs, lengths)


def test_numerators_of_alternatives(engine: Engine, mini: Mini) -> None:
    lm, topology = UnitLm(rounded(mini.bigram), len(mini.lang.tokens)), mini.lang.topology
    rng, lengths = np.random.default_rng(0), torch.tensor([50, 33])
    sets = [[tuple(rng.integers(1, topology.num_units, size=n)) for n in rng.integers(3, 20, size=10)] for _ in lengths]
    graphs = [rounded(with_lm(sequences_graph(each), lm)) for each in sets]
    theirs = [frames_graph(graph, topology) for graph in graphs]
    probs = log_probs(2, 50, topology.num_outputs, PEAKY, 3)
    assert_equal(engine, [topology.compose(graph) for graph in graphs], theirs, probs, lengths)


@pytest.fixture(scope="module")
def heard(mini: Mini, hlg: DecodingGraph) -> list[Fsa]:
    """Lattice numerators of noisy utterances: their own scores in place of half the denominator LM's."""
    probs, lengths = spoken(mini, mini.sentences[100:104])
    lattices = build_engine("native").lattice(0.5 * probs, lengths, hlg, Search(lattice_beam=8.0))
    hearing = mini.lang.topology.unit_table
    lm = UnitLm(mini.bigram, len(mini.lang.tokens))
    graphs = [lattice_graph(determinised(each, hearing, 8.0), 4.0, 0.5, 0.1) for each in lattices]
    assert min(graph.num_arcs for graph in graphs) > 10
    return [rounded(with_lm(graph, lm, 0.5)) for graph in graphs]


@pytest.mark.parametrize("peak", [FLAT, PEAKY])
@pytest.mark.parametrize("kind", ["ctc", "biphones"])
def test_numerators_of_lattices(engine: Engine, mini: Mini, heard: list[Fsa], kind: str, peak: float) -> None:
    topology, lengths = topologies(mini)[kind], torch.tensor([110, 80, 120, 95])
    theirs = [frames_graph(graph, topology) for graph in heard]
    probs = log_probs(4, 120, topology.num_outputs, peak, seed=5)
    assert_equal(engine, [topology.compose(graph) for graph in heard], theirs, probs, lengths)


def test_outputs_that_may_not_stand(engine: Engine, mini: Mini) -> None:
    """Time windows forbid outputs by -inf (`distill.lfmmi.frame_constraints`)."""
    topology, lengths = mini.lang.topology, torch.tensor([40, 33])
    probs = log_probs(2, 40, topology.num_outputs, FLAT, 6)
    generator = torch.Generator().manual_seed(0)
    probs[torch.rand(probs.shape, generator=generator) < 0.3] = -torch.inf
    lm = rounded(mini.bigram)
    assert_equal(engine, topology.compose(lm), [frames_graph(lm, topology)] * 2, probs, lengths)


def test_numerators_are_what_k2_composes(engine: Engine, mini: Mini) -> None:
    """icefall's numerator: the denominator's graph composed with the transcript, all by k2."""
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
        ours.append(mini.lang.topology.compose(with_lm(fsa, UnitLm(lm, outputs))))
    probs, lengths = log_probs(3, 110, outputs, FLAT, 4), torch.tensor([110, 90, 80])
    assert_equal(engine, ours, theirs, probs, lengths)
    value, _ = score(theirs, probs, lengths)
    whole, _ = score([frames_graph(lm, mini.lang.topology)] * 3, probs, lengths)
    assert (value <= whole).all()  # the objective is at most zero


def test_loss_and_its_gradient(engine: Engine, mini: Mini, heard: list[Fsa]) -> None:
    """LF-MMI with lattice numerators, an empty utterance and one too short for its numerator among them."""
    topology, lengths = mini.lang.topology, torch.tensor([110, 0, 120, 5])
    lm = rounded(mini.bigram)
    leaf = log_probs(4, 120, topology.num_outputs, 3.0, 7).float().requires_grad_()
    found = LfMmi(engine, topology.compose(lm)).loss(leaf, lengths, [topology.compose(graph) for graph in heard])
    found.terms["mmi"].total.backward()

    logits, used = leaf.detach().clone().requires_grad_(), torch.tensor([0, 2])
    probs = logits.log_softmax(-1)
    pairs = [[frames_graph(lm, topology)] * 2, [frames_graph(heard[row], topology) for row in used]]
    (den, den_slope), (num, num_slope) = (score(each, probs.detach()[used].double(), lengths[used]) for each in pairs)
    probs[used].backward((den_slope - num_slope).float())
    assert (int(found.dropped.sum()), int(found.terms["mmi"].count)) == (2, 230)
    assert float(found.terms["mmi"].total) == pytest.approx(float((den - num).sum()), rel=1e-6)
    assert logits.grad is not None and leaf.grad is not None
    assert (leaf.grad - logits.grad).abs().max() <= 3e-5  # the loss asks for float32
