"""When the words of a path are spoken, and how sure the lattice is of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.decode.graph_decoder import GraphDecoder
from distill.fsa.lattice import Lattice
from distill.search.determinise import arc_posteriors, best_path
from distill.text import Word

Span = tuple[int, int]  # first frame, and the one after the last


@dataclass(frozen=True)
class Unit:
    """A unit that is heard from frame `start` to before frame `end`."""

    unit: int
    start: int
    end: int


class WordTimes:
    """Times of the words of paths through a graph. frame: seconds of one."""

    def __init__(self, decoder: GraphDecoder, frame: float) -> None:
        self.decoder, self.lang, self.frame = decoder, decoder.lang, frame
        self.blank = -1 if decoder.lang.topology.kind == "two_pdf" else 0
        self._variants: dict[str, tuple[tuple[int, ...], ...]] = {}

    def words(self, lattice: Lattice, before: int = 0) -> list[Word]:
        """Words of the best path; before: frames of the stream before the lattice. None of an empty lattice."""
        if not lattice.num_states:
            return []
        path, _ = best_path(lattice)
        where = path[lattice.word[path] > 0]
        names = [self.decoder.words[word] for word in lattice.word[where].tolist()]
        said = lattice.frame[lattice.src[where]].tolist()
        spans = self.spans(self.heard(lattice.label[path]), names, said)
        return [
            Word(name, self.seconds(before + start), self.seconds(before + end), round(sure, 4))
            for name, (start, end), sure in zip(names, spans, confidences(lattice, path))
        ]

    def seconds(self, frames: int) -> float:
        return round(frames * self.frame, 3)

    def spans(self, heard: Sequence[Unit], names: Sequence[str], said: Sequence[int]) -> list[Span]:
        """The frames of each word along a path of which `heard` are the units; said: where its word ids stand."""
        spans = spans_of(heard, [self._spoken(name) for name in names])
        return spans or [(start, start + 1) for start in said]  # units of no pronunciation

    def heard(self, labels: np.ndarray) -> list[Unit]:
        """Units of the outputs along a path, labels (N,), -1 without a frame; silence and blanks left out."""
        labels, hearing = labels[labels >= 0], self.decoder.hearing
        again = np.concatenate([[False], labels[1:] == labels[:-1]])
        fresh = np.where(again, hearing.again[labels], hearing.fresh[labels])
        starts = np.flatnonzero(fresh)
        units, blank = [], labels == self.blank
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(labels)]):
            while blank[end - 1]:
                end -= 1
            if fresh[start] != self.lang.silence:
                units.append(Unit(int(fresh[start]), start, end))
        return units

    def _spoken(self, word: str) -> tuple[tuple[int, ...], ...]:
        """Pronunciations as unit ids, without silence."""
        if word not in self._variants:
            variants = self.lang.pronunciation_ids(word, "the decoding graph")
            self._variants[word] = tuple(tuple(u for u in units if u != self.lang.silence) for units in variants)
        return self._variants[word]


def spans_of(units: Sequence[Unit], words: Sequence[Sequence[Sequence[int]]]) -> list[Span] | None:
    """The frames of each word, words by their pronunciations, one after another.

    The last word may have begun only, and units may follow that belong to no word yet. None where they do not fit.
    """
    symbols = tuple(unit.unit for unit in units)
    reached: list[dict[int, int]] = [{0: -1}]  # of each word: position after it -> position before it
    for index, variants in enumerate(words):
        found: dict[int, int] = {}
        for begin in reached[-1]:
            for variant in variants:
                piece = symbols[begin : begin + len(variant)]
                whole = piece == tuple(variant)
                begun = index == len(words) - 1 and piece and piece == tuple(variant)[: len(piece)]
                if whole or begun:
                    found.setdefault(begin + len(piece), begin)
        if not found:
            return None
        reached.append(found)
    position, spans = max(reached[-1]), []
    for found in reversed(reached[1:]):
        before = found[position]
        spans.append((units[before].start, units[position - 1].end))
        position = before
    return spans[::-1]


def confidences(lattice: Lattice, path: np.ndarray, scale: float = 1.0) -> list[float]:
    """Posterior of each word of a path: all paths summed that say it between the words beside it.

    Word posteriors from time-overlapping arcs, as C_sum of Wessel et al. (2001), "Confidence measures for large
    vocabulary continuous speech recognition", section III; an arc's time is where the graph says its word.
    scale: of all scores.
    """
    spoken = np.flatnonzero(lattice.word > 0)
    word, frame = lattice.word[spoken], lattice.frame[lattice.src[spoken]]
    posterior = arc_posteriors(lattice, scale)[spoken]
    where = path[lattice.word[path] > 0]
    ids, at = lattice.word[where].tolist(), lattice.frame[lattice.src[where]].tolist()
    sure = []
    for place, (each, here) in enumerate(zip(ids, at)):
        low = _edge(ids, at, place, place - 1, -1)
        high = _edge(ids, at, place, place + 1, lattice.num_frames + 1)
        near = (word == each) & (((frame > low) & (frame < high)) | (frame == here))
        sure.append(min(1.0, float(posterior[near].sum())))
    return sure


def _edge(ids: Sequence[int], at: Sequence[int], place: int, beside: int, outside: int) -> float:
    """Where a word's neighbourhood ends: at the word beside it, or half-way where that is the same word."""
    if not 0 <= beside < len(ids):
        return outside
    return (at[place] + at[beside]) / 2 if ids[place] == ids[beside] else at[beside]
