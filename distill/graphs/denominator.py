"""The denominator from a text corpus, papers/001 §4.2: every word pronounced, an n-gram over the units."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from distill.fsa.graph import Fsa
from distill.graphs.lexicon import Lang
from distill.graphs.unit_chain_ngram import train_chain_ngram
from distill.graphs.unit_ngram import train_unit_ngram, unit_perplexity

if TYPE_CHECKING:
    from distill.config.graphs import Graphs

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
        silence = self.lang.silence
        edge, inside = (self.silence_edge, self.silence_inside) if silence is not None else (0.0, 0.0)
        pause = () if silence is None else (silence,)
        for position, word in enumerate(words):
            if rng.random() < (inside if position else edge):
                yield from pause
            yield from rng.choice(self.lang.pronunciation_ids(word, "the text corpus"))
        if rng.random() < edge:
            yield from pause


def pronouncer_of(lang: Lang, settings: Graphs) -> Pronouncer:
    """Sentences to units, with the draws that the settings describe."""
    return Pronouncer(lang, settings.seed, settings.silence_edge, settings.silence_inside)


def build_denominator(sentences: Iterable[str], lang: Lang, settings: Graphs) -> tuple[Fsa, Pronouncer]:
    """Unit n-gram of a text corpus of any size, read once, and the pronouncer with its counts.

    Raises ValueError for an empty corpus, or one without a sentence that can be pronounced.
    """
    pronouncer = pronouncer_of(lang, settings)
    sequences = pronouncer(sentences)
    first = next(sequences, None)
    if first is None:
        some = ", ".join(list(pronouncer.unknown)[:5]) or "it has no sentences"
        raise ValueError(
            f"no sentence of the text corpus can be pronounced ({some}); check data/text/lm.txt against the lexicon"
        )
    units, order = chain([first], sequences), settings.order
    if settings.style == "chain":
        kept = min(settings.no_prune_order, order)
        fsa = train_chain_ngram(units, order, len(lang.tokens), kept, settings.num_extra_states)
    else:
        fsa = train_unit_ngram(units, order, len(lang.tokens))
    if pronouncer.left_out:
        worst = sorted(pronouncer.unknown, key=lambda word: (-pronouncer.unknown[word], word))[:5]
        log.warning(
            "%d sentences left out of the denominator: not in the lexicon are %d words, such as %s",
            pronouncer.left_out,
            len(pronouncer.unknown),
            ", ".join(worst),
        )
    return fsa, pronouncer


def unit_lm_figures(fsa: Fsa, sentences: Iterable[str], lang: Lang, settings: Graphs) -> dict[str, int | float]:
    """Size of a unit n-gram, and its perplexity on sentences with the draws of `pronouncer_of`."""
    perplexity = unit_perplexity(fsa, pronouncer_of(lang, settings)(sentences))
    return {"states": fsa.num_states, "arcs": fsa.num_arcs, "perplexity": round(perplexity, 3)}
