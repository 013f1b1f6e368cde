from __future__ import annotations

import random
from pathlib import Path

import pytest

from distill.data.grammar import Grammar

MINI = Path(__file__).parents[3] / "egs/librispeech/mini"
ORDERS = Path(__file__).parents[3] / "egs/spoken_commands/orders.txt"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grammar.txt"
    path.write_text(text)
    return path


def test_alternatives_are_drawn_by_weight(tmp_path: Path) -> None:
    grammar = Grammar.read(write(tmp_path, "start: 3 YES | NO\n"))
    rng = random.Random(0)
    drawn = [grammar.sentence(rng) for _ in range(4000)]
    assert drawn.count("YES") / 4000 == pytest.approx(0.75, abs=0.03)


def test_article_before_vowel(tmp_path: Path) -> None:
    path = write(tmp_path, "start: A word\nword: OLD | NEW\n")
    rng = random.Random(0)
    assert {Grammar.read(path).sentence(rng) for _ in range(50)} == {"AN OLD", "A NEW"}
    assert {Grammar.read(path, elide_article=False).sentence(rng) for _ in range(50)} == {"A OLD", "A NEW"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("start: A missing\n", "missing"),
        ("start A B\n", ":1:"),
        ("start: A | | B\n", "empty alternative"),
        ("# nothing\n", "no rule"),
        ("start: A\nstart: B\n", ":2:"),
    ],
)
def test_bad_grammar_is_an_error(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Grammar.read(write(tmp_path, text))


def test_same_seed_same_sentences() -> None:
    grammar = Grammar.read(MINI / "grammar.txt")
    first, second = random.Random(5), random.Random(5)
    assert [grammar.sentence(first) for _ in range(50)] == [grammar.sentence(second) for _ in range(50)]


def test_lexicon_holds_exactly_the_words_of_the_grammar() -> None:
    lexicon = {line.split()[0] for line in (MINI / "lexicon.txt").read_text().splitlines()}
    words = Grammar.read(MINI / "grammar.txt").words
    assert sorted(lexicon) == words
    assert 400 <= len(words) <= 500


def test_orders_grammar_reads() -> None:
    grammar = Grammar.read(ORDERS, elide_article=False)
    assert "AN" not in grammar.words and "COFFEE" in grammar.words
