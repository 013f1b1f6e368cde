"""When an utterance of a stream is over: Kaldi's rules (online2/online-endpoint.h), as sherpa-onnx has them too."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """An utterance is over where all of this holds.

    silence: seconds at its end in which nothing is said; length: seconds of it in all; ending: how much worse
    than the best path the best one may be that the graph lets end here, in natural logs; words: whether
    something must have been said.
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
# sherpa-onnx's, but a long utterance is cut in a pause if one comes
PATIENT = (Rule(2.4, words=False), Rule(1.2), Rule(0.1, 20.0, words=False), Rule(0.0, 40.0, words=False))


@dataclass(frozen=True)
class Endpoint:
    """The rules of which one must hold; none: an utterance never ends by itself."""

    rules: tuple[Rule, ...] = PATIENT

    def reached(self, length: float, silence: float, ending: float, words: bool) -> bool:
        """Whether an utterance of so many seconds ends, of which the last `silence` say nothing (`Rule`)."""
        return any(rule.holds(length, silence, ending, words) for rule in self.rules)
