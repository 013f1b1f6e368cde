"""The tables that the Triton kernels read, against plain matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa, Hmm
from distill.graphs import topology
from distill.lfmmi import triton_tables
from distill.lfmmi.factored import Factored, Matrix, factor
from distill.lfmmi.triton_tables import WIDTH, Gathers, cut_runs, lay_out, pack

CPU = torch.device("cpu")


def random_matrix(rows: int, columns: int, seed: int, crowded: int = 0) -> Matrix:
    """Entries here and there; `crowded` rows have one in every column."""
    rng = np.random.default_rng(seed)
    full = rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.1)
    full[:crowded] = rng.random((crowded, columns)) + 0.1
    row, column = full.nonzero()
    return Matrix(rows, columns, row, column, full[row, column])


def dense(matrix: Matrix) -> np.ndarray:
    full = np.zeros((matrix.rows, matrix.columns))
    np.add.at(full, (matrix.row, matrix.column), matrix.weight)
    return full


def times(laid: Gathers, x: np.ndarray, padded: int) -> np.ndarray:
    """What `triton_kernels._times` computes, in numpy."""
    y = (laid.thin_weight * x[laid.thin_source]).sum(1)
    sums = (laid.weight * x[laid.source]).reshape(-1, WIDTH).sum(1)
    scratch = np.zeros(2 * padded)
    for piece, (level, target) in enumerate(zip(laid.level.flat, laid.target.flat)):
        if target >= 0:
            assert piece % (1 << level) == 0 and scratch[target] == 0
            scratch[target] = sums[piece : piece + (1 << level)].sum()
    return y + scratch[:padded] + scratch[padded:]


@pytest.mark.parametrize("shape", [(1, 1, 0), (5, 40, 1), (100, 30, 0), (60, 200, 3)])
@pytest.mark.parametrize("chunk", [256, 1024])
def test_gathers_multiply_as_the_matrix_does(shape: tuple[int, int, int], chunk: int) -> None:
    rows, columns, crowded = shape
    matrix = random_matrix(rows, columns, seed=rows, crowded=crowded)
    x = np.random.default_rng(1).random(256)
    padded = 128
    y = times(lay_out(matrix, padded, chunk), x, padded)
    np.testing.assert_allclose(y[:rows], dense(matrix) @ x[:columns], rtol=1e-12)
    assert not y[rows:].any()


def test_banks_are_shared_less_than_by_chance() -> None:
    matrix = random_matrix(64, 512, seed=3, crowded=32)
    source = lay_out(matrix, 64, 8192).source.reshape(-1, 32, WIDTH)
    rounds = [np.bincount(np.unique(turn) % 32).max() for warp in source for turn in warp.T]
    by_chance = np.random.default_rng(0).permuted(source.reshape(-1, WIDTH), axis=1).reshape(source.shape)
    assert np.mean(rounds) < np.mean([np.bincount(np.unique(t) % 32).max() for w in by_chance for t in w.T])


def test_a_row_longer_than_a_chunk_is_named() -> None:
    with pytest.raises(ValueError, match="a state has 64 arcs, and a chunk takes 32"):
        lay_out(random_matrix(2, 64, seed=0, crowded=2), 16, 32)


def graph_of(states: int, seed: int) -> Hmm:
    rng = np.random.default_rng(seed)
    arcs = [(s, d, u, float(rng.normal())) for s in range(states) for d in range(states) for u in (1, 2, 3)]
    kept = [arc for arc in arcs if rng.random() < 0.6]
    return topology.ctc(Fsa.from_arcs(kept, {states - 1: 0.0}, states))


def transitions(graph: Hmm, order: np.ndarray) -> np.ndarray:
    full = np.zeros((graph.num_states, graph.num_states))
    np.add.at(full, (graph.dst.numpy(), graph.src.numpy()), graph.weight.exp().numpy())
    return full[np.ix_(order, order)]


def product(parts: Factored) -> np.ndarray:
    return np.diag(parts.own) + dense(parts.outward) @ dense(parts.inward)


@pytest.mark.parametrize("seed", range(4))
def test_hubs_keep_the_transitions(seed: int) -> None:
    graph = graph_of(states=3 + seed, seed=seed)
    order = np.random.default_rng(seed).permutation(graph.num_states)
    parts = factor(graph, order)
    np.testing.assert_allclose(product(parts), transitions(graph, order), rtol=1e-12)


def test_hubs_halve_the_arcs_of_a_bigram() -> None:
    units = range(1, 20)
    arcs = [(h, u, u, -0.01 * h * u) for h in (0, *units) for u in units]
    graph = topology.ctc(Fsa.from_arcs(arcs, dict.fromkeys(units, 0.0), 20))
    parts = factor(graph, np.arange(graph.num_states))
    np.testing.assert_allclose(product(parts), transitions(graph, np.arange(graph.num_states)), rtol=1e-12)
    assert len(parts.outward.row) < 0.55 * len(graph.src)


def test_graphs_without_hubs_or_arcs_are_factored_too() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    for states in (0, 3):
        ends = torch.zeros(states, dtype=torch.float64)
        graph = Hmm(torch.zeros(states, dtype=torch.int64), ends, ends, none, none, ends[:0])
        assert not product(factor(graph, np.arange(states))).any()


def test_runs_cover_every_state_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_tables, "RUN", 3)
    label, utterance = np.array([0, 0, 0, 0, 2, 5, 5, 5, 1]), np.array([0, 0, 0, 0, 0, 0, 0, 0, 2])
    start, size, output, last, bounds = cut_runs(label, utterance, batch=3)
    assert list(zip(start, size, output, last)) == [
        (0, 3, 0, 0),
        (3, 1, 0, 1),
        (4, 1, 2, 1),
        (5, 3, 5, 1),
        (0, 1, 1, 1),
    ]
    assert bounds.tolist() == [[0, 4], [4, 4], [4, 5]]


def test_packed_graphs_keep_their_arcs() -> None:
    graphs = [graph_of(3, 1), graph_of(1, 2), graph_of(4, 3)]
    packed = pack(graphs, CPU, torch.float64)
    for i, graph in enumerate(graphs):
        first, end = packed.state_from[i : i + 2].tolist()
        order = np.argsort(graph.label.numpy(), kind="stable")
        assert packed.label[first:end].tolist() == graph.label.numpy()[order].tolist()
        for direction, expected in ((0, transitions(graph, order)), (1, transitions(graph, order).T)):
            found = np.zeros_like(expected)
            arc_from = packed.arc_from[direction, first : end + 1].tolist()
            for state in range(end - first):
                arcs = slice(arc_from[state], arc_from[state + 1])
                weights = packed.weight[direction, arcs].exp().numpy()
                np.add.at(found[state], packed.other[direction, arcs].numpy(), weights)
            np.testing.assert_allclose(found, expected)
            degrees = np.diff(arc_from)
            assert packed.most[direction, int(packed.block_from[i])] == degrees.max(initial=0)
