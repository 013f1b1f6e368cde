"""Search of a transducer frame by frame: greedy over units, and a beam over the words of a lexicon with their n-gram.

Both take at most one unit a frame, as sherpa-onnx does, so that they find no more units than frames. They keep their
state from chunk to chunk: frames may come in any portions. Predictor and joiner are those of any runtime (`Network`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from distill.config.model import BLANK
from distill.graphs.arpa import END, START, ArpaLm

if TYPE_CHECKING:
    from distill.graphs.lexicon import Lang  # imports torch, which no search of an exported model needs

ROOT = 0
Item = TypeVar("Item")


class Network(Protocol):
    """A predictor with its joiner, as a runtime computes them.

    States are those of the predictor, a row a hypothesis; its outputs (N, J) are projected for the joiner.
    """

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        """State and output before the first unit, of one hypothesis."""

    def advance(self, states: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """States and outputs behind further units (N,)."""

    def log_probs(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """A projected frame (J,) with outputs (N, J) -> log-probabilities (N, V)."""


class FewerBlanks:
    """A network whose blanks are less likely: a penalty is taken from their logit, as in icefall and sherpa-onnx."""

    def __init__(self, network: Network, penalty: float) -> None:
        self._network, self.penalty = network, penalty
        self.start, self.advance = network.start, network.advance

    def log_probs(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        """A projected frame (J,) with outputs (N, J) -> log-probabilities (N, V)."""
        logits = self._network.log_probs(frame, predicted).copy()
        logits[:, BLANK] -= self.penalty
        return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


def with_penalty(network: Network, penalty: float) -> Network:
    """The network, its blanks less likely where there is a penalty."""
    return FewerBlanks(network, penalty) if penalty else network


class Search:
    """The predictor's states of some hypotheses, and the joiner's log-probabilities behind them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.states, self.predicted = network.start()

    def log_probs(self, frame: np.ndarray) -> np.ndarray:
        """frame (J,) -> (hypotheses, V)."""
        return self.network.log_probs(frame, self.predicted)

    def advance(self, parents: Sequence[int], units: Sequence[int]) -> None:
        """Go on with new hypotheses: the old one that each comes from, and its further unit, blank for none."""
        chosen, further = list(parents), np.array(units, np.int64)
        self.states, self.predicted = self.states[chosen], self.predicted[chosen]
        moved = np.flatnonzero(further != BLANK)
        if len(moved):
            self.states[moved], self.predicted[moved] = self.network.advance(self.states[moved], further[moved])


class Greedy:
    """The best unit or blank of each frame. units: found so far; frames: that each was found in."""

    def __init__(self, network: Network) -> None:
        self._search, self._seen = Search(network), 0
        self.units: list[int] = []
        self.frames: list[int] = []

    def feed(self, frames: np.ndarray) -> None:
        """The next frames (T, J) of the encoder's projection."""
        for frame in frames:
            unit = int(self._search.log_probs(frame).argmax())
            if unit != BLANK:
                self.units.append(unit)
                self.frames.append(self._seen)
                self._search.advance([0], [unit])
            self._seen += 1


class Chain(Generic[Item]):
    """A sequence that grows at its end and shares its beginning with others, so that a long one costs no more to grow.

    Two are compared back to where they are the same object.
    """

    __slots__ = ("_hash", "before", "item", "length")

    def __init__(self, *items: Item) -> None:
        self.before: Chain[Item] | None = Chain(*items[:-1]) if items else None
        self.item: Item | None = items[-1] if items else None
        self.length, self._hash = len(items), hash((self.before, self.item))

    def then(self, item: Item) -> Chain[Item]:
        """This one with a further item."""
        longer: Chain[Item] = Chain()
        longer.before, longer.item = self, item
        longer.length, longer._hash = self.length + 1, hash((self, item))
        return longer

    def last(self, count: int) -> tuple[Item, ...]:
        """The last items, fewer of a shorter one."""
        items: list[Any] = []
        chain: Chain[Item] | None = self
        while chain is not None and chain.before is not None and len(items) < count:
            items.append(chain.item)
            chain = chain.before
        return tuple(reversed(items))

    def __iter__(self) -> Iterator[Item]:
        return iter(self.last(self.length))

    def __len__(self) -> int:
        return self.length

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chain) or self.length != other.length:
            return False
        one, two = self, other
        while one is not two and one.before is not None and two.before is not None:
            if one._hash != two._hash or one.item != two.item:
                return False
            one, two = one.before, two.before
        return True


