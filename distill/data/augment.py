"""Waveform augmentation: volume, pitch, noise; a function of seed, epoch and utterance."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import phase_vocoder, resample

from distill.batch import SAMPLE_RATE
from distill.config.distortions import AUDIO_SUFFIXES, noise_clips
from distill.synthetic.noise import add_noise, any_colour, rms

PITCH_STEPS = 50
"""Pitch factors are multiples of 1 / 50, so that the resampling kernel stays small and is used again."""
FFT, HOP = 512, 128
KEPT = 3600 * 4 * SAMPLE_RATE  # samples of recorded noise in memory, 4 hours: 460 MB


def utterance_rng(seed: int, epoch: int, utterance: str) -> np.random.Generator:
    """Random numbers of one utterance in one epoch, independent of process and order."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{utterance}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class NoiseClips:
    """Recorded noise as 16-bit samples; up to `kept` samples are read once and kept, of more each stretch is read."""

    def __init__(self, source: Path | str | Iterable[Path | str], kept: int = KEPT) -> None:
        """source: a folder, searched for .flac and .wav, or a list of files; the first channel at 16 kHz is used."""
        if isinstance(source, (str, Path)):
            if not Path(source).is_dir():
                raise FileNotFoundError(f"no noise folder at {source}")
            files = sorted(noise_clips(Path(source)))
        else:
            files = [Path(path) for path in source]
        if not files:
            raise ValueError(f"no {' or '.join(AUDIO_SUFFIXES)} file among the noise clips of {source}")
        self.files, self.lengths = files, [clip_length(path) for path in files]
        self._clips = [_stretch(path) for path in files] if sum(self.lengths) <= kept else None

    def draw(self, samples: int, rng: np.random.Generator) -> np.ndarray:
        """A random stretch (samples,) float32 of a random clip, repeated where the clip is shorter."""
        number = int(rng.integers(len(self.files)))
        start = int(rng.integers(self.lengths[number]))
        if self._clips is None and start + samples <= self.lengths[number]:
            taken = _stretch(self.files[number], start, samples)
        else:
            clip = _stretch(self.files[number]) if self._clips is None else self._clips[number]
            taken = np.take(clip, np.arange(start, start + samples), mode="wrap")
        return taken.astype(np.float32) / 32768


def clip_length(path: Path) -> int:
    """Samples of a noise clip; raises ValueError for one that cannot be read, of another rate, or empty."""
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise _damaged(path, str(error)) from None
    if info.samplerate != SAMPLE_RATE:
        raise ValueError(f"noise clip {path}: {info.samplerate} Hz, expected {SAMPLE_RATE} Hz; resample it first")
    if not info.frames:
        raise ValueError(f"noise clip {path} is empty")
    return int(info.frames)


def _stretch(path: Path, start: int = 0, samples: int = -1) -> np.ndarray:
    """16-bit samples (N,) of the first channel, from a place on; -1: all that follow.

    Those of other formats are brought to the full range, as floating point has any: noise has no level of its own.
    Raises ValueError where the file is damaged.
    """
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            wanted, exact = (file.frames - start if samples < 0 else samples), file.subtype == "PCM_16"
            wave = file.read(wanted, dtype="int16" if exact else "float32", always_2d=True)[:, 0]
    except soundfile.SoundFileError as error:
        raise _damaged(path, str(error)) from None
    if len(wave) < wanted:
        raise _damaged(path, f"{len(wave)} samples from {start} on, expected {wanted}")
    if exact:
        return wave.copy()
    if not np.isfinite(peak := np.abs(wave).max(initial=0)):
        raise _damaged(path, "infinite samples, or some that are no numbers")
    return (wave * (32767 / (peak or 1))).round().astype(np.int16)


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"noise clip {path} cannot be read ({reason.partition(': ')[2] or reason}); remove it, or convert it to"
        f" {' or '.join(AUDIO_SUFFIXES)} of {SAMPLE_RATE} Hz"
    )


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
            noise = self.clips.draw if self.clips else any_colour
            samples = add_noise(samples, noise(len(samples), rng), rng.uniform(*self.noise_snr))
        if rng.random() < self.volume_probability:
            samples = samples * np.float32(rng.uniform(*self.volume))
        return samples


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
