"""Seconds and peak memory of a call; the standard library alone, as other environments run it too."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

LONG = 5.0  # seconds from which a call is not repeated
CLEAR = Path("/proc/self/clear_refs")


def measure(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """seconds, cpu_seconds: medians after one warm-up call; peak_mb: peak memory added by that first call.

    A long call is measured once. CPU time is that of all threads, which is steadier on a busy machine. Memory is
    resident memory without file mappings (a first call maps some megabytes of library code); free heap memory is
    returned to the system first, so that its reuse counts.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    CLEAR.write_text("5")  # forget the highest so far
    before, files = _status("VmRSS"), _files()
    first = _times(run)
    memory = (_status("VmHWM") - before - (_files() - files)) / 1e6
    times = [first] if first[0] > LONG else [_times(run) for _ in range(repeats)]
    wall, cpu = (statistics.median(column) for column in zip(*times))
    return {"seconds": wall, "cpu_seconds": cpu, "peak_mb": memory}


def _times(run: Callable[[], object]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Result of the function in a fresh process, with its own memory and threads."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def k2_figures(python: Path, case: dict[str, Any], timeout: float) -> dict[str, Any]:
    """Figures of `benchmarks.k2` on a case, by another Python; `error` instead where that fails."""
    import torch

    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}  # not installed there
    with tempfile.TemporaryDirectory() as folder:
        torch.save(case, Path(folder) / "case.pt")
        command = [str(python), "-m", "benchmarks.k2", str(Path(folder) / "case.pt")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)
        except subprocess.TimeoutExpired:
            return {"error": f"more than {timeout:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def memory_mb() -> float:
    """Memory of this process that is in RAM."""
    return _status("VmRSS") / 1e6


def _files() -> int:
    return _status("RssFile") + _status("RssShmem")


def peak_mb(process: int) -> float:
    """Most memory of a process that was in RAM so far."""
    return _status("VmHWM", process) / 1e6


def _status(name: str, process: int | str = "self") -> int:
    """A figure of a process's /proc/PID/status in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def busy(cores: Sequence[int | None]) -> Iterator[None]:
    """Other processes at work while the block runs: one for each item, pinned to that core, or unpinned for None."""
    loops = ("while True: pass" if core is None else f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
             for core in cores)  # fmt: skip
    others = [subprocess.Popen([sys.executable, "-c", loop]) for loop in loops]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()