class Place(NamedTuple):
    """Words so far, the node that the units after them lead to, and their score."""

    words: Chain[str] = Chain()
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
            yield Place(place.words.then(word), ROOT, before + self.scale * self._score(place, word))

    def ended(self, place: Place) -> float:
        """Score of the whole sentence; -inf within a word."""
        if place.node != ROOT:
            return -math.inf
        return place.score + self.scale * self._score(place, END)

    def _score(self, place: Place, word: str) -> float:
        return self.lm.score((START, *place.words.last(self.lm.order - 1)), word)


class Times(NamedTuple):
    """Frames of a hypothesis' likeliest alignment: each word's first and the one behind its last unit.

    begun: the first unit's of the word that it is in; end: the one behind the last unit.
    """

    words: Chain[tuple[int, int]] = Chain()
    begun: int = 0
    end: int = 0

    def after(self, frame: int, old: Place, new: Place) -> Times:
        """Behind a unit in a frame that leads from one place to another."""
        begun = frame if old.node == ROOT else self.begun
        words = self.words.then((begun, frame + 1)) if len(new.words) > len(old.words) else self.words
        return Times(words, begun, frame + 1)


class Hypothesis(NamedTuple):
    """acoustic: log-probability of its units, all alignments that are in the beam together."""

    units: Chain[int]
    place: Place
    acoustic: float
    times: Times = Times()

    @property
    def score(self) -> float:
        return self.acoustic + self.place.score


class Continued(NamedTuple):
    """Equal hypotheses of a frame as one: `unit` behind the old one numbered `parent`.

    acoustic: of all that were joined; best, times: of the likeliest of them.
    """

    acoustic: float
    parent: int
    unit: int
    best: float
    times: Times

    def joined(self, other: float, times: Times) -> Continued:
        """With another of the same units and words."""
        total = float(np.logaddexp(self.acoustic, other))
        best, times = (other, times) if other > self.best else (self.best, self.times)
        return self._replace(acoustic=total, best=best, times=times)


class Beam:
    """Modified beam search: hypotheses with equal units and words are one, their probabilities added.

    hypotheses: best first.
    """

    def __init__(self, network: Network, tree: LexiconTree, size: int) -> None:
        self.tree, self.size, self._search = tree, size, Search(network)
        self.hypotheses, self.frames = [Hypothesis(Chain(), Place(), 0.0)], 0

    def feed(self, frames: np.ndarray) -> None:
        """The next frames (T, J) of the encoder's projection."""
        for frame in frames:
            merged: dict[tuple[Chain[int], Place], Continued] = {}
            for parent, log_probs in enumerate(self._search.log_probs(frame).astype(np.float64)):
                for each, unit in self._continued(self.hypotheses[parent], log_probs):
                    key = each.units, each.place
                    if key in merged:
                        merged[key] = merged[key].joined(each.acoustic, each.times)
                    else:
                        merged[key] = Continued(each.acoustic, parent, unit, each.acoustic, each.times)
            ranked = sorted(merged.items(), key=lambda item: -(item[1].acoustic + item[0][1].score))[: self.size]
            same: dict[Chain, Chain] = {}  # equal chains become one object, so that later ones compare fast
            self.hypotheses = [
                Hypothesis(
                    same.setdefault(units, units), place._replace(words=same.setdefault(place.words, place.words)),
                    new.acoustic, new.times,
                )
                for (units, place), new in ranked
            ]  # fmt: skip
            self._search.advance([new.parent for _, new in ranked], [new.unit for _, new in ranked])
            self.frames += 1

    def _continued(self, old: Hypothesis, log_probs: np.ndarray) -> Iterator[tuple[Hypothesis, int]]:
        """By a blank, and by the likeliest units that the lexicon allows."""
        yield old._replace(acoustic=old.acoustic + log_probs[BLANK]), BLANK
        allowed = np.fromiter(self.tree.children[old.place.node], dtype=np.int64)
        for unit in allowed[np.argsort(-log_probs[allowed], kind="stable")[: self.size]].tolist():
            units = old.units.then(unit)
            for place in self.tree.after(old.place, unit):
                times = old.times.after(self.frames, old.place, place)
                yield Hypothesis(units, place, old.acoustic + log_probs[unit], times), unit

    def scores(self, ended: bool) -> np.ndarray:
        """Of each hypothesis, (N,); ended: as whole sentences, -inf within a word, unless all end within one."""
        scores = np.array([each.score for each in self.hypotheses])
        whole = np.array([each.acoustic + self.tree.ended(each.place) for each in self.hypotheses])
        return whole if ended and np.isfinite(whole).any() else scores

    def words(self) -> tuple[str, ...]:
        """Of the best whole sentence; within a word everywhere, the words before it of the best hypothesis."""
        return tuple(self.hypotheses[self.scores(True).argmax()].place.words)
