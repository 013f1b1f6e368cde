"""Graph decoding against enumeration of all paths; what the words, units and flags of a path say."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from distill.decode import lattice
from distill.decode.lattice import GraphDecoder
from tests.unit.decode.conftest import SENTENCES, Small, make_small, random_log_probs, spoken

FRAMES = 6
TOLERANCE = 5e-3  # determinisation rounds weights to 1/1024, the ARPA file to six digits
WIDE = {"beam": 200.0, "max_active": 10**6}


def decoder(small: Small, **options: float) -> GraphDecoder:
    return GraphDecoder(small.hlg, small.words, **(WIDE | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(6))
def test_best_path_is_the_best_of_all_paths(small: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    score, units, words = small.ranked(log_probs)[0]
    found = decoder(small).best_path(log_probs)
    assert found.score == pytest.approx(score, abs=TOLERANCE)
    assert found.units == units
    assert found.words in words
    assert found.complete


@pytest.mark.parametrize("order", [2, 4])
def test_other_orders_of_the_word_ngram(tmp_path: Path, order: int) -> None:
    graph = make_small(tmp_path, "BE B\nBEE B\nAB A B\nA A\n", SENTENCES[:2] + SENTENCES[3:4] + ["AB A BEE"], order)
    for seed in range(3):
        log_probs = random_log_probs(seed, FRAMES, len(graph.lang.units))
        found = decoder(graph).best_path(log_probs)
        assert found.score == pytest.approx(graph.ranked(log_probs)[0][0], abs=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_nbest_are_the_best_distinct_unit_sequences(small: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    expected = small.ranked(log_probs)[:12]
    found = decoder(small).nbest(log_probs, 12, lattice_beam=200.0)
    assert [h.score for h in found] == pytest.approx([score for score, *_ in expected], abs=TOLERANCE)
    assert len({h.units for h in found}) == 12
    best = {units: (score, words) for score, units, words in small.ranked(log_probs)}
    for hypothesis in found:
        score, words = best[hypothesis.units]
        assert hypothesis.score == pytest.approx(score, abs=TOLERANCE)
        assert hypothesis.words in words


def test_lattice_beam_bounds_the_list(small: Small) -> None:
    log_probs = random_log_probs(1, FRAMES, len(small.lang.units))
    ranked = small.ranked(log_probs)
    scores = [score for score, *_ in ranked]
    found = decoder(small).nbest(log_probs, 1000, lattice_beam=3.0)
    within = sum(score > scores[0] - 3.0 for score in scores)
    assert 5 < within < len(scores)
    assert min(abs(score - scores[0] + 3.0) for score in scores) > TOLERANCE  # no doubt at the edge
    assert {h.units for h in found} == {units for _, units, _ in ranked[:within]}


def test_silence_repeats_and_homophones(small: Small) -> None:
    ids, columns = small.lang.tokens, len(small.lang.units)
    sil, a, b = ids["SIL"], ids["A"], ids["B"]
    # "BE BE" needs a blank between its two B; "A BEE" and "A BE A" tell the homophones apart
    found = decoder(small).best_path(spoken([sil, b, 0, b, sil], columns))
    assert (found.words, found.units) == (("BE", "BE"), (sil, b, b, sil))
    assert decoder(small).best_path(spoken([a, sil, b, 0, sil], columns)).words == ("A", "BEE")
    found = decoder(small).best_path(spoken([a, sil, b, sil, a, sil], columns))
    assert (found.words, found.units) == (("A", "BE", "A"), (a, sil, b, sil, a, sil))


def test_silence_alone_says_nothing(small: Small) -> None:
    found = decoder(small).best_path(spoken([0, small.lang.silence, 0], len(small.lang.units), repeat=4))
    assert (found.words, found.units, found.complete) == ((), (small.lang.silence,), True)


def test_unfinished_paths_are_kept_and_marked(tmp_path: Path) -> None:
    graph = make_small(tmp_path, "BOB B A B\n", ["BOB"], 2)
    ids, columns = graph.lang.tokens, len(graph.lang.units)
    begun = np.full((4, columns), -np.inf, dtype=np.float32)
    begun[:2, ids["B"]] = begun[2:, ids["A"]] = 0.0
    found = decoder(graph).best_path(begun)
    assert (found.complete, found.units, found.words) == (False, (ids["B"], ids["A"]), ("BOB",))
    assert decoder(graph).nbest(begun, 5, 6.0) == []


def test_no_frames_no_path(small: Small) -> None:
    nothing = np.zeros((0, len(small.lang.units)), dtype=np.float32)
    assert not decoder(small).best_path(nothing).complete
    assert decoder(small).nbest(nothing, 5, 6.0) == []


def test_acoustic_scale(small: Small) -> None:
    log_probs = random_log_probs(2, FRAMES, len(small.lang.units))
    found = decoder(small, acoustic_scale=0.5).best_path(log_probs)
    assert found.score == pytest.approx(small.ranked(log_probs * 0.5)[0][0], abs=TOLERANCE)


def test_results_do_not_depend_on_the_number_of_processes(small: Small) -> None:
    make = partial(GraphDecoder, small.hlg, small.words)
    log_probs = {f"u{seed}": random_log_probs(seed, 20, len(small.lang.units)) for seed in range(20)}
    alone = list(lattice.decode_all(make, lattice.best_path, log_probs.items(), 1))
    assert [name for name, _ in alone] == list(log_probs)
    assert list(lattice.decode_all(make, lattice.best_path, log_probs.items(), 2)) == alone


def test_missing_graph_names_its_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stage 4"):
        GraphDecoder(tmp_path / "HLG.fst", ["<eps>"])
