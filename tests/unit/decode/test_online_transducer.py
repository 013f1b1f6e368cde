"""A transducer's beam as a stream: words with times and confidences, what is stable, endpoints, missing files."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from distill.decode.endpoint import RULES, Rule
from distill.decode.online import Progress
from distill.decode.online_transducer import OnlineBeam, TransducerDecoder, open_tree
from distill.decode.transducer import Beam, LexiconTree
from distill.runtime.session import Session
from distill.runtime.transcriber import Transcriber
from tests.support.decoding import Small, make_small
from tests.unit.runtime.test_transcriber import Prepared, text_of

FRAME = 0.02


class Framewise:
    """A joiner whose log-probabilities (V,) are the frame itself, whatever units came before."""

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)

    def advance(self, states: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return states + units[:, None], states.astype(np.float32)

    def log_probs(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return np.repeat(frame[None], len(predicted), 0)


def new_search(small: Small, rules: tuple[Rule, ...] = (), size: int = 8, scale: float = 0.3) -> OnlineBeam:
    return OnlineBeam(TransducerDecoder(Framewise(), LexiconTree(small.lang, small.lm, scale), size, FRAME, rules))


def saying(small: Small, text: str, sure: float = 0.97) -> np.ndarray:
    """A frame for each unit, "_" for blank, of probability `sure`."""
    ids = [0 if unit == "_" else small.lang.units.index(unit) for unit in text.split()]
    columns = len(small.lang.units)
    log_probs = np.full((len(ids), columns), np.log((1 - sure) / (columns - 1)), np.float32)
    log_probs[np.arange(len(ids)), ids] = np.log(sure)
    return log_probs


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Words that no other words sound like."""
    return make_small(tmp_path_factory.mktemp("plain"), "AB A B\nC C\n", ["AB C", "C AB AB"], 2)


@pytest.mark.parametrize("size", [1, 3, 50])
def test_words_come_with_the_frames_of_their_units(plain: Small, size: int) -> None:
    stream, frames = new_search(plain), saying(plain, "_ A _ _ B _ _ C A _ B _ _ _")
    for start in range(0, len(frames), size):
        stream.feed(frames[start : start + size])
        stream.feed(frames[:0])
    words, _ = stream.words(ended=True)
    expected = {"AB": (0.02, 0.1), "C": (0.14, 0.16)}
    assert [(word.text, word.start, word.end) for word in words] == [
        *((name, *span) for name, span in expected.items()), ("AB", 0.16, 0.22)
    ]  # fmt: skip
    assert all(0.8 < word.confidence <= 1 for word in words) and stream.frames == 14
    progress = stream.progress()
    assert progress.words == ("AB", "C", "AB") and progress.spans == (*expected.values(), (0.16, 0.22))
    assert progress.silence == pytest.approx(0.06)


@pytest.mark.parametrize("seed", range(6))
def test_stable_words_never_change(small: Small, seed: int) -> None:
    rng, stream = np.random.default_rng(seed), new_search(small, scale=1.0)
    logits = 2.5 * rng.standard_normal((60, len(small.lang.units)))
    logits[:, 0] += 2
    seen: list[Progress] = []
    for frame in (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32):
        stream.feed(frame[None])
        seen.append(stream.progress())
        for word in stream.words()[0]:
            assert 0 <= word.start < word.end <= FRAME * stream.frames and 0 < word.confidence <= 1
    last = tuple(word.text for word in stream.words(ended=True)[0])
    for index, progress in enumerate(seen):
        stable = progress.words[: progress.stable]
        assert all(later.words[: progress.stable] == stable for later in seen[index:])
        assert last[: progress.stable] == stable
    assert seen[-1].stable >= 2


def test_confidences_are_shares_of_the_beam(small: Small) -> None:
    """BE and BEE sound alike, so that they share what the beam gives to the place."""
    stream = new_search(small, scale=1.0)
    stream.feed(saying(small, "_ B _"))
    ((word,), _) = stream.words(ended=True)
    beam = Beam(Framewise(), LexiconTree(small.lang, small.lm, 1.0), 8)
    beam.feed(saying(small, "_ B _"))
    share = {tuple(each.place.words): 0.0 for each in beam.hypotheses}
    for each, score in zip(beam.hypotheses, beam.scores(True)):
        share[tuple(each.place.words)] += float(np.exp(score))
    alike = {name: share[name,] / sum(share.values()) for name in ("BE", "BEE")}
    assert word.text == max(alike, key=alike.__getitem__)
    assert word.confidence == pytest.approx(alike[word.text], abs=0.02) and word.confidence < 0.9


def test_the_next_utterance_goes_on_in_time(small: Small) -> None:
    stream = new_search(small)
    stream.feed(saying(small, "A _ _"))
    stream.restart()
    assert stream.frames == 0 and stream.progress() == Progress((), (), 0, 0.0, False)
    stream.feed(saying(small, "_ A _"))
    assert stream.progress().spans == ((0.08, 0.1),)
    assert [word.start for word in stream.words()[0]] == [0.08]


def test_endpoints_follow_the_rules(small: Small) -> None:
    rules = (Rule(0.5, words=False), Rule(0.2))
    ended = {}
    for text in ("A B" + " _" * 9, "A B" + " _" * 10, "_ " * 24, "_ " * 25):
        stream = new_search(small, rules)
        stream.feed(saying(small, text))
        ended[text] = stream.progress().ended
        assert stream.words()[1] == ended[text]
    assert list(ended.values()) == [False, True, False, True]


@pytest.mark.parametrize("size", [1, 7, 89])
def test_a_stream_is_segmented_in_pauses(plain: Small, size: int) -> None:
    frames = saying(plain, "_ A B" + " _" * 83 + " C A B")
    results = []
    for segments in (True, False):
        transcriber = Transcriber(Session(Prepared(frames)), partial(new_search, plain, RULES), segments)
        parts = [transcriber.feed(np.zeros(size, np.float32)) for _ in range(len(frames) // size)]
        results.append([words for part in (*parts, transcriber.finish()) for words in part])
    cut, whole = results
    assert [text_of(words) for words in cut] == [["AB"], ["C", "AB"]]
    assert [text_of(words) for words in whole] == [["AB", "C", "AB"]]
    assert (cut[1][0].start, cut[1][0].end) == (whole[0][1].start, whole[0][1].end) == (1.72, 1.74)


def test_an_n_gram_must_be_there_and_of_the_lexicon(small: Small, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no .*words\.3gram\.arpa; stage 3 writes it .* stage 12"):
        open_tree(small.lang, tmp_path / "words.3gram.arpa", 0.3)
    foreign = tmp_path / "foreign.arpa"
    foreign.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-1 ELSE\n\n\\end\\\n")
    with pytest.raises(ValueError, match=r"foreign\.arpa has none of the lexicon's 5 words; run stages 2 and 3"):
        open_tree(small.lang, foreign, 0.3)
