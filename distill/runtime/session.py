"""Audio in pieces of any size -> log-probabilities, of a transducer its frames: one session is one stream.

A session of a streaming model returns the frames of every chunk that its audio completes; one of an
offline model returns all frames when it is flushed. The interface is the same for torch and ONNX Runtime.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.config.model import SAMPLE_RATE as SAMPLE_RATE
from distill.runtime.info import ModelInfo
from distill.runtime.runner import Runner

LOUDEST = 8.0  # float samples lie in -1..1; augmentation and clipping go a little beyond, integers far


@dataclass(frozen=True)
class NewFrames:
    """log_probs (T, V) of new frames, number of the first one, and samples of the utterance so far.

    Of a transducer the encoder's projection (T, J) stands in their place.
    """

    log_probs: np.ndarray
    start: int
    samples: int


class Session:
    """feed() samples as they come, flush() at the end of the utterance; then the next one may begin."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.reset()

    @property
    def info(self) -> ModelInfo:
        return self.runner.info

    @property
    def output(self) -> str:
        """main, ctc or transducer."""
        return self.runner.output

    def reset(self) -> None:
        """Begin a new utterance."""
        self.runner.reset()
        self._samples = self._frames = 0

    def feed(self, samples: Any) -> NewFrames:
        """The next samples (n,), 16 kHz mono, floats in -1..1 or int16, n >= 1.

        Raises ValueError for none, for another shape or kind, and for values that are not finite.
        """
        wave = checked(samples)
        self._samples += len(wave)
        return self._new_frames(self.runner.step(wave, False))

    def flush(self) -> NewFrames:
        """The utterance's remaining frames; the next utterance may begin."""
        frames = self._new_frames(self.runner.step(np.zeros(0, np.float32), True))
        self.reset()
        return frames

    def whole(self, samples: Any) -> np.ndarray:
        """One utterance at once: samples (n,) -> log-probabilities (T, V), of a transducer its frames (T, J)."""
        self.reset()
        return np.concatenate([self.feed(samples).log_probs, self.flush().log_probs])

    def _new_frames(self, log_probs: np.ndarray) -> NewFrames:
        start = self._frames
        self._frames += len(log_probs)
        return NewFrames(log_probs, start, self._samples)


def checked(samples: Any) -> np.ndarray:
    """Samples as float32 (n,) in -1..1; raises ValueError naming the fault."""
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
        raise ValueError(f"samples contain {int((~np.isfinite(wave)).sum())} NaN or infinite values of {wave.size}")
    if loudest > LOUDEST:
        raise ValueError(f"samples reach {loudest:.0f}, expected floats in -1..1; divide 16-bit values by 32768")
    return wave
