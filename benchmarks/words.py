"""The larger graph of benchmarks/decode.py: a bigram over thousands of words of real text, as dense as asked for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.graphs.decoding_graph import build_hlg
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.word_ngram import train_word_ngram

LENGTH = 20  # words of a drawn sentence


@dataclass(frozen=True)
class Sources:
    """Text with a name before each sentence (LibriSpeech's), CMUdict, and sentences of the words that are spoken.

    words: in the graph, all spoken ones and the most frequent others. drawn: further sentences (`drawn`).
    """

    text: Path
    dictionary: Path
    spoken: Path
    words: int
    drawn: int

    @property
    def name(self) -> str:
        return f"{self.words} words, bigram" + (f" of the text and {self.drawn} drawn sentences" if self.drawn else "")


def large_graph(sources: Sources, folder: Path) -> tuple[Lang, Path]:
    """A lang folder and HLG. Raises ValueError where a spoken word has no pronunciation."""
    known = pronunciations(sources.dictionary)
    lines = [line.split()[1:] for line in sources.text.read_text(encoding="utf-8").splitlines()]
    spoken = [line.split() for line in sources.spoken.read_text(encoding="utf-8").splitlines()]
    needed = {word for line in spoken for word in line}
    if unknown := sorted(needed - known.keys()):
        raise ValueError(f"{sources.dictionary} has no pronunciation of {unknown[:5]}")
    counts = Counter(word for line in lines for word in line if word in known and word not in needed)
    words = sorted(needed | {word for word, _ in counts.most_common(sources.words - len(needed))})
    lexicon = (f"{word} {phones}\n" for word in words for phones in dict.fromkeys(known[word]))
    (folder / "lexicon.txt").write_text("".join(lexicon), encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    lang, chosen = Lang.load(folder), set(words)
    kept = [[word for word in line if word in chosen] for line in lines]
    sentences = [*kept, *spoken, *drawn(kept, sources.drawn)]
    train_word_ngram(map(" ".join, sentences), 2, words, least=1).write(folder / "lm.arpa")
    build_hlg(lang, folder / "lm.arpa").write(str(folder / "HLG.fst"))
    return lang, folder / "HLG.fst"


def pronunciations(dictionary: Path) -> dict[str, list[str]]:
    """Of each word, phones without stress."""
    known: dict[str, list[str]] = {}
    for line in dictionary.read_text(encoding="utf-8", errors="replace").splitlines():
        word, _, phones = line.partition("#")[0].partition(" ")
        known.setdefault(re.sub(r"\(\d+\)$", "", word).upper(), []).append(re.sub(r"\d", "", phones).strip())
    return known


def drawn(sentences: Sequence[Sequence[str]], count: int, seed: int = 0) -> Iterator[list[str]]:
    """Sentences that make a small text's bigram as dense as a large text's.

    Every second word, by chance, is the one that follows somewhere in the text, the others any word of the text.
    """
    flat = [word for line in sentences for word in line]
    rng = np.random.default_rng(seed)
    place = np.zeros((count, LENGTH), dtype=np.int64)
    for position in range(LENGTH):
        anywhere = rng.integers(0, len(flat), count)
        follows = (place[:, position - 1] + 1) % len(flat)
        place[:, position] = np.where(rng.random(count) < (0.5 if position else 0.0), follows, anywhere)
    for row in place.tolist():
        yield [flat[each] for each in row]
