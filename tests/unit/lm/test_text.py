"""Units, the text in numbers, and batches: nothing is lost, long sentences go on, every epoch has all."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from distill.batch import Place
from distill.lm.text import PADDING, Corpus, TextLoader, padded, write_corpus
from distill.lm.units import END, UNKNOWN, Units, learn_units

SENTENCES = ["A BEE", "BOB", "A BE A BEE AB", "AB AB AB AB AB AB AB", "", "BE"] * 7
KINDS = ("bpe", "chars", "words")


def learnt(kind: str, folder: Path, most: int = 40) -> Units:
    folder.mkdir(exist_ok=True)
    return learn_units(SENTENCES, kind, most, 0, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_units_spell_the_words_they_were_learnt_from(kind: str, tmp_path: Path) -> None:
    units = learnt(kind, tmp_path)
    for word in ("A", "BEE", "BOB"):
        spelt = "".join(units.symbols[number] for number in units.of(word))
        assert spelt.removeprefix("▁") == word and UNKNOWN not in units.of(word)
    assert units.sentence(["A", "BEE"]) == [END, *units.of("A"), *units.of("BEE"), END]
    assert UNKNOWN in units.of("XY")
    loaded = Units.load(tmp_path, kind)
    assert loaded.symbols == units.symbols and loaded.of("BEE") == units.of("BEE")


def test_rare_words_are_unknown_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    units = learnt("words", tmp_path, most=5)
    assert units.symbols[3:] == ["A", "AB"] and units.of("BOB") == (UNKNOWN,)
    assert "3 of 5 words are <unk>" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_the_same_bytes_again(kind: str, tmp_path: Path) -> None:
    for name in "ab":
        learnt(kind, tmp_path / name)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second


def sentences_of(corpus: Corpus) -> list[list[int]]:
    numbers = corpus.ids.tolist()
    ends = [place for place, number in enumerate(numbers) if number == END]
    return [numbers[a : b + 1] for a, b in itertools.pairwise(ends)]


def test_rows_contain_the_text_and_long_sentences_go_on(tmp_path: Path) -> None:
    units = learnt("words", tmp_path)
    corpus = write_corpus(SENTENCES, units, 3, tmp_path)
    whole = [units.sentence(s.split()) for s in SENTENCES if s]
    assert sentences_of(corpus) == whole
    rows = [corpus.row(number).tolist() for number in range(len(corpus))]
    assert max(map(len, rows)) == 4
    joined: list[list[int]] = []
    for row in rows:
        if row[0] == END:
            joined.append(row)
        else:
            assert joined[-1][-1] == row[0], "it goes on where the row before ended"
            joined[-1] = joined[-1] + row[1:]
    assert joined == whole


def test_an_epoch_has_every_row_once_within_the_size(tmp_path: Path) -> None:
    corpus = write_corpus(SENTENCES, learnt("chars", tmp_path), 100, tmp_path)
    loader = TextLoader(corpus, 40, seed=5)
    batches = list(loader.epoch(0))
    names = [name for batch in batches for name in batch.ids]
    assert sorted(names) == sorted(f"text row {row}" for row in range(len(corpus)))
    assert max(batch.inputs.numel() for batch in batches) <= 40 and loader.count(0) == len(batches)
    assert sum(int((batch.targets != PADDING).sum()) for batch in batches) == len(corpus.ids) - 1
    again = list(TextLoader(corpus, 40, seed=5).epoch(0, Place(0, 3)))
    assert [batch.ids for batch in again] == [batch.ids for batch in batches[3:]]
    assert [batch.ids for batch in loader.epoch(1)] != [batch.ids for batch in batches]


def test_ranks_share_each_batch_evenly(tmp_path: Path) -> None:
    corpus = write_corpus(SENTENCES, learnt("chars", tmp_path), 100, tmp_path)
    whole = [batch.ids for batch in TextLoader(corpus, 40, seed=5).epoch(0)]
    shares = [[batch.ids for batch in TextLoader(corpus, 40, 5, rank, 2).epoch(0)] for rank in (0, 1)]
    assert [sorted({*first, *second}) for first, second in zip(*shares)] == [sorted(ids) for ids in whole]
    assert all(abs(len(first) - len(second)) <= 1 for first, second in zip(*shares))


def test_padding_is_behind_the_end() -> None:
    inputs, targets = padded([np.array([1, 7, 1]), [1, 8, 9, 1]])
    assert inputs.tolist() == [[1, 7, END], [1, 8, 9]]
    assert targets.tolist() == [[7, 1, PADDING], [8, 9, 1]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [[], ["", "  "]])
def test_empty_text_is_refused(kind: str, text: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the text corpus is empty"):
        learn_units(text, kind, 40, 0, tmp_path)
    with pytest.raises(ValueError, match="the text corpus is empty"):
        write_corpus(text, learnt(kind, tmp_path), 10, tmp_path)


def test_missing_and_unknown_units_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no units at .*units\.txt; stage 11 writes them"):
        Units.load(tmp_path, "bpe")
    with pytest.raises(ValueError, match=r"'syllables' .* expected bpe, chars or words"):
        learn_units(SENTENCES, "syllables", 40, 0, tmp_path)
