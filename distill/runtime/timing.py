"""Speed and memory of a session, measured in a fresh process on one thread.

Only numpy and the runtime are imported, so that the memory is that of the runtime and not of training code.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distill.config.model import SAMPLE_RATE
from distill.decode.transducer import Greedy
from distill.runtime.open import open_session
from distill.runtime.session import Session

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Work:
    """A measurement: a session (folder, runtime, mode) over audio (a .npy file of float32 samples), `repeats` times."""

    folder: Path
    runtime: str
    mode: str
    audio: Path
    repeats: int = 3


@dataclass(frozen=True)
class Speed:
    """Median and extremes over the repeats on one thread, in processor time.

    rtf: seconds per second of audio; rtf_wall: by the clock, other programs included. finalisation_ms: from
    the last sample to the last frame. peak_mb: memory of the process; model_mb: of opening and running the model.
    """

    audio_s: float
    rtf: float
    rtf_low: float
    rtf_high: float
    rtf_wall: float
    finalisation_ms: float
    peak_mb: float
    model_mb: float


def measure(work: Work) -> Speed:
    """Measure in a process of its own; raises RuntimeError with the session's error."""
    arguments = json.dumps(asdict(work), default=str)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **dict.fromkeys(THREADS, "1")}
    code = "import sys; from distill.runtime import timing; timing.print_timing(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, arguments], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"measuring {work.folder} failed: {done.stderr.strip().splitlines()[-1]}")
    return Speed(**json.loads(done.stdout.splitlines()[-1]))


def print_timing(arguments: str) -> None:
    """The measuring process: Work as JSON -> Speed as JSON on the last line of stdout."""
    work = Work(**json.loads(arguments))
    audio, before = np.load(work.audio), _peak_mb()
    session = open_session(Path(work.folder), work.runtime, work.mode)
    piece = piece_of(session, work.mode, len(audio))
    runs = [run(session, audio, piece) for _ in range(work.repeats + 1)][1:]  # the first one warms up
    seconds, (cpu, wall, last) = len(audio) / SAMPLE_RATE, zip(*runs)
    peak = _peak_mb()
    timing = Speed(
        round(seconds, 2), statistics.median(cpu) / seconds, min(cpu) / seconds, max(cpu) / seconds,
        statistics.median(wall) / seconds, 1000 * statistics.median(last), peak, peak - before,
    )  # fmt: skip
    sys.stdout.write(json.dumps(asdict(timing)) + "\n")


def piece_of(session: Session, mode: str, samples: int) -> int:
    """A chunk of a model that streams, all of the audio otherwise."""
    info = session.info
    return info.chunk_frames * info.hop if info.chunk_frames and mode != "offline" else samples


def run(session: Session, audio: np.ndarray, piece: int) -> tuple[float, float, float]:
    """One utterance in pieces: processor time, wall-clock time, and processor time of the flush alone, in seconds.

    Of a transducer with its greedy search.
    """
    network = session.runner.network
    search = Greedy(network).feed if network else lambda frames: None
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(audio), piece):
        search(session.feed(audio[start : start + piece]).log_probs)
    before_flush = time.process_time()
    search(session.flush().log_probs)
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
    """GFLOP/s of one thread in float32 matrix products, the best of some sizes (numpy's BLAS)."""
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
