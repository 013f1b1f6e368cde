from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from distill.corpora import Options, SpokenCommands, corpus_text
from distill.corpora.corpus import first_file, need_file
from distill.corpora.spoken_commands import DIGITS
from distill.text import read_lines
from tests.unit.corpora.test_corpora import write_commands

RECIPE = Path(__file__).parents[3] / "egs/spoken_commands"


def test_text_is_normalised_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "text.gz"
    source.write_bytes(gzip.compress(b"hello, world\n\nit's me\n"))
    assert corpus_text.write_text(read_lines(source), tmp_path / "lm.txt") == 2
    assert (tmp_path / "lm.txt").read_text() == "HELLO WORLD\nIT'S ME\n"


def test_empty_text_corpus_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text corpus .* is empty"):
        corpus_text.write_text(["", "..."], tmp_path / "lm.txt")
    assert not (tmp_path / "lm.txt").exists()


def test_lexicon_loses_stress_and_doubles(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("b  B IY1\nA AH0\nA\tEY1\nA AH1\n\n")
    assert corpus_text.write_lexicon(tmp_path / "in", tmp_path / "out") == 3
    assert (tmp_path / "out").read_text() == "A AH\nA EY\nB B IY\n"


@pytest.mark.parametrize(("text", "told"), [("A AH\nB\n", ":2: word 'B'"), ("\n", "is empty")])
def test_bad_lexicon_is_an_error(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(ValueError, match=told):
        corpus_text.write_lexicon(tmp_path / "in", tmp_path / "out")


def test_resources_are_searched_in_order(tmp_path: Path) -> None:
    (tmp_path / "corpus/lm").mkdir(parents=True)
    (tmp_path / "x.txt").touch()
    assert first_file(tmp_path / "corpus", "y.txt", "x.txt") == tmp_path / "x.txt"
    (tmp_path / "corpus/lm/x.txt").touch()
    assert first_file(tmp_path / "corpus", "x.txt") == tmp_path / "corpus/lm/x.txt"
    with pytest.raises(FileNotFoundError, match=r"no z.txt .*fetch it"):
        need_file(tmp_path / "corpus", "z.txt", way_out="fetch it")


def test_text_of_spoken_commands_uses_training_texts_alone(tmp_path: Path) -> None:
    write_commands(tmp_path)
    table = tmp_path / "intent/intent.tsv"
    table.write_text(table.read_text() + "x\tx.flac\tbob\ttest\tSECRET WORDS\tscored\n")
    corpus = SpokenCommands(tmp_path, Options(recipe_dir=RECIPE))
    text = list(corpus.sentences(100))
    assert text == list(corpus.sentences(100))
    assert "BREW A LATTE" in text and "SECRET WORDS" not in text
    assert text.count("ALEXA") == 5 and len(text) == 1 + 100 + 100 + 5
    digits = [line.split() for line in text[101:201]]
    assert all(3 <= len(line) <= 7 and set(line) <= set(DIGITS) for line in digits)
