"""Decoding graphs, and lattices: the paths of a decoding graph near the best one for an utterance.

`Engine.lattice` searches a `DecodingGraph`. Acoustic and graph scores stay apart, so that they can be weighted anew.
All scores are natural-log scores: larger is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distill.fsa.graph import Arcs, first_arcs
from distill.fsa.openfst import read_openfst

if TYPE_CHECKING:
    import kaldifst

NO_FRAME = -1  # label of an arc that takes no frame


@dataclass(frozen=True)
class Search:
    """Pruning of a lattice search, in natural-log units.

    beam: states this much worse than a frame's best are not extended. max_active: most states extended in a
    frame. lattice_beam: arcs survive on complete paths at most this much worse than the best one.
    """

    beam: float = 15.0
    lattice_beam: float = 6.0
    max_active: int = 2000


@dataclass(frozen=True, eq=False)
class DecodingGraph:
    """HLG as arrays, arcs in order of their source, those without a frame first; state 0 is the start.

    first (S + 1,) int64: state s has the arcs first[s] .. first[s + 1] - 1.
    dst, label, word (A,) int32: label is the output column, -1 for an arc without a frame; word 0 is epsilon.
    score (A,), final (S,) float32: log-scores; final -inf where a path may not end.
    """

    first: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    word: np.ndarray
    score: np.ndarray
    final: np.ndarray

    @property
    def num_states(self) -> int:
        return len(self.final)

    @cached_property
    def _top(self) -> int:
        return int(self.label.max(initial=-1))

    def check_outputs(self, outputs: int, where: str = "the decoding graph") -> None:
        """Raise ValueError for a graph that needs more outputs than log-probabilities have columns (V)."""
        if self._top >= outputs:
            raise ValueError(f"{where} uses output {self._top}, but log_probs has only {outputs} outputs")

    @cached_property
    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """States (S + 1,) and arcs (A,) in the layout of `kernels/tokens.h`: fields read together are adjacent."""
        states = np.zeros(self.num_states + 1, dtype=[("first", "i8"), ("silent", "i4"), ("final", "f4")])
        arcs = np.empty(len(self.label), dtype=[("dst", "i4"), ("label", "i4"), ("score", "f4")])
        arcs["dst"], arcs["label"], arcs["score"] = self.dst, self.label, self.score
        counted = np.concatenate([[0], np.cumsum(self.label < 0)])[self.first]
        states["first"], states["silent"][:-1], states["final"][:-1] = self.first, np.diff(counted), self.final
        return states, arcs

    @classmethod
    def read(cls, path: Path) -> DecodingGraph:
        """Read HLG.fst, whose input label u + 1 is output u and 0 takes no frame.

        Raises FileNotFoundError naming the stage that writes it, ValueError for another kind of file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no decoding graph at {path}; stage 4 writes it (run.sh --stage 4 --stop-stage 4)")
        start, final, src, arcs = read_openfst(path)
        if start < 0 or not np.isfinite(final).any():
            raise ValueError(f"{path}: the graph is empty or has no final state; run stage 4 again")
        number = np.arange(len(final))
        number[[0, start]] = start, 0
        src, dst = number[src], number[arcs["target"]]
        order = np.lexsort((arcs["input"] > 0, src))
        return cls(
            first_arcs(src, len(final)), dst[order].astype(np.int32), (arcs["input"][order] - 1).astype(np.int32),
            arcs["output"][order].astype(np.int32), -arcs["cost"][order].astype(np.float32),
            -final[number].astype(np.float32),
        )  # fmt: skip

    def to_openfst(self) -> kaldifst.StdVectorFst:
        """The graph as `read` reads it from a file."""
        import kaldifst

        fst = kaldifst.StdVectorFst()
        for final in self.final.tolist():
            fst.set_final(fst.add_state(), -final)
        fst.start = 0
        columns = (self.label + 1, self.word, -self.score, self.dst)
        sources = np.repeat(np.arange(self.num_states), np.diff(self.first))
        for source, arc in zip(sources.tolist(), zip(*(column.tolist() for column in columns))):
            fst.add_arc(source, kaldifst.StdArc(*arc))
        return fst


@dataclass(frozen=True, eq=False)
class Lattice(Arcs):
    """Acyclic graph of the paths near the best one; state 0 is the start, and every arc goes to a later state.

    src, dst (A,) int32. label (A,) int32: output column of the frame, -1 for an arc without a frame.
    word (A,) int32: word id, 0 for none. acoustic, graph (A,) float32: log-probability of the output, and the
    graph's score. frame (S,) int32: frames before the state. final (S,) float32: the graph's score of
    ending there, -inf where a path may not end.
    complete: False where no path within the beam ends in a final state of the graph: then the lattice is of
    the best partial paths, and ending scores 0. Without any path there are no states.
    """

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    word: np.ndarray
    acoustic: np.ndarray
    graph: np.ndarray
    frame: np.ndarray
    final: np.ndarray
    complete: bool = True

    @property
    def num_frames(self) -> int:
        return int(self.frame[-1]) if self.num_states else 0

    @classmethod
    def empty(cls) -> Lattice:
        """A lattice without paths."""
        whole, real = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.float32)
        return cls(whole, whole, whole, whole, real, real, whole, real, complete=False)
