"""Audio of files and the microphone as mono float32 samples at 16 kHz: converted on request, else refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from distill.batch import SAMPLE_RATE


def read_audio(path: Path, resample: bool = False, channel: int | None = None) -> np.ndarray:
    """A whole file (any format of libsndfile) as float32 samples (n,) at 16 kHz.

    Raises FileNotFoundError; ValueError for a folder, unreadable or empty audio, and as `check_format`.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected an audio file; for all of its files give {path}/*.wav")
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    return decode(path, str(path), resample, channel)


def decode(source: Path | IO[bytes], where: str, resample: bool, channel: int | None) -> np.ndarray:
    """As `read_audio`, of a path or an open file; where: its name in messages."""
    import soundfile

    try:
        samples, rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"unreadable audio: {where} ({str(error).splitlines()[0]})") from None
    if not len(samples):
        raise ValueError(f"empty audio: {where}")
    check_format(samples.shape[1], rate, where, resample, channel)
    wave = samples[:, channel or 0]
    if rate == SAMPLE_RATE:
        return wave
    from scipy.signal import resample_poly

    common = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(wave, SAMPLE_RATE // common, rate // common).astype(np.float32)


def check_format(channels: int, rate: int, where: str, resample: bool, channel: int | None) -> None:
    """Raises ValueError for several channels of which none is chosen (from 0), for a chosen one that is missing, and
    for another sample rate than 16 kHz without `resample`."""
    if channel is None and channels > 1:
        raise ValueError(f"{where} has {channels} channels; choose one (--channel 0 to {channels - 1})")
    if channel is not None and not 0 <= channel < channels:
        raise ValueError(f"{where} has channels 0 to {channels - 1}, got {channel}")
    if rate != SAMPLE_RATE and not resample:
        raise ValueError(f"{where} has {rate} Hz, expected {SAMPLE_RATE} Hz; resample it, or ask for that (--resample)")


def microphone(seconds: float = 0.1) -> Iterator[np.ndarray]:
    """Samples of the default input device as they come, until the caller stops.

    Raises ValueError if the package sounddevice or an input device is missing.
    """
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # OSError: PortAudio itself is missing
        raise ValueError(
            f"the microphone needs the package sounddevice and PortAudio ({error});"
            " .venv/bin/pip install sounddevice, or pipe raw audio in: arecord -f S16_LE -r 16000 | … -"
        ) from None
    size = int(seconds * SAMPLE_RATE)
    try:
        with sounddevice.InputStream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", blocksize=size) as stream:
            while True:
                yield stream.read(size)[0][:, 0].copy()
    except sounddevice.PortAudioError as error:
        raise ValueError(f"no microphone can be opened: {error}") from None
