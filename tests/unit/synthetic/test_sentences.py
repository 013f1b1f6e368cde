from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from distill.corpora.spoken_commands import DIGITS
from distill.synthetic.sentences import Grammar

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


def test_lexicon_has_exactly_the_words_of_the_grammar() -> None:
    lexicon = {line.split()[0] for line in (MINI / "lexicon.txt").read_text().splitlines()}
    words = Grammar.read(MINI / "grammar.txt").words
    assert sorted(lexicon) == words
    assert 400 <= len(words) <= 500


def accepts(grammar: Grammar, sentence: str) -> bool:
    """Whether the grammar can say a sentence, weights aside."""
    words = sentence.split()

    def ends(symbol: str, start: int) -> set[int]:
        if symbol not in grammar.rules:
            return {start + 1} if words[start : start + 1] == [symbol] else set()
        found = set()
        for items in grammar.rules[symbol].alternatives:
            reached = {start}
            for item in items:
                reached = {end for begin in reached for end in ends(item, begin)}
            found |= reached
        return found

    return len(words) in ends(grammar.start, 0)


@pytest.mark.parametrize(
    "order",
    [
        "BREW AN ICED COFFEE",
        "GIVE ME A ICED MOCHA",
        "I WANT LATTE WITH MILK",
        "CAN I GET AN EIGHT OUNCE DARK ROAST SINGLE SHOT LATTE WITH A LITTLE BIT OF CREAM AND LOTS OF SUGAR",
        "I'D LIKE A TRIPLE SHOT MEDIUM ROAST TWENTY OUNCE AMERICANO WITH SWEETENER",
        "MAY I HAVE A SMALL DRIP COFFEE WITH SOME SOY MILK",
    ],
)
def test_orders_grammar_has_the_orders_people_give(order: str) -> None:
    assert accepts(Grammar.read(ORDERS, elide_article=False), order)


@pytest.mark.parametrize(
    "order", ["BREW AN LATTE", "BREW", "COFFEE", "BREW A SMALL", "BREW A LATTE AND MILK", "BREW A SMALL LARGE LATTE"]
)
def test_orders_grammar_has_no_others(order: str) -> None:
    assert not accepts(Grammar.read(ORDERS, elide_article=False), order)


def test_orders_have_articles_and_carriers_as_they_were_counted() -> None:
    grammar, rng = Grammar.read(ORDERS, elide_article=False), random.Random(0)
    drawn = [grammar.sentence(rng) for _ in range(4160)]
    article = [order for order in drawn if re.search(r"^[A-Z' ]*?(BREW|ME|LIKE|WANT|HAVE|GET) AN? ", order)]
    assert len(article) / len(drawn) == pytest.approx(412 / 416, abs=0.01)
    carriers = {
        items: sum(o.startswith(" ".join(items)) for o in drawn) for items in grammar.rules["carrier"].alternatives
    }
    assert len(carriers) == 9 and min(carriers.values()) > 300 and max(carriers.values()) < 600
    assert all(grammar.rules[name].cumulative[-1] == 416 for name in ("order", "carrier", "what"))


def test_the_lexicon_has_every_word_of_the_tasks() -> None:
    lexicon = {line.split()[0] for line in ORDERS.with_name("lexicon.txt").read_text().splitlines()}
    assert {*Grammar.read(ORDERS, elide_article=False).words, *DIGITS, "AN", "COMPUTER"} <= lexicon
