"""The least time that a machine needs for a forward-backward in the probability domain, from measured peaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.measure import measure
from distill.fsa.graph import Hmm
from distill.lfmmi.factored import factor

NUMBER = 4  # bytes of a float32
MATRIX = 1024  # rows of the product whose speed counts as the peak


def roofline(graph: Hmm, batch: int, frames: int, outputs: int, threads: int) -> dict[str, Any]:
    """A row with the larger of two times: arithmetic at the speed of a matrix product, memory at that of a copy.

    Arithmetic: a multiplication and an addition per arc of the factored graph in both directions, four operations
    per state. Memory: the states of one direction written and read once, scores read and posteriors written.
    """
    torch.set_num_threads(threads)
    matrices = factor(graph, np.arange(graph.num_states))
    arcs = len(matrices.inward.row) + len(matrices.outward.row) + int(np.count_nonzero(matrices.own))
    operations = batch * frames * (2 * 2 * arcs + 4 * graph.num_states)
    size = NUMBER * batch * frames * graph.num_states
    traffic = 2 * size + 2 * NUMBER * batch * frames * outputs
    arithmetic, memory = operations / operations_per_second(), traffic / bytes_per_second(size)
    bound = "memory" if memory > arithmetic else "arithmetic"
    return {
        "engine": f"roofline ({bound})", "seconds": max(arithmetic, memory),
        "arithmetic_seconds": arithmetic, "memory_seconds": memory,
    }  # fmt: skip


def operations_per_second() -> float:
    """Measured in a product of float32 matrices."""
    left, right = torch.randn(2, MATRIX, MATRIX)
    return 2 * MATRIX**3 / measure(lambda: left @ right, 15)["seconds"]


def bytes_per_second(size: int) -> float:
    """Read and written by a copy between blocks of `size` bytes together, so of the cache that they fit in."""
    source = torch.ones(max(size // 2, 4096), dtype=torch.uint8)
    target = torch.empty_like(source)
    times = max(1, (1 << 24) // len(source))  # long enough to be timed

    def copy() -> None:
        for _ in range(times):
            target.copy_(source)

    return 2 * times * len(source) / measure(copy, 15)["seconds"]
