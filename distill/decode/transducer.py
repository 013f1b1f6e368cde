"""Search of a transducer frame by frame: greedy over units, and a beam over the words of a lexicon with their n-gram.

Both take at most one unit a frame, as sherpa-onnx does, so that they find no more units than frames. They keep their
state from chunk to chunk: frames may come in any portions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distill.graphs.arpa import END, START, ArpaLm
from distill.graphs.lexicon import Lang
from distill.models.transducer import BLANK, Transducer

ROOT = 0


class Search:
    """The predictor's states of some hypotheses, and the joiner's log-probabilities behind them."""

    def __init__(self, network: Transducer) -> None:
        self.network = network
        self.states = network.predictor.start(1)
        self.predicted = self._predict(self.states)

    def log_probs(self, frame: Tensor) -> Tensor:
        """frame (J,) -> (hypotheses, V)."""
        return self.network.logits(frame, self.predicted).log_softmax(1)

    def advance(self, parents: Sequence[int], units: Sequence[int]) -> None:
        """Go on with new hypotheses: the old one that each comes from, and its further unit, blank for none."""
        chosen, further = list(parents), torch.tensor(units, device=self.states.device)
        self.states, self.predicted = self.states[chosen], self.predicted[chosen]
        moved = (further != BLANK).nonzero()[:, 0]
        if len(moved):
            self.states[moved] = self.network.predictor.advance(self.states[moved], further[moved])
            self.predicted[moved] = self._predict(self.states[moved])

    def _predict(self, states: Tensor) -> Tensor:
        return self.network.predictor_projection(self.network.predictor.read(states))


class Greedy:
    """The best unit or blank of each frame. units: found so far; frames: that each was found in."""

    def __init__(self, network: Transducer) -> None:
        self._search, self._seen = Search(network), 0
        self.units: list[int] = []
        self.frames: list[int] = []

    @torch.inference_mode()
    def feed(self, frames: Tensor) -> None:
        """The next frames (T, J) of the encoder's projection."""
        for frame in frames:
            unit = int(self._search.log_probs(frame).argmax())
            if unit != BLANK:
                self.units.append(unit)
                self.frames.append(self._seen)
                self._search.advance([0], [unit])
            self._seen += 1


class Place(NamedTuple):
    """Words so far, the node that the units after them lead to, and their score."""

    words: tuple[str, ...] = ()
    node: int = ROOT
    score: float = 0.0


class LexiconTree:
    """Unit sequences of a lexicon's words as a prefix tree, with a word n-gram.

    Within a word its score is that of the likeliest word that it can become (look-ahead by unigrams). A word that the
    n-gram lacks is left out; silence is no unit here.
    """

    def __init__(self, lang: Lang, lm: ArpaLm, scale: float) -> None:
        """scale: of the n-gram's log-probabilities."""
        self.lm, self.scale = lm, scale * math.log(10)
        self.children: list[dict[int, int]] = [{}]
        self.words: list[list[str]] = [[]]
        self.ahead = [0.0]
        for word in lang.lexicon.words:
            if (word,) not in lm.probability:
                continue
            for variant in lang.pronunciation_ids(word, "the lexicon"):
                self._add(word, [unit for unit in variant if unit != lang.silence])

    def _add(self, word: str, units: Sequence[int]) -> None:
        node, likely = ROOT, self.lm.probability[word,]
        for unit in units:
            if unit not in self.children[node]:
                self.children[node][unit] = len(self.children)
                self.children.append({})
                self.words.append([])
                self.ahead.append(-math.inf)
            node = self.children[node][unit]
            self.ahead[node] = max(self.ahead[node], likely)
        if units and word not in self.words[node]:
            self.words[node].append(word)

    def after(self, place: Place, unit: int) -> Iterator[Place]:
        """Where a unit leads: further into words, and behind each word that it ends."""
        node = self.children[place.node][unit]
        before = place.score - self.scale * self.ahead[place.node]
        if self.children[node]:
            yield Place(place.words, node, before + self.scale * self.ahead[node])
        for word in self.words[node]:
            likely = self.lm.score((START, *place.words), word)
            yield Place((*place.words, word), ROOT, before + self.scale * likely)

    def ended(self, place: Place) -> float:
        """Score of the whole sentence; -inf within a word."""
        if place.node != ROOT:
            return -math.inf
        return place.score + self.scale * self.lm.score((START, *place.words), END)


class Hypothesis(NamedTuple):
    """acoustic: log-probability of its units, all alignments that are in the beam together."""

    units: tuple[int, ...]
    place: Place
    acoustic: float

    @property
    def score(self) -> float:
        return self.acoustic + self.place.score


class Beam:
    """Modified beam search: hypotheses with equal units and words are one, their probabilities added.

    hypotheses: best first.
    """

    def __init__(self, network: Transducer, tree: LexiconTree, size: int) -> None:
        self.tree, self.size, self._search = tree, size, Search(network)
        self.hypotheses = [Hypothesis((), Place(), 0.0)]

    @torch.inference_mode()
    def feed(self, frames: Tensor) -> None:
        """The next frames (T, J) of the encoder's projection."""
        for frame in frames:
            merged: dict[tuple[tuple[int, ...], Place], tuple[float, int, int]] = {}
            for parent, log_probs in enumerate(self._search.log_probs(frame).double().cpu().numpy()):
                for hypothesis, unit in self._continued(self.hypotheses[parent], log_probs):
                    key = hypothesis.units, hypothesis.place
                    if key in merged:
                        total = float(np.logaddexp(merged[key][0], hypothesis.acoustic))
                        merged[key] = total, *merged[key][1:]
                    else:
                        merged[key] = hypothesis.acoustic, parent, unit
            ranked = sorted(merged.items(), key=lambda item: -(item[1][0] + item[0][1].score))[: self.size]
            self.hypotheses = [Hypothesis(*key, acoustic) for key, (acoustic, _, _) in ranked]
            self._search.advance([parent for _, (_, parent, _) in ranked], [unit for _, (_, _, unit) in ranked])

    def _continued(self, old: Hypothesis, log_probs: np.ndarray) -> Iterator[tuple[Hypothesis, int]]:
        """By a blank, and by the likeliest units that the lexicon allows."""
        yield old._replace(acoustic=old.acoustic + log_probs[BLANK]), BLANK
        allowed = np.fromiter(self.tree.children[old.place.node], dtype=np.int64)
        for unit in allowed[np.argsort(-log_probs[allowed], kind="stable")[: self.size]].tolist():
            for place in self.tree.after(old.place, unit):
                yield Hypothesis((*old.units, unit), place, old.acoustic + log_probs[unit]), unit

    def words(self) -> tuple[str, ...]:
        """Of the best whole sentence; within a word everywhere, the words before it of the best hypothesis."""
        best = max(self.hypotheses, key=lambda each: each.acoustic + self.tree.ended(each.place))
        whole = best if best.place.node == ROOT else self.hypotheses[0]
        return whole.place.words
