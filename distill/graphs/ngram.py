"""n-gram models by interpolated Witten-Bell: over units as acceptors, over words as ARPA files.

p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h)), with t(h) the number of different words seen
after h and h' the history without its oldest word (Witten and Bell 1991; Chen and Goodman 1999).
"""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.fsa.graph import Fsa

END = 0  # stands for the sentence's end among unit ids; blank never occurs in a sequence


def train_unit_ngram(sequences: Iterable[Sequence[int]], order: int, num_units: int) -> Fsa:
    """Unit n-gram without back-off arcs: every state has an arc for every unit, and an end.

    Removing the epsilons of a back-off model would count its paths twice in the log semiring, so
    the interpolated probabilities are written out. States are the histories that were seen; an arc
    leads to the longest of them that fits. State 0 is the start of a sentence.
    """
    if not 2 <= order <= 4:
        raise ValueError(f"order must be 2, 3 or 4, got {order}")
    counts = _count(sequences, order)
    if not counts[()]:
        raise ValueError("no unit sequences to estimate an n-gram from: the text corpus is empty")
    rows = _rows(counts, num_units)
    histories: dict[tuple[int, ...], int] = {(END,): 0}
    for history in sorted(rows):
        if history and (len(history) == order - 1 or history[0] == END):
            histories.setdefault(history, len(histories))
    for unit in range(1, num_units):  # a fall-back for histories that were never seen
        histories.setdefault((unit,), len(histories))
    return _acceptor(histories, rows, order, num_units)


def _count(sequences: Iterable[Sequence[int]], order: int) -> dict[tuple[int, ...], Counter[int]]:
    """Successors of every history of up to order - 1 units; a history reaches back to the sentence's start."""
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for sequence in sequences:
        padded = (END, *sequence, END)
        for position in range(1, len(padded)):
            for length in range(min(order, position + 1)):
                counts[padded[position - length : position]][padded[position]] += 1
    return counts


def _rows(counts: Mapping[tuple[int, ...], Counter[int]], num_units: int) -> dict[tuple[int, ...], np.ndarray]:
    """p(. | history) for every history, (num_units,) each, the end in column 0."""
    rows: dict[tuple[int, ...], np.ndarray] = {}
    for history in sorted(counts, key=len):
        row = np.zeros(num_units)
        seen = counts[history]
        row[list(seen)] = list(seen.values())
        # below the unigram lies the uniform distribution
        lower = rows[history[1:]] if history else np.full(num_units, 1 / num_units)
        rows[history] = (row + len(seen) * lower) / (row.sum() + len(seen))
    return rows


def _acceptor(
    histories: Mapping[tuple[int, ...], int], rows: Mapping[tuple[int, ...], np.ndarray], order: int, units: int
) -> Fsa:
    count = len(histories)
    src = np.repeat(np.arange(count, dtype=np.int32), units - 1)
    label = np.tile(np.arange(1, units, dtype=np.int32), count)
    dst = np.empty((count, units - 1), dtype=np.int32)
    table = np.empty((count, units))
    for history, state in histories.items():
        table[state] = np.log(rows[_longest(history, rows)])
        for unit in range(1, units):
            dst[state, unit - 1] = histories[_longest((*history, unit)[-(order - 1) :], histories)]
    return Fsa(src, dst.reshape(-1), label, table[:, 1:].reshape(-1), table[:, END].copy())


def _longest(history: tuple[int, ...], known: Mapping[tuple[int, ...], object]) -> tuple[int, ...]:
    """The history without as many of its oldest units as make it known."""
    while history not in known:
        history = history[1:]
    return history


def unit_perplexity(fsa: Fsa, sequences: Iterable[Sequence[int]]) -> float:
    """Perplexity per unit, ends counted, of sequences under a deterministic unit n-gram."""
    step = {(int(s), int(u)): (int(d), float(w)) for s, d, u, w in zip(fsa.src, fsa.dst, fsa.label, fsa.weight)}
    total, count = 0.0, 0
    for sequence in sequences:
        state = 0
        for unit in sequence:
            state, weight = step[state, unit]
            total += weight
        total += float(fsa.final[state])
        count += len(sequence) + 1
    return math.exp(-total / max(1, count))


