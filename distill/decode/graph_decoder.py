"""Decoding over HLG: lattices from `Engine.lattice`, and the words and units of their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.graphs.lexicon import Lang
from distill.lfmmi import Engine
from distill.search.determinise import SequenceGraph, best_path

BATCH = 32  # utterances in one call of the engine

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
        self.new_unit = lang.topology.unit_table
        self.words = sorted(lang.words, key=lang.words.__getitem__)

    def lattices(self, log_probs: Sequence[np.ndarray]) -> list[Lattice]:
        """The lattice of each utterance: (T, V) each. Raises ValueError for another V than the lang folder has."""
        frames = [torch.from_numpy(self.frames(each)) for each in log_probs]
        if not frames:
            return []
        lengths = torch.tensor([len(each) for each in frames])
        padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)
        return self.engine.lattice(padded, lengths, self.graph, self.search)

    def frames(self, log_probs: np.ndarray) -> np.ndarray:
        """Scores that the graph is searched with: (T, V) -> (T, columns of the graph). ValueError for another V."""
        outputs = self.lang.topology.num_outputs
        if log_probs.shape[1] != outputs:
            raise ValueError(f"log_probs have {log_probs.shape[1]} outputs (V), but the lang folder has {outputs}")
        return self.acoustic_scale * log_probs[:, self.columns]

    def best(self, lattice: Lattice) -> Hypothesis:
        """The best path; without a path no words, not complete."""
        if not lattice.num_states:
            return Hypothesis((), (), 0.0, 0.0, False)
        path, _ = best_path(lattice)
        words = tuple(self.words[word] for word in lattice.word[path].tolist() if word)
        units = self.lang.topology.units([label for label in lattice.label[path].tolist() if label >= 0])
        end = lattice.dst[path[-1]] if len(path) else 0
        graph = float(lattice.graph[path].sum(dtype=np.float64) + lattice.final[end])
        acoustic = float(lattice.acoustic[path].sum(dtype=np.float64))
        return Hypothesis(words, tuple(units), acoustic, graph, lattice.complete)


def decode_all(
    decoder: GraphDecoder,
    work: Callable[[str, Lattice], Result],
    utterances: Iterable[tuple[str, np.ndarray]],
) -> Iterator[tuple[str, Result]]:
    """(id, work(id, lattice)) of (id, (T, V)) pairs in the order given, on as many threads as torch uses."""
    items = iter(utterances)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        while batch := list(islice(items, BATCH)):
            names, log_probs = zip(*batch)
            yield from zip(names, pool.map(work, names, decoder.lattices(log_probs)))


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
