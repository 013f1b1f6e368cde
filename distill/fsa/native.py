"""The native engine: on each device the fastest of our own implementations."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from distill.fsa.compiler import load_kernels
from distill.fsa.cpu import CpuEngine
from distill.fsa.engine import Engine, Score
from distill.fsa.graph import Hmm
from distill.fsa.reference import TorchEngine
from distill.fsa.search import SearchesLattices


class NativeEngine(SearchesLattices):
    """C++ kernels on processors (plain torch where there is no compiler), plain torch elsewhere.

    leaky: coefficient of the leaky HMM (`distill.fsa.leaky`), 0 for none.
    """

    def __init__(self, leaky: float = 0.0) -> None:
        self.leaky = leaky
        self._engines: dict[str, Engine] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        kind = log_probs.device.type
        if kind not in self._engines:
            self._engines[kind] = self._build(kind)
        return self._engines[kind].score(log_probs, lengths, graph)

    def _build(self, kind: str) -> Engine:
        if kind == "cpu" and load_kernels() is not None:
            return CpuEngine(self.leaky)
        return TorchEngine(self.leaky)
