"""How fast a session is, and what it takes: measured in a fresh process on one thread.

Only numpy and the runtime are imported, so that memory is the runtime's and not that of training code.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distill.runtime.session import SAMPLE_RATE, Session, open_session

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Work:
    """What is to be measured: a session (folder, runtime, mode, output) over audio (a .npy file of float32 samples).

    piece: samples fed at a time, 0: a chunk of the model, or all of it offline.
    """

    folder: Path
    runtime: str
    mode: str
    audio: Path
    output: str = "main"
    piece: int = 0
    repeats: int = 3


@dataclass(frozen=True)
class Timing:
    """Of `repeats` runs on one thread, the median and the extremes; seconds are those of the processor.

    rtf: seconds per second of audio; rtf_wall: by the clock, other programs included. finalisation_ms: from
    the last sample to the last frame. peak_mb: of the process; model_mb: what opening and running added.
    """

    audio_s: float
    rtf: float
    rtf_low: float
    rtf_high: float
    rtf_wall: float
    finalisation_ms: float
    peak_mb: float
    model_mb: float


def measure(work: Work) -> Timing:
    """Measure in a process of its own; raises what the session raises."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "timing.json"
        told = json.dumps(asdict(work), default=str)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **dict.fromkeys(THREADS, "1")}
        code = "import sys; from distill.deploy import timing; timing.measure_here(*sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, told, str(result)], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"measuring {work.folder} failed: {done.stderr.strip().splitlines()[-1]}")
        return Timing(**json.loads(result.read_text(encoding="utf-8")))


def measure_here(told: str, result: str) -> None:
    """What the measuring process does: Work as JSON, and where the Timing goes."""
    values = json.loads(told)
    work = Work(**{**values, "folder": Path(values["folder"]), "audio": Path(values["audio"])})
    Path(result).write_text(json.dumps(asdict(_measure(work))), encoding="utf-8")


def _measure(work: Work) -> Timing:
    audio = np.load(work.audio)
    before = _peak_mb()
    session = open_session(work.folder, work.runtime, work.mode, work.output)
    piece = work.piece or piece_of(session, work.mode, len(audio))
    runs = [run(session, audio, piece) for _ in range(work.repeats + 1)][1:]  # the first one warms up
    seconds, (cpu, wall, last) = len(audio) / SAMPLE_RATE, zip(*runs)
    peak = _peak_mb()
    return Timing(
        round(seconds, 2), statistics.median(cpu) / seconds, min(cpu) / seconds, max(cpu) / seconds,
        statistics.median(wall) / seconds, 1000 * statistics.median(last), peak, peak - before,
    )  # fmt: skip


def piece_of(session: Session, mode: str, samples: int) -> int:
    """A chunk of a model that streams, all of the audio otherwise."""
    facts = session.facts
    return facts.chunk * facts.hop if facts.chunk and mode != "offline" else samples


def run(session: Session, audio: np.ndarray, piece: int) -> tuple[float, float, float]:
    """One utterance in pieces: seconds of the processor, by the clock, and of the flush alone (processor)."""
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(audio), piece):
        session.feed(audio[start : start + piece])
    before_flush = time.process_time()
    session.flush()
    end = time.process_time()
    return end - cpu, time.perf_counter() - wall, end - before_flush


def _peak_mb() -> float:
    """Highest resident memory of this process so far (getrusage would count the parent's on Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)


def gemm_peak(seconds: float = 0.3, sizes: Sequence[int] = (512, 768, 1024)) -> float:
    """GFLOP/s that one thread reaches in float32 products of matrices, the best of some sizes (numpy's BLAS)."""
    best = 0.0
    for size in sizes:
        a = np.random.default_rng(0).standard_normal((size, size)).astype(np.float32)
        times: list[float] = []
        begin = time.process_time()
        while time.process_time() - begin < seconds or len(times) < 3:
            start = time.process_time()
            a @ a
            times.append(time.process_time() - start)
        best = max(best, 2 * size**3 / statistics.median(times) / 1e9)
    return best
