"""Normalisation of transcripts and text corpora: one spelling for both."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

# What is neither a letter, a digit, an apostrophe nor a blank; the underscore counts as a letter in \w.
_OTHER = re.compile(r"[^\w' ]|_")
_LONELY_APOSTROPHE = re.compile(r"(?<!\w)'+(?!\w)")


def normalise(text: str) -> str:
    """Upper case, punctuation to blanks, apostrophes of words kept, runs of blanks collapsed."""
    text = text.replace("\u2019", "'").upper()
    text = _LONELY_APOSTROPHE.sub(" ", _OTHER.sub(" ", text))
    return " ".join(text.split())


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 text file, gzipped or plain, without their ends; one at a time, so of any size.

    Raises ValueError naming file, line and a way out for text in another encoding.
    """
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1});"
                    f" {_way_out(line, path.name)}"
                ) from None


def _way_out(line: bytes, name: str) -> str:
    if line.startswith(b"\x1f\x8b"):
        return f"it is gzipped: name it {name}.gz"
    encoding = "UTF-16" if line.startswith((b"\xff\xfe", b"\xfe\xff")) else "ISO-8859-1"
    return f"convert it, for instance with: iconv -f {encoding} -t UTF-8 {name}"
