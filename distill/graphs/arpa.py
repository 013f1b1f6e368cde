"""ARPA files of back-off word n-grams: read line by line and checked, or held in memory.

The format is that of Doug Paul, as SRILM, KenLM and icefall read it: a header that counts the n-grams of
each order, then sections of "log10-probability w1 … wn [log10-backoff]".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from distill.text import read_lines

Ngram = tuple[str, ...]
START, END = "<s>", "</s>"


class Entry(NamedTuple):
    """One n-gram: where it stands (file:line), its log10-probability, its log10-backoff (None without one).

    highest: whether its order is the model's, so that it is the history of nothing.
    """

    where: str
    ngram: Ngram
    probability: float
    backoff: float | None
    highest: bool


def read_entries(path: Path) -> Iterator[Entry]:
    """The n-grams of an ARPA file in its order, plain or gzipped, one at a time.

    Raises ValueError naming file and line for a header that is missing or does not match what follows,
    for sections out of order, lines that are no n-gram, and numbers that are no log-probability.
    """
    promised: dict[int, int] = {}
    order, found, ended = 0, 0, False
    for number, line in enumerate(read_lines(path), 1):
        text, where = line.strip(), f"{path}:{number}"
        if text.startswith("ngram ") and not order:
            promised.update([_promise(text, where, len(promised) + 1)])
        elif text.startswith("\\") and text not in ("\\data\\",):
            _check_count(where, promised, order, found)
            order, found = order + 1, 0
            ended = text == "\\end\\"
            if ended:
                break
            if text != f"\\{order}-grams:" or order not in promised:
                raise ValueError(f"{where}: expected the section \\{order}-grams: of the header's, got {text!r}")
        elif text and order:
            found += 1
            yield _entry(text.split(), order, where, order == len(promised))
        elif text and text != "\\data\\":
            raise ValueError(f"{where}: expected an ARPA header (\\data\\, ngram 1=…), got {text[:60]!r}")
    if not promised:
        raise ValueError(f"{path}: it is empty, expected an ARPA header (\\data\\, ngram 1=…); make the n-gram again")
    if not ended or order <= max(promised, default=0):
        raise ValueError(f"{path}: no \\end\\ after the {max(promised, default=0)}-grams; is the file cut short?")


def entries(path: Path) -> int:
    """How many n-grams of all orders the header promises; raises ValueError as `read_entries` does."""
    promised: dict[int, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        if line.startswith("ngram "):
            promised.update([_promise(line.strip(), f"{path}:{number}", len(promised) + 1)])
        elif line.strip().endswith("-grams:"):
            break
    return sum(promised.values())


def _promise(text: str, where: str, expected: int) -> tuple[int, int]:
    order, _, count = text.removeprefix("ngram ").partition("=")
    if order.strip() != str(expected) or not count.strip().isdigit():
        raise ValueError(f"{where}: expected 'ngram {expected}=COUNT', got {text!r}")
    return expected, int(count)


def _check_count(where: str, promised: Mapping[int, int], order: int, found: int) -> None:
    if not promised:
        raise ValueError(f"{where}: no 'ngram 1=COUNT' in the header; is this an ARPA file?")
    if order and found != promised[order]:
        raise ValueError(
            f"{where}: the header promises {promised[order]} {order}-grams, the file holds {found}: it is cut short or"
            " was edited; make the n-gram again, or correct the header if the n-grams are right"
        )


def _entry(fields: list[str], order: int, where: str, highest: bool) -> Entry:
    words = tuple(fields[1 : order + 1])
    try:
        numbers = [float(fields[0]), *map(float, fields[order + 1 :])]
    except ValueError:
        numbers = []
    if len(words) < order or len(numbers) not in (1, 2):
        raise ValueError(f"{where}: expected 'probability w1 … w{order} [backoff]', got {' '.join(fields)[:80]!r}")
    if not numbers[0] <= 1e-6 or any(math.isnan(n) or n == math.inf for n in numbers):
        raise ValueError(
            f"{where}: expected a log10-probability (at most 0) and at most one finite backoff weight,"
            f" got {' '.join(fields)[:80]!r}"
        )
    if START in words[1:] or END in words[:-1]:
        raise ValueError(f"{where}: {START} may only begin and {END} only end an n-gram, got '{' '.join(words)}'")
    return Entry(where, words, numbers[0], numbers[1] if len(numbers) == 2 else None, highest)


def hole(entry: Entry) -> ValueError:
    """The error for an n-gram whose history has no entry of its own."""
    history = " ".join(entry.ngram[:-1])
    return ValueError(
        f"{entry.where}: the file holds '{' '.join(entry.ngram)}' but not its history '{history}': it has holes,"
        " as a careless pruning leaves them; make the n-gram again, or prune it with a tool that keeps histories"
    )


def twice(entry: Entry) -> ValueError:
    """The error for an n-gram that the file has given before."""
    return ValueError(f"{entry.where}: '{' '.join(entry.ngram)}' stands twice in the file")


class WordLm:
    """What can be asked of any word n-gram."""

    def score(self, history: Ngram, word: str) -> float:
        """log10 p(word | history)."""
        raise NotImplementedError

    def perplexity(self, sentences: Iterable[str]) -> float:
        """Perplexity per word, sentence ends counted."""
        total, count = 0.0, 0
        for sentence in sentences:
            padded = (START, *sentence.split(), END)
            total += sum(self.score(padded[:place], padded[place]) for place in range(1, len(padded)))
            count += len(padded) - 1
        return 10 ** (-total / max(1, count))


@dataclass(frozen=True)
class ArpaLm(WordLm):
    """Back-off n-gram over words: `probability` and `backoff` in log10, keyed by n-gram (tuples)."""

    order: int
    probability: Mapping[Ngram, float]
    backoff: Mapping[Ngram, float]

    def score(self, history: Ngram, word: str) -> float:
        """log10 p(word | history); raises ValueError for a word without a unigram."""
        ngram = (*history[-(self.order - 1) :], word) if self.order > 1 else (word,)
        penalty = 0.0
        while ngram not in self.probability:
            if len(ngram) == 1:
                raise ValueError(f"word '{word}' is not in the language model")
            penalty += self.backoff.get(ngram[:-1], 0.0)
            ngram = ngram[1:]
        return penalty + self.probability[ngram]


def read_arpa(path: Path, sentences: Iterable[str] | None = None) -> ArpaLm:
    """Read an ARPA file whole; raises ValueError as `read_entries` does, and for holes and doubles.

    sentences: keep what is needed to score these alone, so that memory does not grow with the file.
    """
    needed = None if sentences is None else _parts(sentences)
    probability: dict[Ngram, float] = {}
    backoff: dict[Ngram, float] = {}
    order = 0
    for entry in read_entries(path):
        order = len(entry.ngram)
        if needed is not None and entry.ngram not in needed:
            continue
        if order > 1 and entry.ngram[:-1] not in probability:
            raise hole(entry)
        if entry.ngram in probability:
            raise twice(entry)
        probability[entry.ngram] = entry.probability
        if entry.backoff is not None:
            backoff[entry.ngram] = entry.backoff
    return ArpaLm(order, probability, backoff)


def _parts(sentences: Iterable[str], longest: int = 10) -> set[Ngram]:
    """Every n-gram of up to `longest` words in the sentences."""
    found: set[Ngram] = set()
    for sentence in sentences:
        words = (START, *sentence.split(), END)
        found.update(words[i:j] for i in range(len(words)) for j in range(i + 1, min(i + longest, len(words)) + 1))
    return found
