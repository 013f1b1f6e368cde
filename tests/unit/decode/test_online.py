"""Words while frames come, their times and confidences, and when an utterance ends."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.decode.confidence import confidences
from distill.decode.endpoint import RULES, Rule, at_endpoint
from distill.decode.graph_decoder import GraphDecoder
from distill.decode.online import OnlineDecoder, OnlineSearch, Progress, load_lang
from distill.decode.word_times import Unit, word_spans
from distill.fsa.lattice import Lattice, Search
from distill.lfmmi import NativeEngine
from distill.search.determinise import arc_posteriors, best_path
from tests.support.decoding import Small, random_log_probs, spoken

FRAME = 0.02


def online(small: Small, rules: tuple[Rule, ...] = (), search: Search | None = None) -> OnlineSearch:
    search = search or Search(200.0, 200.0, 0)
    return OnlineSearch(OnlineDecoder.open(small.hlg, small.lang, FRAME, search, rules))


def saying(small: Small, text: str, repeat: int = 3) -> np.ndarray:
    """Frames that clearly say units ("_" is blank, SIL silence), each for `repeat` frames."""
    ids = [0 if unit == "_" else small.lang.units.index(unit) for unit in text.split()]
    return spoken(ids, len(small.lang.units), repeat)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9), st.lists(st.integers(0, 6), max_size=4))
def test_finish_is_the_whole_utterances_result(small: Small, seed: int, cuts: list[int]) -> None:
    log_probs = random_log_probs(seed, 6, len(small.lang.units))
    stream = online(small)
    for piece in np.split(log_probs, sorted(cuts)):
        stream.feed(piece)
    graph = stream.decoder.graph
    (lattice,) = graph.lattices([log_probs])
    best, found = stream.finish()
    assert best == graph.best(lattice)
    assert np.array_equal(found.graph, lattice.graph) and np.array_equal(found.acoustic, lattice.acoustic)


def test_words_appear_with_their_times(small: Small) -> None:
    log_probs = saying(small, "SIL B A B SIL A B SIL SIL")
    stream = online(small, search=Search(3.0, 6.0, 0))
    seen: list[Progress] = []
    for frame in log_probs:
        stream.feed(frame[None])
        seen.append(stream.progress())
    assert seen[2].words == () and seen[-1].words == ("BOB", "AB")
    assert seen[-1].spans == ((0.06, 0.24), (0.3, 0.42))
    assert seen[-1].silence == pytest.approx(0.12)
    for earlier, later in itertools.pairwise(seen):
        assert later.words[: earlier.stable] == earlier.words[: earlier.stable]
    words, _ = stream.words(ended=True)
    assert [(word.text, word.start, word.end) for word in words] == [("BOB", 0.06, 0.24), ("AB", 0.3, 0.42)]
    assert all(0.5 < word.confidence <= 1 for word in words)


def test_words_without_rivals_are_settled(small: Small) -> None:
    stream = online(small, search=Search(3.0, 6.0, 0))
    for frame in saying(small, "SIL A SIL A SIL A SIL"):
        stream.feed(frame[None])
    progress = stream.progress()
    assert progress.words == ("A", "A", "A") and progress.stable >= 2
    assert all(word.confidence > 0.99 for word in stream.words(ended=True)[0])


def test_the_next_utterance_goes_on_in_time(small: Small) -> None:
    stream = online(small)
    stream.feed(saying(small, "A SIL"))
    stream.restart()
    assert stream.frames == 0 and stream.progress().words == ()
    stream.feed(saying(small, "SIL A SIL"))
    assert stream.progress().spans == ((0.18, 0.24),)
    assert [word.start for word in stream.words()[0]] == [0.18]


def test_endpoints_follow_the_rules(small: Small) -> None:
    rules = (Rule(0.5, words=False), Rule(0.2))
    ended = {}
    for text in ("A B SIL SIL SIL", "A B SIL SIL SIL SIL", "SIL SIL SIL SIL SIL", "SIL " * 9):
        stream = online(small, rules, Search(12.0, 6.0, 0))
        stream.feed(saying(small, text))
        ended[text] = stream.progress().ended
        assert stream.words()[1] == ended[text]
    assert list(ended.values()) == [False, True, False, True]


@pytest.mark.parametrize(
    ("rules", "length", "silence", "words", "expected"),
    [
        (RULES, 6, 1.3, True, True),
        (RULES, 6, 1.3, False, False),
        (RULES, 6, 2.5, False, True),
        (RULES, 20.5, 0.15, True, True),
        (RULES, 20.5, 0.0, True, False),
        (RULES, 40.0, 0.0, True, True),
        ((), 90, 90, True, False),
    ],
)
def test_endpoint_rules(rules, length, silence, words, expected) -> None:
    assert at_endpoint(rules, length, silence, words) == expected


def test_a_beam_too_narrow_is_warned_of(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    stream = online(small)
    never = np.full((2, len(small.lang.units)), -np.inf, dtype=np.float32)
    with caplog.at_level(logging.WARNING):
        stream.feed(never)
    assert len(caplog.records) == 1 and "too narrow" in caplog.text
    best, lattice = stream.finish()
    assert best.words == () and not best.complete and lattice.num_states == 0 and stream.words() == ([], False)
    stream.feed(saying(small, "A SIL"))
    assert stream.progress().words == ("A",)


# Confidence


def paths_of(lattice: Lattice) -> list[tuple[float, list[int]]]:
    """Every path: its score and its arcs."""
    stack, found = [(0, 0.0, [])], []
    while stack:
        state, score, arcs = stack.pop()
        if np.isfinite(lattice.final[state]):
            found.append((score + float(lattice.final[state]), arcs))
        for arc in np.flatnonzero(lattice.src == state).tolist():
            gained = float(lattice.acoustic[arc]) + float(lattice.graph[arc])
            stack.append((int(lattice.dst[arc]), score + gained, [*arcs, arc]))
    return found


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_confidence_is_the_share_of_paths_that_say_the_word(small: Small, seed: int, scale: float) -> None:
    decoder = GraphDecoder(NativeEngine(), small.hlg, small.lang, Search(200.0, 5.0, 0))
    (lattice,) = decoder.lattices([random_log_probs(seed, 5, len(small.lang.units))])
    paths = paths_of(lattice)
    mass = np.exp(scale * np.array([score for score, _ in paths]))
    share = np.zeros(lattice.num_arcs)
    for weight, (_, arcs) in zip(mass / mass.sum(), paths):
        share[arcs] += weight
    np.testing.assert_allclose(arc_posteriors(lattice, scale), share, atol=1e-4)
    path, _ = best_path(lattice)
    where = path[lattice.word[path] > 0]
    if len(where) == 1:  # then the word's neighbourhood is everything
        (sure,) = confidences(lattice, path, scale)
        said = lattice.word == lattice.word[where[0]]
        assert sure == pytest.approx(min(1.0, share[said].sum()), abs=1e-4)


def test_some_of_these_lattices_say_one_word(small: Small) -> None:
    decoder = GraphDecoder(NativeEngine(), small.hlg, small.lang, Search(200.0, 5.0, 0))
    lattices = decoder.lattices([random_log_probs(seed, 5, len(small.lang.units)) for seed in range(3)])
    assert any(len(decoder.best(lattice).words) == 1 for lattice in lattices)


def test_doubt_lowers_confidence(small: Small) -> None:
    a, b = small.lang.tokens["A"], small.lang.tokens["B"]
    sure = saying(small, "A _ B _ A", 2)
    doubtful = sure.copy()
    doubtful[4:6, [a, b]] = np.log([0.49, 0.5])
    found = []
    for log_probs in (sure, doubtful):
        stream = online(small, search=Search(50.0, 20.0, 0))
        stream.feed(log_probs)
        found.append(min(word.confidence for word in stream.words(ended=True)[0]))
    assert found[1] < found[0] - 0.005


def test_spans_follow_the_pronunciation_that_fits() -> None:
    units = [Unit(u, 10 * i, 10 * i + 5) for i, u in enumerate([1, 2, 1, 2, 1])]
    assert word_spans(units, [[(1,), (1, 2)], [(1, 2, 1)]]) == [(0, 15), (20, 45)]
    assert word_spans(units, [[(1, 2)], [(1, 2, 1, 3)]]) == [(0, 15), (20, 45)]  # the last word has begun only
    assert word_spans(units, [[(1, 2)]]) == [(0, 15)]  # what follows is no word yet
    assert word_spans(units, []) == [] and word_spans([], []) == []
    assert word_spans(units, [[(2,)]]) is None


def test_a_lang_folder_is_found_by_its_outputs(small: Small, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        load_lang(tmp_path, small.lang.outputs)
    (tmp_path / "lang_chars").symlink_to(small.hlg.parent)
    lang, graphs = load_lang(tmp_path, small.lang.outputs)
    assert lang.outputs == small.lang.outputs and graphs == tmp_path / "graphs_chars"
    with pytest.raises(ValueError, match="2 outputs"):
        load_lang(tmp_path, ["<blk>", "X"])
