"""ARPA files of back-off word n-grams: a checking reader, the model in memory, and normalisation of its words.

The format of SRILM, KenLM and icefall: a header with the number of n-grams of each order, then sections of lines
"log10-probability w1 … wn [log10-backoff]".
"""

from __future__ import annotations

import logging
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from distill.text import normalise, read_lines

log = logging.getLogger(__name__)

Ngram = tuple[str, ...]
START, END = "<s>", "</s>"
RESERVED = frozenset(("<eps>", "#0"))  # epsilons of graphs
LONGEST = 10  # words of an n-gram
ZERO = -99.0  # log10-probability that tools write for zero, unless they write -inf
_PROMISE, _SECTION = re.compile(r"ngram\s*\d"), re.compile(r"\\(?:\d+-grams:|end\\)")


class Entry(NamedTuple):
    """An n-gram with its place (file:line), log10-probability and log10-backoff (None without one), -inf for zero.

    highest: its order is the model's, so that it is no history.
    """

    where: str
    ngram: Ngram
    probability: float
    backoff: float | None
    highest: bool


def read_entries(path: Path) -> Iterator[Entry]:
    """Yield the n-grams of an ARPA file, plain or gzipped, in file order; text before the header is skipped.

    Raises ValueError with file and line for a missing header, counts that differ from it, sections out of order,
    malformed n-grams and invalid log-probabilities.
    """
    promised: dict[int, int] = {}
    order, count, ended, behind, before = 0, 0, False, 0, ""
    for number, line in enumerate(read_lines(path), 1):
        text, where = line.strip(), f"{path}:{number}"
        if ended:
            behind += bool(text)
        elif not order and text == "\\data\\":
            promised.clear()
        elif not order and _PROMISE.match(text):
            promised.update([_promise(text, where, len(promised) + 1)])
        elif text.startswith("\\") and (order or promised or _SECTION.fullmatch(text)):
            _check_count(where, promised, order, count)
            order, count = order + 1, 0
            ended = text == "\\end\\"
            if not ended and (text != f"\\{order}-grams:" or order not in promised):
                raise ValueError(f"{where}: expected the section \\{order}-grams: of the header's, got {text[:60]!r}")
        elif text and order:
            count += 1
            yield _entry(text.split(), order, where, order == len(promised))
        elif text and promised:
            raise ValueError(f"{where}: expected 'ngram {len(promised) + 1}=COUNT' or \\1-grams:, got {text[:60]!r}")
        elif text:
            before = before or f"{where}: got {text[:60]!r}"
    if not promised:
        got = before or f"{path}: it is empty"
        raise ValueError(f"{got}, expected an ARPA header (\\data\\, ngram 1=…); make the n-gram again")
    if not ended or order <= max(promised):
        raise ValueError(f"{path}: no \\end\\ after the {max(promised)}-grams; is the file cut short?")
    if behind:
        log.warning("%s: %d lines behind \\end\\ are not read", path, behind)


def _promise(text: str, where: str, expected: int) -> tuple[int, int]:
    order, _, count = text.removeprefix("ngram").partition("=")
    if order.strip() != str(expected) or not re.fullmatch(r"\s*[0-9]{1,18}", count):
        raise ValueError(f"{where}: expected 'ngram {expected}=COUNT', got {text[:60]!r}")
    if expected > LONGEST:
        raise ValueError(f"{where}: n-grams of more than {LONGEST} words are not read; make the n-gram of lower order")
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
    words, given = tuple(fields[1 : order + 1]), " ".join(fields)[:80]
    try:
        numbers = [float(fields[0]), *map(float, fields[order + 1 :])]
    except ValueError:
        numbers = []
    if len(words) < order or len(numbers) not in (1, 2):
        raise ValueError(f"{where}: expected 'probability w1 … w{order} [backoff]', got {given!r}")
    if not numbers[0] <= 1e-6 or not numbers[-1] <= -ZERO:
        raise ValueError(
            f"{where}: expected a log10-probability (at most 0) and at most one back-off weight (at most {-ZERO:g}),"
            f" got {given!r}"
        )
    if START in words[1:] or END in words[:-1] or not RESERVED.isdisjoint(words):
        raise ValueError(
            f"{where}: {START} may only begin and {END} only end an n-gram, and {' and '.join(sorted(RESERVED))} are"
            f" no words, got {given!r}"
        )
    probability, *backoff = (number if number > ZERO else -math.inf for number in numbers)
    return Entry(where, words, probability, backoff[0] if backoff else None, highest)


def hole(entry: Entry) -> ValueError:
    """The error for an n-gram whose history is missing."""
    history = " ".join(entry.ngram[:-1])
    return ValueError(
        f"{entry.where}: the file holds '{' '.join(entry.ngram)}' but not its history '{history}': it has holes,"
        " as a careless pruning leaves them; make the n-gram again, or prune it with a tool that keeps histories"
    )


