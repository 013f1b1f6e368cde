"""Units of a language model: BPE pieces, characters or words; no unit spans words."""

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

END, UNKNOWN = 1, 2  # "<sos/eos>" begins and ends a sentence; "<unk>" stands for units that the text lacks
SYMBOLS, BPE = "units.txt", "bpe.model"


class Units:
    """Token ids of words; those of recent words are cached."""

    def __init__(self, symbols: dict[str, int], spell: Callable[[str], Iterable[str]]) -> None:
        self.symbols = sorted(symbols, key=symbols.__getitem__)
        self._ids, self._spell = symbols, spell
        self.of = lru_cache(maxsize=500_000)(self._of)

    def __len__(self) -> int:
        return len(self.symbols)

    def _of(self, word: str) -> tuple[int, ...]:
        return tuple(self._ids.get(unit, UNKNOWN) for unit in self._spell(word))

    def sentence(self, words: Iterable[str]) -> list[int]:
        """Token ids of a sentence between END and END."""
        return [END, *(token for word in words for token in self.of(word)), END]

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
        with replacing(folder / BPE) as temporary:
            temporary.write_bytes(model)
        symbols = Bpe(model).pieces
    else:
        parts = _words(sentences, most) if kind == "words" else sorted({c for s in sentences for c in s} - set(" \t"))
        symbols = [*SPECIAL, *([BOUNDARY] if kind == "chars" else []), *parts]
        if not parts:
            raise ValueError("no sentences to learn units from: the text corpus is empty")
    write_symbols(folder / SYMBOLS, symbols)
    return Units.load(folder, kind)


def _words(sentences: Iterable[str], most: int) -> list[str]:
    counts = Counter(word for sentence in sentences for word in sentence.split())
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    kept = ranked[: most - len(SPECIAL)]
    if len(kept) < len(ranked):
        log.warning(
            "%d of %d words are <unk> in the language model (text.most_units)", len(ranked) - len(kept), len(ranked)
        )
    return sorted(kept)
