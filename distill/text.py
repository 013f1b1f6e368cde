"""Normalisation of transcripts and text corpora: one spelling for both."""

from __future__ import annotations

import re

# What is neither a letter, a digit, an apostrophe nor a blank; the underscore counts as a letter in \w.
_OTHER = re.compile(r"[^\w' ]|_")
_LONELY_APOSTROPHE = re.compile(r"(?<!\w)'+(?!\w)")


def normalise(text: str) -> str:
    """Upper case, punctuation to blanks, apostrophes of words kept, runs of blanks collapsed."""
    text = text.replace("\u2019", "'").upper()
    text = _LONELY_APOSTROPHE.sub(" ", _OTHER.sub(" ", text))
    return " ".join(text.split())
