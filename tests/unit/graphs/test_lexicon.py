"""Lexicon and lang folder: what is read, numbered and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.graphs.lexicon import Lang, Lexicon, write_lang


def lexicon(tmp_path: Path, text: str) -> Lexicon:
    (tmp_path / "lexicon.txt").write_text(text, encoding="utf-8")
    return Lexicon.read(tmp_path / "lexicon.txt")


def test_several_pronunciations_and_doubles(tmp_path: Path) -> None:
    read = lexicon(tmp_path, "A AH\nB B IY\n\nA EY\nA AH\n")
    assert read.pronunciations["A"] == (("AH",), ("EY",))
    assert read.words == ["A", "B"]
    assert read.phones == ["AH", "B", "EY", "IY"]


def test_lang_numbers_blank_silence_then_phones(lang: Lang, tmp_path: Path) -> None:
    assert lang.units[:3] == ["<blk>", "SIL", "AE"]
    assert list(lang.tokens.values()) == list(range(len(lang.units)))
    assert lang.silence == 1
    words = (tmp_path / "lang" / "words.txt").read_text(encoding="utf-8").split("\n")
    assert words[:2] == ["<eps> 0", "A 1"]
    assert [line.split()[0] for line in words[-4:-1]] == ["#0", "<s>", "</s>"]
    phones = [lang.units[u] for u in lang.pronunciation_ids("A", "here")[1]]
    assert phones == ["EY"]


def test_unknown_word_names_itself_and_its_place(lang: Lang) -> None:
    with pytest.raises(ValueError, match=r"'ZEBRA' of utterance-7 .* lexicon\.txt"):
        lang.pronunciation_ids("ZEBRA", "utterance-7")


@pytest.mark.parametrize(
    ("text", "message"), [("A AH\nB\n", r"lexicon\.txt:2: word 'B'"), ("\n", "is empty"), ("A SIL\n", "reserved")]
)
def test_wrong_lexicons(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_lang(lexicon(tmp_path, text), tmp_path)


def test_missing_files_name_their_stage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stage 0"):
        Lexicon.read(tmp_path / "none.txt")
    with pytest.raises(FileNotFoundError, match="stage 2"):
        Lang.load(tmp_path)


def test_lexicon_that_outgrew_its_tokens(lang: Lang, tmp_path: Path) -> None:
    with (tmp_path / "lang" / "lexicon.txt").open("a", encoding="utf-8") as file:
        file.write("ZOO Z UW\n")
    with pytest.raises(ValueError, match=r"\['Z'\].*stage 2"):
        Lang.load(tmp_path / "lang")


@pytest.mark.parametrize(
    ("line", "message"),
    [("SIL one", "expected 'symbol number', got 'SIL one'"), ("SIL", "expected"), ("A B 3", "expected"),
     ("AH 9", "'AH' or its number 9"), ("QQ 0", "'QQ' or its number 0")],
)  # fmt: skip
def test_wrong_symbol_tables(lang: Lang, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "lang" / "tokens.txt"
    count = len(path.read_text(encoding="utf-8").splitlines())
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"tokens\.txt:{count + 2}: .*{message}"):
        Lang.load(tmp_path / "lang")
