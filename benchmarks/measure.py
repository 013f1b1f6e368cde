"""Seconds and peak memory of a call; the standard library alone, as other environments run it too."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

LONG = 5.0  # seconds from which a call is not repeated
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(run: Callable[[], object], repeats: int) -> dict[str, float]:
    """seconds, cpu_seconds: medians after one call to warm up; peak_mb: the most memory that the first one adds.

    A long call is measured once, as it comes. CPU time is that of all threads: where other programs are at
    work, it says more. Memory is that of the process in RAM, as Linux counts it, without what files are read
    into: a first call touches some megabytes of the libraries' code. What lay free before is given back first,
    or a call that takes it would seem to need none.
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


def memory_mb() -> float:
    """Memory of this process that is in RAM."""
    return _status("VmRSS") / 1e6


def _files() -> int:
    return _status("RssFile") + _status("RssShmem")


def _status(name: str) -> int:
    """A figure of /proc/self/status in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a whole file or nothing; keys in their order, which is that of a table's columns."""
    waiting = path.with_suffix(".tmp")
    waiting.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(waiting, path)
