"""Word n-grams of a text of any size: interpolated Witten-Bell in back-off form, in arrays.

The text is read once and kept as word ids in a temporary file; then it is counted order by order. The code of an
n-gram is its history's row in the table one order below, times the number of words, plus its last word. So memory
grows with the number of distinct n-grams of one order, 16 bytes each, and not with the text.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from distill.files import replacing
from distill.graphs.arpa import END, START
from distill.graphs.unit_ngram import Counts

BLOCK = 1_000_000  # words at once
NONE = -1


@dataclass(frozen=True)
class Level:
    """n-grams of one order, (G,) each: codes, sorted; places of their suffixes one order below; log10 values.

    backoff is NaN for n-grams that no n-gram of the model continues.
    """

    codes: np.ndarray
    suffix: np.ndarray
    probability: np.ndarray
    backoff: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def find(self, codes: np.ndarray) -> np.ndarray:
        """Place of each code, NONE if it is not there; codes may be negative."""
        place = np.searchsorted(self.codes, codes).clip(max=max(0, len(self) - 1))
        return np.where(self.codes[place] == codes, place, NONE) if len(self) else np.full(len(codes), NONE)


class WordNgram:
    """Back-off n-gram over words; `train_word_ngram` makes it."""

    def __init__(self, words: list[str], levels: list[Level]) -> None:
        self.words, self.levels = words, levels
        self.order, self.size = len(levels), sum(map(len, levels))

    def write(self, path: Path) -> None:
        """Write the ARPA file, n-grams in alphabetical order."""
        with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(level)}\n" for n, level in enumerate(self.levels, 1))
            for n, level in enumerate(self.levels, 1):
                file.write(f"\n\\{n}-grams:\n")
                for first in range(0, len(level), BLOCK):
                    file.writelines(self._lines(n, slice(first, first + BLOCK)))
            file.write("\n\\end\\\n")

    def _lines(self, order: int, some: slice) -> Iterator[str]:
        level = self.levels[order - 1]
        columns, codes = [], level.codes[some]
        for shorter in reversed(self.levels[: order - 1]):
            columns.append((codes % len(self.words)).tolist())
            codes = shorter.codes[codes // len(self.words)]
        columns.append(codes.tolist())
        for *ids, probability, backoff in zip(*reversed(columns), level.probability[some], level.backoff[some]):
            weight = "" if math.isnan(backoff) else f"\t{backoff:.6f}"
            yield f"{probability:.6f}\t{' '.join(self.words[i] for i in ids)}{weight}\n"


def train_word_ngram(sentences: Iterable[str], order: int, words: Iterable[str] = (), least: int = 2) -> WordNgram:
    """Word n-gram, interpolated, in back-off form; `words` get a unigram even if the text lacks them.

    n-grams of three and more words count only if seen `least` times (as lmplz --prune 0 0 1 does).
    Raises ValueError for text without a word.
    """
    with tempfile.TemporaryFile() as file:
        seen = _write_ids(sentences, file)
        if not seen:
            raise ValueError("no sentences to estimate an n-gram from: the text corpus is empty")
        names = sorted({START, END, *seen, *words})
        ids = {name: number for number, name in enumerate(names)}
        number = np.array([ids[START], ids[END], *(ids[word] for word in seen)])
        levels: list[Level] = []
        for n in range(1, order + 1):
            counts = Counts()
            for symbols, position in _read_ids(file, number):
                counts.add(_codes(symbols, position, n, levels, len(names)))
            codes, numbers = counts.table()
            if n > 1:
                _add_level(codes, numbers, levels, len(names), least if n > 2 else 1)
            else:
                levels.append(_unigrams(codes, numbers, len(names), ids[START]))
    return WordNgram(names, levels)


def _write_ids(sentences: Iterable[str], file: IO[bytes]) -> dict[str, int]:
    """Number the words as they come, from 2; a sentence is 0, its words, 1. Returns the ids."""
    seen: dict[str, int] = {}
    for sentence in sentences:
        line = [0, *(seen.setdefault(word, len(seen) + 2) for word in sentence.split()), 1]
        file.write(np.array(line, dtype=np.int32).tobytes())
    return seen


def _read_ids(file: IO[bytes], number: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Whole sentences of about BLOCK words: final ids of the symbols, and their positions in the sentences."""
    file.seek(0)
    rest = np.zeros(0, dtype=np.int32)
    while len(fresh := np.frombuffer(file.read(4 * BLOCK), dtype=np.int32)):
        rest = np.concatenate([rest, fresh])
        ends = np.flatnonzero(rest == 1)
        if len(ends):
            symbols, rest = rest[: ends[-1] + 1], rest[ends[-1] + 1 :]
            place = np.arange(len(symbols))
            yield number[symbols], place - np.maximum.accumulate(np.where(symbols == 0, place, 0))


def _codes(symbols: np.ndarray, position: np.ndarray, order: int, levels: list[Level], words: int) -> np.ndarray:
    """Codes of the n-grams in a text whose histories are kept."""
    history = np.zeros(len(symbols), dtype=np.int64)  # of each symbol: the place of the n - 1 symbols before it
    for n, level in enumerate(levels[: order - 1], 1):
        ending = symbols if n == 1 else level.find(np.where(history == NONE, NONE, history * words + symbols))
        history = np.concatenate([[NONE], ending[:-1]])
        history[position < n] = NONE
    known = (history != NONE) & (position > 0)
    return history[known] * words + symbols[known]


def _unigrams(codes: np.ndarray, numbers: np.ndarray, words: int, start: int) -> Level:
    """All words, those that were never seen too; below lies the uniform distribution."""
    count = np.zeros(words)
    count[codes] = numbers
    kinds, total = len(codes), numbers.sum()
    with np.errstate(divide="ignore"):
        probability = np.log10((count + kinds / (words - 1)) / (total + kinds))
    probability[start] = -99.0
    return Level(np.arange(words), np.zeros(words, dtype=np.int64), probability, np.full(words, np.nan))


def _add_level(codes: np.ndarray, numbers: np.ndarray, levels: list[Level], words: int, least: int) -> None:
    """Append the n-grams of an order that are seen `least` times, interpolated with the order below.

    A history's back-off weight is its share for the order below.
    """
    below, history = levels[-1], codes // words
    total = np.bincount(history, numbers, len(below)) + np.bincount(history, minlength=len(below))
    kept = numbers >= least
    share = 1 - np.bincount(history, numbers * kept, len(below)) / np.maximum(total, 1)
    codes, history = codes[kept], history[kept]
    word = codes % words
    suffix = word if len(levels) == 1 else below.find(below.suffix[history] * words + word)
    value = numbers[kept] / total[history] + share[history] * 10 ** below.probability[suffix]
    levels.append(Level(codes, suffix, np.log10(value), np.full(len(codes), np.nan)))
    below.backoff[np.unique(history)] = np.log10(share[np.unique(history)])
