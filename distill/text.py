"""Normalisation of transcripts, text corpora, lexica and n-grams: one spelling for all of them."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unicodedata import bidirectional, category, combining, normalize

# Neither a letter, a digit, an apostrophe nor a blank; \w counts the underscore among the letters.
_OTHER = re.compile(r"[^\w' ]|_")
_LONELY_APOSTROPHE = re.compile(r"(?<![^' ])'+(?![^' ])")  # what stands beside it is a letter, a digit or a mark
_DOTTED_I = re.compile("[iı]\u0307+")  # what casefold makes of the Turkish İ
_APOSTROPHES = "`\u00b4\u02bc\u2018\u2019\u201b\u2032\uff07"
_BYTE_ORDER_MARK, _BLANK_OF_NO_WIDTH, _NON_JOINER, _JOINER = "\ufeff", "\u200b", "\u200c", "\u200d"
_VIRAMA = 9  # the combining class of the sign that takes a consonant's vowel away


class _Signs(dict[int, str]):
    """A table for `str.translate`, filled as characters occur."""

    def __missing__(self, code: int) -> str:
        self[code] = self.of(chr(code))
        return self[code]

    def of(self, sign: str) -> str:
        raise NotImplementedError


class _Invisible(_Signs):
    """Removes invisible characters: marks of byte order and direction, soft hyphens, variation selectors."""

    def of(self, sign: str) -> str:
        joins = sign in (_NON_JOINER, _JOINER, _BLANK_OF_NO_WIDTH)
        selects = sign in "\u034f\u180b\u180c\u180d\u180f" or "\ufe00" <= sign <= "\ufe0f" or sign >= "\U000e0100"
        return "" if selects or (category(sign) == "Cf" and not joins) else sign


class _Letters(_Signs):
    """Letters, digits and combining marks stay, apostrophes become one, all else a blank."""

    def of(self, sign: str) -> str:
        if sign in _APOSTROPHES:
            return "'"
        kept = sign.isalnum() or sign in ("'", _NON_JOINER, _JOINER) or category(sign).startswith("M")
        return sign if kept else " "


_INVISIBLE, _LETTERS = _Invisible(), _Letters()


def normalise(text: str) -> str:
    """Upper case in NFC, punctuation to blanks, apostrophes of words and combining marks kept, blanks collapsed.

    Spellings that differ in case, in composed or combining letters, in the kind of apostrophe or blank or in
    invisible characters become the same: ß and ẞ are SS; ı, i, I and İ are I. Normalised text is unchanged.
    """
    if text.isascii():
        text = _OTHER.sub(" ", text.upper().replace("`", "'"))
        return " ".join(_LONELY_APOSTROPHE.sub(" ", text).split())
    folded = normalize("NFD", text.translate(_INVISIBLE)).casefold()  # apart, as Greek's iotas turn into letters
    text = normalize("NFC", _DOTTED_I.sub("i", folded).upper()).translate(_LETTERS)
    return " ".join(_LONELY_APOSTROPHE.sub(" ", " ".join(filter(None, map(_word, text.split())))).split())


def _word(word: str) -> str:
    """A word without marks before its first letter, and without joiners that join nothing; empty without a letter."""
    if word.isalnum():
        return word
    if _JOINER in word or _NON_JOINER in word:
        word = "".join(sign for place, sign in enumerate(word) if _stays(word, place, sign))
    while word and category(word[0]).startswith("M"):
        word = word[1:]
    return word if any(map(str.isalnum, word)) else ""


def _stays(word: str, place: int, sign: str) -> bool:
    """True for joiners that make another word, beside a virama or amid Arabic letters, and for all other signs."""
    if sign not in (_NON_JOINER, _JOINER):
        return True
    before, after = word[place - 1 : place], word[place + 1 : place + 2]
    if any(sign and combining(sign) == _VIRAMA for sign in (before, after)):
        return bool(before) and (bool(after) or sign == _JOINER)
    arabic = ("AL", "NSM")
    return sign == _NON_JOINER and all(sign and bidirectional(sign) in arabic for sign in (before, after))


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, gzipped or plain, without ends and byte order marks; of any size.

    Raises ValueError naming file, line and a way out for text in another encoding and for broken archives.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise ValueError(
                        f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1});"
                        f" {_way_out(line, path.name)}"
                    ) from None
                for part in text.split("\r"):  # some programs end lines so
                    yield part.removeprefix(_BYTE_ORDER_MARK)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path}:{number + 1}: it is no whole gzip archive ({error}); fetch or pack it again, or name it"
                f" {path.stem} if it is plain text"
            ) from None


def _way_out(line: bytes, name: str) -> str:
    if line.startswith(b"\x1f\x8b"):
        return f"it is gzipped: name it {name}.gz"
    encoding = "UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "ISO-8859-1"
    return f"convert it, for instance with: iconv -f {encoding} -t UTF-8 {name}"


@dataclass(frozen=True)
class Word:
    """A word, its begin and end in seconds, and its posterior in the lattice, 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float
