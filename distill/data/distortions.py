"""Distortions of waveforms by name: noises and changes, for training and for test conditions (papers/003 §4.1).

Each is a function of samples and random numbers. All keep the length; changes keep the level, too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse.augmentation.utils import FastRandomRIRGenerator
from scipy.signal import fftconvolve, firwin, kaiserord, lfilter
from torchaudio.functional import resample

from distill.batch import SAMPLE_RATE
from distill.config.distortions import CLEAN, CODECS, Distort
from distill.data.augment import NoiseClips, shift_pitch
from distill.extras import needed
from distill.synthetic.noise import add_noise, any_colour, rms

Noise = Callable[[int, np.random.Generator], np.ndarray]  # so many samples, of any level
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
ROOMS = 128  # of each kind: to compute an impulse response takes longer than to use it
CENTS = 500  # of pitch, up or down, as the authors' code
MEL_BINS, WIDEST = 256, 27 * 0.5  # of the whole mel range, and of a rejected band at most, as the authors' code
ATTENUATION, TRANSITION = 120.0, 50.0  # dB of a rejected band, and Hz beside it in which they are reached
HARMONICS = np.arange(1, 21)
CRACKLES = 40  # a second
FORMATS = {
    "mu_law": ("WAV", "ULAW"),
    "gsm": ("WAV", "GSM610"),
    "vorbis": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


class Distorter:
    """Takes waveforms through the steps of settings; noises are added, and changes keep the level.

    Raises ValueError for a codec that the installed libsndfile lacks and for `room` without its extra, and what
    `NoiseClips` does for recorded noise.
    """

    def __init__(self, settings: Distort, folder: Path) -> None:
        """folder: the data dir, below which folders of noise lie."""
        self.settings, self.folder = settings, folder
        self.steps, self.names, self.snr = settings.steps, settings.names, settings.snr
        check_codecs(self.names)
        if "room" in self.names:
            with needed("the distortion room"):
                import pyroomacoustics as pyroomacoustics
        recorded = {name: NoiseClips(folder / part).draw for name, part in settings.noises.items()}
        self._noises: Mapping[str, Noise] = NOISE | recorded

    def __call__(self, samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Samples (N,) float32 -> distorted ones, and (K,) float32: 1 for each of `names` that they now have."""
        drawn = [step[rng.integers(len(step))] for step in self.steps]
        distortions = [name for name in drawn if name != CLEAN]
        for name in distortions:
            if name in self._noises:
                noise = self._noises[name](len(samples), rng).astype(np.float32)
                samples = add_noise(samples, noise, rng.uniform(*self.snr))
            else:
                changed = CHANGE[name](samples, rng)
                samples = (changed * (rms(samples) / (rms(changed) + 1e-12))).astype(np.float32)
        return samples, np.array([name in (distortions or [CLEAN]) for name in self.names], dtype=np.float32)


def check_codecs(names: Sequence[str]) -> None:
    """Raises ValueError for a codec that the installed libsndfile lacks."""
    for name in names:
        if name in CODECS and not soundfile.check_format(*FORMATS[name]):
            raise ValueError(
                f"distortion {name}: libsndfile {soundfile.__libsndfile_version__} does not write"
                f" {' '.join(FORMATS[name])}; install a newer soundfile, or leave {name} out"
            )


# Noises


