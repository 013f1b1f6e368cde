"""Kaldi's Fbank, what training in torch (`distill.fbank`) and runtimes (`distill.runtime.fbank`) share: no torch here.

Log-mel energies of 25 ms each 10 ms: 20 to 7600 Hz, povey window, pre-emphasis, DC removed, no dither.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from distill.config.model import FBANK_WIDTH, SAMPLE_RATE

FFT = 512
PREEMPHASIS = 0.97
FLOOR = 1.1920928955078125e-07  # of energies: float32's epsilon, as Kaldi's
LOWEST, HIGHEST = 20.0, 7600.0  # Hz


@lru_cache(maxsize=1)
def povey_window() -> np.ndarray:
    """A Hann window to the power 0.85: (FBANK_WIDTH,) float64."""
    return np.hanning(FBANK_WIDTH) ** 0.85


@lru_cache(maxsize=4)
def mel_filters(mels: int) -> np.ndarray:
    """Triangles on the mel axis, Nyquist left out as Kaldi does: (FFT / 2 + 1, mels) float64.

    Raises ValueError for so many that some would be empty.
    """
    low, high = 1127 * np.log1p(np.array([LOWEST, HIGHEST]) / 700)
    edges = np.linspace(low, high, mels + 2)
    bins = 1127 * np.log1p(np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT / 700)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.minimum(rising, falling).clip(0)
    filters[-1] = 0
    if not filters.any(0).all():
        raise ValueError(f"{mels} mel filters are too many for a transform of {FFT} samples: some would be empty")
    return filters
