"""Noise for corpora and augmentation: coloured noise made on the fly, clips from files, mixing at a ratio."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft

COLOURS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
"""Exponent of the fall of noise power with frequency: power ~ 1 / f ** exponent."""
AUDIO_SUFFIXES = (".flac", ".wav")


def coloured_noise(samples: int, exponent: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise (samples,) float32 of unit power whose spectrum falls as 1 / f ** exponent."""
    length = next_fast_len(max(samples, 2), real=True)
    spectrum = rfft(rng.standard_normal(length, dtype=np.float32))
    spectrum /= np.maximum(np.arange(len(spectrum)), 1) ** np.float32(exponent / 2)
    spectrum[0] = 0
    noise = irfft(spectrum, length)[:samples]
    return (noise / (rms(noise) + 1e-12)).astype(np.float32)


def rms(samples: np.ndarray) -> float:
    """Root of the mean power of samples (N,); 0 for none."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0


def add_noise(speech: np.ndarray, noise: np.ndarray, snr: float) -> np.ndarray:
    """Speech (N,) plus noise (N,) scaled to a signal-to-noise ratio of `snr` dB; silence stays as it is."""
    level = rms(noise)
    if level == 0.0:
        return speech
    return speech + noise * np.float32(rms(speech) / level * 10 ** (-snr / 20))


class NoiseClips:
    """Recorded noise, read once and kept as 16-bit samples."""

    def __init__(self, source: Path | str | Iterable[Path | str], sampling_rate: int = 16000):
        """`source`: a folder (searched for .flac and .wav) or a list of files, all at `sampling_rate`."""
        files = _audio_files(source)
        self.clips = [_read_clip(path, sampling_rate) for path in files]

    def draw(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """A random stretch (samples,) float32 of a random clip, repeated where the clip is shorter."""
        clip = self.clips[rng.integers(len(self.clips))]
        start = int(rng.integers(len(clip)))
        taken = np.take(clip, np.arange(start, start + samples), mode="wrap")
        return taken.astype(np.float32) / 32768


def _audio_files(source: Path | str | Iterable[Path | str]) -> list[Path]:
    if isinstance(source, (str, Path)):
        folder = Path(source)
        if not folder.is_dir():
            raise FileNotFoundError(f"no noise folder at {folder}")
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
    else:
        files = [Path(path) for path in source]
    if not files:
        raise ValueError(f"no {' or '.join(AUDIO_SUFFIXES)} file among the noise clips of {source}")
    return files


def _read_clip(path: Path, sampling_rate: int) -> np.ndarray:
    import soundfile

    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    if rate != sampling_rate:
        raise ValueError(f"noise clip {path}: {rate} Hz, expected {sampling_rate} Hz; resample it first")
    if not len(samples):
        raise ValueError(f"noise clip {path} is empty")
    return samples[:, 0].copy()
