"""A search that goes on as frames come: for any chunking what the whole utterance gives, and best paths on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.fsa.lattice import Lattice, Search
from distill.search.beam import OngoingSearch, PartialPath
from distill.search.determinise import best_path
from tests.support.lattices import OUTPUTS, lattice_of, random_graph
from tests.unit.search.test_beam import peaked

FRAMES = 70  # several prunings
GRAPH = random_graph(7, states=300, arcs=1500)


def fed(log_probs: np.ndarray, cuts: Sequence[int], limits: Search) -> tuple[OngoingSearch, list[PartialPath]]:
    ongoing, partials = OngoingSearch(GRAPH, limits), []
    for piece in np.split(log_probs, sorted(cuts)):
        ongoing.feed(piece)
        partials.append(ongoing.best())
    return ongoing, [each for each in partials if each is not None]


def same(a: Lattice, b: Lattice) -> bool:
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(Lattice))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 30), st.lists(st.integers(0, FRAMES), max_size=12), st.sampled_from([0.1, 6.0]),
    st.sampled_from([8.0, 15.0]), st.sampled_from([0, 40]),
)  # fmt: skip
def test_any_chunking_gives_the_lattice_of_the_whole(seed, cuts, lattice_beam, beam, most) -> None:
    log_probs, limits = peaked(seed, FRAMES, OUTPUTS), Search(beam, lattice_beam, most)
    ongoing, _ = fed(log_probs, cuts, limits)
    assert same(ongoing.lattice(True), lattice_of(GRAPH, log_probs, limits))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.lists(st.integers(1, FRAMES), min_size=1, max_size=12))
def test_stable_arcs_stay(seed, cuts) -> None:
    _, partials = fed(peaked(seed, FRAMES, OUTPUTS), cuts, Search(15.0, 6.0, 100))
    rows = [list(zip(p.frame.tolist(), p.label.tolist(), p.word.tolist())) for p in partials]
    for place, partial in enumerate(partials):
        for later in rows[place + 1 :]:
            assert later[: partial.stable] == rows[place][: partial.stable]


def test_clear_paths_are_mostly_stable() -> None:
    _, partials = fed(peaked(3, 400, OUTPUTS), range(20, 400, 20), Search(8.0, 1.0, 50))
    shares = [partial.stable / len(partial.label) for partial in partials[3:]]
    assert np.mean(shares) > 0.7


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("frames", [1, 30, 60])
def test_best_so_far_is_the_best_path_of_these_frames(seed: int, frames: int) -> None:
    log_probs, limits = peaked(seed, 60, OUTPUTS), Search(15.0, 6.0, 0)
    ongoing, partials = fed(log_probs[:frames], range(0, frames, 7), limits)
    lattice = ongoing.lattice(False)
    path, _ = best_path(lattice)
    best = partials[-1]
    assert best.label.tolist() == lattice.label[path].tolist()
    assert best.word.tolist() == lattice.word[path].tolist()


def test_the_lattice_can_be_had_on_the_way() -> None:
    log_probs, limits = peaked(0, FRAMES, OUTPUTS), Search(15.0, 6.0, 0)
    ongoing = OngoingSearch(GRAPH, limits)
    for start in range(0, FRAMES, 10):
        ongoing.feed(log_probs[start : start + 10])
        assert same(ongoing.lattice(True), lattice_of(GRAPH, log_probs[: start + 10], limits))


def test_a_beam_that_leaves_no_path_is_reported() -> None:
    ongoing = OngoingSearch(GRAPH, Search(15.0, 6.0, 0))
    assert ongoing.best() is None and ongoing.lattice(True).num_states == 0
    hopeless = np.full((3, OUTPUTS), -np.inf, dtype=np.float32)
    assert not ongoing.feed(hopeless)
    assert ongoing.best() is None and ongoing.lattice(True).num_states == 0
    with pytest.raises(ValueError, match="outputs"):
        ongoing.feed(hopeless[:, :1])
    with pytest.raises(ValueError, match="NaN"):
        ongoing.feed(np.full((3, OUTPUTS), np.nan, dtype=np.float32))
