"""Valid names, and those of units and topologies; imports the standard library alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

UNITS = ("phones", "chars", "bpe", "biphones", "letters")
TOPOLOGIES = ("ctc", "ctc_compact", "two_pdf")  # the first is the default
VARIANTS = (*UNITS, *(f"{unit}_{topology}" for topology in TOPOLOGIES[1:] for unit in UNITS))
NAME = re.compile(r"(?!.*(?:\.aside-|\.(?:tmp|old|lock)\Z))[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
NAME_RULE = "letters a to z, digits, . _ - (no . or - first, at most 200, no .aside-, not ending in .tmp, .old, .lock)"


def mark(variant: str) -> str:
    """Suffix of folders and experiments of other units or another topology; empty for plain phones."""
    return "" if variant == "phones" else f"_{variant}"


def check_name(name: str) -> str:
    """The name; raises ValueError for one that as a file or folder lies elsewhere or is mistaken for another."""
    if not NAME.fullmatch(name):
        raise ValueError(f"must be a name: {NAME_RULE}")
    return name


def hint(name: str, known: Iterable[str]) -> str:
    """The way out for an unknown name: the known one that is near, else all of them."""
    known = list(dict.fromkeys(known))
    near = get_close_matches(name, known, n=1, cutoff=0.5 if len(name) < 4 else 0.6)
    return f"; did you mean '{near[0]}'?" if near else f"; there are: {', '.join(known) or 'none'}"


def repeated(names: Sequence[str]) -> list[str]:
    """Those that are there more than once, in order."""
    return sorted({name for name in names if names.count(name) > 1})


def names_of(option: str, text: str) -> tuple[str, ...]:
    """Comma-separated names of an option; raises ValueError with the option and the wrong name."""
    names = tuple(text.split(",")) if text else ()
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{option} {text!r}: {name!r} must be a name: {NAME_RULE}")
        if names.count(name) > 1:
            raise ValueError(f"{option} {text!r}: {name} is given more than once")
    return names
