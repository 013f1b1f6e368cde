"""Times of the words of a path: the frames of their units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.decode.confidence import confidences
from distill.decode.graph_decoder import GraphDecoder
from distill.fsa.lattice import Lattice
from distill.search.determinise import best_path
from distill.text import Word

Span = tuple[int, int]  # first frame, and the one after the last


@dataclass(frozen=True)
class Unit:
    """A unit from frame `start` to before frame `end`."""

    unit: int
    start: int
    end: int


class WordTimes:
    """Times of the words of paths through a graph. frame_seconds: duration of a frame."""

    def __init__(self, decoder: GraphDecoder, frame_seconds: float) -> None:
        self.decoder, self.lang, self.frame_seconds = decoder, decoder.lang, frame_seconds
        self.blank = -1 if decoder.lang.topology.kind == "two_pdf" else 0
        self._variants: dict[str, tuple[tuple[int, ...], ...]] = {}

    def words(self, lattice: Lattice, before: int = 0, kept: np.ndarray | None = None) -> list[Word]:
        """Words of the best path; none of an empty lattice.

        before: frames of the stream before the lattice. kept: frame of the utterance for each frame of the lattice,
        where frames were left out.
        """
        if not lattice.num_states:
            return []
        path, _ = best_path(lattice)
        arcs = path[lattice.word[path] > 0]
        names = [self.decoder.words[word] for word in lattice.word[arcs].tolist()]
        spans = self.spans(self.units(lattice.label[path]), names, lattice.frame[lattice.src[arcs]].tolist())
        if kept is not None:
            spans = [(int(kept[start]), int(kept[end - 1]) + 1) for start, end in spans]
        return [
            Word(name, self.seconds(before + start), self.seconds(before + end), round(confidence, 4))
            for name, (start, end), confidence in zip(names, spans, confidences(lattice, path))
        ]

    def seconds(self, frames: int) -> float:
        return round(frames * self.frame_seconds, 3)

    def units(self, labels: np.ndarray) -> list[Unit]:
        """Units of the outputs along a path, labels (N,), -1 on arcs without a frame; silence and blanks left out."""
        labels, new_unit = labels[labels >= 0], self.decoder.new_unit
        repeated = np.concatenate([[False], labels[1:] == labels[:-1]])
        entered = np.where(repeated, new_unit.again[labels], new_unit.fresh[labels])
        starts = np.flatnonzero(entered)
        units, blank = [], labels == self.blank
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(labels)]):
            while blank[end - 1]:
                end -= 1
            if entered[start] != self.lang.silence:
                units.append(Unit(int(entered[start]), start, end))
        return units

    def spans(self, units: Sequence[Unit], names: Sequence[str], word_frames: Sequence[int]) -> list[Span]:
        """The frames of each word of a path with these units; word_frames: of its word ids, for words without units."""
        spans = word_spans(units, [self._pronunciations(name) for name in names])
        return spans or [(frame, frame + 1) for frame in word_frames]

    def _pronunciations(self, word: str) -> tuple[tuple[int, ...], ...]:
        """Pronunciations as unit ids, without silence."""
        if word not in self._variants:
            variants = self.lang.pronunciation_ids(word, "the decoding graph")
            self._variants[word] = tuple(tuple(u for u in units if u != self.lang.silence) for units in variants)
        return self._variants[word]


def word_spans(units: Sequence[Unit], words: Sequence[Sequence[Sequence[int]]]) -> list[Span] | None:
    """The frames of each word, words by their pronunciations, one after another.

    The last word may be incomplete, and units of the next word may follow. None if units and pronunciations differ.
    """
    symbols = tuple(unit.unit for unit in units)
    reached: list[dict[int, int]] = [{0: -1}]  # for each word: position after it -> position before it
    for index, variants in enumerate(words):
        ends: dict[int, int] = {}
        for begin in reached[-1]:
            for variant in variants:
                piece = symbols[begin : begin + len(variant)]
                incomplete = index == len(words) - 1 and piece and piece == tuple(variant)[: len(piece)]
                if piece == tuple(variant) or incomplete:
                    ends.setdefault(begin + len(piece), begin)
        if not ends:
            return None
        reached.append(ends)
    position, spans = max(reached[-1]), []
    for ends in reversed(reached[1:]):
        before = ends[position]
        spans.append((units[before].start, units[position - 1].end))
        position = before
    return spans[::-1]
