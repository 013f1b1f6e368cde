"""A decoding graph over a few words with homophones and repeated units, and the same by enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.decode.graph_decoder import GraphDecoder, Hypothesis, decode_all
from distill.decode.nbest import Words, candidates
from distill.fsa.lattice import Lattice
from distill.graphs.arpa import ArpaLm
from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from tests.support.lang import trained_lm

LEXICON = """
BE B
BEE B
BOB B A B
AB A B
A A
A B A
"""
SENTENCES = ["A BE A", "A BEE", "BOB AB", "BE BE", "AB A BEE", "BEE BOB"]


@dataclass(frozen=True)
class Small:
    """A graph on disk, and what it was made from."""

    hlg: Path
    lang: Lang
    lm: ArpaLm

    @property
    def words(self) -> list[str]:
        return sorted(self.lang.words, key=self.lang.words.__getitem__)

    def spellings(self, longest: int) -> Iterator[tuple[tuple[int, ...], tuple[str, ...], float]]:
        """Every way to say words in up to `longest` units: units, words, log-probability of the words."""
        stack: list[tuple[tuple[int, ...], tuple[str, ...], float]] = [((), (), 0.0)]
        while stack:
            units, words, score = stack.pop()
            history = ("<s>", *words)
            end = score + math.log(10) * self.lm.score(history, "</s>")
            yield units, words, end
            silent = (*units, self.lang.silence)
            if len(silent) <= longest:
                yield silent, words, end
            for word in self.lang.lexicon.words:
                following = score + math.log(10) * self.lm.score(history, word)
                for before, variant in itertools.product((units, silent), self.lang.pronunciation_ids(word, "test")):
                    if len(before) + len(variant) <= longest:
                        stack.append(((*before, *variant), (*words, word), following))

    def unit_sequences(self, longest: int) -> dict[tuple[int, ...], tuple[float, set[tuple[str, ...]]]]:
        """All unit sequences of up to `longest` units: best log-probability of words, and the words that have it."""
        best: dict[tuple[int, ...], tuple[float, set[tuple[str, ...]]]] = {}
        for units, words, score in self.spellings(longest):
            self._offer(best, units, words, score)
        return best

    def ranked_words(self, log_probs: np.ndarray) -> list[tuple[tuple[str, ...], float]]:
        """Every word sequence that T frames can say with its best score, best first."""
        acoustic, best = self._acoustic(log_probs), dict[tuple[str, ...], float]()
        for units, words, score in self.spellings(len(log_probs)):
            if units in acoustic:
                best[words] = max(best.get(words, -math.inf), score + acoustic[units])
        return sorted(best.items(), key=lambda item: -item[1])

    @staticmethod
    def _offer(best: dict, units: tuple[int, ...], words: tuple[str, ...], score: float) -> None:
        old, who = best.get(units, (-math.inf, set()))
        if score > old + 1e-6:
            best[units] = score, {words}
        elif score > old - 1e-6:
            who.add(words)

    @staticmethod
    def _acoustic(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
        """The best score of each unit sequence over its labellings of the frames."""
        frames, columns = log_probs.shape
        acoustic: dict[tuple[int, ...], float] = {}
        for labels in itertools.product(range(columns), repeat=frames):
            units = tuple(unit for unit, _ in itertools.groupby(labels) if unit)
            score = float(log_probs[range(frames), labels].sum())
            acoustic[units] = max(score, acoustic.get(units, -math.inf))
        return acoustic

    def ranked(self, log_probs: np.ndarray) -> list[tuple[float, tuple[int, ...], set[tuple[str, ...]]]]:
        """Every unit sequence that T frames can say with its best score, best first: (V ** T labellings)."""
        acoustic = self._acoustic(log_probs)
        known = self.unit_sequences(len(log_probs))
        found = [
            (score + known[units][0], units, known[units][1]) for units, score in acoustic.items() if units in known
        ]
        return sorted(found, key=lambda item: -item[0])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return make_small(tmp_path_factory.mktemp("small"), LEXICON, SENTENCES, 3)


def make_small(folder: Path, lexicon: str, sentences: Sequence[str], order: int) -> Small:
    (folder / "lexicon.txt").write_text(lexicon, encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    lang = Lang.load(folder)
    lm = trained_lm(folder, sentences, order, lang.lexicon.words, least=1)
    build_hlg(lang, folder / "lm.arpa").write(str(folder / "HLG.fst"))
    return Small(folder / "HLG.fst", lang, lm)


def random_log_probs(seed: int, frames: int, columns: int) -> np.ndarray:
    """(T, V) float32, peaked enough that paths differ clearly."""
    logits = 2.5 * np.random.default_rng(seed).standard_normal((frames, columns))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def spoken(labels: Sequence[int], columns: int, repeat: int = 2) -> np.ndarray:
    """Log-probabilities of frames that clearly say `labels`, each held for `repeat` frames."""
    held = np.repeat(np.asarray(labels), repeat)
    log_probs = np.full((len(held), columns), np.log(1e-4 / (columns - 1)))
    log_probs[np.arange(len(held)), held] = np.log(1 - 1e-4)
    return log_probs.astype(np.float32)


def best_paths(
    decoder: GraphDecoder, utterances: Iterable[tuple[Any, np.ndarray]], lattice_beam: float = 0.1
) -> Iterator[tuple[Any, Hypothesis]]:
    """(id, best path) of (id, (T, V)) pairs; a narrow lattice beam is enough for these."""
    decoder = copy(decoder)
    decoder.search = replace(decoder.search, lattice_beam=lattice_beam)
    return decode_all(decoder, lambda _, lattice: decoder.best(lattice), utterances)


def ranked_words(decoder: GraphDecoder, lattice: Lattice, count: int, beam: float) -> list[tuple[Words, float]]:
    """Word sequences of a lattice with their scores, best first."""
    found = candidates(decoder, lattice, count, beam)
    return list(zip(found.words, (found.acoustic + found.graph).tolist()))
