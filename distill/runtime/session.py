"""Audio in, in pieces of any size; log-probabilities and units out: one session is one stream.

A session of a streaming model gives the frames of every chunk that its audio completes; one of an
offline model gives all frames when it is flushed. What runs the model, torch or ONNX Runtime, makes no
difference to the caller; with ONNX Runtime, torch is not imported.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

SAMPLE_RATE = 16000
LAYOUT = 3  # of what stage 12 writes: one more whenever graphs or their facts change, so that it writes them anew
LOUDEST = 8.0  # float samples lie in -1..1; augmentation and clipping go a little beyond, integers far


@dataclass(frozen=True)
class Facts:
    """What a session must know of a model, stored beside its graphs (export.json).

    hop: samples per frame; context, ahead: samples before and after its hop that a frame sees. stride, reach:
    inputs (samples or Fbank frames) per frame, and seen by one. waveform: utterance, gain or none; waveform_eps:
    added to the variance of an utterance.
    chunk, history, sinks: frames, 0 without streaming. kernel: of the positions. outputs: names, blank first.
    predicts: outputs that the model has: main (LF-MMI's, which wants a graph), ctc (whose best outputs can be read).
    """

    name: str
    input: str
    mels: int
    hop: int
    context: int
    ahead: int
    stride: int
    reach: int
    waveform: str
    gain: float
    chunk: int
    history: int
    sinks: int
    layers: int
    heads: int
    dim: int
    kernel: int
    outputs: tuple[str, ...]
    predicts: tuple[str, ...]
    waveform_eps: float = 1e-7

    @classmethod
    def read(cls, path: Path) -> Facts:
        """Raises FileNotFoundError naming the stage that writes it, ValueError for another version's file."""
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; stage 12 writes it (run.sh --stage 12 --stop-stage 12)")
        values = json.loads(path.read_text(encoding="utf-8"))["model"]
        try:
            return cls(**{**values, **{key: tuple(values[key]) for key in ("outputs", "predicts") if key in values}})
        except TypeError as error:
            raise ValueError(f"{path} was written by another version ({error}); run stage 12 again") from None

    def plain(self) -> dict[str, Any]:
        """As values for JSON."""
        return asdict(self)

    def window(self, frames: int) -> int:
        """Inputs (samples or Fbank frames) that so many frames see."""
        return (frames - 1) * self.stride + self.reach

    def frames(self, samples: int) -> int:
        """Frames of an utterance."""
        if self.input == "fbank":
            inputs = (samples + 80) // 160
            return max(0, (inputs - self.reach) // self.stride + 1)
        return max(0, (samples + self.context - self.reach) // self.stride + 1)


@dataclass(frozen=True)
class Heard:
    """New frames: log_probs (T, V), the first one's number, and samples that the session has taken in so far."""

    log_probs: np.ndarray
    start: int
    samples: int


class Runner(Protocol):
    """Runs the model of one stream."""

    facts: Facts

    def reset(self) -> None:
        """Forget everything: the next sample begins an utterance."""

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """Samples (n,) -> log-probabilities (T, V) of the frames that are complete now."""


class Session:
    """feed() samples as they come, flush() at the end of the utterance; then the next one may begin."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.reset()

    @property
    def facts(self) -> Facts:
        return self.runner.facts

    def reset(self) -> None:
        """Forget the utterance."""
        self.runner.reset()
        self._samples = self._frames = 0

    def feed(self, samples: Any) -> Heard:
        """The next samples (n,), 16 kHz mono, floats in -1..1 or int16, n >= 1.

        Raises ValueError for none, for another shape or kind, and for values that are not finite.
        """
        wave = checked(samples)
        self._samples += len(wave)
        return self._heard(self.runner.step(wave, False))

    def flush(self) -> Heard:
        """The rest of the utterance's frames; the session is then as new."""
        heard = self._heard(self.runner.step(np.zeros(0, np.float32), True))
        self.reset()
        return heard

    def whole(self, samples: Any) -> np.ndarray:
        """One utterance at once: samples (n,) -> log-probabilities (T, V)."""
        self.reset()
        return np.concatenate([self.feed(samples).log_probs, self.flush().log_probs])

    def _heard(self, log_probs: np.ndarray) -> Heard:
        start = self._frames
        self._frames += len(log_probs)
        return Heard(log_probs, start, self._samples)


def checked(samples: Any) -> np.ndarray:
    """Samples as float32 (n,) in -1..1; raises ValueError saying what is wrong with them."""
    wave = np.asarray(samples)
    if wave.ndim != 1:
        raise ValueError(f"samples must be one channel (n,), got {wave.shape}; choose or mix channels first")
    if not wave.size:
        raise ValueError("a chunk of zero samples; feed at least one, and flush() to end the utterance")
    if wave.dtype == np.int16:
        return wave.astype(np.float32) / 32768
    if wave.dtype.kind != "f":
        raise ValueError(f"samples must be floats in -1..1 or int16, got {wave.dtype}")
    wave = wave.astype(np.float32)
    loudest = np.abs(wave).max()
    if not np.isfinite(loudest):
        raise ValueError(f"samples hold {int((~np.isfinite(wave)).sum())} NaN or infinite values of {wave.size}")
    if loudest > LOUDEST:
        raise ValueError(f"samples reach {loudest:.0f}, expected floats in -1..1; divide 16-bit values by 32768")
    return wave


def open_session(
    folder: Path, runtime: str = "onnx", mode: str = "", output: str = "main", threads: int = 1
) -> Session:
    """A session for an experiment's folder, or for an export folder alone.

    runtime: torch (the last checkpoint), onnx or int8 (what stage 12 exported). mode: streaming or offline;
    empty: streaming where the model can. output: main or ctc. Raises FileNotFoundError or ValueError naming
    what is missing.
    """
    if mode not in ("", "streaming", "offline"):
        raise ValueError(f"mode '{mode}' is not known; expected streaming or offline")
    if runtime == "torch":
        from distill.runtime.torch_runner import open_torch

        return Session(open_torch(folder, mode, output, threads))
    if runtime not in ("onnx", "int8"):
        raise ValueError(f"runtime '{runtime}' is not known; expected torch, onnx or int8")
    from distill.runtime.onnx_runner import open_onnx

    return Session(open_onnx(folder, mode, output, runtime == "int8", threads))
