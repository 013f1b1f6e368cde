"""A lexicon with every difficulty of a decoding graph: homophones, prefixes, single phones, twins within a word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from distill.graphs.arpa import ArpaLm, read_arpa
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.word_ngram import train_word_ngram

LINES = """
GO G OW
TO T UW
TWO T UW
TOO T UW
AN AE N
ANNA AE N AH
NINE N AY N
A AH
A EY
"""


@pytest.fixture
def lang(tmp_path: Path) -> Lang:
    (tmp_path / "lexicon.txt").write_text(LINES.lstrip(), encoding="utf-8")
    folder = tmp_path / "lang"
    folder.mkdir()
    write_lang(Lexicon.read(tmp_path / "lexicon.txt"), folder)
    return Lang.load(folder)


def trained_lm(folder: Path, sentences: Iterable[str], order: int, words: Iterable[str] = (), least: int = 2) -> ArpaLm:
    """The word n-gram of some sentences, read from folder/lm.arpa."""
    train_word_ngram(sentences, order, words, least).write(folder / "lm.arpa")
    return read_arpa(folder / "lm.arpa")
