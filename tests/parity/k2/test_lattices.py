"""Lattices of k2's search against those of our own, over the same decoding graph."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice, takewhile

import numpy as np
import pytest
import torch
from conftest import Mini, spoken

from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.lfmmi import Engine, build_engine
from distill.search.determinise import UnitTable, determinised

SEARCH = Search(beam=30.0, lattice_beam=5.0, max_active=100_000)  # nothing near the best is lost on the way


@pytest.fixture(scope="module")
def k2_engine() -> Engine:
    return build_engine("k2")


@pytest.fixture(scope="module")
def utterances(mini: Mini) -> tuple[torch.Tensor, torch.Tensor]:
    return spoken(mini, mini.sentences[100:104])


def said(lattice: Lattice, hearing: UnitTable | None) -> tuple[float, dict[tuple[int, ...], float]]:
    """Score of the best sequence of words (or units), and of the 300 next to it, relative to the best."""
    graph = determinised(lattice, hearing, SEARCH.lattice_beam)
    near = takewhile(lambda item: item[1] > -SEARCH.lattice_beam, graph.ranked())
    return sum(graph.best), dict(islice(near, 300))


def assert_same(ours: Lattice, theirs: Lattice, hearing: UnitTable | None) -> None:
    (best, found), (their_best, theirs_found) = said(ours, hearing), said(theirs, hearing)
    assert their_best == pytest.approx(best, rel=1e-5)
    for some, others in ((found, theirs_found), (theirs_found, found)):
        # the last ones, or those at the very edge of the beam, may fall on either side of it
        assert {sequence for sequence, score in some.items() if score > min(some.values()) + 2e-3} <= set(others)
    for sequence in found.keys() & theirs_found.keys():
        assert theirs_found[sequence] == pytest.approx(found[sequence], abs=2e-3)


@pytest.mark.parametrize("acoustic_scale", [1.0, 0.5])
def test_same_words_and_units_with_the_same_scores(
    k2_engine: Engine,
    mini: Mini,
    hlg: DecodingGraph,
    utterances: tuple[torch.Tensor, torch.Tensor],
    acoustic_scale: float,
) -> None:
    log_probs, lengths = acoustic_scale * utterances[0], utterances[1]
    ours = build_engine("native").lattice(log_probs, lengths, hlg, SEARCH)
    theirs = k2_engine.lattice(log_probs, lengths, hlg, SEARCH)
    hearing = mini.lang.topology.unit_table
    sequences = 0
    for one, other, length in zip(ours, theirs, lengths.tolist()):
        assert one.complete and other.complete
        assert one.num_frames == other.num_frames == length
        assert_same(one, other, None)
        assert_same(one, other, hearing)
        sequences += len(said(other, hearing)[1])
    assert sequences > 2 * len(lengths)


def test_scores_stay_apart(
    k2_engine: Engine, hlg: DecodingGraph, utterances: tuple[torch.Tensor, torch.Tensor]
) -> None:
    log_probs, lengths = utterances
    for row, lattice in enumerate(k2_engine.lattice(log_probs, lengths, hlg, SEARCH)):
        frames = lattice.frame[lattice.src]
        np.testing.assert_array_equal(lattice.acoustic, log_probs[row].numpy()[frames, lattice.label])
        assert (lattice.dst > lattice.src).all() and (lattice.frame[lattice.dst] == frames + 1).all()


def test_utterances_without_a_complete_path(
    k2_engine: Engine, hlg: DecodingGraph, utterances: tuple[torch.Tensor, torch.Tensor]
) -> None:
    log_probs, _ = utterances
    ends = np.full_like(hlg.final, -np.inf)
    ends[-1] = 0.0  # far from everything that is said here
    cut, lengths = replace(hlg, final=ends), torch.tensor([20, 0, 9, 0])
    narrow = Search(beam=8.0, lattice_beam=4.0, max_active=1000)
    ours = build_engine("native").lattice(log_probs, lengths, cut, narrow)
    theirs = k2_engine.lattice(log_probs, lengths, cut, narrow)
    assert [lattice.num_frames for lattice in theirs] == [20, 0, 9, 0]
    assert [lattice.complete for lattice in theirs] == [lattice.complete for lattice in ours] == [False] * 4
    for row in (0, 2):
        assert_same(ours[row], theirs[row], None)


def test_outputs_beyond_the_model(k2_engine: Engine, hlg: DecodingGraph) -> None:
    with pytest.raises(ValueError, match=r"uses output \d+, but log_probs has only 3"):
        k2_engine.lattice(torch.zeros(1, 5, 3), torch.tensor([5]), hlg, SEARCH)
