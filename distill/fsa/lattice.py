"""Lattices: the paths of a decoding graph through an utterance, as every engine returns them.

`Engine.lattice` searches a `DecodingGraph` and keeps what lies near the best path. Acoustic and
graph scores stay apart, so that whoever uses the lattice may weigh them anew.
All scores are natural-log scores: larger is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from distill.fsa.formats import read_openfst
from distill.fsa.graph import Arcs

NO_FRAME = -1  # label of an arc that takes no frame


@dataclass(frozen=True)
class Search:
    """How wide a lattice search looks, in natural-log units.

    beam: states this much worse than a frame's best are not continued. max_active: at most so many
    states of a frame are. lattice_beam: kept are arcs on a complete path at most this much worse than
    the best one.
    """

    beam: float = 15.0
    lattice_beam: float = 6.0
    max_active: int = 2000


@dataclass(frozen=True, eq=False)
class DecodingGraph:
    """HLG as arrays, arcs in order of their source, those without a frame first; state 0 is the start.

    first (S + 1,) int64: state s has the arcs first[s] .. first[s + 1] - 1.
    dst, label, word (A,) int32: label is the output column, -1 for an arc without a frame; word 0 says nothing.
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
    def top(self) -> int:
        """The largest output that is used, -1 without any."""
        return int(self.label.max(initial=-1))

    @cached_property
    def packed(self) -> tuple[np.ndarray, np.ndarray]:
        """States (S + 1,) and arcs (A,) as `kernels/tokens.h` has them: what is read together lies together."""
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
        first = np.zeros(len(final) + 1, dtype=np.int64)
        np.cumsum(np.bincount(src, minlength=len(final)), out=first[1:])
        return cls(
            first,
            dst[order].astype(np.int32),
            (arcs["input"][order] - 1).astype(np.int32),
            arcs["output"][order].astype(np.int32),
            -arcs["cost"][order].astype(np.float32),
            -final[number].astype(np.float32),
        )


@dataclass(frozen=True, eq=False)
class Lattice(Arcs):
    """Acyclic graph of the paths near the best one; state 0 is the start, and every arc goes to a later state.

    src, dst (A,) int32. label (A,) int32: output column of the frame, -1 for an arc without a frame.
    word (A,) int32: word id, 0 for none. acoustic, graph (A,) float32: log-probability of the output, and the
    graph's score. frame (S,) int32: frames before the state. final (S,) float32: the graph's score of
    ending there, -inf where a path may not end.
    complete: False where the beam left no path that ends in a final state of the graph: then the best
    partial paths are here, and ending scores 0. Without any path there are no states.
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
