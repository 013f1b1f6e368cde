"""Graphs and the engine that sums their paths."""

from __future__ import annotations

from distill.fsa.engine import Engine, Score, posteriors
from distill.fsa.graph import Fsa, Hmm, Numerator
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.fsa.native import NativeEngine

__all__ = [
    "DecodingGraph", "Engine", "Fsa", "Hmm", "Lattice", "NativeEngine", "Numerator", "Score", "Search", "build_engine",
    "posteriors",
]  # fmt: skip


def build_engine(name: str) -> Engine:
    """Return the engine of that name; raises ValueError for one that is not built."""
    if name != "native":
        raise ValueError(f"engine '{name}' is not built yet; expected 'native'")
    return NativeEngine()
