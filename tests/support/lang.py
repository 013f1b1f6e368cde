"""A lexicon with every difficulty of a decoding graph: homophones, prefixes, single phones, twins within a word."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.graphs.lexicon import Lang, Lexicon, write_lang

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
