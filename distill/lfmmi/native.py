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
            self._engines[kind] = fastest(kind)(self.leaky, self.precision)
        return self._engines[kind].score(log_probs, lengths, graph)


def fastest(device: str) -> Callable[[float, Precision], Engine]:
    """The class of the engine for a kind of device; warns where a GPU has no Triton."""
    if device == "cuda":
        from distill.lfmmi import triton

        return triton.TritonEngine if triton.available() else TorchEngine
    return CpuEngine if device == "cpu" else TorchEngine
