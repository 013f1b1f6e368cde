"""Random decoding graphs and all their paths, one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from distill.fsa.graph import Fsa
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.graphs.numerator import UnitLm
from distill.graphs.numerator_weights import with_lm_all
from distill.lfmmi import NativeEngine

OUTPUTS = 4
WIDE = Search(beam=1e4, lattice_beam=1e3, max_active=0)


@dataclass(frozen=True)
class Path:
    """labels: one for each frame. words: of the transcript."""

    labels: tuple[int, ...]
    words: tuple[int, ...]
    acoustic: float
    graph: float

    @property
    def score(self) -> float:
        return self.acoustic + self.graph


def random_graph(seed: int, states: int = 4, arcs: int = 10) -> DecodingGraph:
    """Arcs without a frame lead to later states only, so none run in a circle; the last state is final."""
    rng = np.random.default_rng(seed)
    src, dst = rng.integers(0, states, (2, arcs))
    label = rng.integers(0, OUTPUTS, arcs)
    label[(rng.random(arcs) < 0.3) & (dst > src)] = -1
    word = np.where(rng.random(arcs) < 0.5, rng.integers(1, 4, arcs), 0)
    final = np.where(rng.random(states) < 0.5, rng.normal(size=states), -np.inf)
    final[-1] = 0.0
    order = np.lexsort((label >= 0, src))
    first = np.searchsorted(src[order], np.arange(states + 1))
    score = rng.normal(size=arcs)
    whole, real = np.int32, np.float32
    return DecodingGraph(
        first.astype(np.int64), dst[order].astype(whole), label[order].astype(whole), word[order].astype(whole),
        score[order].astype(real), final.astype(real),
    )  # fmt: skip


def random_log_probs(seed: int, frames: int, outputs: int = OUTPUTS) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).standard_normal((frames, outputs))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def graph_paths(graph: DecodingGraph, log_probs: np.ndarray) -> Iterator[Path]:
    """Every complete path of the graph through the frames."""
    stack = [(0, (), (), 0.0, 0.0)]
    while stack:
        state, labels, words, acoustic, score = stack.pop()
        if len(labels) == len(log_probs) and np.isfinite(graph.final[state]):
            yield Path(labels, words, acoustic, score + float(graph.final[state]))
        for a in range(graph.first[state], graph.first[state + 1]):
            label, word = int(graph.label[a]), int(graph.word[a])
            said = (*words, word) if word else words
            following = score + float(graph.score[a])
            if label < 0:
                stack.append((int(graph.dst[a]), labels, said, acoustic, following))
            elif len(labels) < len(log_probs):
                heard = acoustic + float(log_probs[len(labels), label])
                stack.append((int(graph.dst[a]), (*labels, label), said, heard, following))


def lattice_paths(lattice: Lattice) -> Iterator[Path]:
    """Every path of a lattice."""
    stack = [(0, (), (), 0.0, 0.0)] if lattice.num_states else []
    while stack:
        state, labels, words, acoustic, score = stack.pop()
        assert lattice.frame[state] == len(labels)
        if np.isfinite(lattice.final[state]):
            yield Path(labels, words, acoustic, score + float(lattice.final[state]))
        for a in np.flatnonzero(lattice.src == state):
            label, word = int(lattice.label[a]), int(lattice.word[a])
            stack.append(
                (
                    int(lattice.dst[a]),
                    labels if label < 0 else (*labels, label),
                    (*words, word) if word else words,
                    acoustic + float(lattice.acoustic[a]),
                    score + float(lattice.graph[a]),
                )
            )


def lattice_of(graph: DecodingGraph, log_probs: np.ndarray, search: Search = WIDE) -> Lattice:
    return NativeEngine().lattice(torch.from_numpy(log_probs)[None], torch.tensor([len(log_probs)]), graph, search)[0]


def same_paths(found: list[Path], expected: list[Path]) -> bool:
    """Whether both hold the same labels, words and scores, whatever their order."""

    def rows(paths: list[Path]) -> list[tuple]:
        return sorted((p.labels, p.words, round(p.score, 3), p) for p in paths)  # type: ignore[type-var]

    left, right = rows(found), rows(expected)
    return len(left) == len(right) and all(
        a[:2] == b[:2] and abs(a[3].acoustic - b[3].acoustic) < 1e-3 and abs(a[3].graph - b[3].graph) < 1e-3
        for a, b in zip(left, right)
    )


def with_lm(graph: Fsa, lm: UnitLm, lm_scale: float = 0.0) -> Fsa:
    """One graph with the denominator LM's weights."""
    return with_lm_all([graph], lm, lm_scale)[0]
