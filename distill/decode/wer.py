"""Word (or unit) error rates with their uncertainty, in icefall's files and this project's wer.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np

GAP = "*"


@dataclass(frozen=True)
class Scored:
    """One utterance: id, reference and hypothesis (symbols), and its errors."""

    name: str
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]
    sub: int
    ins: int
    dele: int

    @property
    def errors(self) -> int:
        return self.sub + self.ins + self.dele


def score(name: str, reference: Sequence[str], hypothesis: Sequence[str]) -> Scored:
    """Count errors by the alignment with the fewest."""
    counts = kaldialign.edit_distance(list(reference), list(hypothesis))
    return Scored(name, tuple(reference), tuple(hypothesis), counts["sub"], counts["ins"], counts["del"])


@dataclass(frozen=True)
class ErrorRate:
    """Errors of a test set; wer in percent with a 95 % bootstrap interval over utterances."""

    ref_words: int
    sub: int
    ins: int
    dele: int
    wer: float
    ci95: tuple[float, float]

    @classmethod
    def of(cls, scored: Sequence[Scored]) -> ErrorRate:
        """Raises ValueError for a test set without reference words."""
        words = sum(len(s.reference) for s in scored)
        if not words:
            raise ValueError("no reference words: the test set is empty or has no transcripts")
        sub, ins, dele = (sum(getattr(s, kind) for s in scored) for kind in ("sub", "ins", "dele"))
        interval = bootstrap(scored)
        return cls(words, sub, ins, dele, round(100 * (sub + ins + dele) / words, 3), interval)

    def fields(self) -> dict[str, Any]:
        """Its part of wer.json."""
        counts = {"ref_words": self.ref_words, "sub": self.sub, "ins": self.ins, "del": self.dele}
        return {**counts, "wer": self.wer, "ci95": list(self.ci95)}


def bootstrap(scored: Sequence[Scored], samples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """2.5 and 97.5 percentile of the error rate when utterances are drawn with replacement (Bisani and Ney 2004)."""
    errors, words = _per_utterance(scored)
    drawn = _draws(len(errors), samples, seed)
    rates = 100 * errors[drawn].sum(1) / np.maximum(1, words[drawn].sum(1))
    low, high = np.percentile(rates, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def paired_bootstrap(
    ours: Sequence[Scored], theirs: Sequence[Scored], samples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of error rates, ours - theirs, on the same utterances: (difference, low, high).

    Raises ValueError if the utterances differ.
    """
    by_name = {s.name: s for s in theirs}
    if set(by_name) != {s.name for s in ours}:
        raise ValueError("the two systems were not scored on the same utterances; decode both on one set")
    mine, words = _per_utterance(ours)
    yours, _ = _per_utterance([by_name[s.name] for s in ours])
    drawn = _draws(len(mine), samples, seed)
    differences = 100 * (mine - yours)[drawn].sum(1) / np.maximum(1, words[drawn].sum(1))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(100 * (mine - yours).sum() / words.sum()), float(low), float(high)


def _per_utterance(scored: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s.errors for s in scored]), np.array([len(s.reference) for s in scored])


def _draws(count: int, samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, count, (samples, count))


def write_results(folder: Path, test_set: str, suffix: str, scored: Sequence[Scored], facts: dict[str, Any]) -> None:
    """Write recogs-, errs-, wer-summary- files as icefall does, and wer.json."""
    rate = ErrorRate.of(scored)
    ordered = sorted(scored, key=lambda s: s.name)
    name = f"{test_set}-{suffix}"
    recogs = (f"{s.name}:\tref={list(s.reference)}\n{s.name}:\thyp={list(s.hypothesis)}" for s in ordered)
    _write(folder / f"recogs-{name}.txt", recogs)
    _write(folder / f"errs-{name}.txt", _error_lines(rate, ordered))
    _write(folder / f"wer-summary-{name}.txt", ["settings\tWER", f"{suffix}\t{rate.wer:.2f}"])
    content = {**facts, "set": test_set, **rate.fields()}
    _write(folder / "wer.json", [json.dumps(content, indent=1, sort_keys=True)])


def _error_lines(rate: ErrorRate, scored: Sequence[Scored]) -> Iterable[str]:
    yield (
        f"%WER {rate.wer:.2f} [{rate.sub + rate.ins + rate.dele} / {rate.ref_words},"
        f" {rate.ins} ins, {rate.dele} del, {rate.sub} sub ] 95 % interval {rate.ci95[0]:.2f}-{rate.ci95[1]:.2f}"
    )
    yield "PER-UTTERANCE DETAILS: (reference->hypothesis) where they differ"
    for s in scored:
        pairs = kaldialign.align(list(s.reference), list(s.hypothesis), GAP)
        yield f"{s.name}:\t" + " ".join(a if a == b else f"({a}->{b})" for a, b in pairs)


def _write(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)
