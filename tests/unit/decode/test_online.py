"""Words while frames come: the offline result at the end for any chunking; times, confidences, endpoints."""

from __future__ import annotations

import numpy as np
import pytest

from distill.decode.lattice import GraphDecoder
from distill.decode.online import Endpoint, OnlineDecoder, OnlineSearch, Unit, load_lang, spans_of
from distill.fsa import NativeEngine, Search

from .conftest import Small, random_log_probs, spoken

SEARCH = Search(beam=50.0, lattice_beam=20.0, max_active=0)
FRAME = 0.02
NEVER = Endpoint(1e9, 1e9, 1e9)


@pytest.fixture(scope="module")
def decoder(small: Small) -> OnlineDecoder:
    return OnlineDecoder(small.hlg, small.lang, FRAME, SEARCH, endpoint=NEVER)


@pytest.mark.parametrize("seed", range(12))
def test_the_end_is_the_offline_result_for_any_chunking(small: Small, decoder: OnlineDecoder, seed: int) -> None:
    log_probs = random_log_probs(seed, 70, len(small.lang.units))
    offline = GraphDecoder(NativeEngine(), small.hlg, small.lang, SEARCH)
    expected = offline.best(offline.lattices([log_probs])[0]).words
    live, rng, at = OnlineSearch(decoder), np.random.default_rng(seed), 0
    while at < len(log_probs):
        size = int(rng.choice([1, 3, 8, 40]))
        live.feed(log_probs[at : at + size])
        live.words()
        at += size
    words, _ = live.words(ended=True)
    assert tuple(word.text for word in words) == expected and len(expected) > 2
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and times[-1] <= 70 * FRAME
    assert all(0 < word.confidence <= 1 for word in words)


def test_words_stand_where_their_units_are(small: Small, decoder: OnlineDecoder) -> None:
    ids = small.lang.tokens
    said = [0, "A", 0, "SIL", "B", 0, "A", 0, 0, 0]  # A BE A
    live = OnlineSearch(decoder)
    live.feed(spoken([ids[u] if u else 0 for u in said], len(ids), 3))
    words, _ = live.words(ended=True)
    assert [(w.start, w.end) for w in words] == [(0.06, 0.12), (0.24, 0.3), (0.36, 0.42)]
    assert words[0].text == "A" and words[1].text in ("BE", "BEE") and words[2].text == "A"
    assert min(w.confidence for w in words) > 0.99
    live.restart()
    live.feed(spoken([ids["A"]], len(ids), 3))
    assert live.words(ended=True)[0][0].start == pytest.approx(30 * FRAME)


def test_doubt_lowers_confidence(small: Small, decoder: OnlineDecoder) -> None:
    a, b = small.lang.tokens["A"], small.lang.tokens["B"]
    sure = spoken([a, 0, b, 0, a], len(small.lang.units), 2)
    doubtful = sure.copy()
    doubtful[4:6, [a, b]] = np.log([0.3, 0.6])
    found = []
    for log_probs in (sure, doubtful):
        live = OnlineSearch(decoder)
        live.feed(log_probs)
        found.append(min(word.confidence for word in live.words(ended=True)[0]))
    assert found[0] > 0.95 and found[1] < found[0] - 0.01


def test_spans_follow_the_pronunciation_that_fits() -> None:
    units = [Unit(u, 10 * i, 10 * i + 5) for i, u in enumerate([1, 2, 1, 2, 1])]
    assert spans_of(units, [[(1,), (1, 2)], [(1, 2, 1)]]) == [(0, 15), (20, 45)]
    assert spans_of(units, [[(1, 2)], [(1, 2, 1, 3)]]) == [(0, 15), (20, 45)]  # the last word has begun only
    assert spans_of(units, [[(1, 2)]]) == [(0, 15)]  # what follows is no word yet
    assert spans_of(units, []) == [] and spans_of([], []) == []
    assert spans_of(units, [[(2,)]]) is None


@pytest.mark.parametrize(
    ("length", "trailing", "said", "ends"),
    [
        (2.5, 2.5, False, True), (2.3, 2.3, False, False), (3.0, 1.3, True, True), (3.0, 1.1, True, False),
        (20.5, 0.15, True, True), (20.5, 0.0, True, False), (40.0, 0.0, True, True),
    ],
)  # fmt: skip
def test_endpoint_rules(length: float, trailing: float, said: bool, ends: bool) -> None:
    assert Endpoint().reached(length, trailing, said) == ends


def test_silence_behind_words_ends_an_utterance(small: Small) -> None:
    decoder = OnlineDecoder(small.hlg, small.lang, FRAME, SEARCH, endpoint=Endpoint(pause=0.2, silence=0.4))
    live = OnlineSearch(decoder)
    columns, silence = len(small.lang.units), small.lang.silence
    live.feed(spoken([small.lang.tokens["A"]], columns, 5))
    assert not live.words()[1]
    live.feed(spoken([silence], columns, 9))
    assert not live.words()[1]
    live.feed(spoken([0], columns, 2))
    assert live.words()[1]
    live.restart()
    live.feed(spoken([0], columns, 19))
    assert live.words() == ([], False)
    live.feed(spoken([0], columns, 2))
    assert live.words() == ([], True)


def test_a_lang_folder_is_found_by_its_outputs(small: Small, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="--data-dir"):
        load_lang(tmp_path, small.lang.outputs)
    (tmp_path / "lang_chars").symlink_to(small.hlg.parent)
    lang, graphs = load_lang(tmp_path, small.lang.outputs)
    assert lang.outputs == small.lang.outputs and graphs == tmp_path / "graphs_chars"
    with pytest.raises(ValueError, match="2 outputs"):
        load_lang(tmp_path, ["<blk>", "X"])
