"""Rescoring: scores apart add up to the search's, weights are the best of the grid on the development set alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from distill.decode.graph_decoder import GraphDecoder
from distill.decode.nbest import UNCHANGED, Candidates, ScoreWeights, candidates, error_counts, score_all, tune
from distill.fsa.lattice import Lattice, Search
from distill.lfmmi import NativeEngine
from distill.scoring.wer import score
from tests.support.decoding import Small, random_log_probs

GRAPH, LM, WORD = (0.5, 1.0), (0.0, 0.5, 1.0), (0.0, 1.0)


def listed(*rows: tuple[str, float, float, float]) -> Candidates:
    words, acoustic, graph, lm = zip(*rows)
    return Candidates(tuple(tuple(w.split()) for w in words), *(np.array(x) for x in (acoustic, graph, lm)))


@pytest.fixture
def lists() -> dict[str, Candidates]:
    draw = np.random.default_rng(4)
    said = [" ".join(words) for n in range(3) for words in itertools.product("AB", repeat=n)]
    return {
        f"u{number}": listed(*((text, *draw.normal(0, 2, 3)) for text in draw.permutation(said)))
        for number in range(12)
    }


@pytest.fixture
def references(lists: dict[str, Candidates]) -> dict[str, list[str]]:
    draw = np.random.default_rng(5)
    return {name: list(draw.choice(["A", "B"], 2)) for name in lists}


def test_candidates_have_the_scores_of_the_search_apart(small: Small) -> None:
    log_probs = [random_log_probs(seed, 5, small.lang.topology.num_outputs) for seed in range(3)]
    decoder = GraphDecoder(NativeEngine(), small.hlg, small.lang, Search(200.0, 200.0, 10**6))
    for frames, lattice in zip(log_probs, decoder.lattices(log_probs)):
        found = candidates(decoder, lattice, 20, 50.0)
        expected = small.ranked_words(frames)[:20]
        assert len(found.words) == len(set(found.words)) == len(expected)
        np.testing.assert_allclose(found.acoustic + found.graph, [value for _, value in expected], atol=5e-3)
        best = decoder.best(lattice)
        assert found.best(UNCHANGED) == best.words
        assert (found.acoustic[0], found.graph[0]) == pytest.approx((best.acoustic, best.graph), abs=1e-3)


def test_without_a_path_there_are_no_words(small: Small) -> None:
    decoder = GraphDecoder(NativeEngine(), small.hlg, small.lang)
    found = candidates(decoder, Lattice.empty(), 5, 5.0)
    assert found.words == ((),) and found.best(ScoreWeights(0.3, 2.0, 1.0)) == ()


def test_a_language_model_sees_all_at_once_and_each_gets_its_own(lists: dict[str, Candidates]) -> None:
    asked = []

    def lm(sentences) -> np.ndarray:
        asked.append(len(sentences))
        return np.array([10 * len(words) + (words[:1] == ("A",)) for words in sentences], dtype=float)

    found = score_all(lists, lm)
    assert asked == [sum(len(each.words) for each in lists.values())]
    for each in found.values():
        assert each.lm.tolist() == [10 * len(words) + (words[:1] == ("A",)) for words in each.words]
    assert score_all({}, lambda sentences: np.zeros(0)) == {}


def test_weights_weigh_what_they_say() -> None:
    each = listed(("A", -1.0, -5.0, -2.0), ("B C", -3.0, -2.0, -9.0))
    for weights in itertools.starmap(ScoreWeights, itertools.product((0.0, 1.0, 2.0), (0.0, 0.7), (-2.0, 0.0, 3.0))):
        first = -1 - 5 * weights.graph - 2 * weights.lm + weights.word
        second = -3 - 2 * weights.graph - 9 * weights.lm + 2 * weights.word
        assert each.best(weights) == (("A",) if first >= second else ("B", "C"))


def test_every_point_is_counted_as_scoring_anew_does(lists, references) -> None:
    tuning = tune(lists, references, GRAPH, LM, WORD)
    assert len(tuning.tried) == len(GRAPH) * len(LM) * len(WORD)
    for graph, lm, word, errors in tuning.tried:
        best = {name: each.best(ScoreWeights(graph, lm, word)) for name, each in lists.items()}
        assert errors == sum(score(name, references[name], best[name]).errors for name in lists)
    by_point = {ScoreWeights(*point): errors for *point, errors in tuning.tried}
    assert tuning.errors == by_point[tuning.weights] <= tuning.before == by_point[UNCHANGED]
    possible = [min(score(n, references[n], words).errors for words in each.words) for n, each in lists.items()]
    assert tuning.oracle == sum(possible) <= tuning.errors
    assert (tuning.ref_words, tuning.utterances) == (24, 12)


def test_a_lone_best_point_loses_to_a_plateau() -> None:
    """Errors by the weight of the language model: 0: 1, 1: 0, 2: 2, 3: 1, 4: 0, 5: 0; neighbours decide for 5."""
    lists, references = {}, {}
    for number, right in enumerate([(1, 3, 4, 5), (0, 1, 4, 5)]):
        # scores are tangents of a parabola, so that candidate k wins at weight k
        rows = [(("A" if k in right else "B"), -0.5 * k * k, 0.0, float(k)) for k in range(6)]
        lists[f"u{number}"], references[f"u{number}"] = listed(*rows), ["A"]
    tuning = tune(lists, references, (1.0,), range(6), (0.0,))
    assert [errors for *_, errors in tuning.tried] == [1, 0, 2, 1, 0, 0]
    assert tuning.weights == ScoreWeights(1.0, 5.0, 0.0)


def test_words_that_are_not_scored_are_no_errors() -> None:
    lists = {"u": listed(("HELLO", 0.0, -1.0, 0.0), ("UM HALLO", 0.0, 0.0, 0.0))}
    references = {"u": ["UM", "HELLO"]}
    assert error_counts(lists["u"], references["u"]).tolist() == [1, 1]
    assert error_counts(lists["u"], references["u"], ("UM",)).tolist() == [0, 1]
    tuning = tune(lists, references, GRAPH, LM, WORD, ("UM",))
    assert (tuning.before, tuning.oracle, tuning.ref_words) == (1, 0, 1)


def test_nothing_is_changed_where_nothing_helps() -> None:
    lists = {"u": listed(("A", 0.0, 0.0, -5.0), ("B", -1.0, 0.0, 0.0))}
    assert tune(lists, {"u": ["A"]}, GRAPH, LM, WORD).weights == UNCHANGED


def test_grids_and_sets_that_cannot_be_used_are_refused(lists, references) -> None:
    with pytest.raises(ValueError, match="no utterances to choose weights on"):
        tune({}, {}, GRAPH, LM, WORD)
    with pytest.raises(ValueError, match="must contain"):
        tune(lists, references, (0.5,), LM, WORD)
