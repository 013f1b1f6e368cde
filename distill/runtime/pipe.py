"""Audio from a pipe as it comes: raw samples, WAV as encoders stream it, or a whole file of another kind."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np

from distill.batch import SAMPLE_RATE
from distill.runtime.audio import decoded, one_channel, resampled
from distill.runtime.resample import Resampler

log = logging.getLogger(__name__)

WHOLE = {b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF", b".snd": "AU", b"caff": "CAF", b"ID3": "MP3"}
REFUSED = {
    b"RIFX": "big-endian WAV", b"\x1f\x8b": "a gzip archive", b"PK\x03\x04": "a zip archive", b"\x1aE\xdf\xa3": "WebM",
    b"wvpk": "WavPack", b"MAC ": "Monkey's Audio",
}  # fmt: skip
KINDS = {
    (1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32", (3, 32): "FLOAT", (3, 64): "DOUBLE",
    (6, 8): "ALAW", (7, 8): "ULAW",
}  # fmt: skip
EXTENSIBLE = 0xFFFE
UNKNOWN = 0x7FF00000  # bytes from which a size stands for "until the end", as does 0
LONGEST_CHUNK = 1 << 26  # bytes in front of the audio
RATES = (4000, 192_000)
WAY_OUT = "pipe raw s16le (16 kHz, mono) or WAV in"


@dataclass(frozen=True)
class Layout:
    """How samples lie in the pipe. size: bytes of audio, None until the end."""

    kind: str
    width: int
    channels: int
    rate: int
    size: int | None


RAW = Layout("PCM_16", 2, 1, SAMPLE_RATE, None)


def read_pipe(
    stream: IO[bytes], samples: int = 1600, resample: bool = False, channel: int | None = None
) -> Iterator[np.ndarray]:
    """Samples of one channel at 16 kHz as they come: float32 (n,), of at most `samples` of the pipe each.

    Raw 16-bit little-endian mono at 16 kHz, or what its header says. FLAC, Ogg, AIFF, AU and MP3 are read whole.
    Raises ValueError for an empty pipe, for text and other files, headers that are cut or make no sense, audio that
    is shorter than its header promises, and as `read_audio` does.
    """
    first = _read_exactly(stream, 12)
    if not first:
        raise ValueError("empty audio: nothing came through the pipe")
    if first[:4] in (b"RIFF", b"RF64", b"BW64"):
        yield from _samples(_Pushed(stream), _wav_layout(stream, first), samples, resample, channel)
    elif name := next((name for magic, name in WHOLE.items() if first.startswith(magic)), None):
        wave, rate = decoded(io.BytesIO(first + stream.read()), f"the pipe ({name})")
        whole = resampled(one_channel(wave, channel, "the pipe"), rate, resample, "the pipe")
        yield from (whole[start : start + samples] for start in range(0, len(whole), samples))
    else:
        _check_raw(first)
        yield from _samples(_Pushed(stream, first), RAW, samples, resample, channel)


def _check_raw(first: bytes) -> None:
    found = next((name for magic, name in REFUSED.items() if first.startswith(magic)), "")
    if first[4:8] == b"ftyp":
        found = "MP4"
    if not found and all(byte in b"\t\r\n" or byte >= 32 for byte in first) and _printable(first):
        found = f"text ({first!r}…)"
    if found:
        raise ValueError(f"the pipe holds {found}; {WAY_OUT}")


def _printable(first: bytes) -> bool:
    text = first.decode("utf-8", errors="ignore")  # its end may lie within a letter
    return len(text.encode()) >= len(first) - 3 and all(sign.isprintable() or sign in "\t\r\n" for sign in text)


class _Pushed:
    """A stream with some bytes put back in front."""

    def __init__(self, stream: IO[bytes], begun: bytes = b"") -> None:
        self._stream, self._begun = stream, begun

    def some(self, size: int) -> bytes:
        """The bytes that are there, without waiting for more where the stream supports it."""
        begun, self._begun = self._begun[:size], self._begun[size:]
        return begun or getattr(self._stream, "read1", self._stream.read)(size)


def _samples(
    source: _Pushed, layout: Layout, samples: int, resample: bool, channel: int | None
) -> Iterator[np.ndarray]:
    frame, left = layout.width * layout.channels, layout.size
    one_channel(np.zeros((0, layout.channels), np.float32), channel, "the pipe")
    if layout.rate != SAMPLE_RATE:
        resampled(np.zeros(1, np.float32), layout.rate, resample, "the pipe")
    resampler, rest, came = Resampler(layout.rate), b"", 0
    while data := source.some(frame * samples if left is None else min(frame * samples, left)):
        left = None if left is None else left - len(data)
        rest += data
        whole, rest = rest[: len(rest) // frame * frame], rest[len(rest) // frame * frame :]
        if whole:
            came += len(whole)
            wave = resampler(one_channel(_decoded(whole, layout), channel, "the pipe"))
            yield from [wave] if len(wave) else []
    if resampler.delay and came:
        yield resampler.rest()
    if left:
        raise ValueError(f"the pipe ended {left} bytes before the end that its header promises: the audio is cut short")
    if not came:
        raise ValueError("empty audio: no sample came through the pipe")
    if rest:
        log.warning("the pipe ended within a sample: its last %d bytes are left out", len(rest))
    _check_behind(source)


def _decoded(data: bytes, layout: Layout) -> np.ndarray:
    import soundfile

    return soundfile.read(
        io.BytesIO(data), dtype="float32", always_2d=True, format="RAW", subtype=layout.kind, endian="LITTLE",
        channels=layout.channels, samplerate=layout.rate,
    )[0]  # fmt: skip


def _check_behind(source: _Pushed) -> None:
    """Tags may follow the audio; a second file must not be left out unseen."""
    behind = source.some(1 << 16)
    if any(magic in behind[:16] for magic in (b"RIFF", b"RF64", b"fLaC")):
        raise ValueError("the pipe holds more than one file, of which the first was used; give them one by one")
    while behind:  # whoever writes must not meet a closed pipe
        behind = source.some(1 << 16)


def _wav_layout(stream: IO[bytes], first: bytes) -> Layout:
    """Read a WAV's header up to its audio."""
    if first[8:12] != b"WAVE":
        raise ValueError(f"the pipe holds a RIFF file that is no WAV ({first[8:12]!r}); {WAY_OUT}")
    layout, long_size = None, None
    while True:
        head = _header(stream, 8)
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            break
        if size > LONGEST_CHUNK:
            raise ValueError(f"the pipe's WAV header has a part {name!r} of {size} bytes; {WAY_OUT}")
        content = _header(stream, size + size % 2)
        if name == b"fmt ":
            layout = _layout(content)
        elif name == b"ds64":
            long_size = int.from_bytes(content[8:16], "little")
    if layout is None:
        raise ValueError(f"the pipe's WAV header does not say how the audio is stored; {WAY_OUT}")
    known = 0 < size < UNKNOWN
    return Layout(*layout, size if known else long_size or None)


