"""The two graph types of LF-MMI: `Fsa` is a graph over units, `Hmm` the form in which an engine runs it.

An `Fsa` is an epsilon-free weighted acceptor over units (a language model, a transcript, the paths of
a lattice). Composed with a topology (`distill.graphs.topology`) it becomes an `Hmm`, whose states
carry one output label each, so that a path through it is a frame-by-frame labelling.
All weights are natural-log weights of the log semiring: larger is better, paths are summed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Arcs:
    """Sizes of a graph whose `src` has an entry for each arc and whose `final` has one for each state."""

    src: np.ndarray
    final: np.ndarray

    @property
    def num_states(self) -> int:
        return len(self.final)

    @property
    def num_arcs(self) -> int:
        return len(self.src)


@dataclass(frozen=True)
class Fsa(Arcs):
    """Epsilon-free weighted acceptor in the log semiring; state 0 is the start.

    src, dst, label (A,) int32: arcs; labels are unit ids >= 1 (0 is blank and belongs to the topology).
    weight (A,) float64: log-weights of the arcs.
    final (S,) float64: log-weights of ending in a state, -inf where that is not allowed.
    window (S, 2) int32, optional: first and last frame in which a path may stand in a state: from the
        frame in which it enters the state up to the one before it leaves.
    """

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    final: np.ndarray
    window: np.ndarray | None = None

    @classmethod
    def from_arcs(cls, arcs: list[tuple[int, int, int, float]], final: dict[int, float], num_states: int) -> Fsa:
        """Build from (src, dst, label, weight) tuples and {state: final weight}."""
        columns = list(zip(*arcs)) if arcs else [(), (), (), ()]
        src, dst, label = (np.array(column, dtype=np.int32) for column in columns[:3])
        weights = np.full(num_states, -np.inf)
        weights[list(final)] = list(final.values())
        return cls(src, dst, label, np.array(columns[3], dtype=np.float64), weights)

    def validate(self, num_labels: int, where: str = "graph") -> None:
        """Raise ValueError naming `where` unless this is a connected graph over 1 .. num_labels - 1 that can end."""
        if not np.isfinite(self.final).any():
            raise ValueError(
                f"{where} is without a final state: no path can end, so its score is -inf; give a state a final weight"
            )
        if not self.num_arcs:
            return
        if self.label.min() < 1 or self.label.max() >= num_labels:
            raise ValueError(
                f"{where} has labels {self.label.min()}..{self.label.max()}, expected 1..{num_labels - 1};"
                " was it built with another tokens.txt?"
            )
        top = max(self.src.max(), self.dst.max())
        if top >= self.num_states or min(self.src.min(), self.dst.min()) < 0:
            raise ValueError(f"{where} has an arc at state {top}, expected 0..{self.num_states - 1}")
        if np.isnan(self.weight).any() or np.isnan(self.final).any():
            raise ValueError(f"{where} has NaN weights; expected natural logs, -inf for what cannot be")
        useless = np.flatnonzero(~on_a_path(self.src, self.dst, self.final))
        if len(useless):
            raise ValueError(
                f"{where} is not connected: {len(useless)} of {self.num_states} states (the first: {useless[0]})"
                " lie on no path from state 0 to a final state; leave them out (OpenFst: fstconnect, k2: k2.connect)"
            )


@dataclass(frozen=True)
class Hmm:
    """States with one output label each: the form in which an engine runs every graph.

    label (S,) int64: output column that scores a frame spent in the state.
    initial (S,), final (S,) float64: log-weights of a path's first and last state.
    src, dst (A,) int64, weight (A,) float64: transitions, each taking one frame.
    accepts_empty: float, log-weight of the path without frames, -inf if there is none.
    """

    label: Tensor
    initial: Tensor
    final: Tensor
    src: Tensor
    dst: Tensor
    weight: Tensor
    accepts_empty: float = -float("inf")

    @property
    def num_states(self) -> int:
        return len(self.label)

    def to(self, device: torch.device | str) -> Hmm:
        """The same graph with its tensors on another device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**(values | {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}))


@dataclass(frozen=True)
class Numerator(Hmm):
    """The graph of one utterance with constraints and weights of its frames (`distill.lfmmi.frame_constraints`).

    window (S, 2) int64, optional: first and last frame that may be spent in a state.
    confidence (T,) float32, optional: weight of each frame's gradient in training.
    """

    window: Tensor | None = None
    confidence: Tensor | None = None


def expand(count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Repeat row r count[r] times: count (R,) -> the row of each copy and its position among them, both (sum,)."""
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)


def first_arcs(src: np.ndarray, states: int) -> np.ndarray:
    """Offset of each state's arcs in a table ordered by source: src (A,) -> (S + 1,) int64."""
    return np.concatenate([[0], np.cumsum(np.bincount(src, minlength=states))]).astype(np.int64)


def reachable(start: np.ndarray, src: np.ndarray, dst: np.ndarray, states: int) -> np.ndarray:
    """States that arcs src -> dst (A,) reach from the states `start`, these included: (S,) bool."""
    order = np.argsort(src, kind="stable")
    first, target = first_arcs(src[order], states), dst[order]
    seen, frontier = np.zeros(states, dtype=bool), start
    seen[frontier] = True
    while len(frontier):
        row, offset = expand(first[frontier + 1] - first[frontier])
        following = target[first[frontier][row] + offset]
        frontier = np.unique(following[~seen[following]])
        seen[frontier] = True
    return seen


def on_a_path(src: np.ndarray, dst: np.ndarray, final: np.ndarray) -> np.ndarray:
    """States on a path from state 0 to one with a finite final weight: arcs (A,), final (S,) -> (S,) bool."""
    ahead = reachable(np.arange(min(1, len(final))), src, dst, len(final))
    return ahead & reachable(np.flatnonzero(np.isfinite(final)), dst, src, len(final))
