"""Pronunciation lexica in the formats of CMUdict, Kaldi, MFA, TIMIT and X-SAMPA."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unicodedata import normalize

from distill.corpora.listing import Skipped
from distill.text import normalise, read_lines

log = logging.getLogger(__name__)

VOWELS = frozenset((
    "AA", "AE", "AH", "AO", "AW", "AX", "AXR", "AY", "EH", "ER", "EY", "IH", "IX", "IY", "OW", "OY", "UH", "UW",
    "UX",
))  # fmt: skip
OTHERS = frozenset((
    "B", "CH", "D", "DH", "DX", "EL", "EM", "EN", "ENG", "F", "G", "HH", "HV", "JH", "K", "L", "M", "N",
    "NG", "NX", "P", "Q", "R", "S", "SH", "T", "TH", "V", "W", "WH", "Y", "Z", "ZH", "SPN", "NSN",
))  # fmt: skip
RESERVED = frozenset(("SIL", "<blk>", "<eps>", "<s>", "</s>"))
_STRESSED = re.compile(r"([A-Z]+)[0-2]")
_COMMENT = re.compile(r"(?:^|\s)#(?:\s.*)?$")  # CMUdict's, behind an entry or alone
_VARIANT = re.compile(r"(?<=.)\(\d+\)$")
_NO_WORD = re.compile(r"<.*>|\[.*\]|\{.*\}|!SIL|#\d+", re.IGNORECASE)
_NUMBER, _DECIMAL = re.compile(r"\d*\.?\d+(?:[eE][-+]?\d+)?"), re.compile(r"-?\d*\.\d+(?:[eE][-+]?\d+)?")
COLUMNS_OF_NUMBERS = (4, 1)  # a pronunciation's and three of the silences beside it; a pronunciation's probability


@dataclass(frozen=True)
class Entry:
    """A pronunciation of a word, and its place (file:line)."""

    where: str
    word: str
    phones: tuple[str, ...]


def read_lexicon(path: Path, skipped: Skipped) -> list[Entry]:
    """The entries, spelt as `normalise` spells text, without comments, variant numbers and probabilities.

    Stress is taken off where all phones are ARPAbet; phones of other sets stay as they are. Entries that no text can
    reach, and those that stand for no word (<UNK>, !SIL), are listed in `skipped`. Raises ValueError naming file and
    line for a word without a pronunciation, a reserved phone, and a number in the place of a phone.
    """
    entries = _without_numbers(list(_entries(path)))
    kept = []
    for entry in entries:
        word = normalise(entry.word)
        if fault := _fault(entry, word):
            skipped.add(path.name, f"{entry.word} (line {entry.where.rpartition(':')[2]})", fault)
        else:
            _check_phones(entry)
            kept.append(replace(entry, word=word))
    return _without_stress(kept, path)


def _entries(path: Path) -> Iterator[Entry]:
    lines = [(number, _COMMENT.sub("", line).strip()) for number, line in enumerate(read_lines(path), 1)]
    lines = [(number, line.replace("\ufeff", "")) for number, line in lines if line and not line.startswith(";;")]
    tabs = all("\t" in line for _, line in lines)  # a word may then contain blanks
    for number, line in lines:
        word, *rest = line.split("\t", 1) if tabs else line.split(maxsplit=1)
        phones = tuple(normalize("NFC", phone) for phone in " ".join(rest).split())
        if not phones:
            raise ValueError(f"{path}:{number}: word {word!r} has no pronunciation; add one or remove it")
        yield Entry(f"{path}:{number}", _VARIANT.sub("", word.strip()), phones)


def _without_numbers(entries: Sequence[Entry]) -> list[Entry]:
    """The entries without the columns of numbers before all pronunciations."""
    for count in COLUMNS_OF_NUMBERS:
        columns = [entry.phones[:count] for entry in entries]  # a probability, followed by numbers
        numbers = all(_NUMBER.fullmatch(field) for fields in columns for field in fields)
        if numbers and all(len(e.phones) > count and 0 < float(e.phones[0]) <= 1 for e in entries):
            return [replace(entry, phones=entry.phones[count:]) for entry in entries]
    return list(entries)


def _fault(entry: Entry, word: str) -> str | None:
    """Why an entry is left out, or None."""
    if _NO_WORD.fullmatch(entry.word) or [phone.upper() for phone in entry.phones] == ["SIL"]:
        return "stands for no word: text never contains it"
    if " " in word:
        return f"no text can reach it: text is spelt '{word}', {word.count(' ') + 1} words; add those"
    return None if word else "no text can reach it: none of its letters stay in text"


def _check_phones(entry: Entry) -> None:
    for phone in entry.phones:
        if phone in RESERVED or re.fullmatch(r"#\d+", phone):
            raise ValueError(
                f"{entry.where}: phone {phone!r} of word {entry.word!r} is reserved; rename it, or give the lexicon.txt"
                " of which this file was made"
            )
        if _DECIMAL.fullmatch(phone):
            raise ValueError(
                f"{entry.where}: {phone!r} of word {entry.word!r} is no phone; probabilities from 0 to 1 are taken off"
                " where every line has one"
            )


def _without_stress(entries: list[Entry], path: Path) -> list[Entry]:
    phones = {phone for entry in entries for phone in entry.phones}
    stressed = {phone for phone in phones if (match := _STRESSED.fullmatch(phone)) and match[1] in VOWELS}
    foreign = sorted(phones - stressed - VOWELS - OTHERS)
    if stressed and foreign:
        log.warning(
            "%s: phones stay as they are, stress marks as in %s too, as %s are not ARPAbet",
            path, sorted(stressed)[0], foreign[:5],
        )  # fmt: skip
    if foreign or not stressed:
        return entries
    plain = {phone: phone[:-1] if phone in stressed else phone for phone in phones}
    return [replace(entry, phones=tuple(plain[phone] for phone in entry.phones)) for entry in entries]
