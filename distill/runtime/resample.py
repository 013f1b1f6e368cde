"""Samples of any rate to 16 kHz as they come.

libsoxr's stream (soxr.ResampleStream) also gives the same samples for any block sizes, but delays them by up to 116 ms
at 8 kHz and 37 ms at 48 kHz; this kernel delays them by 2 and 1 ms.
"""

from __future__ import annotations

from functools import lru_cache
from math import gcd

import numpy as np

from distill.batch import RATES, SAMPLE_RATE, convertible

ZEROS = 16  # zero crossings of the kernel to each side
ROLLOFF = 0.95  # pass band, relative to the lower Nyquist frequency
CONVERTIBLE = f"a whole number from {RATES[0]} to {RATES[1]} with a simple ratio to {SAMPLE_RATE}, as 8000 or 44100"


class Resampler:
    """Windowed-sinc interpolation (Smith, Digital Audio Resampling); block sizes do not change the output.

    The kernel is centred, so the last `delay` samples of input wait for those behind them. Raises ValueError for a
    rate that is not `convertible`.
    """

    def __init__(self, rate: int) -> None:
        if not convertible(rate):
            raise ValueError(f"sample rate {rate}; expected {CONVERTIBLE}")
        common = gcd(rate, SAMPLE_RATE)
        self._up, self._down = SAMPLE_RATE // common, rate // common
        self.delay = 0 if rate == SAMPLE_RATE else int(np.ceil(ZEROS * max(1.0, rate / SAMPLE_RATE)))
        self._kept, self._position = np.zeros(self.delay, np.float32), 0  # position: in `_kept`, times `_up`

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Input samples (n,) -> the output samples (m,) that they complete."""
        if not self.delay:
            return samples
        kernels = filter_bank(self._up, self.delay, min(1.0, self._up / self._down))
        kept, width = np.concatenate([self._kept, samples]), kernels.shape[1]
        count = max(0, -(-((len(kept) - width + 1) * self._up - self._position) // self._down))
        first, phase = np.divmod(self._position + self._down * np.arange(count), self._up)
        windows = kept[first[:, None] + np.arange(width)]
        self._position += count * self._down
        used = min(self._position // self._up, len(kept))
        self._kept, self._position = kept[used:], self._position - used * self._up
        return np.einsum("kw,kw->k", windows, kernels[phase])

    def flush(self) -> np.ndarray:
        """The last output samples, with silence behind the input."""
        return self(np.zeros(self.delay, np.float32))


@lru_cache(maxsize=8)
def filter_bank(phases: int, delay: int, cutoff: float) -> np.ndarray:
    """Kernels (phases, 2 * delay + 1) of outputs at each fraction of an input sample."""
    scale = cutoff * ROLLOFF
    distance = np.arange(-delay, delay + 1) - np.arange(phases)[:, None] / phases
    window = np.cos(np.pi / 2 * np.clip(distance / (delay + 1), -1, 1)) ** 2
    kernels = np.sinc(scale * distance) * window
    return (kernels / kernels.sum(1, keepdims=True)).astype(np.float32)
