"""Determinised lattices and posteriors of the best path, against all paths one by one."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import fields

import numpy as np
import pytest

from distill.fsa.lattice import Lattice, Search
from distill.graphs.topology import Topology, monophones
from distill.search.determinise import SequenceGraph, best_path, determinised, words_of
from tests.support import determinise as reference
from tests.support.lattices import OUTPUTS, WIDE, Path, lattice_of, lattice_paths, random_graph, random_log_probs

SEEDS = [seed for seed in range(24) if list(lattice_paths(lattice_of(random_graph(seed), random_log_probs(seed, 5))))]
KINDS = {"ctc": monophones("ctc", OUTPUTS), "two_pdf": monophones("two_pdf", OUTPUTS // 2 + 1)}
RESOLUTION = 6e-3  # scores within 1 / 1024 count as equal, once in each of at most six symbols


def made(seed: int, search: Search = WIDE) -> Lattice:
    return lattice_of(random_graph(seed), random_log_probs(seed, 5), search)


def expected(paths: list[Path], topology: Topology | None) -> dict[tuple[int, ...], float]:
    """The best score of each sequence."""
    best: dict[tuple[int, ...], float] = defaultdict(lambda: -math.inf)
    for path in paths:
        said = path.words if topology is None else tuple(topology.units(path.labels))
        best[said] = max(best[said], path.score)
    return best


def sequences(graph: SequenceGraph) -> list[tuple[tuple[int, ...], float]]:
    """Every path of a determinised lattice and its score, not ordered."""
    found, stack = [], [(0, (), 0.0)]
    while stack:
        state, said, score = stack.pop()
        if np.isfinite(graph.final_graph[state]):
            found.append((said, score + float(graph.final_graph[state] + graph.final_acoustic[state])))
        for a in np.flatnonzero(graph.src == state):
            following = score + float(graph.graph[a]) + float(graph.acoustic[a])
            stack.append((int(graph.dst[a]), (*said, int(graph.symbol[a])), following))
    return found


@pytest.mark.parametrize("kind", ["ctc", "two_pdf", "words"])
@pytest.mark.parametrize("seed", SEEDS)
def test_each_sequence_once_with_its_best_score(seed: int, kind: str) -> None:
    lattice, topology = made(seed), KINDS.get(kind)
    scores = expected(list(lattice_paths(lattice)), topology)
    top = max(scores.values())
    graph = determinised(lattice, None if topology is None else topology.unit_table, beam=1e3)
    assert sum(graph.best) == pytest.approx(top, abs=1e-3)
    found = sequences(graph)
    assert len(found) == len(scores)
    for said, score in found:
        assert score == pytest.approx(scores[said] - top, abs=RESOLUTION)
    for state in range(graph.num_states):
        symbols = graph.symbol[graph.src == state].tolist()
        assert len(symbols) == len(set(symbols)) and 0 not in symbols
    assert (graph.src < graph.dst).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_scores_stay_apart(seed: int) -> None:
    lattice = made(seed)
    best = max(lattice_paths(lattice), key=lambda path: path.score)
    graph = determinised(lattice, None, beam=0.01)
    assert graph.best == pytest.approx((best.graph, best.acoustic), abs=1e-3)
    said, _ = next(graph.ranked())
    assert said == best.words


@pytest.mark.parametrize("seed", SEEDS)
def test_beam_and_order(seed: int) -> None:
    lattice, topology = made(seed), KINDS["ctc"]
    scores = expected(list(lattice_paths(lattice)), topology)
    top = max(scores.values())
    graph = determinised(lattice, topology.unit_table, beam=3.0)
    ranked = list(graph.ranked())
    assert {said for said, score in ranked if score >= -2.99} == {s for s, x in scores.items() if x >= top - 2.99}
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)


def test_sequences_beyond_the_beam_are_not_looked_for() -> None:
    """Of 40 alternatives that cost 4 each: 2 to the power of 40 sequences, of which 41 are near."""
    n = 40
    src = np.repeat(np.arange(n, dtype=np.int32), 2)
    costs = np.tile(np.array([0.0, -4.0], np.float32), n)
    final = np.where(np.arange(n + 1) == n, 0.0, -np.inf).astype(np.float32)
    frames = np.arange(n + 1, dtype=np.int32)
    graph = SequenceGraph(src, src + 1, np.tile(np.array([1, 2], np.int32), n), costs, 0 * costs, final,
                          np.zeros(n + 1, np.float32), frames, frames, (0.0, 0.0), 6.0)  # fmt: skip
    near = dict(graph.near(6.0))
    assert len(near) == n + 1 and sorted(near.values())[0] == -4.0 and near[(1,) * n] == 0.0


@pytest.mark.parametrize("kind", ["ctc", "two_pdf", "words"])
@pytest.mark.parametrize(("beam", "most_arcs"), [(1.0, 10**6), (100.0, 10**6), (100.0, 8)])
def test_the_reference_makes_the_same(kind: str, beam: float, most_arcs: int) -> None:
    for seed in SEEDS[:15]:
        lattice = made(seed)
        table = KINDS[kind].unit_table if kind in KINDS else None
        fast = determinised(lattice, table, beam, most_arcs=most_arcs)
        slow = SequenceGraph(*reference.determinised(lattice, table, beam, 10_000, most_arcs))
        for name in [field.name for field in fields(SequenceGraph)][:9]:
            np.testing.assert_allclose(getattr(fast, name), getattr(slow, name), atol=1e-4)
        assert fast.best == pytest.approx(slow.best, abs=1e-5) and fast.beam == pytest.approx(slow.beam, abs=1e-5)


@pytest.mark.parametrize("limit", ["most_states", "most_arcs"])
def test_a_limit_narrows_the_beam(limit: str) -> None:
    seed = max(SEEDS, key=lambda each: determinised(made(each), KINDS["ctc"].unit_table, 1e3).num_states)
    lattice, table = made(seed), KINDS["ctc"].unit_table
    whole = determinised(lattice, table, 1e3)
    sizes = {"most_states": whole.num_states // 2, "most_arcs": lattice.num_arcs // 2}
    narrow = determinised(lattice, table, 1e3, **{limit: sizes[limit]})
    assert narrow.beam < whole.beam == 1e3
    kept = {said: score for said, score in whole.ranked() if score > -narrow.beam + RESOLUTION}
    assert kept.keys() <= {said for said, _ in narrow.ranked()} and len(kept) > 1


def test_frames_of_units() -> None:
    lattice = made(SEEDS[0])
    topology = KINDS["ctc"]
    graph = determinised(lattice, topology.unit_table, beam=1e3)
    begins: dict[tuple[int, ...], set[int]] = defaultdict(set)  # of each prefix: frames in which its last unit begins
    for path in lattice_paths(lattice):
        said: tuple[int, ...] = ()
        for frame, label in enumerate(path.labels):
            unit = topology.unit_begun(path.labels[frame - 1] if frame else -1, label)
            if unit:
                said = (*said, unit)
                begins[said].add(frame)
    stack = [(0, ())]
    while stack:
        state, said = stack.pop()
        if said:
            assert graph.earliest[state] <= min(begins[said]) and max(begins[said]) <= graph.latest[state]
        arcs = np.flatnonzero(graph.src == state)
        stack += [(int(graph.dst[a]), (*said, int(graph.symbol[a]))) for a in arcs]
    assert graph.latest.max() <= 4 and graph.earliest.min() >= 0


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("seed", SEEDS)
def test_best_path_and_its_posterior(seed: int, scale: float) -> None:
    lattice = made(seed)
    paths = list(lattice_paths(lattice))
    best = max(paths, key=lambda path: path.score)
    arcs, posterior = best_path(lattice, scale)
    assert tuple(words_of(lattice, arcs)) == best.words
    assert tuple(x for x in lattice.label[arcs].tolist() if x >= 0) == best.labels
    weight = np.exp([scale * (path.score - best.score) for path in paths])
    same = np.array([np.equal(path.labels, best.labels) for path in paths])
    np.testing.assert_allclose(posterior, weight @ same / weight.sum(), rtol=1e-4)
    slow_arcs, slow_posterior = reference.best_path(lattice, scale)
    assert slow_arcs.tolist() == arcs.tolist()
    np.testing.assert_allclose(slow_posterior, posterior, rtol=1e-5)


def test_nothing_to_say_is_an_error() -> None:
    with pytest.raises(ValueError, match="no complete path"):
        determinised(Lattice.empty(), None, 1.0)
    with pytest.raises(ValueError, match="no complete path"):
        best_path(Lattice.empty())
