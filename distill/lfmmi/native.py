"""The native engine: on each device the fastest of our own implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from distill.fsa.graph import Hmm
from distill.lfmmi.cpu import CpuEngine
from distill.lfmmi.engine import Engine, OwnEngine, Precision, Score
from distill.lfmmi.reference import TorchEngine


class NativeEngine(OwnEngine):
    """C++ kernels on CPUs, Triton kernels on GPUs; torch without Triton and on other devices."""

    def __init__(self, leaky: float = 0.0, precision: Precision = "input") -> None:
        super().__init__(leaky, precision)
        self._engines: dict[str, Engine] = {}

    def score(self, log_probs: Tensor, lengths: Tensor, graph: Hmm | Sequence[Hmm]) -> Score:
        """Sum all paths of `graph`: log_probs (B, T, V), lengths (B,) -> Score (`Engine.score`)."""
        kind = log_probs.device.type
        if kind not in self._engines:
            engine: Callable[[float, Precision], Engine] = CpuEngine if kind == "cpu" else TorchEngine
            if kind == "cuda":
                from distill.lfmmi import triton

                engine = triton.TritonEngine if triton.available() else TorchEngine
            self._engines[kind] = engine(self.leaky, self.precision)
        return self._engines[kind].score(log_probs, lengths, graph)
