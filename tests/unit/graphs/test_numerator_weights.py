"""Numerators of lattices: their scores, scales and windows, weighted by the denominator's LM, path by path."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa
from distill.graphs.numerator import UnitLm, lattice_graph, nbest_graph, sequences_graph
from distill.graphs.numerator_weights import with_lm_all
from distill.graphs.topology import Topology, monophones
from distill.lfmmi import NativeEngine
from distill.lfmmi.frame_constraints import within_windows
from distill.search.determinise import SequenceGraph, determinised
from tests.support.lattices import OUTPUTS, Search, lattice_of, random_graph, random_log_probs, with_lm

ENGINE = NativeEngine()


def lm(seed: int, holes: bool = False, units: int = OUTPUTS) -> Fsa:
    """A bigram; with holes, in which some units never follow each other."""
    rng = np.random.default_rng(seed)
    rows = np.log(rng.dirichlet(np.ones(units), size=units))  # the last column is the end
    arcs = [
        (h, u, u, float(rows[h, u - 1])) for h in range(units) for u in range(1, units)
        if not holes or rng.random() < 0.8
    ]  # fmt: skip
    return Fsa.from_arcs(arcs, {h: float(rows[h, -1]) for h in range(units)}, units)


def heard(seed: int, frames: int = 5) -> SequenceGraph | None:
    topology = monophones("ctc", OUTPUTS)
    lattice = lattice_of(random_graph(seed), random_log_probs(seed, frames), Search(1e4, 6.0, 0))
    if not lattice.num_states:
        return None
    return determinised(lattice, topology.unit_table, 6.0)


HEARD = [found for seed in range(30) if (found := heard(seed)) is not None and found.num_arcs > 3][:12]


def language(graph: Fsa) -> dict[tuple[int, ...], float]:
    """Sequences of an acyclic graph and their weights; each must stand on one path."""
    found: dict[tuple[int, ...], float] = {}
    stack = [(0, (), 0.0)]
    while stack:
        state, units, weight = stack.pop()
        if np.isfinite(graph.final[state]):
            assert units not in found
            found[units] = weight + float(graph.final[state])
        for arc in np.flatnonzero(graph.src == state):
            stack.append((int(graph.dst[arc]), (*units, int(graph.label[arc])), weight + float(graph.weight[arc])))
    return found


def test_there_is_something_to_test() -> None:
    assert len(HEARD) == 12 and sum(len(list(each.ranked())) > 4 for each in HEARD) > 6


@pytest.mark.parametrize("number", range(12))
def test_lattice_graph_has_the_scaled_scores(number: int) -> None:
    sequences = HEARD[number]
    plain = language(lattice_graph(sequences, 4.0))
    assert set(plain.values()) == {0.0}
    expected = {units: score for units, score in sequences.ranked() if score >= -3.999}
    assert expected.keys() <= plain.keys()
    both = language(lattice_graph(sequences, 4.0, graph_scale=1.0, acoustic_scale=1.0))
    assert {u: both[u] for u in expected} == pytest.approx(expected, abs=1e-4)
    half = language(lattice_graph(sequences, 4.0, graph_scale=0.5))
    rest = language(lattice_graph(sequences, 4.0, acoustic_scale=0.25))
    for units, score in both.items():
        assert 2 * half[units] + 4 * rest[units] == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("holes", [False, True])
def test_weights_follow_the_formula(scale: float, holes: bool) -> None:
    fsa = lm(3, holes)
    look_up = UnitLm(fsa, OUTPUTS)
    graphs = [lattice_graph(each, 5.0, 0.7, 0.2) for each in HEARD]
    for graph, found in zip(graphs, with_lm_all(graphs, look_up, scale)):
        own = {units: weight for units, weight in language(graph).items() if look_up.score(units) > -np.inf}
        extra = {units: weight - scale * look_up.score(units) for units, weight in own.items()}
        top = max(extra.values(), default=0.0)
        expected = {units: look_up.score(units) + value - top for units, value in extra.items()}
        assert language(found) == pytest.approx(expected, abs=1e-9)


def test_many_at_once_are_each_alone() -> None:
    look_up = UnitLm(lm(4, holes=True), OUTPUTS)
    graphs = [lattice_graph(each, 5.0, 0.5, tolerance=1) for each in HEARD]
    for together, graph in zip(with_lm_all(graphs, look_up, 0.5), graphs):
        alone = with_lm(graph, look_up, 0.5)
        assert language(together) == language(alone)
        assert np.array_equal(together.window, alone.window)
    assert with_lm_all([], look_up) == []


def test_a_circle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        with_lm(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 0, 2, 0.0)], {1: 0.0}, 2), UnitLm(lm(0), OUTPUTS))


def topologies() -> list[Topology]:
    left = np.array([[-1, 0, 1, 2], [-1, 3, 1, 2], [-1, 0, 1, 4], [-1, 3, 1, 2]])
    return [monophones("ctc", OUTPUTS), monophones("two_pdf", OUTPUTS), Topology("two_pdf", left)]


@pytest.mark.parametrize("peaked", [0.5, 10.0])
@pytest.mark.parametrize("kind", ["one_best", "nbest", "lattice", "acoustic", "tolerance"])
@pytest.mark.parametrize("which", range(3))
def test_objective_is_at_most_zero(which: int, kind: str, peaked: float) -> None:
    topology, fsa = topologies()[which], lm(5)
    make = {
        "one_best": lambda each: nbest_graph(each, 1, 0.0),
        "nbest": lambda each: nbest_graph(each, 5, 4.0),
        "lattice": lambda each: lattice_graph(each, 4.0, 0.5),
        "acoustic": lambda each: lattice_graph(each, 4.0, 0.5, 0.3),
        "tolerance": lambda each: lattice_graph(each, 4.0, 0.5, tolerance=2),
    }[kind]
    scale = 0.5 if kind not in ("one_best", "nbest") else 0.0
    graphs = with_lm_all([make(each) for each in HEARD], UnitLm(fsa, OUTPUTS), scale)
    numerators = [topology.compose(graph) for graph in graphs]
    generator = torch.Generator().manual_seed(0)
    shape = (len(graphs), 9, topology.num_outputs)
    log_probs = (peaked * torch.randn(shape, generator=generator)).double().log_softmax(-1)
    lengths = torch.full((len(graphs),), 9)
    num = ENGINE.score(within_windows(log_probs, numerators), lengths, numerators)
    den = ENGINE.score(log_probs, lengths, topology.compose(fsa))
    assert num.valid.sum() > len(graphs) / 2
    assert (num.total <= den.total + 1e-9)[num.valid].all()


def test_nbest_are_the_first_of_the_lattice() -> None:
    sequences = max(HEARD, key=lambda each: len(list(each.ranked())))
    ranked = list(sequences.ranked())
    assert language(nbest_graph(sequences, 3, 100.0)).keys() == {units for units, _ in ranked[:3]}
    beam = -ranked[4][1] + 1e-6
    assert language(nbest_graph(sequences, 1000, beam)).keys() == {u for u, score in ranked if score >= -beam}
    assert language(nbest_graph(sequences, 1, 0.0)) == language(sequences_graph([ranked[0][0]]))


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_windows_contain_every_path_of_the_lattice(ratio: float) -> None:
    """A path that begins each unit where the lattice has it passes with a tolerance of 0, one far off does not."""
    symbols = np.array([1, 2], dtype=np.int32)
    zero = np.zeros(2, dtype=np.float32)
    ends = np.array([-np.inf, -np.inf, 0], dtype=np.float32)
    frames = np.array([0, 2, 8], dtype=np.int32)
    sequences = SequenceGraph(
        np.array([0, 1]), np.array([1, 2]), symbols, zero, zero, ends, np.zeros(3, dtype=np.float32),
        frames, frames + 1, (0.0, 0.0), 1.0,
    )  # fmt: skip
    graph = lattice_graph(sequences, 1.0, tolerance=0, frame_ratio=ratio)
    numerator = monophones("ctc", 3).compose(graph)
    log_probs = torch.zeros(1, 12, 3)
    allowed = within_windows(log_probs, [numerator])[0] == 0
    first, last = np.flatnonzero(allowed[:, 1])[[0, -1]]
    assert (first, last) == (
        int(2 * ratio),
        int(np.ceil(9 * ratio)) - 1,
    )
    assert np.flatnonzero(allowed[:, 2])[0] == int(8 * ratio) and allowed[-1, 2]
    wider = within_windows(log_probs, [monophones("ctc", 3).compose(lattice_graph(sequences, 1.0, 0, 0, 1, ratio))])[0]
    assert np.flatnonzero(wider[:, 1] == 0)[0] == max(0, int(2 * ratio) - 1)
