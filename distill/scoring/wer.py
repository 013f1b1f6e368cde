"""Word (or unit) error rates with confidence intervals, and icefall's files of them."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaldialign
import numpy as np

from distill.files import write_lines
from distill.scoring.bootstrap import interval, resampled

GAP = "*"  # in errs files, as icefall has it
NOTHING = "\0"  # no word of a transcript, unlike GAP


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


def scored_without(scored: Scored, words: Collection[str]) -> Scored:
    """The utterance scored again without some words on either side, such as fillers."""
    reference, hypothesis = ([w for w in side if w not in words] for side in (scored.reference, scored.hypothesis))
    return score(scored.name, reference, hypothesis)


def alignment(scored: Scored) -> list[tuple[str | None, str | None]]:
    """Pairs (reference, hypothesis) of the alignment with the fewest errors; None stands where the other has a word."""
    pairs = kaldialign.align(list(scored.reference), list(scored.hypothesis), NOTHING)
    return [(None if a == NOTHING else a, None if b == NOTHING else b) for a, b in pairs]


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
    # By name, so that figures can be had again from the files, whatever order the search ended in.
    sums = resampled(counts(sorted(scored, key=lambda s: s.name)), samples, seed)
    return interval(100 * sums[:, 0] / np.maximum(1, sums[:, 1]))


def counts(scored: Sequence[Scored]) -> np.ndarray:
    """Errors and reference words of every utterance: (N, 2)."""
    return np.array([(s.errors, len(s.reference)) for s in scored], dtype=np.int64).reshape(-1, 2)


def read_results(folder: Path) -> list[Scored]:
    """The utterances of a decode folder, scored again from its recogs file.

    Raises FileNotFoundError if there is no such file, ValueError if there are several or one that is damaged.
    """
    paths = sorted(folder.glob("recogs-*.txt"))
    if not paths:
        raise FileNotFoundError(f"no recogs-*.txt in {folder}: expected a folder decode_* that stage 10 writes")
    if len(paths) > 1:
        raise ValueError(f"{len(paths)} recogs-*.txt in {folder}, expected one: {', '.join(p.name for p in paths)}")
    return _read_recogs(paths[0])


def _read_recogs(path: Path) -> list[Scored]:
    words: dict[str, dict[str, list[str]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], 1):
        name, _, rest = line.partition(":\t")
        kind, _, symbols = rest.partition("=")
        try:
            words.setdefault(name, {})[kind] = list(ast.literal_eval(symbols))
        except (ValueError, SyntaxError, TypeError):
            raise ValueError(f"{path}, line {number}: expected ID:\\tref=[...] or hyp=[...], got {line!r}") from None
    halves = [name for name, both in words.items() if set(both) != {"ref", "hyp"}]
    if halves:
        raise ValueError(f"{path}: {len(halves)} utterances without ref and hyp, as {halves[0]}; run stage 10 again")
    return [score(name, both["ref"], both["hyp"]) for name, both in words.items()]


def write_results(folder: Path, test_set: str, suffix: str, scored: Sequence[Scored]) -> ErrorRate:
    """Write recogs-, errs-, wer-summary- files as icefall does."""
    rate = ErrorRate.of(scored)
    ordered = sorted(scored, key=lambda s: s.name)
    name = f"{test_set}-{suffix}"
    recogs = (f"{s.name}:\tref={list(s.reference)}\n{s.name}:\thyp={list(s.hypothesis)}" for s in ordered)
    write_lines(folder / f"recogs-{name}.txt", recogs)
    write_lines(folder / f"errs-{name}.txt", _error_lines(rate, ordered))
    write_lines(folder / f"wer-summary-{name}.txt", ["settings\tWER", f"{suffix}\t{rate.wer:.2f}"])
    return rate


def _error_lines(rate: ErrorRate, scored: Sequence[Scored]) -> Iterable[str]:
    yield (
        f"%WER {rate.wer:.2f} [{rate.sub + rate.ins + rate.dele} / {rate.ref_words},"
        f" {rate.ins} ins, {rate.dele} del, {rate.sub} sub ] 95 % interval {rate.ci95[0]:.2f}-{rate.ci95[1]:.2f}"
    )
    yield "PER-UTTERANCE DETAILS: (reference->hypothesis) where they differ"
    for s in scored:
        pairs = alignment(s)
        yield f"{s.name}:\t" + " ".join(str(a) if a == b else f"({a or GAP}->{b or GAP})" for a, b in pairs)
