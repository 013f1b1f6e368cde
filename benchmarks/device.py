"""Seconds and memory of a call on a GPU or a CPU, and the peaks that a device reaches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

MATRIX = {"cuda": 8192, "cpu": 512}  # rows of the product whose speed counts as the peak


def measure(run: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of `run` after three calls to warm up, and the memory in MB that it takes at most (0 on a CPU)."""
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for _ in range(3):
        run()
    synchronise()
    memory = 0.0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronise()
        seconds.append(time.perf_counter() - start)
    if device.type == "cuda":
        memory = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    return statistics.median(seconds), memory


def copying_speed(device: torch.device) -> float:
    """Bytes read and written a second by a large copy."""
    source = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * len(source) / measure(lambda: target.copy_(source), 10, device)[0]


def matmul_speed(device: torch.device, precision: torch.dtype) -> float:
    """Operations a second of a large product of random matrices, two for a multiply-add: the peak of MFU."""
    size = MATRIX[device.type]
    left, right = torch.randn(2, size, size, device=device, dtype=precision)
    return 2 * size**3 / measure(lambda: left @ right, 20, device)[0]
