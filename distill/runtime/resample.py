"""Samples of any rate to 16 kHz as they come."""

from __future__ import annotations

from math import gcd

import numpy as np

from distill.runtime.session import SAMPLE_RATE

ZEROS = 16  # zero crossings of the kernel to each side
ROLLOFF = 0.95  # of the lower Nyquist frequency passes
MOST_PHASES = 2000  # kernels of odd ratios would fill the memory


class Resampler:
    """Windowed-sinc interpolation (Smith, Digital Audio Resampling); any chunking gives the same samples.

    The last `delay` samples of input are held back, as the kernel is centred. Raises ValueError for a rate
    whose ratio to 16 kHz takes too many kernels.
    """

    def __init__(self, rate: int) -> None:
        common = gcd(rate, SAMPLE_RATE)
        self._up, self._down = SAMPLE_RATE // common, rate // common
        if self._up > MOST_PHASES:
            raise ValueError(f"sample rate {rate} has no simple ratio to 16000; send 8000, 16000, 44100 or 48000")
        self.delay = 0 if rate == SAMPLE_RATE else int(np.ceil(ZEROS * max(1.0, rate / SAMPLE_RATE)))
        self._kernels = _kernels(self._up, self.delay, min(1.0, SAMPLE_RATE / rate))
        self._held, self._position = np.zeros(self.delay, np.float32), 0

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Samples (n,) of the input -> those (m,) of the output that they complete."""
        if not self.delay:
            return samples
        held = np.concatenate([self._held, samples])
        width = self._kernels.shape[1]
        # output k stands at k * down / up; its kernel begins at the whole part, in `held` as it lies here
        count = max(0, -(-((len(held) - width + 1) * self._up - self._position) // self._down))
        place = self._position + self._down * np.arange(count)
        first, phase = place // self._up, place % self._up
        windows = np.lib.stride_tricks.sliding_window_view(held, width)[first] if count else np.zeros((0, width))
        found = np.einsum("kw,kw->k", windows, self._kernels[phase]).astype(np.float32)
        self._position += count * self._down
        used = min(self._position // self._up, len(held))
        self._held, self._position = held[used:], self._position - used * self._up
        return found

    def rest(self) -> np.ndarray:
        """At the end: what the samples held back give, silence behind them."""
        return self(np.zeros(self.delay, np.float32))


def _kernels(phases: int, delay: int, cutoff: float) -> np.ndarray:
    """(phases, 2 * delay + 1): the kernel of outputs at each fraction of an input sample."""
    scale = cutoff * ROLLOFF
    distance = np.arange(-delay, delay + 1) - np.arange(phases)[:, None] / phases
    window = np.cos(np.pi / 2 * np.clip(distance / (delay + 1), -1, 1)) ** 2
    kernels = scale * np.sinc(scale * distance) * window
    return (kernels / kernels.sum(1, keepdims=True)).astype(np.float32)
