"""Units of a language model: BPE pieces, characters or words; every word has units of its own."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

from distill.files import replacing
from distill.graphs.bpe import BOUNDARY, SPECIAL, Bpe, train_bpe
from distill.graphs.lexicon import read_symbols, write_symbols

log = logging.getLogger(__name__)

END, UNKNOWN = 1, 2  # "<sos/eos>" begins and ends a sentence; "<unk>" stands for what the text lacks
SYMBOLS, BPE = "units.txt", "bpe.model"


class Units:
    """Words to numbers; `of` is remembered for the words that come most."""

    def __init__(self, symbols: dict[str, int], spell: Callable[[str], Iterable[str]]) -> None:
        self.symbols = sorted(symbols, key=symbols.__getitem__)
        self._numbers, self._spell = symbols, spell
        self.of = lru_cache(maxsize=500_000)(self._of)

    def __len__(self) -> int:
        return len(self.symbols)

    def _of(self, word: str) -> tuple[int, ...]:
        return tuple(self._numbers.get(unit, UNKNOWN) for unit in self._spell(word))

    def sentence(self, words: Iterable[str]) -> list[int]:
        """Numbers of a sentence between END and END."""
        return [END, *(number for word in words for number in self.of(word)), END]

    @classmethod
    def load(cls, folder: Path, kind: str) -> Units:
        """Read what `learn_units` wrote; raises FileNotFoundError naming the stage that does, ValueError for a kind."""
        if kind not in ("bpe", "chars", "words"):
            raise ValueError(f"units '{kind}' of a language model are not known; expected bpe, chars or words")
        if not (folder / SYMBOLS).is_file():
            raise FileNotFoundError(f"no units at {folder / SYMBOLS}; stage 11 writes them (run.sh --stage 11)")
        symbols = read_symbols(folder / SYMBOLS)
        if kind == "bpe":
            return cls(symbols, Bpe.load(folder / BPE).of)
        return cls(symbols, (lambda word: (BOUNDARY, *word)) if kind == "chars" else (lambda word: (word,)))


def learn_units(sentences: Iterable[str], kind: str, most: int, seed: int, folder: Path) -> Units:
    """Write units.txt (and bpe.model) from text; the same text, settings and seed give the same bytes.

    Raises ValueError for text without a word, or for a kind that is not known.
    """
    if kind == "bpe":
        model = train_bpe(sentences, most, seed)
        write_bytes(folder / BPE, model)
        symbols = Bpe(model).pieces
    else:
        symbols = [*SPECIAL, *(_characters(sentences) if kind == "chars" else _words(sentences, most))]
        if len(symbols) == len(SPECIAL):
            raise ValueError("no sentences to learn units from: the text corpus is empty")
    write_symbols(folder / SYMBOLS, symbols)
    return Units.load(folder, kind)


def _characters(sentences: Iterable[str]) -> list[str]:
    found = {character for sentence in sentences for character in sentence} - set(" \t")
    return [BOUNDARY, *sorted(found)] if found else []


def _words(sentences: Iterable[str], most: int) -> list[str]:
    counts = Counter(word for sentence in sentences for word in sentence.split())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = ranked[: most - len(SPECIAL)]
    if len(kept) < len(ranked):
        log.warning(
            "%d of %d words are <unk> to the language model (text.most_units)", len(ranked) - len(kept), len(ranked)
        )
    return sorted(kept)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
