"""Sentences from a weighted context-free grammar kept in a text file."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from distill.text import read_lines

VOWELS = tuple("AEIOU")


@dataclass(frozen=True)
class Rule:
    """The alternatives of one symbol: items of each, and their cumulative weights."""

    alternatives: tuple[tuple[str, ...], ...]
    cumulative: tuple[int, ...]

    def draw(self, rng: random.Random) -> tuple[str, ...]:
        """One alternative, by weight."""
        return rng.choices(self.alternatives, cum_weights=self.cumulative)[0]


@dataclass(frozen=True)
class Grammar:
    """Weighted context-free grammar: lower-case symbols, upper-case words."""

    rules: dict[str, Rule]
    start: str
    elide_article: bool = True
    """Whether A becomes AN before a vowel."""

    @classmethod
    def read(cls, path: Path | str, elide_article: bool = True) -> Grammar:
        """Reads `symbol: [weight] item … | …` lines; ValueError names a bad line or a missing symbol."""
        rules: dict[str, Rule] = {}
        for number, line in enumerate(read_lines(Path(path)), 1):
            text = line.split("#", 1)[0].strip()
            if not text:
                continue
            symbol, colon, body = text.partition(":")
            if not colon or not symbol.islower() or symbol in rules:
                raise ValueError(f"{path}:{number}: expected a new 'symbol: items | items', got {text!r}")
            rules[symbol] = _rule(body, f"{path}:{number}")
        return cls(_complete(rules, path), next(iter(rules)), elide_article)

    @property
    def words(self) -> list[str]:
        """Every word of the grammar, sorted; with AN where A occurs."""
        items = {item for rule in self.rules.values() for alt in rule.alternatives for item in alt}
        words = items - set(self.rules)
        return sorted(words | ({"AN"} if "A" in words and self.elide_article else set()))

    def sentence(self, rng: random.Random) -> str:
        """One sentence, words separated by single blanks."""
        words = list(self._expand(self.start, rng))
        for i, following in enumerate(words[1:]):
            if self.elide_article and words[i] == "A" and following.startswith(VOWELS):
                words[i] = "AN"
        return " ".join(words)

    def _expand(self, symbol: str, rng: random.Random) -> Iterator[str]:
        for item in self.rules[symbol].draw(rng):
            if item in self.rules:
                yield from self._expand(item, rng)
            else:
                yield item


def _rule(body: str, where: str) -> Rule:
    alternatives, weights = [], []
    for text in body.split("|"):
        items = text.split()
        weights.append(int(items.pop(0)) if items and items[0].isdecimal() else 1)
        if not items:
            raise ValueError(f"{where}: an empty alternative in {body.strip()!r}")
        alternatives.append(tuple(items))
    if not any(weights):
        raise ValueError(f"{where}: all weights are 0 in {body.strip()!r}")
    return Rule(tuple(alternatives), tuple(accumulate(weights)))


def _complete(rules: dict[str, Rule], path: Path | str) -> dict[str, Rule]:
    if not rules:
        raise ValueError(f"{path} has no rule")
    for symbol, rule in rules.items():
        for item in (item for alternative in rule.alternatives for item in alternative):
            if not item.isupper() and item not in rules:
                raise ValueError(f"{path}: rule {symbol!r} uses {item!r}, which no line defines")
    return rules
