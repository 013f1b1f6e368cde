"""Names of experiments, units and topologies, and what may be one; the standard library alone."""

from __future__ import annotations

import re

UNITS = ("phones", "chars", "bpe", "biphones")
TOPOLOGIES = ("ctc", "ctc_compact", "two_pdf")  # the first is what units come with
NAME = re.compile(r"(?!.*(?:\.aside-|\.(?:tmp|old|lock)\Z))[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
NAME_RULE = "letters a to z, digits, . _ - (no . or - first, at most 200, no .aside-, not ending in .tmp, .old, .lock)"


def mark(variant: str) -> str:
    """What folders and experiments of other units or another topology are marked with; nothing for plain phones."""
    return "" if variant == "phones" else f"_{variant}"


def check_name(name: str) -> str:
    """The name, if its file or folder lies where it should and is not taken for another; else ValueError."""
    if not NAME.fullmatch(name):
        raise ValueError(f"must be a name: {NAME_RULE}")
    return name


def names_of(option: str, text: str) -> tuple[str, ...]:
    """The names, separated by commas, that an option gives; ValueError names the option and what is wrong."""
    names = tuple(text.split(",")) if text else ()
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{option} {text!r}: {name!r} must be a name: {NAME_RULE}")
        if names.count(name) > 1:
            raise ValueError(f"{option} {text!r}: {name} stands there more than once")
    return names
