"""Lexicon and lang folder: words, their pronunciations, and the units a model predicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from distill.files import write_lines
from distill.graphs.topology import Topology, load_topology
from distill.text import read_lines

BLANK, SILENCE = "<blk>", "SIL"


@dataclass(frozen=True)
class Lexicon:
    """Words with their pronunciations, in the order of the file; a word may have several."""

    pronunciations: Mapping[str, tuple[tuple[str, ...], ...]]

    @classmethod
    def read(cls, path: Path) -> Lexicon:
        """Read Kaldi's and icefall's lexicon.txt: "WORD P1 P2 …", a word's pronunciations on lines of their own.

        Raises FileNotFoundError, or ValueError naming file and line for a word without a pronunciation.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no lexicon at {path}; stage 0 writes it (run.sh --stage 0 --stop-stage 0)")
        pronunciations: dict[str, dict[tuple[str, ...], None]] = {}
        for number, line in enumerate(read_lines(path), 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) < 2:
                raise ValueError(f"{path}:{number}: word '{fields[0]}' has no pronunciation; add one or remove it")
            pronunciations.setdefault(fields[0], {})[tuple(fields[1:])] = None
        if not pronunciations:
            raise ValueError(f"{path} is empty; expected lines such as 'HELLO HH AH L OW'")
        return cls({word: tuple(variants) for word, variants in pronunciations.items()})

    @property
    def words(self) -> list[str]:
        return sorted(self.pronunciations)

    @property
    def phones(self) -> list[str]:
        """All phones, sorted."""
        return sorted({p for variants in self.pronunciations.values() for phones in variants for p in phones})


@dataclass(frozen=True)
class Lang:
    """A lang folder in memory: unit and word ids, the lexicon, and the topology.

    silence: the unit that may stand between words, None where pauses are blank.
    """

    tokens: Mapping[str, int]
    words: Mapping[str, int]
    lexicon: Lexicon
    silence: int | None
    topology: Topology

    @classmethod
    def load(cls, folder: Path) -> Lang:
        """Read tokens.txt, words.txt, lexicon.txt, topology.json (standard CTC without it).

        Raises FileNotFoundError naming the stage that writes them.
        """
        if not (folder / "tokens.txt").is_file():
            raise FileNotFoundError(f"no lang folder at {folder}; stage 2 writes it (run.sh --stage 2 --stop-stage 2)")
        tokens = read_symbols(folder / "tokens.txt")
        lexicon = Lexicon.read(folder / "lexicon.txt")
        missing = [phone for phone in lexicon.phones if phone not in tokens]
        if missing:
            raise ValueError(f"{folder}/lexicon.txt uses {missing[:5]}, which tokens.txt lacks; run stage 2 again")
        topology = load_topology(folder, len(tokens))
        return cls(tokens, read_symbols(folder / "words.txt"), lexicon, _silence(folder, tokens), topology)

    @property
    def units(self) -> list[str]:
        """Unit symbols in the order of their ids, blank first."""
        return sorted(self.tokens, key=self.tokens.__getitem__)

    @property
    def outputs(self) -> list[str]:
        """Names of a model's outputs in their order; as many as it must have."""
        return self.topology.output_names(self.units)

    @cached_property
    def _ids(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {
            word: tuple(tuple(self.tokens[phone] for phone in phones) for phones in variants)
            for word, variants in self.lexicon.pronunciations.items()
        }

    def pronunciation_ids(self, word: str, where: str) -> tuple[tuple[int, ...], ...]:
        """Pronunciations of a word as unit ids; ValueError naming word and place for an unknown one."""
        if word not in self._ids:
            raise ValueError(
                f"word '{word}' of {where} is not in the lexicon; add its pronunciation to lexicon.txt and"
                " run stages 2 to 4 again"
            )
        return self._ids[word]


def _silence(folder: Path, tokens: Mapping[str, int]) -> int | None:
    path = folder / "optional_silence.txt"
    if not path.is_file():  # a lang folder of icefall's: phones have SIL, pieces no silence
        return None if (folder / "bpe.model").is_file() else tokens.get(SILENCE)
    symbol = path.read_text(encoding="utf-8").strip()
    if symbol and symbol not in tokens:
        raise ValueError(f"{path} names '{symbol}', which tokens.txt lacks; run stage 2 again")
    return tokens[symbol] if symbol else None


def phone_symbols(lexicon: Lexicon) -> list[str]:
    """Blank, silence, then all phones; raises ValueError for a lexicon that uses the reserved names."""
    clash = {BLANK, SILENCE} & set(lexicon.phones)
    if clash:
        raise ValueError(f"the lexicon uses {sorted(clash)} as phones, which are reserved; rename them")
    return [BLANK, SILENCE, *lexicon.phones]


def write_lang(
    lexicon: Lexicon, folder: Path, symbols: Sequence[str] | None = None, silence: str | None = SILENCE
) -> None:
    """Write tokens.txt, words.txt, lexicon.txt as icefall's lang folders have them, and optional_silence.txt.

    symbols: units in the order of their ids, by default `phone_symbols`. silence: the unit that may stand
    between words; None: there is none.
    """
    write_symbols(folder / "tokens.txt", symbols or phone_symbols(lexicon))
    write_lines(folder / "optional_silence.txt", [silence] if silence else [])
    write_symbols(folder / "words.txt", ["<eps>", *lexicon.words, "#0", "<s>", "</s>"])
    lines = [f"{word} {' '.join(p)}" for word in lexicon.words for p in lexicon.pronunciations[word]]
    write_lines(folder / "lexicon.txt", lines)


def read_symbols(path: Path) -> dict[str, int]:
    """Symbol table: lines "symbol number"; raises ValueError naming file and line for others, or for doubles."""
    symbols: dict[str, int] = {}
    numbers: set[int] = set()
    for line_number, line in enumerate(read_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not fields[1].isdigit():
            raise ValueError(f"{path}:{line_number}: expected 'symbol number', got {line[:60]!r}")
        if fields[0] in symbols or int(fields[1]) in numbers:
            raise ValueError(f"{path}:{line_number}: symbol '{fields[0]}' or its number {fields[1]} is given twice")
        symbols[fields[0]] = int(fields[1])
        numbers.add(int(fields[1]))
    return symbols


def write_symbols(path: Path, symbols: Iterable[str]) -> None:
    """Symbol table numbered from 0."""
    write_lines(path, [f"{symbol} {number}" for number, symbol in enumerate(symbols)])
