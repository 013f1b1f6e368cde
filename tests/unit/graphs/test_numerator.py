"""Numerator graphs: every sequence once, the denominator's weights, never more than the denominator."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa
from distill.graphs import topology
from distill.graphs.numerator import UnitLm, sequences_graph, transcript_graph
from distill.lfmmi import NativeEngine
from tests.support.lattices import with_lm

UNITS = 4


def bigram(seed: int = 0) -> Fsa:
    rng = np.random.default_rng(seed)
    rows = np.log(rng.dirichlet(np.ones(UNITS), size=UNITS))  # the last column is the end
    arcs = [(h, u, u, float(rows[h, u - 1])) for h in range(UNITS) for u in range(1, UNITS)]
    return Fsa.from_arcs(arcs, {h: float(rows[h, -1]) for h in range(UNITS)}, UNITS)


def language(graph: Fsa, longest: int) -> dict[tuple[int, ...], list[float]]:
    """All sequences of an acyclic graph with the weights of their paths."""
    found: dict[tuple[int, ...], list[float]] = {}
    stack = [(0, (), 0.0)]
    while stack:
        state, units, weight = stack.pop()
        if np.isfinite(graph.final[state]):
            found.setdefault(units, []).append(weight + graph.final[state])
        if len(units) < longest:
            for arc in np.flatnonzero(graph.src == state):
                following = (*units, int(graph.label[arc]))
                stack.append((int(graph.dst[arc]), following, weight + graph.weight[arc]))
    return found


def test_transcript_has_each_pronunciation_and_optional_silence_once() -> None:
    # ambiguous on purpose: (1)(2 3) and (1 2)(3) are the same sequence
    words = [[(1,), (1, 2)], [(2, 3), (3,)]]
    found = language(transcript_graph(words, silence=None), 9)
    assert set(found) == {(1, 2, 3), (1, 3), (1, 2, 2, 3)}
    assert all(len(paths) == 1 for paths in found.values())
    with_silence = language(transcript_graph([[(1,)], [(2,)]], silence=3), 9)
    expected = {tuple(u for u in (3 * a, 1, 3 * b, 2, 3 * c) if u) for a, b, c in itertools.product((0, 1), repeat=3)}
    assert set(with_silence) == expected


def test_nbest_doubles_count_once() -> None:
    found = language(sequences_graph([(1, 2), (1, 2), (1, 3), (1,)]), 5)
    assert found == {(1, 2): [0.0], (1, 3): [0.0], (1,): [0.0]}


def test_lm_weights_stand_on_the_paths() -> None:
    lm = UnitLm(bigram(), UNITS)
    sequences = [(1, 2, 2), (3,), (2, 1)]
    weighted = language(with_lm(sequences_graph(sequences), lm), 5)
    assert set(weighted) == set(sequences)
    for units, weights in weighted.items():
        assert weights == [pytest.approx(lm.score(units))]


def test_sequences_outside_the_lm_are_cut() -> None:
    lm = UnitLm(Fsa.from_arcs([(0, 1, 1, 0.0), (1, 2, 2, -1.0)], {2: 0.0}, 3), UNITS)
    graph = with_lm(sequences_graph([(1, 2), (1, 3), (2,)]), lm)
    assert language(graph, 4) == {(1, 2): [-1.0]}
    assert lm.score((1, 3)) == -np.inf
    empty = with_lm(sequences_graph([(3,)]), lm)
    assert empty.num_arcs == 0 and not np.isfinite(empty.final).any()


@pytest.mark.parametrize("kind", ["transcript", "nbest"])
@pytest.mark.parametrize("scale", [0.5, 10.0])
def test_objective_is_at_most_zero(kind: str, scale: float) -> None:
    fsa = bigram(1)
    lm = UnitLm(fsa, UNITS)
    graphs = {
        "transcript": transcript_graph([[(1,), (1, 2)], [(2, 1), (1,)]], silence=3),
        "nbest": sequences_graph([(1, 2), (2,), (1, 1)]),
    }
    numerator = topology.ctc(with_lm(graphs[kind], lm))
    generator = torch.Generator().manual_seed(0)
    log_probs = (scale * torch.randn(8, 12, UNITS, generator=generator)).double().log_softmax(-1)
    lengths = torch.arange(5, 13)
    engine = NativeEngine()
    num = engine.score(log_probs, lengths, [numerator] * 8)
    den = engine.score(log_probs, lengths, topology.ctc(fsa))
    assert num.valid.all() and (num.total <= den.total).all()


def test_two_arcs_of_one_label_are_refused() -> None:
    with pytest.raises(ValueError, match="deterministic"):
        UnitLm(Fsa.from_arcs([(0, 1, 1, 0.0), (0, 0, 1, 0.0)], {1: 0.0}, 2), UNITS)
