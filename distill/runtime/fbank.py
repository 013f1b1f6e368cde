"""Kaldi's Fbank as samples come, in numpy and SciPy alone: the numbers of `distill.fbank` without torch.

Frames that are complete go through the transform together, which takes a tenth of what a frame at a time takes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.fft import rfft

WIDTH, SHIFT, RATE, FFT = 400, 160, 16000, 512
BEFORE = (WIDTH - SHIFT) // 2  # samples of a frame before its shift
BLOCK = 32  # frames at a time: what lies between the steps is then small enough to use the same memory again
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
        frames = self._frames(count, samples, bool(self._taken) and not final)
        blocks = [self._energies(frames[i : i + BLOCK]) for i in range(0, max(1, count), BLOCK)]
        self._taken += count
        over = max(0, self._taken * SHIFT - BEFORE - self._begins)
        self._kept, self._begins = self._kept[over:], self._begins + over
        return np.concatenate(blocks)

    def _frames(self, count: int, samples: int, inside: bool) -> np.ndarray:
        """The next windows of samples (J, 400); inside: none of them reaches beyond the audio, of so many samples."""
        begins = SHIFT * self._taken - BEFORE - self._begins
        if inside and count:
            return np.lib.stride_tricks.sliding_window_view(self._kept[begins:], WIDTH)[::SHIFT][:count]
        index = self._begins + begins + SHIFT * np.arange(count)[:, None] + np.arange(WIDTH)
        index = np.where(index < 0, -1 - index, index)
        return self._kept[np.where(index < samples, index, 2 * samples - 1 - index).clip(0) - self._begins]

    def _energies(self, frames: np.ndarray) -> np.ndarray:
        """Windows of samples (J, 400) -> (J, mels)."""
        frames = frames - frames.mean(1, keepdims=True)
        before = np.float32(0.97) * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
        frames -= before
        frames *= self._window
        spectrum = rfft(frames, FFT)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        return np.log(np.maximum(self._filters(power.astype(np.float32)), FLOOR))


@lru_cache(maxsize=1)
def povey_window() -> np.ndarray:
    """Kaldi's window, a Hann window to the power 0.85: (400,)."""
    return (np.hanning(WIDTH) ** 0.85).astype(np.float32)


class MelFilters:
    """Triangles on the mel axis, Nyquist left out as Kaldi does: powers (J, FFT / 2 + 1) -> (J, mels).

    A bin lies on the rising side of one triangle and on the falling side of the one before: sums over stretches of
    bins. A matrix product would start the threads of numpy's BLAS, which then wait in a loop.
    """

    def __init__(self, mels: int, low: float = 20.0, high: float = 7600.0) -> None:
        least, most = (1127 * np.log1p(hertz / 700) for hertz in (low, high))
        place = (1127 * np.log1p(np.arange(FFT // 2) * RATE / FFT / 700) - least) * (mels + 1) / (most - least)
        self._bins = np.flatnonzero((place > 0) & (place < mels + 1))  # an unbroken stretch
        place = place[self._bins]
        begins = np.searchsorted(place, np.arange(mels + 2))
        self._starts = begins[:-1].clip(max=len(place) - 1)
        self._filled = (begins[1:] > begins[:-1]).astype(np.float32)  # narrow triangles may lie between two bins
        self._rising = (place - np.floor(place)).astype(np.float32)

    def __call__(self, power: np.ndarray) -> np.ndarray:
        power = power[:, self._bins[0] : self._bins[-1] + 1]
        rising = power * self._rising
        up, down = (np.add.reduceat(side, self._starts, 1) * self._filled for side in (rising, power - rising))
        return up[:, :-1] + down[:, 1:]


@lru_cache(maxsize=4)
def mel_filters(mels: int) -> MelFilters:
    """Made once for each number of them."""
    return MelFilters(mels)
