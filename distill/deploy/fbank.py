"""Kaldi's Fbank as samples come, in numpy alone: the numbers of `distill.features` without torch.

All frames that are complete go through one transform, which takes a tenth of what a frame at a time takes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

WIDTH, SHIFT, RATE, FFT = 400, 160, 16000, 512
BEFORE = (WIDTH - SHIFT) // 2  # samples of a frame before its shift
FLOOR = np.float32(1.1920928955078125e-07)  # float32's epsilon, as Kaldi's


class Fbank:
    """take() samples, get the log-mel energies of the frames that are complete now."""

    def __init__(self, mels: int) -> None:
        self._window, self._filters = povey_window(), mel_filters(mels)
        self.reset()

    def reset(self) -> None:
        self._kept = np.zeros(0, np.float32)
        self._begins = self._taken = 0  # index of the first sample kept; frames given

    def take(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """Samples (n,) -> (J, mels); final: the audio ends here, and is mirrored there as at its beginning."""
        self._kept = np.concatenate([self._kept, wave])
        samples = self._begins + len(self._kept)
        complete = (samples + BEFORE - WIDTH) // SHIFT + 1
        count = max(0, ((samples + SHIFT // 2) // SHIFT if final else complete) - self._taken)
        index = SHIFT * np.arange(self._taken, self._taken + count)[:, None] - BEFORE + np.arange(WIDTH)
        index = np.where(index < 0, -1 - index, index)
        index = np.where(index < samples, index, 2 * samples - 1 - index).clip(0) - self._begins
        energies = self._energies(self._kept[index])
        self._taken += count
        over = max(0, self._taken * SHIFT - BEFORE - self._begins)
        self._kept, self._begins = self._kept[over:], self._begins + over
        return energies

    def _energies(self, frames: np.ndarray) -> np.ndarray:
        """Windows of samples (J, 400) -> (J, mels)."""
        frames = frames - frames.mean(1, keepdims=True)
        before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
        spectrum = np.fft.rfft((frames - np.float32(0.97) * before) * self._window, FFT)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        return np.log(np.maximum(power.astype(np.float32) @ self._filters, FLOOR))


@lru_cache(maxsize=1)
def povey_window() -> np.ndarray:
    """Kaldi's window, a Hann window to the power 0.85: (400,)."""
    return (np.hanning(WIDTH) ** 0.85).astype(np.float32)


@lru_cache(maxsize=4)
def mel_filters(mels: int, low: float = 20.0, high: float = 7600.0) -> np.ndarray:
    """Triangles on the mel axis, Nyquist left out as Kaldi does: (FFT / 2 + 1, mels)."""

    def mel(hertz: float | np.ndarray) -> np.ndarray:
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(float(mel(low)), float(mel(high)), mels + 2)
    bins = mel(np.arange(FFT // 2 + 1) * RATE / FFT)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.minimum(rising, falling).clip(0)
    filters[-1] = 0
    return filters.astype(np.float32)
