"""Streaming audio from a pipe: raw samples, WAV (of unknown length too), or a whole file of another format."""

from __future__ import annotations

import io
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import IO

import numpy as np

from distill.batch import SAMPLE_RATE
from distill.runtime.audio import check_format, decode
from distill.runtime.resample import Resampler

log = logging.getLogger(__name__)

WAV = (b"RIFF", b"RF64", b"BW64")
WHOLE = {b"fLaC": "FLAC", b"OggS": "Ogg", b"FORM": "AIFF", b".snd": "AU", b"caff": "CAF", b"ID3": "MP3"}
REFUSED = {
    b"RIFX": "big-endian WAV", b"\x1f\x8b": "a gzip archive", b"PK\x03\x04": "a zip archive", b"\x1aE\xdf\xa3": "WebM",
    b"wvpk": "WavPack", b"MAC ": "Monkey's Audio",
}  # fmt: skip
SUBTYPES = {
    (1, 8): "PCM_U8", (1, 16): "PCM_16", (1, 24): "PCM_24", (1, 32): "PCM_32", (3, 32): "FLOAT", (3, 64): "DOUBLE",
    (6, 8): "ALAW", (7, 8): "ULAW",
}  # fmt: skip
"""libsndfile's names of WAV formats (format tag, bits of a sample)."""
EXTENSIBLE = 0xFFFE
UNKNOWN = 0x7FF00000  # sizes from here on stand for "until the end", as does 0
LONGEST_CHUNK = 1 << 26  # bytes of a header chunk
WAY_OUT = "pipe raw s16le (16 kHz, mono) or WAV in"


@dataclass(frozen=True)
class Format:
    """Sample format of a pipe. width: bytes of a sample; size: bytes of audio, 0 for unknown."""

    subtype: str = "PCM_16"
    width: int = 2
    channels: int = 1
    rate: int = SAMPLE_RATE
    size: int = 0


def read_pipe(
    stream: IO[bytes], samples: int = 1600, resample: bool = False, channel: int | None = None
) -> Iterator[np.ndarray]:
    """Yield one channel at 16 kHz as it arrives: float32 (n,), from at most `samples` input samples at a time.

    Input is raw 16-bit little-endian mono at 16 kHz, or WAV; FLAC, Ogg, AIFF, AU and MP3 are read to their end first.
    Raises ValueError for an empty pipe, text and other file types, incomplete or inconsistent headers, audio shorter
    than its header declares, and as `read_audio` does.
    """
    start = _read_exactly(stream, 12)
    if not start:
        raise ValueError("empty audio: nothing came through the pipe")
    name = next((name for magic, name in WHOLE.items() if start.startswith(magic)), "")
    if start[:4] in WAV:
        yield from _blocks(stream, b"", _wav_format(stream, start), samples, resample, channel)
    elif name:
        wave = decode(io.BytesIO(start + stream.read()), f"the pipe ({name})", resample, channel)
        yield from (wave[at : at + samples] for at in range(0, len(wave), samples))
    else:
        _check_raw(start)
        yield from _blocks(stream, start, Format(), samples, resample, channel)


def _check_raw(start: bytes) -> None:
    """Refuse text, and other file types by their first bytes."""
    kind = next((name for magic, name in REFUSED.items() if start.startswith(magic)), "")
    if start[4:8] == b"ftyp":
        kind = "MP4"
    text = start.decode("utf-8", errors="ignore")  # the 12 bytes may end within a character
    if len(text.encode()) >= len(start) - 3 and all(c.isprintable() or c in "\t\r\n" for c in text):
        kind = kind or f"text ({start!r}…)"
    if kind:
        raise ValueError(f"the pipe has {kind}; {WAY_OUT}")


def _blocks(
    stream: IO[bytes], start: bytes, layout: Format, samples: int, resample: bool, channel: int | None
) -> Iterator[np.ndarray]:
    """Decode audio up to the end of the stream; start: bytes already read."""
    import soundfile

    check_format(layout.channels, layout.rate, "the pipe", resample, channel)
    frame, left = layout.width * layout.channels, layout.size or math.inf
    resampler, audio, behind, empty = Resampler(layout.rate), b"", b"", True
    read = partial(getattr(stream, "read1", stream.read), frame * samples)  # read1 does not wait for a full block
    for block in chain([start] if start else [], iter(read, b"")):
        end = int(min(left, len(block)))
        audio, behind, left = audio + block[:end], (behind + block[end:])[:16], left - end
        whole, audio = audio[: len(audio) // frame * frame], audio[len(audio) // frame * frame :]
        if not whole:
            continue
        empty = False
        decoded, _ = soundfile.read(
            io.BytesIO(whole), dtype="float32", always_2d=True, format="RAW", subtype=layout.subtype,
            endian="LITTLE", channels=layout.channels, samplerate=layout.rate,
        )  # fmt: skip
        wave = resampler(decoded[:, channel or 0])
        yield from [wave] if len(wave) else []
    if not empty and resampler.delay:
        yield resampler.flush()
    if 0 < left < math.inf:
        raise ValueError(f"the pipe ended {left} bytes before the end that its header promises: the audio is cut short")
    if empty:
        raise ValueError("empty audio: no sample came through the pipe")
    if audio:
        log.warning("the pipe ended within a sample: its last %d bytes are left out", len(audio))
    if any(magic in behind for magic in (*WAV, b"fLaC")):  # tags may follow the audio
        raise ValueError("the pipe has more than one file, of which the first was used; give them one by one")


def _wav_format(stream: IO[bytes], start: bytes) -> Format:
    """Read a WAV header up to its audio."""
    if start[8:12] != b"WAVE":
        raise ValueError(f"the pipe has a RIFF file that is no WAV ({start[8:12]!r}); {WAY_OUT}")
    chunks: dict[bytes, bytes] = {}
    while True:
        name, size = struct.unpack("<4sI", _read_header(stream, 8))
        if name == b"data":
            break
        if size > LONGEST_CHUNK:
            raise ValueError(f"the pipe's WAV header has a chunk {name!r} of {size} bytes; {WAY_OUT}")
        chunks[name] = _read_header(stream, size + size % 2)
    if b"fmt " not in chunks:
        raise ValueError(f"the pipe's WAV header has no format chunk before its audio; {WAY_OUT}")
    if not 0 < size < UNKNOWN:
        size = int.from_bytes(chunks.get(b"ds64", b"")[8:16], "little")
    content = chunks[b"fmt "].ljust(26, b"\0")
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", content)
    if tag == EXTENSIBLE:
        tag = int.from_bytes(content[24:26], "little")
    if (tag, bits) not in SUBTYPES or not channels or block != channels * bits // 8:
        raise ValueError(
            f"the pipe is WAV of format {tag}, {channels} channels, {bits} bits, {block} bytes a frame; expected PCM"
            " of 8, 16, 24 or 32 bits, floats, A-law or mu-law"
        )
    return Format(SUBTYPES[tag, bits], bits // 8, channels, rate, size)


def _read_header(stream: IO[bytes], size: int) -> bytes:
    data = _read_exactly(stream, size)
    if len(data) < size:
        raise ValueError(f"the pipe ended within its WAV header, before any audio; {WAY_OUT}")
    return data


def _read_exactly(stream: IO[bytes], size: int) -> bytes:
    """`size` bytes, fewer only at the end of the stream."""
    data = b""
    while len(data) < size and (block := stream.read(size - len(data))):
        data += block
    return data
