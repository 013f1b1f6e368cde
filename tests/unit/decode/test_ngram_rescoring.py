"""Another n-gram in place of the graph's: against a search with that n-gram itself, and against enumeration."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from distill.decode.graph_decoder import GraphDecoder
from distill.decode.nbest import ScoreWeights, candidates, score_all
from distill.decode.ngram_rescoring import ArpaWalk, Exchange, as_plain, rescored
from distill.fsa.lattice import Search
from distill.graphs.arpa import read_arpa
from distill.lfmmi import NativeEngine
from distill.search.determinise import determinised
from tests.support.decoding import LEXICON, SENTENCES, Small, make_small, random_log_probs

WIDE = Search(200.0, 200.0, 0)
FRAMES = 5


@pytest.fixture(scope="module")
def bigram(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The same words with another n-gram."""
    return make_small(tmp_path_factory.mktemp("bigram"), LEXICON, ["BE A", "AB A BE", *SENTENCES[3:]], 2)


def walk(small: Small) -> ArpaWalk:
    return ArpaWalk(read_arpa(small.hlg.parent / "lm.arpa"), small.lang.lexicon.words)


def decoder(small: Small) -> GraphDecoder:
    return GraphDecoder(NativeEngine(), small.hlg, small.lang, WIDE)


def test_a_walk_sums_the_models_scores(small: Small) -> None:
    lm, walked = read_arpa(small.hlg.parent / "lm.arpa"), walk(small)
    for sentence in [(), ("A",), ("AB", "A", "BEE"), ("BOB", "AB", "BE", "BE", "A")]:
        padded = ("<s>", *sentence, "</s>")
        expected = sum(lm.score(padded[:place], padded[place]) for place in range(1, len(padded)))
        assert walked([sentence]) == pytest.approx([math.log(10) * expected])


@pytest.mark.parametrize("seed", range(4))
def test_lists_and_lattices_give_what_a_graph_of_the_other_ngram_gives(small: Small, bigram: Small, seed: int) -> None:
    log_probs = random_log_probs(seed, FRAMES, len(small.lang.units))
    (lattice,) = decoder(small).lattices([log_probs])
    exchange = Exchange(walk(bigram), walk(small))
    lists = score_all({"u": candidates(decoder(small), lattice, 10**6, 200.0)}, exchange)
    features = lists["u"].features() @ np.array([1.0, 1.0, 1.0, 0.0])
    expected = dict(bigram.ranked_words(log_probs))
    for words, score in zip(lists["u"].words, features.tolist()):
        assert score == pytest.approx(expected[words], abs=1e-2)  # graphs' weights are rounded to 1/1024
    best = bigram.ranked_words(log_probs)
    if best[0][1] > best[1][1] + 0.05:
        assert lists["u"].best(ScoreWeights(1, 1, 0)) == best[0][0]
        graph = determinised(lattice, None, 200.0)
        assert rescored(graph, decoder(small).words, exchange, ScoreWeights(1, 1, 0)) == best[0][0]


@pytest.mark.parametrize(
    "weights", [ScoreWeights(), ScoreWeights(1, 0.5, -1), ScoreWeights(1, 1.5, 2), ScoreWeights(0.5, 1, 0)]
)
def test_a_whole_lattice_gives_the_best_of_all_its_sentences(
    small: Small, bigram: Small, weights: ScoreWeights
) -> None:
    log_probs = random_log_probs(7, FRAMES, len(small.lang.units))
    (lattice,) = decoder(small).lattices([log_probs])
    exchange = Exchange(walk(bigram), walk(small))
    lists = score_all({"u": candidates(decoder(small), lattice, 10**6, 200.0)}, exchange)
    found = rescored(determinised(lattice, None, 200.0), decoder(small).words, exchange, weights)
    scores = lists["u"].features() @ np.array([1.0, *weights])
    assert scores[lists["u"].words.index(found)] == pytest.approx(scores.max(), abs=1e-3)


def test_unknown_words_are_named(small: Small, tmp_path: Path) -> None:
    lm = read_arpa(small.hlg.parent / "lm.arpa")
    with pytest.raises(ValueError, match=r"2 words of .* are not in the language model.*NEW, OTHER"):
        ArpaWalk(lm, ["A", "NEW", "OTHER"])
    text = "\\data\\\nngram 1=4\n\n\\1-grams:\n-1 <s>\n-1 </s>\n-2 <unk>\n-0.5 A\n\n\\end\\\n"
    (tmp_path / "lm.arpa").write_text(text)
    walked = ArpaWalk(read_arpa(tmp_path / "lm.arpa"), ["A", "NEW"])
    assert walked([("A", "NEW")]) == pytest.approx([-math.log(10) * 3.5])


def test_lists_as_plain_values_keep_scores_apart(small: Small) -> None:
    (lattice,) = decoder(small).lattices([random_log_probs(1, FRAMES, len(small.lang.units))])
    each = candidates(decoder(small), lattice, 3, 200.0)
    (first, *_rest) = as_plain({"u": each})["u"]
    best = decoder(small).best(lattice)
    assert tuple(first["words"]) == best.words
    assert first["acoustic"] == pytest.approx(best.acoustic, abs=1e-2)
    assert first["graph"] == pytest.approx(best.graph, abs=1e-2)
