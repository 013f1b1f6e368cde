"""Incremental beam of a transducer while audio arrives, with word times, confidences and endpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from distill.decode.endpoint import RULES, Rule, at_endpoint
from distill.decode.online import Progress
from distill.decode.transducer import Beam, Hypothesis, LexiconTree, Network
from distill.graphs.arpa import read_arpa
from distill.graphs.lexicon import Lang
from distill.text import Word

NGRAM = "words.3gram.arpa"


@dataclass(frozen=True)
class TransducerDecoder:
    """State shared by all streams: predictor and joiner, the lexicon with its n-gram, the beam, endpoint rules.

    size: hypotheses of the beam. frame_seconds: duration of a frame.
    """

    network: Network
    tree: LexiconTree
    size: int
    frame_seconds: float
    rules: Sequence[Rule] = RULES

    def seconds(self, frames: int) -> float:
        return round(frames * self.frame_seconds, 3)


def open_tree(lang: Lang, arpa: Path, scale: float) -> LexiconTree:
    """The words of a lexicon with their n-gram; raises FileNotFoundError, ValueError for one of other words."""
    if not arpa.is_file():
        raise FileNotFoundError(
            f"a transducer's words need their n-gram, but there is no {arpa}; stage 3 writes it in the data folder, and"
            " stage 12 puts it beside the exported graphs"
        )
    tree = LexiconTree(lang, read_arpa(arpa), scale)
    if not tree.children[0]:
        raise ValueError(f"{arpa} has none of the lexicon's {len(lang.lexicon.words)} words; run stages 2 and 3 again")
    return tree


class OnlineBeam:
    """The beam of one stream; methods as of `OnlineSearch`.

    Words are stable that all hypotheses begin with. A word's confidence is the posterior of the hypotheses in the beam
    that have it at an overlapping time.
    """

    def __init__(self, decoder: TransducerDecoder) -> None:
        self.decoder, self._before = decoder, 0
        self._beam = Beam(decoder.network, decoder.tree, decoder.size)

    @property
    def frames(self) -> int:
        """Frames of this utterance so far."""
        return self._beam.frames

    def feed(self, log_probs: np.ndarray) -> None:
        """Search the next frames of the encoder's projection (T, J), T may be 0."""
        self._beam.feed(log_probs)

    def progress(self) -> Progress:
        """The best hypothesis so far."""
        best, *others = self._beam.hypotheses
        columns = zip(*(each.place.words for each in (best, *others)))
        stable = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, columns))
        silence, ended = self._endpoint(best)
        return Progress(tuple(best.place.words), self._spans(best), stable, silence, ended)

    def words(self, ended: bool = False) -> tuple[list[Word], bool]:
        """Words of the utterance so far with confidences, and whether it ends here. ended: no more frames follow."""
        scores = self._beam.scores(ended)
        best, posteriors = self._beam.hypotheses[scores.argmax()], np.exp(scores - np.logaddexp.reduce(scores))
        words = [
            Word(name, *span, round(min(1.0, float(posteriors @ self._having(name, place))), 4))
            for name, span, place in zip(best.place.words, self._spans(best), best.times.words)
        ]
        return words, self._endpoint(best)[1]

    def restart(self) -> None:
        """Begin another utterance; times continue."""
        self._before += self.frames
        self._beam = Beam(self.decoder.network, self.decoder.tree, self.decoder.size)

    def _having(self, name: str, place: tuple[int, int]) -> np.ndarray:
        """Whether each hypothesis has a word at an overlapping time, (N,)."""
        return np.array([
            any(
                name == other and start < place[1] and place[0] < end
                for other, (start, end) in zip(each.place.words, each.times.words)
            )
            for each in self._beam.hypotheses
        ])  # fmt: skip

    def _spans(self, hypothesis: Hypothesis) -> tuple[tuple[float, float], ...]:
        seconds, before = self.decoder.seconds, self._before
        return tuple((seconds(before + start), seconds(before + end)) for start, end in hypothesis.times.words)

    def _endpoint(self, best: Hypothesis) -> tuple[float, bool]:
        """Seconds since the last unit, and whether the utterance ends here."""
        seconds = self.decoder.seconds
        silence = seconds(self.frames - best.times.end)
        return silence, at_endpoint(self.decoder.rules, seconds(self.frames), silence, len(best.place.words) > 0)
