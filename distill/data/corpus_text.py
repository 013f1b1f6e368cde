"""The text corpus and the lexicon of stage 0: `lm.txt` and `lexicon.txt`."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from distill.files import replacing
from distill.text import normalise, read_lines

from .layout import read_table
from .lexicon_files import read_lexicon
from .manifests import Skipped
from .synthetic.sentences import Grammar

log = logging.getLogger(__name__)

DIGITS = ("ZERO", "ONE", "TWO", "THREE", "FOUR", "FIVE", "SIX", "SEVEN", "EIGHT", "NINE")
DIGIT_STRING = (3, 7)


def write_text(sentences: Iterable[str], path: Path) -> int:
    """Writes one normalised sentence a line, empty ones left out and counted; returns how many.

    Raises ValueError if none is left.
    """
    count = empty = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for sentence in sentences:
            text = normalise(sentence)
            if text:
                file.write(text + "\n")
                count += 1
            else:
                empty += 1
        if not count:
            raise ValueError(f"the text corpus for {path} is empty: language models and denominator need text")
    log.info("text corpus: %d sentences, %d empty lines left out", count, empty)
    return count


def write_lexicon(source: Path, path: Path) -> int:
    """Writes `WORD P1 P2 …` lines spelt as text is, sorted, each once; returns how many.

    Entries of no use are listed in skipped.tsv beside it. Raises ValueError as `read_lexicon` does, or if none is left.
    """
    skipped = Skipped()
    entries = read_lexicon(source, skipped)
    if not entries:
        some = f": {len(skipped.rows)} entries, none of use, as {skipped.rows[0][1:]}" if skipped.rows else ""
        raise ValueError(f"the lexicon {source} is empty{some}; expected lines 'WORD P1 P2 …'")
    lines = {" ".join([entry.word, *entry.phones]) for entry in entries}
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")
    skipped.write(path.with_name("skipped.tsv"))
    return len(lines)


def read_sentences(path: Path) -> Iterator[str]:
    """The lines of a text file, gzipped or plain; ValueError for another encoding than UTF-8."""
    return read_lines(path)


def spoken_commands_text(corpus_dir: Path, orders: Path, seed: int = 42, size: int = 4000) -> Iterator[str]:
    """Text of the tasks: training orders, `size` drawn orders, `size` digit strings, keywords.

    `orders` is a grammar file written from the training transcripts; keywords are the names that
    occur in the training part, `size` / 20 times each.
    """
    rng = random.Random(f"{seed}/text")
    grammar = Grammar.read(orders, elide_article=False)
    yield from _training_texts(corpus_dir / "intent/intent.tsv")
    for _ in range(size):
        yield grammar.sentence(rng)
    for _ in range(size):
        yield " ".join(rng.choice(DIGITS) for _ in range(rng.randint(*DIGIT_STRING)))
    keywords = sorted(set(_training_texts(corpus_dir / "wakeword/wakeword.tsv")))
    for keyword in keywords:
        yield from [keyword] * (size // 20)


def _training_texts(table: Path) -> list[str]:
    rows: list[Mapping[str, str]] = list(read_table(table))
    return [row["text"] for row in rows if row["split"] == "train"]
