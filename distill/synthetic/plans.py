"""What is spoken in synthesised corpora: their parts, and the sentences of each speaker."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from distill.synthetic.noise import COLOURS
from distill.synthetic.sentences import Grammar
from distill.text import read_lines

WORDS = (3, 12)
"""Shortest and longest sentence, in words: about 1.5 to 5.5 seconds."""
LM_SENTENCES = 40_000
COMMON_ACCENTS = ("en-us", "en-gb-x-rp", "en-us", "en", "en-gb-scotland", "en-us-nyc", "en-gb-x-rp")
OTHER_ACCENTS = ("en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-gb-scotland", "en-029", "en-gb-x-gbclan")
# Odd numbers of accents: the sexes alternate, and each accent gets both.
NATURAL = "hibari"
"""In place of an accent: the natural voice of hibari-tts, which has one."""


@dataclass(frozen=True)
class Part:
    """One part of the corpus: how many speakers and sentences (all together), accents, noise in dB."""

    name: str
    speakers: int
    sentences: int
    accents: tuple[str, ...]
    snr: tuple[float, float]
    colours: tuple[str, ...] = ("pink",)


def parts_of(
    sizes: Mapping[str, tuple[int, int]], accents: tuple[str, ...], others: tuple[str, ...]
) -> tuple[Part, ...]:
    """The parts of LibriSpeech by their speakers and sentences; test-other has other accents and more noise."""
    return tuple(
        Part(name, *size, others, (8, 20), tuple(COLOURS)) if name == "test-other"
        else Part(name, *size, accents, (25, 40))
        for name, size in sizes.items()
    )  # fmt: skip


PARTS = parts_of(
    {
        "train-clean-100": (40, 980), "train-clean-360": (66, 2940), "dev-clean": (8, 240), "test-clean": (15, 630),
        "test-other": (15, 630),
    },
    COMMON_ACCENTS, OTHER_ACCENTS,
)  # fmt: skip
OF_NOVELS = {
    "train-clean-100": (60, 4500), "train-clean-360": (150, 11_100), "dev-clean": (16, 400), "test-clean": (30, 1200),
    "test-other": (30, 1200),
}  # fmt: skip
"""4 h labelled, 10 h unlabelled, an hour of each test set, at some three seconds a clause."""


class Plan(ABC):
    """Parts of a corpus, and sentences made of files in the folder `source`; those are read once."""

    parts: ClassVar[tuple[Part, ...]]
    files: ClassVar[tuple[str, ...]]

    @abstractmethod
    def __init__(self, source: Path, seed: int) -> None: ...

    @abstractmethod
    def sentences(self, part: Part, speaker: int, count: int) -> tuple[str, ...]:
        """Those of a speaker, by number within the part; called for all speakers in order."""

    @abstractmethod
    def further(self, spoken: Container[str], scale: float) -> list[str]:
        """Sentences for language models, none of those that are spoken."""


class Drawn(Plan):
    """The embedded corpus of librispeech: sentences drawn from a grammar."""

    parts = PARTS
    files = ("grammar.txt",)

    def __init__(self, source: Path, seed: int) -> None:
        self.grammar, self.seed = Grammar.read(source / "grammar.txt"), seed

    def sentences(self, part: Part, speaker: int, count: int) -> tuple[str, ...]:
        rng = random.Random(f"{self.seed}/{part.name}/{speaker}")
        return tuple(self.draw(rng) for _ in range(count))

    def further(self, spoken: Container[str], scale: float) -> list[str]:
        rng, found = random.Random(f"{self.seed}/text"), list[str]()
        wanted = max(400, round(LM_SENTENCES * min(scale, 1.0)))
        while len(found) < wanted:
            if (text := self.draw(rng)) not in spoken:
                found.append(text)
        return found

    def draw(self, rng: random.Random) -> str:
        """One sentence whose number of words lies within WORDS."""
        while True:
            text = self.grammar.sentence(rng)
            if WORDS[0] <= len(text.split()) <= WORDS[1]:
                return text


class Read(Plan):
    """The corpus of egs/tables: clauses of novels, each spoken once; those of dev and tests are of other novels."""

    parts = parts_of(OF_NOVELS, COMMON_ACCENTS, OTHER_ACCENTS)
    files = ("text.txt.gz", "held_out.txt.gz")

    def __init__(self, source: Path, seed: int) -> None:
        self.left = {name: list(read_lines(source / name)) for name in self.files}
        for name, clauses in self.left.items():
            random.Random(f"{seed}/{name}").shuffle(clauses)

    def sentences(self, part: Part, speaker: int, count: int) -> tuple[str, ...]:
        left = self.left[self.files[not part.name.startswith("train")]]
        taken, left[:count] = left[:count], []
        return tuple(taken)

    def further(self, spoken: Container[str], scale: float) -> list[str]:
        left = self.left[self.files[0]]
        return left[: max(400, round(len(left) * min(scale, 1.0)))]


class ReadNaturally(Read):
    """The same clauses by the same number of voices, all made of a natural one: egs/tables_natural."""

    parts = parts_of(OF_NOVELS, (NATURAL,), (NATURAL,))
