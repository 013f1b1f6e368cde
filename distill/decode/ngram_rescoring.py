"""Rescoring with another n-gram: the decoding graph's n-gram taken out of the score, a larger one put in.

Both are walked word by word through their ARPA files; what the graph says beside its n-gram (pronunciations,
silence, topology) stays. icefall's nbest-rescoring does this for lists of sentences, its
whole-lattice-rescoring for every path of a lattice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from distill.decode.nbest import Candidates, Weights, Words
from distill.graphs.arpa import END, START, ArpaLm
from distill.search.determinise import SequenceGraph

UNKNOWN = ("<unk>", "<UNK>")
REMEMBERED = 1 << 18  # scores of (history, word) kept


class ArpaWalk:
    """Natural-log scores of an ARPA model, word by word: state() of a beginning, step() to the next, end().

    Words without a unigram take that of `<unk>`. Raises ValueError for them where there is none.
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
        """The history of a sentence's beginning."""
        return (START,)[: self.order - 1]

    def step(self, history: Words, word: str) -> tuple[float, Words]:
        """Log-probability of a word, and the history behind it."""
        if word in self._missing:
            assert self._unknown is not None
            word = self._unknown
        following = (*history, word)[1 - self.order :] if self.order > 1 else ()
        return self._score(history, word), following

    def end(self, history: Words) -> float:
        """Log-probability of the sentence's end."""
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
    """What a sentence gains when one n-gram takes another's place: a score as `rescoring.Candidates` hold it."""

    larger: ArpaWalk
    smaller: ArpaWalk

    def __call__(self, sentences: Sequence[Words]) -> np.ndarray:
        """Log-probability by the larger less that by the smaller: (K,). With weight 1 the larger counts alone."""
        return self.larger(sentences) - self.smaller(sentences)


# Whole lattices


class _Best(NamedTuple):
    """The best way to a state of a lattice with a history: its score, its words, and both models' histories."""

    score: float
    words: Words
    larger: Words
    smaller: Words


def rescored(graph: SequenceGraph, names: Sequence[str], models: Exchange, weights: Weights) -> Words:
    """The best word sequence of a lattice, every one of its sequences scored anew.

    names: word of each symbol. Dynamic programming over states of the lattice together with the words that the
    models remember, which is exact.
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


def _onward(way: _Best, word: str, graph: float, acoustic: float, models: Exchange, weights: Weights) -> _Best:
    new, larger = models.larger.step(way.larger, word)
    old, smaller = models.smaller.step(way.smaller, word)
    gained = acoustic + weights.graph * graph + weights.lm * (new - old) + weights.word
    return _Best(way.score + gained, (*way.words, word), larger, smaller)


def _ended(way: _Best, final: tuple[float, float], models: Exchange, weights: Weights) -> _Best:
    graph, acoustic = final
    if graph == -math.inf:
        return way._replace(score=-math.inf)
    gained = models.larger.end(way.larger) - models.smaller.end(way.smaller)
    return way._replace(score=way.score + acoustic + weights.graph * graph + weights.lm * gained)


def as_plain(lists: Mapping[str, Candidates]) -> dict[str, list[dict]]:
    """n-best lists as plain values for a JSON file: words, and acoustic, graph and n-gram scores apart."""
    return {
        name: [
            {"words": list(words), "acoustic": round(a, 4), "graph": round(g, 4), "lm": round(lm, 4)}
            for words, a, g, lm in zip(each.words, each.acoustic.tolist(), each.graph.tolist(), each.lm.tolist())
        ]
        for name, each in lists.items()
    }