def hum(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Harmonics of a mains frequency, 50 or 60 Hz, of random levels and phases."""
    angles = np.arange(samples) * (2 * np.pi * rng.choice([50, 60]) / SAMPLE_RATE)
    levels, phases = rng.random(len(HARMONICS)), rng.uniform(0, 2 * np.pi, len(HARMONICS))
    return sum(level * np.sin(k * angles + phase) for k, level, phase in zip(HARMONICS, levels, phases))


def crackle(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Impulses at random times, each fading in about 2 ms."""
    impulses = rng.standard_normal(samples) * (rng.random(samples) < CRACKLES / SAMPLE_RATE)
    return lfilter([1], [1, -0.97], impulses)


NOISE: dict[str, Noise] = {
    "gaussian": lambda samples, rng: rng.standard_normal(samples),
    "coloured": any_colour,
    "hum": hum,
    "crackle": crackle,
}


# Changes


@lru_cache(ROOMS)
def fast_response(number: int) -> np.ndarray:
    """The impulse response (M,) of a random room by lhotse's generator (Luo and Yu 2022)."""
    with torch.random.fork_rng(devices=[]):  # it draws from torch, too
        torch.manual_seed(number)
        return FastRandomRIRGenerator(SAMPLE_RATE, room_seed=number, source_seed=number)()[0]


@lru_cache(ROOMS)
def shoebox_response(number: int) -> np.ndarray:
    """The impulse response (M,) of a random rectangular room by the image method (Allen and Berkley 1979)."""
    import pyroomacoustics

    rng = np.random.default_rng(number)
    size, absorption = rng.uniform((3, 3, 2.5), (10, 8, 4)), pyroomacoustics.Material(rng.uniform(0.1, 0.4))
    room = pyroomacoustics.ShoeBox(size, SAMPLE_RATE, materials=absorption, max_order=15)
    room.add_source(rng.uniform(0.5, size - 0.5))
    room.add_microphone(rng.uniform(0.5, size - 0.5))
    room.compute_rir()
    return room.rir[0][0]


def reverberate(samples: np.ndarray, rng: np.random.Generator, response: Callable[[int], np.ndarray]) -> np.ndarray:
    """In a random room, its strongest sound at the place of the dry one, as in Kaldi."""
    impulses = response(int(rng.integers(ROOMS)))
    start = int(np.abs(impulses).argmax())
    return fftconvolve(samples, impulses)[start : start + len(samples)]


def reject_random_band(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Without a band that is uniform on the mel axis in width and place (Kharitonov et al. 2021)."""
    width = rng.uniform(0, WIDEST)
    low = rng.uniform(0, MEL_BINS - width)
    highest = np.log1p(SAMPLE_RATE / 2 / 700)
    first, last = 700 * np.expm1(np.array([low, low + width]) / MEL_BINS * highest)
    low, high = max(1.0, first), min(SAMPLE_RATE / 2 - 1, last)
    return reject_band(samples, low, high) if low < high else samples  # a band at the edge of the axis is empty


def reject_band(samples: np.ndarray, low: float, high: float) -> np.ndarray:
    """Samples (N,) without the frequencies from `low` to `high` Hz: a Kaiser-windowed sinc of linear phase."""
    taps, beta = kaiserord(ATTENUATION, 2 * TRANSITION / SAMPLE_RATE)
    kernel = firwin(taps | 1, (low, high), window=("kaiser", beta), scale=False, fs=SAMPLE_RATE)
    return fftconvolve(samples, kernel, mode="same")


def narrow(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The lower half of the frequencies: a telephone's 8 kHz."""
    low = resample(torch.from_numpy(samples), SAMPLE_RATE, SAMPLE_RATE // 2)
    return resample(low, SAMPLE_RATE // 2, SAMPLE_RATE).numpy()[: len(samples)]


def clip(samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """With 5 to 30 % of the samples at the limits."""
    limit = np.quantile(np.abs(samples), rng.uniform(0.7, 0.95))
    return samples.clip(-limit, limit)


def code(samples: np.ndarray, rng: np.random.Generator, name: str) -> np.ndarray:
    """Written in a format of libsndfile, and read again."""
    file, (container, subtype) = io.BytesIO(), FORMATS[name]
    soundfile.write(file, samples / max(1.0, np.abs(samples).max()), SAMPLE_RATE, subtype, format=container)
    file.seek(0)
    read = soundfile.read(file, dtype="float32")[0]
    return np.pad(read, (0, max(0, len(samples) - len(read))))[: len(samples)]  # blocks of a codec are longer


CHANGE: dict[str, Change] = {
    "reverb": partial(reverberate, response=fast_response),
    "room": partial(reverberate, response=shoebox_response),
    "pitch": lambda samples, rng: shift_pitch(samples, 2 ** (rng.uniform(-CENTS, CENTS) / 1200)),
    "band_reject": reject_random_band,
    "narrowband": narrow,
    "clipping": clip,
    **{name: partial(code, name=name) for name in FORMATS},
}
