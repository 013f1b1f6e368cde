"""The k2 engine as losses and decoders use it: pieces, beams, limits, wrong input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Mini, spoken
from reference import log_probs

from distill.decode.denominator_path import DenominatorPath
from distill.decode.graph_decoder import GraphDecoder
from distill.fsa.graph import Fsa
from distill.fsa.lattice import Search
from distill.graphs.biphones import count_pairs, tied_left_biphones
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.denominator import Pronouncer
from distill.graphs.topology import Topology, monophones
from distill.lfmmi import build_engine
from distill.lfmmi.k2 import K2Engine


def tied(mini: Mini) -> Topology:
    """Pairs share outputs, and rare units share them with each other."""
    counts = count_pairs(Pronouncer(mini.lang)(mini.sentences), len(mini.lang.tokens))
    return tied_left_biphones("two_pdf", counts, 100, 2000)


def test_pieces_make_no_difference(mini: Mini) -> None:
    topology, lengths = mini.lang.topology, torch.tensor([20, 7, 0, 13])
    probs, graph = log_probs(4, 20, topology.num_outputs, 3.0, 0), topology.compose(mini.bigram)
    found = []
    for at_once in (1, 10_000, 1 << 25):
        leaf = probs.clone().requires_grad_()
        score = K2Engine(arcs_at_once=at_once).score(leaf, lengths, graph)
        found.append((score.total.detach(), *torch.autograd.grad(score.total.sum(), leaf)))
        assert score.valid.tolist() == [True, True, False, True]
    for total, slope in found[1:]:
        torch.testing.assert_close(total, found[0][0])
        torch.testing.assert_close(slope, found[0][1])


def test_a_beam_leaves_paths_out(mini: Mini) -> None:
    topology, lengths = mini.lang.topology, torch.tensor([40])
    probs, graph = log_probs(1, 40, topology.num_outputs, 1.0, 0), topology.compose(mini.bigram)
    narrow, exact = (K2Engine(beam).score(probs, lengths, graph).total for beam in (2.0, 1e30))
    assert narrow < exact - 0.1


def test_graph_without_an_end(mini: Mini) -> None:
    hmm = monophones("ctc", 4).compose(Fsa.from_arcs([(0, 1, 2, 0.0)], {}, 2))
    leaf = torch.zeros(1, 5, 4, requires_grad=True)
    score = K2Engine().score(leaf, torch.tensor([5]), [hmm])
    assert not score.valid.any() and score.total.tolist() == [0.0]
    score.total.sum().backward()
    assert leaf.grad is not None and not leaf.grad.any()


def test_more_states_than_k2_numbers() -> None:
    states = 66_000
    arcs = [(s, s + 1, 1 + s % 2, 0.0) for s in range(states // 2)]
    hmm = monophones("ctc", 3).compose(Fsa.from_arcs(arcs, {states // 2: 0.0}, states // 2 + 1))
    with pytest.raises(ValueError, match=r"graph of 66001 states: k2's exact intersection takes at most 65533"):
        K2Engine().score(torch.zeros(1, 5, 3), torch.tensor([5]), [hmm])


@pytest.mark.parametrize("beam", [{"output_beam": 0.0}, {"arcs_at_once": 0}])
def test_wrong_settings(beam: dict) -> None:
    with pytest.raises(ValueError, match="output_beam and arcs_at_once must be positive"):
        K2Engine(**beam)


def test_leaky_hmm_is_refused() -> None:
    with pytest.raises(ValueError, match="k2 has no leaky HMM"):
        build_engine("k2", leaky=0.1)


def test_wrong_input(mini: Mini) -> None:
    topology = mini.lang.topology
    engine, graph = build_engine("k2"), topology.compose(mini.bigram)
    with pytest.raises(ValueError, match="NaN"):
        engine.score(torch.full((1, 5, topology.num_outputs), torch.nan), torch.tensor([5]), graph)
    with pytest.raises(ValueError, match="lengths go up to 6"):
        engine.score(torch.zeros(1, 5, topology.num_outputs), torch.tensor([6]), graph)
    with pytest.raises(ValueError, match=r"uses output \d+"):
        engine.score(torch.zeros(1, 5, 3), torch.tensor([5]), graph)


def test_the_denominators_path(mini: Mini) -> None:
    topology, probs = mini.lang.topology, spoken(mini, mini.sentences[100:103])
    frames = [each[:length].numpy() for each, length in zip(*probs)]
    graph = topology.compose(mini.bigram)
    theirs, ours = (DenominatorPath(build_engine(name), graph).units(topology, frames) for name in ("k2", "native"))
    assert theirs == ours and min(map(len, ours)) >= 5


def test_decoding_with_tied_biphones(mini: Mini) -> None:
    """Units that share an output have labels of their own in HLG, so both engines tell them apart."""
    lang = replace(mini.lang, topology=tied(mini))
    assert len(lang.topology.output_columns) > lang.topology.num_outputs
    build_hlg(lang, mini.arpa).write(str(mini.folder / "tied.fst"))
    rng = np.random.default_rng(0)
    frames = [rng.normal(size=(40, lang.topology.num_outputs)).astype(np.float32) for _ in range(2)]
    search = Search(beam=30.0, lattice_beam=3.0, max_active=100_000)
    found = []
    for name in ("native", "k2"):
        decoder = GraphDecoder(build_engine(name), mini.folder / "tied.fst", lang, search, acoustic_scale=2.0)
        found.append([decoder.best(lattice) for lattice in decoder.lattices(frames)])
    for one, other in zip(*found):
        assert one.complete and other.complete
        assert (other.words, other.units) == (one.words, one.units) and one.words
        assert other.score == pytest.approx(one.score, rel=1e-5)
