"""Audio from files and the microphone as a session wants it: mono, 16 kHz, float32; else converted or refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from distill.batch import SAMPLE_RATE


def read_audio(path: Path, resample: bool = False, channel: int | None = None) -> np.ndarray:
    """A whole file (whatever libsndfile reads) as float32 samples (n,) at 16 kHz.

    Raises FileNotFoundError; ValueError for unreadable or empty audio, for another sample rate without
    `resample`, and for several channels where none is chosen (from 0).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    samples, rate = decoded(path, str(path))
    return resampled(one_channel(samples, channel, str(path)), rate, resample, str(path))


def decoded(source: Path | IO[bytes], where: str) -> tuple[np.ndarray, int]:
    """Samples (n, channels), n > 0, and their rate; ValueError for unreadable or empty audio."""
    import soundfile

    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"unreadable audio: {where} ({str(error).splitlines()[0]})") from None
    if not len(samples):
        raise ValueError(f"empty audio: {where}")
    return samples, rate


def one_channel(samples: np.ndarray, channel: int | None, where: str) -> np.ndarray:
    """samples (n, channels) -> (n,)."""
    count = samples.shape[1]
    if channel is None and count > 1:
        raise ValueError(f"{where} has {count} channels; choose one (--channel 0 to {count - 1})")
    if channel is not None and not 0 <= channel < count:
        raise ValueError(f"{where} has channels 0 to {count - 1}, got {channel}")
    return samples[:, channel or 0]


def resampled(samples: np.ndarray, rate: int, allowed: bool, where: str) -> np.ndarray:
    """samples (n,) at `rate` -> at 16 kHz, by a polyphase filter; ValueError if that is not allowed."""
    if rate == SAMPLE_RATE:
        return samples
    if not allowed:
        raise ValueError(f"{where} has {rate} Hz, expected {SAMPLE_RATE} Hz; resample it, or ask for that (--resample)")
    from scipy.signal import resample_poly

    common = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(samples, SAMPLE_RATE // common, rate // common).astype(np.float32)


def microphone(seconds: float = 0.1) -> Iterator[np.ndarray]:
    """Samples of the default input device as they come, until the caller stops.

    Raises ValueError where the package sounddevice or an input device is missing.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        raise ValueError(
            f"the microphone needs the package sounddevice and PortAudio ({error});"
            " pip install sounddevice, or pipe raw audio in: arecord -f S16_LE -r 16000 | … -"
        ) from None
    size = int(seconds * SAMPLE_RATE)
    try:
        with sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", blocksize=size) as stream:
            while True:
                yield stream.read(size)[0][:, 0].copy()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"no microphone can be opened: {error}") from None
