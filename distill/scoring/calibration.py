"""Calibration of word confidences: bins, normalised cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distill.scoring.wer import Scored, alignment
from distill.text import Word

LEAST = 1e-3  # no confidence counts as nearer to 0 or 1, so that one sure error does not cost everything


BINS = 10


class Judged(NamedTuple):
    """A recognised word's confidence, and whether it is right."""

    confidence: float
    right: bool


class Bin(NamedTuple):
    """Words with confidences in a range: how many, their mean confidence, the share that is right."""

    words: int
    confidence: float
    right: float


@dataclass(frozen=True)
class Calibration:
    """nce: normalised cross entropy, 1 at best, 0 for a constant; None where all words are right, or none.

    error: expected calibration error, the mean distance between confidence and share right, by bins.
    """

    words: int
    right: float
    nce: float | None
    error: float
    bins: tuple[Bin, ...]


def judged(scored: Sequence[Scored], words: Mapping[str, Sequence[Word]]) -> list[Judged]:
    """Every recognised word of every utterance, right where the alignment with the fewest errors has it so."""
    out: list[Judged] = []
    for each in scored:
        pairs = [(a == b) for a, b in alignment(each) if b is not None]
        sure = [word.confidence for word in words[each.name]]
        if len(pairs) != len(sure):
            raise ValueError(f"{each.name}: {len(pairs)} words were scored, but {len(sure)} have confidences")
        out.extend(map(Judged, sure, pairs))
    return out


def normalised_cross_entropy(words: Sequence[Judged]) -> float | None:
    """(H - H(words | confidences)) / H: Siu and Gish (1999), as NIST's scoring tools have it.

    H is the entropy of the share that is right. None where that is 0 or 1.
    """
    right = sum(word.right for word in words)
    if right in (0, len(words)):
        return None
    share = right / len(words)
    most = -right * math.log(share) - (len(words) - right) * math.log(1 - share)
    sure = (min(max(word.confidence, LEAST), 1 - LEAST) for word in words)
    left = -sum(math.log(p if word.right else 1 - p) for word, p in zip(words, sure))
    return (most - left) / most


def calibration(words: Sequence[Judged]) -> Calibration:
    """Figures of recognised words; raises ValueError without any."""
    if not words:
        raise ValueError("no word was recognised, so nothing can be said of confidences")
    table = np.array(words, dtype=np.float64)
    place = np.minimum((table[:, 0] * BINS).astype(int), BINS - 1)
    bins = []
    for index in range(BINS):
        some = table[place == index]
        sure, right = some.mean(0).tolist() if len(some) else (0.0, 0.0)
        bins.append(Bin(len(some), round(sure, 4), round(right, 4)))
    error = sum(each.words * abs(each.confidence - each.right) for each in bins) / len(words)
    nce = normalised_cross_entropy(words)
    share = float(table[:, 1].mean())
    return Calibration(
        len(words), round(share, 4), None if nce is None else round(nce, 4), round(error, 4), tuple(bins)
    )


@dataclass(frozen=True)
class Squash:
    """Another confidence for each: sigmoid(slope logit(p) + offset), Platt (1999)."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, confidence: float) -> float:
        return 1 / (1 + math.exp(-self.slope * _logit(confidence) - self.offset))


def fitted(words: Sequence[Judged], rounds: int = 30) -> Squash:
    """The map with the least cross entropy on words of a development set (Newton's method); as is without errors."""
    x = np.array([[_logit(word.confidence), 1.0] for word in words]).reshape(-1, 2)
    y = np.array([word.right for word in words], dtype=np.float64)
    if not 0 < y.sum() < len(y):
        return Squash()
    weights = np.array([1.0, 0.0])
    for _ in range(rounds):
        p = 1 / (1 + np.exp(-x @ weights))
        bend = x.T @ (x * (p * (1 - p))[:, None]) + 1e-6 * np.eye(2)
        weights = weights - np.linalg.solve(bend, x.T @ (p - y))
    return Squash(*weights.tolist())


def _logit(p: float) -> float:
    p = min(max(p, LEAST), 1 - LEAST)
    return math.log(p / (1 - p))