def _layout(content: bytes) -> tuple[str, int, int, int]:
    """Kind, bytes of a sample, channels and rate, of a WAV's format chunk."""
    numbers = [int.from_bytes(content[at : at + size], "little") for at, size in ((0, 2), (2, 2), (4, 4), (12, 2))]
    kind, channels, rate, block = numbers
    bits = int.from_bytes(content[14:16], "little")
    if kind == EXTENSIBLE:
        kind = int.from_bytes(content[24:26], "little")
    if (kind, bits) not in KINDS or not channels or block != channels * bits // 8:
        raise ValueError(
            f"the pipe is WAV of format {kind}, {channels} channels, {bits} bits, {block} bytes a frame; expected PCM"
            " of 8, 16, 24 or 32 bits, floats, A-law or mu-law"
        )
    if not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"the pipe is WAV of {rate} Hz; expected {RATES[0]} to {RATES[1]}")
    return KINDS[kind, bits], bits // 8, channels, rate


def _header(stream: IO[bytes], size: int) -> bytes:
    data = _read_exactly(stream, size)
    if len(data) < size:
        raise ValueError(f"the pipe ended within its WAV header, before any audio; {WAY_OUT}")
    return data


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    data = b""
    while len(data) < size and (new := stream.read(size - len(data))):
        data += new
    return data
