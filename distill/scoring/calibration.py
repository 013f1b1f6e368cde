"""Calibration of word confidences: bins, normalised cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from distill.scoring.wer import Scored, alignment
from distill.text import Word

LEAST = 1e-3  # confidences are clipped this far from 0 and 1, as one error at 1 has infinite entropy
BINS = 10


class ScoredWord(NamedTuple):
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


def scored_words(scored: Sequence[Scored], words: Mapping[str, Sequence[Word]]) -> list[ScoredWord]:
    """Every recognised word of every utterance; right if it matches in the alignment with the fewest errors."""
    result: list[ScoredWord] = []
    for each in scored:
        right = [reference == hypothesis for reference, hypothesis in alignment(each) if hypothesis is not None]
        confidences = [word.confidence for word in words[each.name]]
        if len(right) != len(confidences):
            raise ValueError(f"{each.name}: {len(right)} words were scored, but {len(confidences)} have confidences")
        result.extend(map(ScoredWord, confidences, right))
    return result


def normalised_cross_entropy(words: Sequence[ScoredWord]) -> float | None:
    """(H - H(words | confidences)) / H: Siu and Gish (1999), as NIST's scoring tools have it.

    H is the entropy of the share that is right. None where that is 0 or 1.
    """
    right = sum(word.right for word in words)
    if right in (0, len(words)):
        return None
    share = right / len(words)
    most = -right * math.log(share) - (len(words) - right) * math.log(1 - share)
    clipped = (min(max(word.confidence, LEAST), 1 - LEAST) for word in words)
    left = -sum(math.log(p if word.right else 1 - p) for word, p in zip(words, clipped))
    return (most - left) / most


def calibration(words: Sequence[ScoredWord]) -> Calibration:
    """Figures of recognised words; raises ValueError without any."""
    if not words:
        raise ValueError("no word was recognised, so confidences cannot be evaluated")
    table = np.array(words, dtype=np.float64)
    place = np.minimum((table[:, 0] * BINS).astype(int), BINS - 1)
    bins = []
    for index in range(BINS):
        rows = table[place == index]
        confidence, right = rows.mean(0).tolist() if len(rows) else (0.0, 0.0)
        bins.append(Bin(len(rows), round(confidence, 4), round(right, 4)))
    error = sum(each.words * abs(each.confidence - each.right) for each in bins) / len(words)
    nce = normalised_cross_entropy(words)
    share = float(table[:, 1].mean())
    return Calibration(
        len(words), round(share, 4), None if nce is None else round(nce, 4), round(error, 4), tuple(bins)
    )
