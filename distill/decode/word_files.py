"""Files of recognised words with times and confidences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from distill.files import write_lines
from distill.text import Word


def write_words(folder: Path, words: Mapping[str, Sequence[Word]]) -> None:
    """words.ctm (`ctm_lines`) and words.json, sorted by utterance."""
    names = sorted(words)
    write_lines(folder / "words.ctm", (line for name in names for line in ctm_lines(name, words[name])))
    rows = {name: [asdict(word) for word in words[name]] for name in names}
    write_lines(folder / "words.json", [json.dumps(rows, ensure_ascii=False)])


def ctm_lines(name: str, words: Iterable[Word]) -> Iterator[str]:
    """Lines of a CTM file: utterance, channel, begin, duration, word, confidence."""
    return (f"{name} 1 {w.start:.3f} {w.end - w.start:.3f} {w.text} {w.confidence:.4f}" for w in words)
