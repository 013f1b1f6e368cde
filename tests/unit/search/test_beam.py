"""Lattice search against all paths of small graphs, and against kaldi-decoder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import kaldi_decoder
import kaldifst
import numpy as np
import pytest
import torch

from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.lfmmi import NativeEngine
from distill.search import beam as search
from distill.search.determinise import best_path
from tests.support.lattices import (
    OUTPUTS,
    Path,
    graph_paths,
    lattice_of,
    lattice_paths,
    random_graph,
    random_log_probs,
    same_paths,
)

SEEDS = range(25)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_wide_search_finds_every_path_with_its_scores(seed: int) -> None:
    graph, log_probs = random_graph(seed), random_log_probs(seed, 5)
    expected = list(graph_paths(graph, log_probs))
    lattice = lattice_of(graph, log_probs)
    if expected:
        assert lattice.complete
        assert same_paths(list(lattice_paths(lattice)), expected)
        assert (lattice.src < lattice.dst).all() and (np.diff(lattice.src) >= 0).all()
    else:
        assert not lattice.complete


def test_most_of_these_graphs_have_paths() -> None:
    counts = [len(list(graph_paths(random_graph(seed), random_log_probs(seed, 5)))) for seed in SEEDS]
    assert sum(count > 1 for count in counts) > len(SEEDS) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_lattice_beam_keeps_what_lies_within_it(seed: int) -> None:
    graph, log_probs = random_graph(seed), random_log_probs(seed, 6)
    expected = sorted(graph_paths(graph, log_probs), key=lambda path: -path.score)
    found = list(lattice_paths(lattice_of(graph, log_probs, Search(1e4, 2.0, 0))))
    if not expected:
        return
    near = [path for path in expected if path.score > expected[0].score - 2.0 + 1e-4]
    kept = {(p.labels, p.words, round(p.score, 2)) for p in found}
    assert {(p.labels, p.words, round(p.score, 2)) for p in near} <= kept
    arcs = [pair for path in found for pair in enumerate(path.labels)]
    within = {pair for path in expected for pair in enumerate(path.labels) if path.score > expected[0].score - 2.0001}
    assert set(arcs) <= within  # no arc but those of paths within the beam


def peaked(seed: int, frames: int, outputs: int) -> np.ndarray:
    """As models are: mostly one output for a few frames, sometimes in doubt."""
    rng = np.random.default_rng(seed)
    heard = np.repeat(rng.integers(0, outputs, frames), rng.integers(1, 5, frames))[:frames]
    logits = rng.normal(size=(frames, outputs))
    logits[np.arange(frames), heard] += rng.choice([0.5, 3.0, 8.0], frames)
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def test_best_path_is_kaldi_decoders() -> None:
    graph = random_graph(7, states=300, arcs=1500)
    options = kaldi_decoder.FasterDecoderOptions(beam=30.0, max_active=10**6)
    fst = graph.to_openfst()  # the decoder does not own it
    decoder = kaldi_decoder.FasterDecoder(fst, options)
    for seed in range(10):
        log_probs = peaked(seed, 60, OUTPUTS)
        decoder.decode(kaldi_decoder.DecodableCtc(log_probs))
        _, path = decoder.get_best_path(use_final_probs=decoder.reached_final())
        _, labels, words, cost = kaldifst.get_linear_symbol_sequence(path)
        lattice = lattice_of(graph, log_probs, Search(30.0, 1.0, 10**6))
        arcs, _ = best_path(lattice)
        assert lattice.complete == decoder.reached_final()
        assert [x + 1 for x in lattice.label[arcs].tolist() if x >= 0] == labels
        assert [x for x in lattice.word[arcs].tolist() if x] == words
        assert lattice.acoustic[arcs].sum() == pytest.approx(-cost.value2, abs=2e-3)
        ending = lattice.graph[arcs].sum() + lattice.final[lattice.dst[arcs[-1]]]
        assert ending == pytest.approx(-cost.value1, abs=2e-3)


def test_max_active_narrows_the_search() -> None:
    graph, log_probs = random_graph(7, states=300, arcs=1500), peaked(0, 60, OUTPUTS)
    sizes = [lattice_of(graph, log_probs, Search(15.0, 6.0, n)).num_arcs for n in (5, 50, 0)]
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_a_path_that_cannot_end_is_kept_as_a_part() -> None:
    chain = DecodingGraph(
        np.array([0, 1, 2, 2]), np.array([1, 2], dtype=np.int32), np.array([0, 1], dtype=np.int32),
        np.array([5, 0], dtype=np.int32), np.array([-0.5, 0.0], dtype=np.float32),
        np.array([-np.inf, -np.inf, 0.0], dtype=np.float32),
    )  # fmt: skip
    log_probs = random_log_probs(0, 1)
    lattice = lattice_of(chain, log_probs)
    assert not lattice.complete
    (path,) = lattice_paths(lattice)
    assert path == Path((0,), (5,), float(log_probs[0, 0]), -0.5)
    assert lattice_of(chain, random_log_probs(0, 3)).num_states == 0  # the graph is at an end before the frames are


def test_batches_threads_and_lengths_change_nothing() -> None:
    graph, lengths = random_graph(7, states=50, arcs=200), [7, 0, 12, 3]
    pieces = [peaked(seed, frames, OUTPUTS) for seed, frames in enumerate(lengths)]
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(each) for each in pieces], batch_first=True)
    found = NativeEngine().lattice(padded, torch.tensor(lengths), graph, Search())
    assert found[1].num_states == 0
    for lattice, piece in zip(found, pieces):
        alone = lattice_of(graph, piece, Search())
        assert all(np.array_equal(getattr(lattice, name), getattr(alone, name)) for name in ("src", "dst", "graph"))


def test_wrong_input_is_refused() -> None:
    graph = random_graph(1)
    with pytest.raises(ValueError, match="outputs"):
        lattice_of(graph, random_log_probs(0, 3, int(graph.label.max())))
    with pytest.raises(ValueError, match="NaN"):
        lattice_of(graph, np.full((3, OUTPUTS), np.nan, dtype=np.float32))
    circle = DecodingGraph(
        np.array([0, 1, 3]), np.array([1, 0, 1], dtype=np.int32), np.array([-1, -1, 0], dtype=np.int32),
        np.zeros(3, dtype=np.int32), np.full(3, -0.1, dtype=np.float32), np.zeros(2, dtype=np.float32),
    )  # fmt: skip
    with pytest.raises(ValueError, match="cycle"):
        lattice_of(circle, random_log_probs(0, 2, 1))


@pytest.mark.parametrize("seed", range(8))
def test_a_search_as_frames_come_finds_the_same(seed: int) -> None:
    graph, log_probs = random_graph(7, states=300, arcs=1500), peaked(seed, 90, OUTPUTS)
    limits = Search(15.0, 4.0, 200)
    ongoing, rng, at = search.OngoingSearch(graph, limits), np.random.default_rng(seed), 0
    while at < len(log_probs):
        size = int(rng.choice([1, 2, 7, 30]))
        assert ongoing.feed(log_probs[at : at + size])
        at = min(at + size, len(log_probs))
        sofar = ongoing.lattice(ended=False)  # asking changes nothing
        whole = lattice_of(ending_anywhere(graph), log_probs[:at], limits)
        assert best_score(sofar) == pytest.approx(best_score(whole), abs=1e-3)
    found, expected = ongoing.lattice(ended=True), lattice_of(graph, log_probs, limits)
    assert found.complete == expected.complete
    for name in ("src", "dst", "label", "word", "graph", "acoustic", "final", "frame"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def best_score(lattice: Lattice) -> float:
    path, _ = best_path(lattice)
    return float(lattice.acoustic[path].sum() + lattice.graph[path].sum() + lattice.final[lattice.dst[path[-1]]])


def ending_anywhere(graph: DecodingGraph) -> DecodingGraph:
    return replace(graph, final=np.zeros_like(graph.final))


def test_searches_take_turns_in_any_thread() -> None:
    graph = random_graph(7, states=300, arcs=1500)
    pieces = [peaked(seed, 60, OUTPUTS) for seed in range(6)]
    searches = [search.OngoingSearch(graph, Search()) for _ in pieces]
    for at in range(0, 60, 15):
        with ThreadPoolExecutor(3) as pool:
            assert all(pool.map(lambda pair, at=at: pair[0].feed(pair[1][at : at + 15]), zip(searches, pieces)))
    for ongoing, piece in zip(searches, pieces):
        found, expected = ongoing.lattice(ended=True), lattice_of(graph, piece, Search())
        np.testing.assert_array_equal(found.graph, expected.graph)


def test_a_search_that_cannot_go_on_is_an_error() -> None:
    chain = DecodingGraph(
        np.array([0, 1, 1]), np.array([1], dtype=np.int32), np.array([0], dtype=np.int32),
        np.array([5], dtype=np.int32), np.zeros(1, dtype=np.float32), np.array([-np.inf, 0.0], dtype=np.float32),
    )  # fmt: skip
    ongoing = search.OngoingSearch(chain, Search())
    assert ongoing.lattice(ended=True).num_states == 0
    assert ongoing.feed(random_log_probs(0, 1)) and ongoing.lattice(ended=True).complete
    assert not ongoing.feed(random_log_probs(1, 1)) and ongoing.lattice(ended=True).num_states == 0
    with pytest.raises(ValueError, match="outputs"):
        search.OngoingSearch(random_graph(1), Search()).feed(random_log_probs(0, 3, 1))
