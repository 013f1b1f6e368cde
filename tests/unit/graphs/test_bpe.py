"""Characters and BPE: the same pieces from the same text, words spelt and read back, lang folders, what is refused."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.graphs.bpe import (
    BOUNDARY,
    LONGEST,
    PAUSE,
    SPECIAL,
    Bpe,
    bpe_lexicon,
    char_lexicon,
    char_symbols,
    letter_lexicon,
    train_bpe,
)
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.topology import monophones, save_topology

WORDS = ["CAT", "CATS", "CATTLE", "BAT", "BATTLE", "BATS", "SETTLE", "SET", "SETS", "É"]


def text(seed: int = 0, count: int = 300) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 8))) for _ in range(count)]


def lexicon(*words: str) -> Lexicon:
    return Lexicon(dict.fromkeys(words or WORDS, (("X",),)))


def test_same_text_same_bytes_and_the_special_units_first() -> None:
    model = train_bpe(text(), 30)
    assert train_bpe(iter(text()), 30) == model
    pieces = Bpe(model).pieces
    assert tuple(pieces[:3]) == SPECIAL
    assert len(pieces) <= 30 and len(set(pieces)) == len(pieces)


def test_words_are_spelt_in_pieces_that_read_as_the_word() -> None:
    spelt = bpe_lexicon(lexicon(), Bpe(train_bpe(text(), 30)))
    for word, (pieces,) in spelt.pronunciations.items():
        assert "".join(pieces) == BOUNDARY + word
    assert min(len(pieces) for (pieces,) in spelt.pronunciations.values()) == 1  # frequent words are one piece


def test_words_of_unknown_characters_are_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        spelt = bpe_lexicon(lexicon("CAT", "ЖУК"), Bpe(train_bpe(text(), 30)))
    assert SPECIAL[2] in spelt.pronunciations["ЖУК"][0]
    assert "1 words hold characters that the text corpus lacks, such as ['ЖУК']" in caplog.text


def test_little_text_gives_fewer_pieces() -> None:
    assert len(Bpe(train_bpe(["A B", "AB"], 500)).pieces) < 12


def test_lines_of_any_length_are_learnt_from() -> None:
    """sentencepiece leaves out lines over its limit without a word; here they come in parts."""
    long = " ".join(["ZOO"] * LONGEST)
    assert "Z" in "".join(Bpe(train_bpe([*text(), long], 40)).pieces)


def test_wrong_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text corpus is empty"):
        train_bpe(["", "  "], 30)
    with pytest.raises(ValueError, match=r"cannot learn 5 pieces .*graphs\.bpe_pieces"):
        train_bpe(text(), 5)
    with pytest.raises(FileNotFoundError, match="stage 2"):
        Bpe.load(tmp_path / "bpe.model")


def test_errors_of_the_text_come_through() -> None:
    def broken() -> Iterator[str]:
        yield from text()
        raise ValueError("lm.txt:301: not UTF-8")

    with pytest.raises(ValueError, match=r"lm\.txt:301: not UTF-8"):
        train_bpe(broken(), 30)


def test_characters_begin_at_a_boundary() -> None:
    spelt = char_lexicon(lexicon("CAT", "É"))
    assert spelt.pronunciations == {"CAT": ((BOUNDARY, "C", "A", "T"),), "É": ((BOUNDARY, "É"),)}
    assert char_symbols(spelt) == [*SPECIAL, "A", "C", "T", "É", BOUNDARY]


@pytest.mark.parametrize("kind", ["ctc", "two_pdf"])
@pytest.mark.parametrize("units", ["chars", "bpe"])
def test_lang_folders_are_loaded_back(kind: str, units: str, tmp_path: Path) -> None:
    model = train_bpe(text(), 30)
    spelt = bpe_lexicon(lexicon(), Bpe(model)) if units == "bpe" else char_lexicon(lexicon())
    symbols = Bpe(model).pieces if units == "bpe" else char_symbols(spelt)
    pause = PAUSE if kind == "two_pdf" else None  # without blank a pause needs a unit
    write_lang(spelt, tmp_path, [*symbols, *([pause] if pause else [])], pause)
    topology = monophones(kind, len(symbols) + (pause is not None))
    save_topology(topology, tmp_path)
    lang = Lang.load(tmp_path)
    assert lang.units == [*symbols, *([pause] if pause else [])]
    assert lang.silence == (len(symbols) if pause else None)
    assert lang.lexicon.pronunciations == {word: spelt.pronunciations[word] for word in sorted(WORDS)}
    assert (lang.topology.kind, len(lang.outputs)) == (kind, topology.num_outputs)
    assert [lang.units[u] for u in lang.pronunciation_ids("CATS", "")[0]] == list(spelt.pronunciations["CATS"][0])


LETTERS = ("<blk>", "<unk>", "▁", "A", "B", "'")


def test_letters_of_a_fine_tuned_model_end_words(caplog: pytest.LogCaptureFixture) -> None:
    lexicon = Lexicon({"ab": (("AH", "B"),), "B'A": (("B", "AA"), ("B", "AH"))})
    written = letter_lexicon(lexicon, LETTERS).pronunciations
    assert written == {"ab": (("A", "B", "▁"),), "B'A": (("B", "'", "A", "▁"),)} and not caplog.records
    lower = [letter.lower() for letter in LETTERS]
    assert letter_lexicon(lexicon, lower).pronunciations["B'A"] == (("b", "'", "a", "▁"),)
    assert letter_lexicon(lexicon, [*LETTERS, "a", "b"]).pronunciations["ab"] == (("a", "b", "▁"),)


def test_characters_that_a_fine_tuned_model_lacks(caplog: pytest.LogCaptureFixture) -> None:
    lexicon = Lexicon({"CAB": (("K",),)})
    assert letter_lexicon(lexicon, LETTERS).pronunciations["CAB"] == (("<unk>", "A", "B", "▁"),)
    assert "1 words hold characters that the model lacks, such as ['CAB']" in caplog.text
    with pytest.raises(ValueError, match=r"1 words, such as \['CAB'\], have characters .* not among"):
        letter_lexicon(lexicon, [letter for letter in LETTERS if letter != "<unk>"])
    with pytest.raises(ValueError, match="expected letters and a word delimiter"):
        letter_lexicon(lexicon, ("<blk>", "AH", "B"))
