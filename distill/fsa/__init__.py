"""Graphs and the engine that sums their paths."""

from __future__ import annotations

from distill.fsa.engine import Engine, Precision, Score, posteriors
from distill.fsa.graph import Fsa, Hmm, Numerator
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.fsa.native import NativeEngine
from distill.fsa.reference import TorchEngine

__all__ = [
    "DecodingGraph", "Engine", "Fsa", "Hmm", "Lattice", "NativeEngine", "Numerator", "Score", "Search", "TorchEngine",
    "build_engine", "posteriors",
]  # fmt: skip


def build_engine(name: str, leaky: float = 0.0, precision: Precision = "input") -> Engine:
    """Return the engine of that name: "native" (fastest on each device) or "torch" (the reference).

    leaky: coefficient of the leaky HMM in graphs shared by the batch (`distill.fsa.leaky`), 0 for none.
    precision: of the sums, "float32", "float64", or "input" for that of the log-probabilities.
    Raises ValueError for a name that is not built.
    """
    if name == "native":
        return NativeEngine(leaky, precision)
    if name == "torch":
        return TorchEngine(leaky, precision)
    raise ValueError(f"engine '{name}' is not built; expected 'native' or 'torch'")
