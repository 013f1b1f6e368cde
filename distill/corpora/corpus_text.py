"""The text corpus and the lexicon of stage 0: `lm.txt` and `lexicon.txt`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from distill.corpora.lexicon_files import read_lexicon
from distill.corpora.listing import Skipped
from distill.files import replacing, write_lines
from distill.text import normalise, read_lines

log = logging.getLogger(__name__)


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


def words_of(text: Path, transcripts: Iterable[str]) -> set[str]:
    """Every word of a normalised text and of transcripts."""
    return {word for line in chain(read_lines(text), map(normalise, transcripts)) for word in line.split()}


def write_lexicon(source: Path, path: Path) -> int:
    """Writes `WORD P1 P2 …` lines spelt as text is, sorted, each once; returns how many.

    Entries of no use are listed in skipped.tsv beside it. Raises ValueError as `read_lexicon` does, or if none is left.
    """
    skipped = Skipped()
    entries = read_lexicon(source, skipped)
    if not entries:
        why = f": {len(skipped.rows)} entries, none of use, as {skipped.rows[0][1:]}" if skipped.rows else ""
        raise ValueError(f"the lexicon {source} is empty{why}; expected lines 'WORD P1 P2 …'")
    lines = {" ".join([entry.word, *entry.phones]) for entry in entries}
    write_lines(path, sorted(lines))
    skipped.write(path.with_name("skipped.tsv"))
    return len(lines)
