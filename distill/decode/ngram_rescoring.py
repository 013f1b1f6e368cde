"""Rescoring with a larger n-gram, whose log-probability replaces that of the decoding graph's n-gram.

The rest of the graph score (pronunciations, silence, topology) stays. `Exchange` scores n-best lists (icefall's
nbest-rescoring), `rescored` every path of a lattice (its whole-lattice-rescoring).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from distill.decode.nbest import Candidates, ScoreWeights, Words
from distill.graphs.arpa import END, START, ArpaLm
from distill.search.determinise import SequenceGraph

UNKNOWN = ("<unk>", "<UNK>")
REMEMBERED = 1 << 18  # scores of (history, word) kept


class ArpaWalk:
    """Natural-log scores of an ARPA model, word by word: start(), step() for a word, end().

    Words without a unigram are scored as `<unk>`. Raises ValueError for them in a model without `<unk>`.
    """

    def __init__(self, lm: ArpaLm, words: Iterable[str]) -> None:
        self.order = lm.order
        known = {ngram[0] for ngram in lm.probability if len(ngram) == 1}
        self._unknown = next((name for name in UNKNOWN if name in known), None)
        missing = sorted(set(words) - known)
        if missing and self._unknown is None:
            raise ValueError(
                f"{len(missing)} words of the decoding graph are not in the language model, which has no <unk>:"
                f" {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; train it with the graph's words"
            )
        self._missing = frozenset(missing)
        self._score = lru_cache(REMEMBERED)(lambda history, word: math.log(10) * lm.score(history, word))

    def start(self) -> Words:
        """The n-gram history at the start of a sentence."""
        return (START,)[: self.order - 1]

    def step(self, history: Words, word: str) -> tuple[float, Words]:
        """Log-probability of a word, and the n-gram history after it."""
        if word in self._missing:
            assert self._unknown is not None
            word = self._unknown
        following = (*history, word)[1 - self.order :] if self.order > 1 else ()
        return self._score(history, word), following

    def end(self, history: Words) -> float:
        """Log-probability of the end of the sentence."""
        return self._score(history, END)

    def __call__(self, sentences: Sequence[Words]) -> np.ndarray:
        """Log-probability of each sentence: (K,)."""
        return np.array([self._sentence(words) for words in sentences])

    def _sentence(self, words: Words) -> float:
        history, total = self.start(), 0.0
        for word in words:
            gained, history = self.step(history, word)
            total += gained
        return total + self.end(history)


@dataclass(frozen=True)
class Exchange:
    """Log-probability ratio of two n-grams: an LM score of `nbest.Candidates`."""

    larger: ArpaWalk
    smaller: ArpaWalk

    def __call__(self, sentences: Sequence[Words]) -> np.ndarray:
        """log p_larger - log p_smaller of each sentence: (K,). With LM weight 1 the larger replaces the smaller."""
        return self.larger(sentences) - self.smaller(sentences)


# Whole lattices


class _Best(NamedTuple):
    """The best partial path into a lattice state with given n-gram histories (of both models)."""

    score: float
    words: Words
    larger: Words
    smaller: Words


def rescored(graph: SequenceGraph, names: Sequence[str], models: Exchange, weights: ScoreWeights) -> Words:
    """The best word sequence of a lattice after rescoring; names: word of each symbol.

    Viterbi search over pairs of lattice state and n-gram histories, which is exact.
    """
    ways: list[dict[tuple[Words, Words], _Best]] = [{} for _ in range(graph.num_states)]
    ways[0][models.larger.start(), models.smaller.start()] = _Best(
        0.0, (), models.larger.start(), models.smaller.start()
    )
    first = np.searchsorted(graph.src, np.arange(graph.num_states + 1)).tolist()
    arcs = list(zip(graph.dst.tolist(), graph.symbol.tolist(), graph.graph.tolist(), graph.acoustic.tolist()))
    final = list(zip(graph.final_graph.tolist(), graph.final_acoustic.tolist()))
    best = _Best(-math.inf, (), (), ())
    for state, here in enumerate(ways):
        for way in here.values():
            best = max(best, _ended(way, final[state], models, weights), key=lambda each: each.score)
            for dst, symbol, by_graph, by_sound in arcs[first[state] : first[state + 1]]:
                onward = _onward(way, names[symbol], by_graph, by_sound, models, weights)
                key = onward.larger, onward.smaller
                if key not in ways[dst] or onward.score > ways[dst][key].score:
                    ways[dst][key] = onward
        here.clear()
    return best.words


def _onward(way: _Best, word: str, graph: float, acoustic: float, models: Exchange, weights: ScoreWeights) -> _Best:
    new, larger = models.larger.step(way.larger, word)
    old, smaller = models.smaller.step(way.smaller, word)
    gained = acoustic + weights.graph * graph + weights.lm * (new - old) + weights.word
    return _Best(way.score + gained, (*way.words, word), larger, smaller)


def _ended(way: _Best, final: tuple[float, float], models: Exchange, weights: ScoreWeights) -> _Best:
    graph, acoustic = final
    if graph == -math.inf:
        return way._replace(score=-math.inf)
    gained = models.larger.end(way.larger) - models.smaller.end(way.smaller)
    return way._replace(score=way.score + acoustic + weights.graph * graph + weights.lm * gained)


def as_plain(lists: Mapping[str, Candidates]) -> dict[str, list[dict]]:
    """n-best lists as plain values for a JSON file: words, acoustic, graph and n-gram scores."""
    return {
        name: [
            {"words": list(words), "acoustic": round(a, 4), "graph": round(g, 4), "lm": round(lm, 4)}
            for words, a, g, lm in zip(each.words, each.acoustic.tolist(), each.graph.tolist(), each.lm.tolist())
        ]
        for name, each in lists.items()
    }