@dataclass(frozen=True)
class ArpaLm:
    """Back-off n-gram over words: `probability` and `backoff` in log10, keyed by n-gram (tuples)."""

    order: int
    probability: Mapping[tuple[str, ...], float]
    backoff: Mapping[tuple[str, ...], float]

    def score(self, history: tuple[str, ...], word: str) -> float:
        """log10 p(word | history); raises ValueError for a word without a unigram."""
        ngram = (*history[-(self.order - 1) :], word) if self.order > 1 else (word,)
        penalty = 0.0
        while ngram not in self.probability:
            if len(ngram) == 1:
                raise ValueError(f"word '{word}' is not in the language model")
            penalty += self.backoff.get(ngram[:-1], 0.0)
            ngram = ngram[1:]
        return penalty + self.probability[ngram]

    def perplexity(self, sentences: Iterable[str]) -> float:
        """Perplexity per word, sentence ends counted."""
        total, count = 0.0, 0
        for sentence in sentences:
            history: tuple[str, ...] = ("<s>",)
            for word in (*sentence.split(), "</s>"):
                total += self.score(history, word)
                history = (*history, word)[-self.order :]
                count += 1
        return 10 ** (-total / max(1, count))

    def write(self, path: Path) -> None:
        """Write the ARPA file."""
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            by_order: dict[int, list[tuple[str, ...]]] = defaultdict(list)
            for ngram in self.probability:
                by_order[len(ngram)].append(ngram)
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={len(by_order[n])}\n" for n in range(1, self.order + 1))
            for n in range(1, self.order + 1):
                file.write(f"\n\\{n}-grams:\n")
                file.writelines(self._line(ngram) for ngram in sorted(by_order[n]))
            file.write("\n\\end\\\n")
        os.replace(temporary, path)

    def _line(self, ngram: tuple[str, ...]) -> str:
        backoff = f"\t{self.backoff[ngram]:.6f}" if ngram in self.backoff else ""
        return f"{self.probability[ngram]:.6f}\t{' '.join(ngram)}{backoff}\n"


def train_word_ngram(sentences: Iterable[str], order: int, words: Iterable[str] = (), least: int = 2) -> ArpaLm:
    """Word n-gram, interpolated, in back-off form; `words` get a unigram even if the text lacks them.

    n-grams of three and more words count only if seen `least` times (as lmplz --prune 0 0 1 does).
    """
    counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        padded = ("<s>", *sentence.split(), "</s>")
        for position in range(1, len(padded)):
            for length in range(min(order, position + 1)):
                counts[padded[position - length : position]][padded[position]] += 1
    if not counts:
        raise ValueError("no sentences to estimate an n-gram from: the text corpus is empty")
    vocabulary = {*counts[()], *words, "</s>"}
    probability: dict[tuple[str, ...], float] = {}
    backoff: dict[tuple[str, ...], float] = {}
    exact: dict[tuple[str, ...], float] = {}
    for history in sorted(counts, key=len):
        seen = counts[history]
        kept = {w: c for w, c in seen.items() if c >= least} if len(history) >= 2 else dict(seen)
        if not kept:
            continue
        scale = 1 / (sum(seen.values()) + len(seen))
        # What is not kept gets this share of the lower order: in an interpolated model, the back-off weight.
        share = 1 - sum(kept.values()) * scale
        backoff[history] = math.log10(share)
        for word in sorted(kept) if history else sorted(vocabulary):
            lower = 10 ** _lower(history[1:], word, exact, backoff) if history else 1 / len(vocabulary)
            exact[(*history, word)] = kept.get(word, 0) * scale + share * lower
    for ngram, value in exact.items():
        probability[ngram] = math.log10(value)
    probability[("<s>",)] = -99.0
    del backoff[()]
    return ArpaLm(order, probability, backoff)


def _lower(
    history: tuple[str, ...],
    word: str,
    exact: Mapping[tuple[str, ...], float],
    backoff: Mapping[tuple[str, ...], float],
) -> float:
    """log10 p(word | history) of a lower order that is complete already."""
    penalty = 0.0
    while (*history, word) not in exact:
        penalty += backoff.get(history, 0.0)
        history = history[1:]
    return penalty + math.log10(exact[(*history, word)])


def read_arpa(path: Path) -> ArpaLm:
    """Read an ARPA file; raises ValueError naming file and line for anything else."""
    probability: dict[tuple[str, ...], float] = {}
    backoff: dict[tuple[str, ...], float] = {}
    promised: dict[int, int] = {}
    order = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if text.startswith("ngram "):
            n, _, count = text[6:].partition("=")
            promised[int(n)] = int(count)
        elif text.endswith("-grams:"):
            order = int(text[1:].partition("-")[0])
        elif text and not text.startswith("\\"):
            fields = text.split()
            if not promised or len(fields) not in (order + 1, order + 2):
                raise ValueError(f"{path}:{number}: expected an entry of a {order}-gram section, got {text!r}")
            ngram = tuple(fields[1 : order + 1])
            probability[ngram] = float(fields[0])
            if len(fields) == order + 2:
                backoff[ngram] = float(fields[-1])
    found = Counter(len(ngram) for ngram in probability)
    if not promised or dict(found) != {n: c for n, c in promised.items() if c}:
        raise ValueError(f"{path}: the header promises {promised}, the file holds {dict(found)}; is it complete?")
    return ArpaLm(max(promised), probability, backoff)
