"""Decoding over HLG: lattices of words and units from `Engine.lattice`, and what their paths say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.graphs.lexicon import Lang
from distill.lfmmi import Engine
from distill.search.determinise import Hearing, SequenceGraph, best_path, determinised

BEST_ONLY = 0.1  # lattice_beam where nothing but the best path is wanted
TOGETHER = 32  # utterances that are searched at once

Result = TypeVar("Result")


@dataclass(frozen=True)
class Hypothesis:
    """words and unit ids (silence included) of a path, its acoustic score and the graph's, as logs.

    complete: whether the path ends in a final state; a beam too narrow leaves it short of one.
    """

    words: tuple[str, ...]
    units: tuple[int, ...]
    acoustic: float
    graph: float
    complete: bool

    @property
    def score(self) -> float:
        return self.acoustic + self.graph


NOTHING = Hypothesis((), (), 0.0, 0.0, False)


class GraphDecoder:
    """Searches HLG with an engine; scores of the lattices are log-probabilities times acoustic_scale.

    Raises FileNotFoundError naming the stage that writes the graph, ValueError for another kind of file.
    """

    def __init__(
        self, engine: Engine, hlg: Path, lang: Lang, search: Search | None = None, acoustic_scale: float = 1.0
    ) -> None:
        self.engine, self.graph, self.lang = engine, DecodingGraph.read(hlg), lang
        self.search, self.acoustic_scale = search or Search(), acoustic_scale
        self.columns = lang.topology.output_columns
        self.hearing = Hearing.of(lang.topology.hears, len(self.columns))
        self.words = sorted(lang.words, key=lang.words.__getitem__)

    def searching(self, search: Search) -> GraphDecoder:
        """The same decoder with another search."""
        other = copy(self)
        other.search = search
        return other

    def lattices(self, log_probs: Sequence[np.ndarray]) -> list[Lattice]:
        """The lattice of each utterance: (T, V) each. Raises ValueError for another V than the lang folder has."""
        frames = [torch.from_numpy(self.frames(each)) for each in log_probs]
        if not frames:
            return []
        lengths = torch.tensor([len(each) for each in frames])
        padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        return self.engine.lattice(padded, lengths, self.graph, self.search)

    def frames(self, log_probs: np.ndarray) -> np.ndarray:
        """What the graph is searched with: (T, V) -> (T, columns of the graph). Raises ValueError for another V."""
        outputs = self.lang.topology.num_outputs
        if log_probs.shape[1] != outputs:
            raise ValueError(f"log_probs have {log_probs.shape[1]} outputs (V), but the lang folder has {outputs}")
        return self.acoustic_scale * log_probs[:, self.columns]

    def unit_lattice(self, lattice: Lattice, beam: float) -> SequenceGraph:
        """Every unit sequence within `beam` of the best, once (`determinised`)."""
        return determinised(lattice, self.hearing, beam)

    def word_lattice(self, lattice: Lattice, beam: float) -> SequenceGraph:
        """Every word sequence within `beam` of the best, once (`determinised`)."""
        return determinised(lattice, None, beam)

    def best(self, lattice: Lattice) -> Hypothesis:
        """The best path; words are empty where there is none."""
        if not lattice.num_states:
            return NOTHING
        path, _ = best_path(lattice)
        words = tuple(self.words[word] for word in lattice.word[path].tolist() if word)
        end = lattice.dst[path[-1]] if len(path) else 0
        graph = float(lattice.graph[path].sum(dtype=np.float64) + lattice.final[end])
        acoustic = float(lattice.acoustic[path].sum(dtype=np.float64))
        return Hypothesis(words, self._units(lattice.label[path].tolist()), acoustic, graph, lattice.complete)

    def _units(self, labels: Iterable[int]) -> tuple[int, ...]:
        return tuple(self.lang.topology.units([label for label in labels if label >= 0]))

    def nbest(self, lattice: Lattice, count: int, beam: float) -> list[tuple[tuple[str, ...], float]]:
        """Up to `count` word sequences within `beam` of the best, best first, each with its score."""
        if not lattice.num_states:
            return []
        graph = self.word_lattice(lattice, beam)
        within = ((said, score) for said, score in graph.ranked() if score >= -beam)
        return [(tuple(self.words[word] for word in said), sum(graph.best) + x) for said, x in islice(within, count)]


def decode_all(
    decoder: GraphDecoder,
    work: Callable[[str, Lattice], Result],
    utterances: Iterable[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, Result]]:
    """(id, work(id, lattice)) of (id, (T, V)) pairs in the order given, on as many threads as torch uses."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for some in _pieces(utterances, TOGETHER):
            names, log_probs = zip(*some)
            yield from zip(names, pool.map(work, names, decoder.lattices(log_probs)))


def _pieces(items: Iterable[tuple[str, np.ndarray]], size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    iterator = iter(items)
    while piece := list(islice(iterator, size)):
        yield piece


def best_paths(decoder: GraphDecoder, utterances: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Hypothesis]]:
    """(id, best path) of (id, (T, V)) pairs; the lattices keep little else."""
    narrow = replace(decoder.search, lattice_beam=min(BEST_ONLY, decoder.search.lattice_beam))
    decoder = decoder.searching(narrow)
    return decode_all(decoder, lambda _, lattice: decoder.best(lattice), utterances)


def oracle_errors(words: SequenceGraph, reference: Sequence[int]) -> int:
    """Fewest word errors of any sequence in a word lattice against a reference of word ids."""
    positions = np.arange(len(reference) + 1)
    target = np.asarray(reference, dtype=np.int64)
    errors = np.full((words.num_states, len(positions)), len(reference) + words.num_states)
    errors[0] = positions
    for src, dst, word in zip(words.src.tolist(), words.dst.tolist(), words.symbol.tolist()):
        new = errors[src] + 1
        np.minimum(new[1:], errors[src, :-1] + (target != word), out=new[1:])
        new = np.minimum.accumulate(new - positions) + positions  # words of the reference left out
        np.minimum(errors[dst], new, out=errors[dst])
    return int(errors[np.isfinite(words.final_graph), -1].min())
