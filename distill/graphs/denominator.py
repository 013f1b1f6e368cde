"""The denominator from a text corpus, papers/001 §4.2: every word pronounced, an n-gram over the units."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from distill.fsa.graph import Fsa
from distill.graphs.lexicon import Lang
from distill.graphs.ngram import train_unit_ngram

log = logging.getLogger(__name__)


@dataclass
class Pronouncer:
    """Sentences to unit sequences: one pronunciation drawn per word, silence drawn between words and at the ends.

    Sentences with a word outside the lexicon are left out; `unknown` counts those words. Same seed, same draws.
    """

    lang: Lang
    seed: int = 0
    silence_edge: float = 0.8
    silence_inside: float = 0.1
    unknown: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    used: int = 0

    def __call__(self, sentences: Iterable[str]) -> Iterator[tuple[int, ...]]:
        """Unit ids of each sentence that can be pronounced."""
        rng = random.Random(self.seed)
        for sentence in sentences:
            words = sentence.split()
            if not words:
                continue
            missing = [word for word in words if word not in self.lang.lexicon.pronunciations]
            for word in missing:
                self.unknown[word] = self.unknown.get(word, 0) + 1
            if missing:
                self.left_out += 1
                continue
            self.used += 1
            yield tuple(self._units(words, rng))

    def _units(self, words: list[str], rng: random.Random) -> Iterator[int]:
        for position, word in enumerate(words):
            if rng.random() < (self.silence_inside if position else self.silence_edge):
                yield self.lang.silence
            yield from rng.choice(self.lang.pronunciation_ids(word, "the text corpus"))
        if rng.random() < self.silence_edge:
            yield self.lang.silence


def build_denominator(sentences: Iterable[str], lang: Lang, order: int, seed: int = 0) -> tuple[Fsa, Pronouncer]:
    """Unit n-gram of a text corpus, and what was used and left out of it.

    Raises ValueError for an empty corpus, or one of which nothing can be pronounced.
    """
    pronouncer = Pronouncer(lang, seed)
    sequences = pronouncer(sentences)
    first = next(sequences, None)
    if first is None:
        some = ", ".join(list(pronouncer.unknown)[:5]) or "it has no sentences"
        raise ValueError(
            f"nothing of the text corpus can be pronounced ({some}); check data/text/lm.txt against the lexicon"
        )
    fsa = train_unit_ngram(chain([first], sequences), order, len(lang.tokens))
    if pronouncer.left_out:
        worst = sorted(pronouncer.unknown, key=lambda word: (-pronouncer.unknown[word], word))[:5]
        log.warning(
            "%d sentences left out of the denominator: not in the lexicon are %d words, such as %s",
            pronouncer.left_out,
            len(pronouncer.unknown),
            ", ".join(worst),
        )
    return fsa, pronouncer
