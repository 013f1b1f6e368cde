"""n-best rescoring: distinct word sequences of a lattice, ranked again with weights that a development set chose.

score = acoustic + g graph + l lm + w words, all natural logs; acoustic + graph alone (g 1, l and w 0) is the
order of the search. Weights are those with the fewest errors on the utterances given to `tune`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from distill.decode.graph_decoder import GraphDecoder, decode_all
from distill.fsa.lattice import Lattice
from distill.scoring.wer import score as scored
from distill.search.determinise import SequenceGraph, determinised

Words = tuple[str, ...]


class ScoreWeights(NamedTuple):
    """Factors of the graph's and the language model's scores beside the acoustic one's 1, and a score per word."""

    graph: float = 1.0
    lm: float = 0.0
    word: float = 0.0


UNCHANGED = ScoreWeights()


@dataclass(frozen=True, eq=False)
class Candidates:
    """Word sequences of an utterance, best first, and their scores: acoustic, graph, lm (K,) float64."""

    words: tuple[Words, ...]
    acoustic: np.ndarray
    graph: np.ndarray
    lm: np.ndarray

    def features(self) -> np.ndarray:
        """Acoustic, graph and language model scores and number of words: (K, 4)."""
        length = np.array([len(words) for words in self.words], dtype=np.float64)
        return np.stack([self.acoustic, self.graph, self.lm, length], axis=1)

    def best(self, weights: ScoreWeights) -> Words:
        """The words that score best; the earlier of equals."""
        return self.words[int(np.argmax(self.features() @ np.array([1.0, *weights])))]


def candidates(decoder: GraphDecoder, lattice: Lattice, count: int, beam: float) -> Candidates:
    """Up to `count` distinct word sequences within `beam` of the best; one without words where there is no path."""
    if not lattice.num_states:
        zero = np.zeros(1)
        return Candidates(((),), zero, zero, zero)
    graph = determinised(lattice, None, beam)
    sequences = [ids for ids, _ in islice(graph.near(beam), count)]
    parts = np.array([_scores(graph, ids) for ids in sequences])
    words = tuple(tuple(decoder.words[word] for word in ids) for ids in sequences)
    return Candidates(words, parts[:, 1], parts[:, 0], np.zeros(len(sequences)))


def candidate_lists(
    decoder: GraphDecoder, utterances: Iterable[tuple[str, np.ndarray]], count: int, beam: float
) -> dict[str, Candidates]:
    """`candidates` of (id, log-probabilities (T, V)) pairs, by id."""
    return dict(decode_all(decoder, lambda _, lattice: candidates(decoder, lattice, count, beam), utterances))


def _scores(graph: SequenceGraph, symbols: Sequence[int]) -> tuple[float, float]:
    """Graph and acoustic score of one sequence of a deterministic graph."""
    state = 0
    sums = np.array(graph.best, dtype=np.float64)
    for symbol in symbols:
        first, last = np.searchsorted(graph.src, [state, state + 1])
        arc = first + int(np.flatnonzero(graph.symbol[first:last] == symbol)[0])
        sums += graph.graph[arc], graph.acoustic[arc]
        state = int(graph.dst[arc])
    sums += graph.final_graph[state], graph.final_acoustic[state]
    return float(sums[0]), float(sums[1])


def score_all(lists: Mapping[str, Candidates], score: Callable[[Sequence[Words]], np.ndarray]) -> dict[str, Candidates]:
    """The candidates of all utterances with the scores of a language model, which gets them all at once."""
    flat = [words for listed in lists.values() for words in listed.words]
    values = np.asarray(score(flat), dtype=np.float64)
    ends = np.cumsum([len(listed.words) for listed in lists.values()])
    pieces = np.split(values, ends[:-1]) if len(ends) else []
    return {name: replace(listed, lm=piece) for (name, listed), piece in zip(lists.items(), pieces)}


# Choosing weights


@dataclass(frozen=True)
class Tuning:
    """The weights chosen, the errors with them and with unchanged scores on the development set, and the whole grid.

    oracle: fewest errors of any choice among the candidates; tried: (graph, lm, word, errors) of every point.
    """

    weights: ScoreWeights
    errors: int
    before: int
    oracle: int
    ref_words: int
    utterances: int
    tried: tuple[tuple[float, float, float, int], ...]

    def fields(self) -> dict:
        """Plain values for a JSON file."""
        return {**asdict(self), "weights": self.weights._asdict()}


def tune(
    lists: Mapping[str, Candidates],
    references: Mapping[str, Sequence[str]],
    graph: Sequence[float],
    lm: Sequence[float],
    word: Sequence[float],
    unscored: Collection[str] = (),
) -> Tuning:
    """The point of the grid whose neighbourhood leaves the fewest errors, among those no worse than unchanged scores.

    The errors of a point and its neighbours are summed, a steadier estimate than its own where errors are few; of
    equals the one with fewer errors of its own, then the one nearest to unchanged scores. unscored: words that are no
    errors and no words of references. Raises ValueError without utterances, or for a grid without UNCHANGED.
    """
    axes = [sorted(set(axis)) for axis in (graph, lm, word)]
    points = [ScoreWeights(*values) for values in itertools.product(*axes)]
    if UNCHANGED not in points:
        raise ValueError(f"the grid of weights must contain {tuple(UNCHANGED)}, the scores without rescoring")
    if not lists:
        raise ValueError("no utterances to choose weights on; the development set is empty")
    errors = {name: error_counts(listed, references[name], unscored) for name, listed in lists.items()}
    factors = np.array([(1.0, *point) for point in points])
    total = np.sum(
        [errors[name][np.argmax(factors @ listed.features().T, axis=1)] for name, listed in lists.items()], axis=0
    )
    best = _best_point(total.reshape([len(axis) for axis in axes]), points)
    tried = tuple((*point, int(count)) for point, count in zip(points, total))
    return Tuning(
        points[best], int(total[best]), int(total[points.index(UNCHANGED)]),
        sum(int(count.min()) for count in errors.values()),
        sum(word not in unscored for name in lists for word in references[name]), len(lists), tried,
    )  # fmt: skip


def error_counts(listed: Candidates, reference: Sequence[str], unscored: Collection[str] = ()) -> np.ndarray:
    """Word errors of every candidate, without words that are not scored: (K,)."""
    counted = [[word for word in words if word not in unscored] for words in (reference, *listed.words)]
    return np.array([scored("", counted[0], words).errors for words in counted[1:]])


def _best_point(total: np.ndarray, points: Sequence[ScoreWeights]) -> int:
    """Index of the point to take, from the errors on the grid (graph, lm, word)."""
    padded = np.pad(total.astype(np.float64), 1, mode="edge")
    steps = itertools.product((0, 1, 2), repeat=total.ndim)
    around = sum(padded[tuple(slice(s, s + n) for s, n in zip(step, total.shape))] for step in steps)
    away = np.array([sum(abs(a - b) for a, b in zip(point, UNCHANGED)) for point in points])
    worse = total.ravel() > total.ravel()[points.index(UNCHANGED)]
    return int(np.lexsort((away, total.ravel(), np.asarray(around).ravel(), worse))[0])
