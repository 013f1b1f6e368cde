"""Endpoint rules for utterances of a stream, as in Kaldi (online2/online-endpoint.h) and sherpa-onnx."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """An endpoint where all conditions are met.

    silence: seconds without units at the end; length: seconds of the utterance; ending: score difference between the
    best path and the best one in a final state, in natural logs; words: whether a word is required.
    """

    silence: float
    length: float = 0.0
    ending: float = math.inf
    words: bool = True

    def holds(self, length: float, silence: float, ending: float, words: bool) -> bool:
        return silence >= self.silence and length >= self.length and ending <= self.ending and words >= self.words


KALDI = (
    Rule(5.0, words=False), Rule(0.5, ending=2.0), Rule(1.0, ending=8.0), Rule(2.0), Rule(0.0, 20.0, words=False),
)  # fmt: skip
SHERPA = (Rule(2.4, words=False), Rule(1.2), Rule(0.0, 20.0, words=False))
# sherpa-onnx's, but a long utterance ends at the first pause after 20 s
PATIENT = (Rule(2.4, words=False), Rule(1.2), Rule(0.1, 20.0, words=False), Rule(0.0, 40.0, words=False))


@dataclass(frozen=True)
class Endpoint:
    """An utterance ends where one of the rules applies; without rules it never ends."""

    rules: tuple[Rule, ...] = PATIENT

    def reached(self, length: float, silence: float, ending: float, words: bool) -> bool:
        """True if an utterance of `length` seconds, the last `silence` without units, ends here (`Rule`)."""
        return any(rule.holds(length, silence, ending, words) for rule in self.rules)