def twice(entry: Entry) -> ValueError:
    """The error for a duplicate n-gram."""
    return ValueError(f"{entry.where}: '{' '.join(entry.ngram)}' stands twice in the file")


@dataclass(frozen=True)
class ArpaLm:
    """Back-off n-gram over words: log10 `probability` and `backoff` by n-gram (tuples of words).

    size: number of n-grams in the file, those not loaded included.
    """

    order: int
    probability: Mapping[Ngram, float]
    backoff: Mapping[Ngram, float]
    size: int = 0

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

    def perplexity(self, sentences: Iterable[str]) -> float:
        """Perplexity per word, sentence ends included."""
        total, count = 0.0, 0
        for sentence in sentences:
            padded = (START, *sentence.split(), END)
            total += sum(self.score(padded[:place], padded[place]) for place in range(1, len(padded)))
            count += len(padded) - 1
        bits = -total / max(1, count)
        return 10**bits if bits < 300 else math.inf


def read_arpa(path: Path, sentences: Iterable[str] | None = None) -> ArpaLm:
    """Load an ARPA file; raises ValueError as `read_entries` does, and for missing histories and duplicates.

    A probability of zero becomes 10^ZERO, so that scores stay finite. sentences: load only the n-grams that these
    need, so that memory does not grow with the file.
    """
    needed = None if sentences is None else _parts(sentences)
    probability: dict[Ngram, float] = {}
    backoff: dict[Ngram, float] = {}
    order = size = 0
    for entry in read_entries(path):
        order, size = len(entry.ngram), size + 1
        if needed is not None and entry.ngram not in needed:
            continue
        if order > 1 and entry.ngram[:-1] not in probability:
            raise hole(entry)
        if entry.ngram in probability:
            raise twice(entry)
        probability[entry.ngram] = max(entry.probability, ZERO)
        if entry.backoff is not None:
            backoff[entry.ngram] = max(entry.backoff, ZERO)
    return ArpaLm(order, probability, backoff, size)


def _parts(sentences: Iterable[str], longest: int = LONGEST) -> set[Ngram]:
    """All n-grams of up to `longest` words in the sentences."""
    ngrams: set[Ngram] = set()
    for sentence in sentences:
        words = (START, *sentence.split(), END)
        ngrams.update(words[i:j] for i in range(len(words)) for j in range(i + 1, min(i + longest, len(words)) + 1))
    return ngrams


def normalise_arpa(source: Path, target: Path) -> bool:
    """Write an ARPA file with its words normalised as text is; False, and nothing written, if they already are.

    Words that normalised text cannot contain are left out with their n-grams, and listed with the reason in a
    .skipped.tsv beside the target. Raises ValueError as `read_entries` does, and for words that become equal.
    """
    spelt = _spellings(source)
    if all(word == new for word, new in spelt.items()):
        return False
    counts: Counter[int] = Counter()
    body = target.with_name(target.name + ".body")
    with body.open("w", encoding="utf-8") as file:
        for entry in read_entries(source):
            words = [spelt.get(word, word) for word in entry.ngram]
            if not all(words):
                continue
            if not counts[len(words)]:
                file.write(f"\n\\{len(words)}-grams:\n")
            counts[len(words)] += 1
            weight = "" if entry.backoff is None else f"\t{max(entry.backoff, ZERO)!r}"
            file.write(f"{max(entry.probability, ZERO)!r}\t{' '.join(words)}{weight}\n")
        file.write("\n\\end\\\n")
    header = "".join(f"ngram {order}={count}\n" for order, count in counts.items())
    with body.open("rb") as file, target.open("wb") as whole:
        whole.write(f"\\data\\\n{header}".encode())
        shutil.copyfileobj(file, whole, 1 << 20)
    body.unlink()
    lost = [word for word, new in spelt.items() if not new]
    reasons = [f"text is spelt '{text}'" if (text := normalise(word)) else "no letter is left in text" for word in lost]
    lines = "".join(f"{word}\t{reason}\n" for word, reason in zip(lost, reasons))
    target.with_name(target.name + ".skipped.tsv").write_text(lines, encoding="utf-8")
    log.warning("%s: words are normalised as text is; %d of %d occur in no text", source, len(lost), len(spelt))
    return True


def _spellings(path: Path) -> dict[str, str]:
    """Words of an ARPA file after normalisation, empty for those that normalised text cannot contain."""
    spelt: dict[str, str] = {}
    first: dict[str, Entry] = {}
    for entry in read_entries(path):
        word = entry.ngram[0]
        if len(entry.ngram) > 1:
            break
        if word in (START, END) or word.lower() == "<unk>":
            continue
        new = normalise(word)
        spelt[word] = new = "" if " " in new else new
        if new and (other := first.setdefault(new, entry)).ngram[0] != word:
            raise ValueError(
                f"{entry.where}: '{word}' and '{other.ngram[0]}' (line {other.where.rpartition(':')[2]}) are one word"
                f" to text, {new}: make the n-gram of normal text, or remove it and stage 3 estimates one"
            )
    return spelt
