"""Audio from files and pipes as a session wants it: mono, 16 kHz, float32; anything else is converted or refused."""

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
    import soundfile

    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise ValueError(f"unreadable audio: {path} ({str(error).splitlines()[0]})") from None
    if not len(samples):
        raise ValueError(f"empty audio: {path}")
    return resampled(one_channel(samples, channel, str(path)), rate, resample, str(path))


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


def read_pipe(stream: IO[bytes], samples: int = 1600) -> Iterator[np.ndarray]:
    """Raw 16-bit little-endian mono samples at 16 kHz as they come: int16 (n,), at most `samples` each.

    A WAV header in front is passed over if it says 16 kHz mono 16 bit; ValueError if it says something else.
    """
    first = _read_exactly(stream, 44)
    begun = b"" if _is_wav(first) else first
    while True:
        data = begun + _read_some(stream, 2 * samples)
        whole, begun = data[: len(data) // 2 * 2], data[len(data) // 2 * 2 :]
        if not whole:
            break
        yield np.frombuffer(whole, "<i2")
    if begun:
        raise ValueError("the pipe ended in the middle of a 16-bit sample; expected raw s16le, 16 kHz, mono")


def _is_wav(header: bytes) -> bool:
    if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
        return False
    kind, channels = int.from_bytes(header[20:22], "little"), int.from_bytes(header[22:24], "little")
    rate, bits = int.from_bytes(header[24:28], "little"), int.from_bytes(header[34:36], "little")
    if (kind, channels, rate, bits) != (1, 1, SAMPLE_RATE, 16) or header[36:40] != b"data":
        raise ValueError(f"the pipe is WAV of {channels} channels, {rate} Hz, {bits} bits; expected 1, 16000, 16")
    return True


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (new := stream.read(size - len(data))):
        data += new
    return data


def _read_some(stream: IO[bytes], size: int) -> bytes:
    """What is there, without waiting for all of it where the stream can tell."""
    read = getattr(stream, "read1", stream.read)
    return read(size)


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
