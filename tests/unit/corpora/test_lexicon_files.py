"""Lexica of other makers: what is taken off, what stays, what is listed, what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from distill.corpora.corpus_text import write_lexicon, write_text
from distill.text import normalise


def written(folder: Path, text: str, name: str = "in.txt") -> list[str]:
    """Lines of the lexicon that stage 0 makes of a source."""
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    write_lexicon(folder / name, folder / "lexicon.txt")
    return (folder / "lexicon.txt").read_text(encoding="utf-8").splitlines()


def listed(folder: Path) -> dict[str, str]:
    """What was left out, with its reason."""
    rows = [line.split("\t") for line in (folder / "skipped.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    return {name: reason for _, name, reason in rows}


SETS = {
    "X-SAMPA": ("DEUX d 2\nEUX 2\nPEUR p 9 R\nUN 9~\n", ["DEUX d 2", "EUX 2", "PEUR p 9 R", "UN 9~"]),
    "tones": ("MA1 m a1\nMA3 m a3\n", ["MA1 m a1", "MA3 m a3"]),
    "tones of capitals": ("A B AO1\nB B AO3\n", ["A B AO1", "B B AO3"]),
    "tones of small letters": ("A b ao1\nB b ao2\n", ["A b ao1", "B b ao2"]),
    "tones apart": ("A m a 1\nB m a 2\n", ["A m a 1", "B m a 2"]),
    "digits of consonants": ("A T1 AH0\nB T2 AH0\n", ["A T1 AH0", "B T2 AH0"]),
    "ARPAbet amid others": ("A AH0\nB x AH1\n", ["A AH0", "B x AH1"]),
    "ARPAbet": ("A AH0\nA EY1\nB HH AXR2\n", ["A AH", "A EY", "B HH AXR"]),
    "IPA in two compositions": ("A ɑ\u0303 t\nA ɑ̃ t\nB \u00e3\nB a\u0303\n", ["A ɑ̃ t", "B ã"]),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_only_stress_of_arpabet_is_taken_off(name: str, tmp_path: Path) -> None:
    text, expected = SETS[name]
    assert written(tmp_path, text) == expected


MAKERS = {
    "CMUdict": (
        ";;; # CMUdict\nABLE  EY1 B AH0 L\nABLE(1)  EY1 B L # rare, d\nABLE(2)\tAE1 B L\n# end\n",
        ["ABLE AE B L", "ABLE EY B AH L", "ABLE EY B L"],
    ),
    "Kaldi's probabilities": ("A 1.0 AH\nA 0.25 EY\nB 1 B IY\n", ["A AH", "A EY", "B B IY"]),
    "Kaldi's probabilities of silence": ("A 0.5 0.2 1.31 0.9 AH\nB 1 0.99 0.4 1.0 B IY\n", ["A AH", "B B IY"]),
    "small probabilities": ("A 1e-05 AH\nB .5 B IY\n", ["A AH", "B B IY"]),
    "a phone that is 1": ("A 1\nB 1 b\nC c 1\n", ["A 1", "B 1 b", "C c 1"]),
    "tabs and trailing blanks": ("A\tAH \t\r\nB \t B\tIY  \r\n\r\n", ["A AH", "B B IY"]),
    "doubles": ("A AH\na AH0\nA  AH1\n", ["A AH"]),
    "byte order marks": ("\ufeffRED R EH D\n\ufeffLAMP L AE M P\n", ["LAMP L AE M P", "RED R EH D"]),
}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("file", ["lexicon.txt", "lexicon.txt.gz"])
def test_lexica_of_other_makers_are_read_as_what_they_are(name: str, file: str, tmp_path: Path) -> None:
    text, expected = MAKERS[name]
    assert written(tmp_path, text, f"from-{file}") == expected
    assert listed(tmp_path) == {}


def test_words_are_spelt_as_text_is(tmp_path: Path) -> None:
    text = "\ufeffRED R EH1 D\nDON’T D OW1 N T\nMR. M IH1 S T ER0\nnaı\u0308ve N AY2\nStraße S T\nनमस्ते N AH0\n"
    words = [line.split()[0] for line in written(tmp_path, text)]
    write_text(["Red don't,", "mr don‘t STRASSE!", "Mr. NAÏVE", "नमस्ते"], tmp_path / "lm.txt")
    sentences = (tmp_path / "lm.txt").read_text(encoding="utf-8").split()
    assert set(sentences) == set(words) == set(map(normalise, words)) and listed(tmp_path) == {}


def test_entries_that_no_text_reaches_are_listed_with_their_reason(tmp_path: Path) -> None:
    text = (
        "CO-OP K OW1\nLAMP L AE1\n<UNK> SPN\n!SIL SIL\n[noise] NSN\n#0 AH0\n<s> AH0\nSILENCE SIL\n-- AH0\nU.S. Y UW1\n"
    )
    assert written(tmp_path, text) == ["LAMP L AE"]
    found = listed(tmp_path)
    assert found["CO-OP (line 1)"] == "no text can reach it: text is spelt 'CO OP', 2 words; add those"
    assert found["-- (line 9)"].startswith("no text can reach it: none of its letters")
    assert found["U.S. (line 10)"].startswith("no text can reach it: text is spelt 'U S'")
    nothing = {"<UNK> (line 3)", "!SIL (line 4)", "[noise] (line 5)", "#0 (line 6)", "<s> (line 7)", "SILENCE (line 8)"}
    assert {name for name, reason in found.items() if reason.startswith("stands for no word")} == nothing


def test_words_of_several_parts_keep_their_phones_apart(tmp_path: Path) -> None:
    assert written(tmp_path, "New York\tn u j\nRed\tr e\n") == ["RED r e"]
    assert list(listed(tmp_path)) == ["New York (line 1)"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A AH\nB\n", r"in\.txt:2: word 'B' has no pronunciation"),
        ("A AH\nB # B IY\n", r"in\.txt:2: word 'B' has no pronunciation"),
        ("A AH\n\nB SIL IY\n", r"in\.txt:3: phone 'SIL' of word 'B' is reserved"),
        ("TO T UW #1\n", r"in\.txt:1: phone '#1' of word 'TO' is reserved"),
        ("A AH\nB <eps>\n", r"in\.txt:2: phone '<eps>'"),
        ("A 0.5 AH\nB B IY\n", r"in\.txt:1: '0\.5' of word 'A' is no phone"),
        ("A 0.5 AH\nB 1.5 B\n", r"in\.txt:1: '0\.5' of word 'A' is no phone"),
        ("A -0.3 AH\nB -1.5 B\n", r"in\.txt:1: '-0\.3' of word 'A' is no phone"),
        ("A 0.5\nB 0.5\n", r"in\.txt:1: '0\.5' of word 'A' is no phone"),
        ("A\t\nB\tB\n", r"in\.txt:1: word 'A' has no pronunciation"),
        (";;; nothing\n# at all\n", "is empty"),
        ("<UNK> SPN\n", r"is empty: 1 entries, none of use"),
    ],
)
def test_what_is_no_lexicon_is_refused_with_file_and_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        written(tmp_path, text)
    assert not (tmp_path / "lexicon.txt").exists()
