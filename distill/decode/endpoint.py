"""Endpoint rules for utterances of a stream, as in sherpa-onnx (and in Kaldi, online2/online-endpoint.h)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Rule(NamedTuple):
    """An endpoint where all conditions are met.

    silence: seconds without units at the end; length: seconds of the utterance; words: whether a word is required.
    """

    silence: float
    length: float = 0.0
    words: bool = True


# sherpa-onnx's rules, but a long utterance ends at the first pause after 20 s
RULES = (Rule(2.4, words=False), Rule(1.2), Rule(0.1, 20.0, words=False), Rule(0.0, 40.0, words=False))


def at_endpoint(rules: Iterable[Rule], length: float, silence: float, words: bool) -> bool:
    """True if an utterance of `length` seconds, the last `silence` without units, ends here; never without rules."""
    return any(silence >= rule.silence and length >= rule.length and words >= rule.words for rule in rules)
