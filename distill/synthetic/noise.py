"""Coloured noise, and noise at a signal-to-noise ratio; without torch, so that synthesis starts quickly."""

from __future__ import annotations

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
"""Exponent of the fall of noise power with frequency: power ~ 1 / f ** exponent."""


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (samples,) float32 of unit power whose spectrum falls as 1 / f ** exponent."""
    length = next_fast_len(max(samples, 2), real=True)
    spectrum = rfft(rng.standard_normal(length, dtype=np.float32))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** np.float32(exponent / 2)
    spectrum[0] = 0
    noise = irfft(spectrum, length)[:samples]
    return (noise / (rms(noise) + 1e-12)).astype(np.float32)


def any_colour(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise (samples,) of a random colour from white to brown."""
    return coloured_noise(samples, rng.uniform(COLOURS["white"], COLOURS["brown"]), rng)


def rms(samples: np.ndarray) -> float:
    """Root of the mean power of samples (N,); 0 for none."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def add_noise(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Speech (N,) plus noise (N,) scaled to a signal-to-noise ratio of `snr` dB; silence stays as it is."""
    level = rms(noise)
    if level == 0.0:
        return speech
    return speech + noise * np.float32(rms(speech) / level * 10 ** (-snr / 20))
