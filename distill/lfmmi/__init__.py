"""LF-MMI: engines that sum the paths of graphs, and `build_engine`, which makes one by its name."""

from __future__ import annotations

from distill.lfmmi.engine import Engine, Precision, Score, posteriors
from distill.lfmmi.native import NativeEngine
from distill.lfmmi.reference import TorchEngine

__all__ = ["Engine", "NativeEngine", "Score", "TorchEngine", "build_engine", "posteriors"]


def build_engine(name: str, leaky: float = 0.0, precision: Precision = "input") -> Engine:
    """Return the engine of that name: "native" (fastest on each device), "torch" (the reference) or "k2".

    leaky: coefficient of the leaky HMM in graphs shared by the batch (`distill.lfmmi.leaky`), 0 for none.
    precision: of the sums, "float32", "float64", or "input" for that of the log-probabilities; k2's are
    float64 always. Raises ValueError for a name that is not built, whose library is missing, or that has
    no leaky HMM.
    """
    if name in ("native", "torch"):
        return (NativeEngine if name == "native" else TorchEngine)(leaky, precision)
    if name != "k2":
        raise ValueError(f"engine '{name}' is not built; expected 'native', 'torch' or 'k2'")
    if leaky:
        raise ValueError(f"k2 has no leaky HMM, got coefficient {leaky}; set it to 0, or use engine 'native'")
    try:
        from distill.lfmmi.k2 import K2Engine
    except ImportError as error:
        raise ValueError(
            f"engine 'k2' needs k2, which cannot be imported here ({error}); wheels for each torch stand at"
            " https://k2-fsa.github.io/k2/installation. Engine 'native' gives the same values, faster"
        ) from None
    return K2Engine()
