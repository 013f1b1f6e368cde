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
    """Return the engine of that name; raises ValueError for one that is not built, or whose library is missing."""
    if name == "k2":
        return _k2_engine()
    if name != "native":
        raise ValueError(f"engine '{name}' is not built yet; expected 'native' or 'k2'")
    return NativeEngine()


def _k2_engine() -> Engine:
    try:
        from distill.fsa.k2 import K2Engine
    except ImportError as error:
        raise ValueError(
            f"engine 'k2' needs k2, which cannot be imported here ({error}); wheels for each torch stand at"
            " https://k2-fsa.github.io/k2/installation. Engine 'native' gives the same values, faster"
        ) from None
    return K2Engine()
