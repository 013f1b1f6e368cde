from __future__ import annotations

import gzip
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.text import normalise, read_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello,  world!", "HELLO WORLD"),
        ("it\u2019s  O'Neill's\tdog", "IT'S O'NEILL'S DOG"),
        ("'quoted' words -- and_more", "'QUOTED' WORDS AND MORE"),
        (" ' ... \n", ""),
        ("", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected
    assert normalise(expected) == expected


SAME = {
    "composed or not": ("café Việt", "cafe\u0301 vie\u0323\u0302t", "CAFÉ VIỆT"),
    "vowel signs": ("नमस्ते दुनिया", " नमस्ते\u00a0दुनिया।", "\ufeffनमस्ते, दुनिया"),
    "Thai": ("ที่นี่ น้ำ", "ที่นี่\u3000น้ำ!"),
    "Hebrew points": ("שָׁלוֹם", "ש\u05c1\u05b8לו\u05b9ם"),  # marks in another order
    "Arabic marks": ("مَرْحَبًا", "\u202bمَرْحَبًا\u202c"),
    "apostrophes": ("don't", "Don’t", "DON‘T", "donʼt", "don＇t", "don´t", "don`t"),
    "byte order marks": ("RED LAMP", "\ufeffred lamp", "red \ufefflamp", "re\ufeffd lamp\ufeff"),
    "blanks": ("A B", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u202fb", "a\u2028b", "a\u200bb", "a\tb\r\n"),
    "soft hyphens": ("ZUSAMMEN", "zu\u00adsam\u00admen"),
    "sharp s": ("STRASSE", "straße", "STRAẞE", "Strasse"),
    "Turkish": ("istanbul", "İstanbul", "ISTANBUL", "ıstanbul", "i\u0307stanbul", "I\u0307STANBUL"),
    "sigma": ("λόγος", "ΛΌΓΟΣ", "λόγοσ"),
    "iota": ("ᾳ", "ᾼ", "ΑΙ"),
    "ligatures": ("office", "oﬃce", "ofﬁce", "oﬀice"),
    "directions": ("שלום", "\u200fשלום\u200e", "\u2067שלום\u2069"),
    "variants": ("葛 A", "葛\U000e0100 a", "葛 A\ufe0f"),
    "stray marks": ("A B", "a \u0301 b", "a \u0301b", "!\u0301a b"),
    "stray joiners": ("AB میم", "a\u200db\u200c\u200d میم\u200c"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_spellings_of_one_text_become_one(name: str) -> None:
    assert len({normalise(text) for text in SAME[name]}) == 1
    assert len(normalise(SAME[name][0]).split()) == len(SAME[name][0].split())


@pytest.mark.parametrize(
    "word",
    ["क्\u200dष", "ශ්\u200dරී", "അവന്\u200d", "র\u200d্যাব", "می\u200cخواهم"],
    ids=["Devanagari", "Sinhala", "Malayalam", "Bengali", "Persian"],
)
def test_joiners_that_make_another_word_stay(word: str) -> None:
    assert normalise(f"({word}).") == word


def test_capital_words_of_ascii_stay_as_they_are() -> None:
    assert normalise("IT'S 'TIS THE DOGS' O'CLOCK 99") == "IT'S 'TIS THE DOGS' O'CLOCK 99"


TEXT = st.text(st.one_of(st.characters(), st.sampled_from("aİıßΣςʼ'’ \u0307\u0301\u0345\u200c\u200d\u200b्नम.-_\ufeff")))


@given(TEXT)
def test_what_is_normal_stays_as_it_is(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once == unicodedata.normalize("NFC", once)
    assert "  " not in once and once == once.strip() and once == normalise(f"\ufeff {once}.\u00a0")


@given(TEXT)
def test_case_and_composition_make_no_other_word(text: str) -> None:
    text = text.replace("\u0345", "")  # a mark that turns into a letter in capitals
    others = (text.swapcase(), text.lower(), text.upper(), *(unicodedata.normalize(f, text) for f in ("NFC", "NFD")))
    assert {normalise(other) for other in others} == {normalise(text)}


@pytest.mark.parametrize("name", ["lm.txt", "lm.txt.gz"])
def test_lines_begin_without_byte_order_marks(name: str, tmp_path: Path) -> None:
    content = "\ufeffRED R EH D\n\ufeffLAMP\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(read_lines(tmp_path / name)) == ["RED R EH D", "LAMP"]


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\r\r\n"])
def test_lines_end_as_any_system_ends_them(end: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(f"\ufeffu1 RED{end}u2 BLUE{end}".encode())
    assert list(read_lines(tmp_path / "text")) == ["u1 RED", "u2 BLUE"]


@pytest.mark.parametrize("keep", [0, 5, 12, 30, -4, -1])
def test_archives_that_are_cut_are_named(keep: int, tmp_path: Path) -> None:
    packed = gzip.compress("".join(f"WORD{n} A B\n" for n in range(100)).encode())
    (tmp_path / "lm.txt.gz").write_bytes(packed[:keep] or b"A\n")
    with pytest.raises(ValueError, match=r"lm\.txt\.gz:\d+: it is no whole gzip archive"):
        list(read_lines(tmp_path / "lm.txt.gz"))


@pytest.mark.parametrize("name", ["lm.txt", "lm.txt.gz"])
def test_lines_come_one_at_a_time(name: str, tmp_path: Path) -> None:
    content = "ÉTÉ\r\n\nA\u2028B \nlast".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    lines = read_lines(tmp_path / name)
    assert next(lines) == "ÉTÉ"
    assert list(lines) == ["", "A\u2028B ", "last"]


@pytest.mark.parametrize("name", ["lm.txt", "lm.txt.gz"])
@pytest.mark.parametrize(("bad", "byte"), [("É".encode("latin-1"), "0xc9"), ("A B".encode("utf-16"), "0xff")])
def test_another_encoding_is_named_with_file_line_and_way_out(name: str, bad: bytes, byte: str, tmp_path: Path) -> None:
    content = b"GO TO\nNINE " + bad + b"\nTO\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    lines = read_lines(tmp_path / name)
    assert next(lines) == "GO TO"
    with pytest.raises(ValueError, match=rf"{name}:2: not UTF-8 \(byte {byte} at column 6\); .*iconv -f .* {name}"):
        next(lines)


@pytest.mark.parametrize(
    ("content", "way_out"),
    [("A B".encode("utf-16"), "iconv -f UTF-16"), (gzip.compress(b"A"), r"it is gzipped: name it lm\.txt\.gz")],
    ids=["UTF-16", "gzip"],  # the bytes hold the time
)
def test_other_kinds_of_file_have_their_way_out(content: bytes, way_out: str, tmp_path: Path) -> None:
    (tmp_path / "lm.txt").write_bytes(content)
    with pytest.raises(ValueError, match=way_out):
        list(read_lines(tmp_path / "lm.txt"))
