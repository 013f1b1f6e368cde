"""Waveform augmentation: volume, pitch, noise; the same for the same seed, epoch and utterance."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torchaudio.functional import phase_vocoder, resample

from .noise import COLOURS, NoiseClips, add_noise, coloured_noise, rms

PITCH_STEPS = 50
"""Pitch factors are multiples of 1 / 50, so that the resampling kernel stays small and is used again."""
FFT, HOP = 512, 128


def utterance_rng(seed: int, epoch: int, utterance: str) -> np.random.Generator:
    """The random numbers of one utterance in one epoch, whatever process or order it is read in."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{utterance}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


@dataclass(frozen=True)
class Distortion:
    """Changes of a waveform, each made with its own probability (papers/001 §5.1.3 for volume and pitch).

    Noise comes from `clips`, or is coloured noise of a random colour where there are none.
    """

    volume: tuple[float, float] = (0.3, 3.0)
    volume_probability: float = 0.5
    pitch: tuple[float, float] = (0.9, 1.1)
    pitch_probability: float = 0.5
    noise_snr: tuple[float, float] = (8.0, 30.0)
    noise_probability: float = 0.0
    clips: NoiseClips | None = None

    def __post_init__(self) -> None:
        """ValueError for a probability outside 0 to 1, a reversed range, or a factor that is not positive."""
        for name in ("volume", "pitch", "noise_snr"):
            low, high = getattr(self, name)
            if low > high or (low <= 0 and name != "noise_snr"):
                raise ValueError(f"{name}: expected low <= high (factors > 0), got {low} to {high}")
        for name in ("volume_probability", "pitch_probability", "noise_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected 0 to 1, got {getattr(self, name)}")

    def __call__(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Samples (N,) float32 -> changed samples (N,) float32; may leave ±1."""
        if rng.random() < self.pitch_probability:
            samples = shift_pitch(samples, rng.uniform(*self.pitch))
        if rng.random() < self.noise_probability:
            samples = add_noise(samples, self._noise(len(samples), rng), rng.uniform(*self.noise_snr))
        if rng.random() < self.volume_probability:
            samples = samples * np.float32(rng.uniform(*self.volume))
        return samples

    def _noise(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        if self.clips is not None:
            return self.clips.draw(samples, rng)
        return coloured_noise(samples, rng.uniform(0.0, COLOURS["brown"]), rng)


def shift_pitch(samples: np.ndarray, factor: float) -> np.ndarray:
    """Samples (N,) float32 with the pitch times `factor` (rounded to 1 / 50) and the same length.

    A phase vocoder stretches the time by the factor, resampling plays it back faster. The vocoder
    loses about a third of the level, which is given back: volume has its own augmentation.
    """
    steps = round(factor * PITCH_STEPS)
    if steps < 1:
        raise ValueError(f"pitch factor: expected at least {1 / PITCH_STEPS}, got {factor}")
    if steps == PITCH_STEPS or len(samples) < FFT:
        return samples
    window = torch.hann_window(FFT)
    spectrum = torch.stft(torch.from_numpy(samples), FFT, HOP, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * HOP, FFT // 2 + 1)[:, None]
    stretched = phase_vocoder(spectrum, PITCH_STEPS / steps, advance)
    wave = torch.istft(stretched, FFT, HOP, window=window, length=round(len(samples) * steps / PITCH_STEPS))
    shifted = resample(wave, steps, PITCH_STEPS, lowpass_filter_width=6).numpy()
    shifted = np.pad(shifted, (0, max(0, len(samples) - len(shifted))))[: len(samples)]
    return shifted * np.float32(rms(samples) / (rms(shifted) + 1e-12))
