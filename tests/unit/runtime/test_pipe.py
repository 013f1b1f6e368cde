"""Audio from pipes: raw, WAV as encoders stream it, other formats, and refused input."""

from __future__ import annotations

import io
import logging
import struct

import numpy as np
import pytest
import soundfile

from distill.runtime.pipe import read_pipe

SAMPLES = np.random.default_rng(0).integers(-2000, 2000, 5000).astype("<i2")
RIFF, FMT = b"RIFF\xff\xff\xff\xffWAVE", struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)


def read_all(content: bytes, piece: int = 300, **options: object) -> np.ndarray:
    """All samples of a pipe."""
    return np.concatenate(list(read_pipe(io.BytesIO(content), piece, **options)))  # type: ignore[arg-type]


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def wav(size: int, before: bytes = b"", behind: bytes = b"", fmt: bytes = FMT, audio: bytes = b"") -> bytes:
    return RIFF + fmt + before + b"data" + struct.pack("<I", size) + (audio or SAMPLES.tobytes()) + behind


def written(wave: np.ndarray, rate: int = 16000, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


STREAMED = {
    "raw": SAMPLES.tobytes(),
    "a size": wav(10000),
    "0xffffffff": wav(0xFFFFFFFF),
    "0": wav(0),
    "0x7fffffff": wav(0x7FFFFFFF),
    "0x80000000": wav(0x80000000),
    "LIST before": wav(0xFFFFFFFF, chunk(b"LIST", b"INFOISFT\x0e\0\0\0some encoder\0\0")),
    "JUNK and fact of odd length": wav(0xFFFFFFFF, chunk(b"JUNK", bytes(27)) + chunk(b"fact", bytes(4))),
    "tags behind": wav(10000, behind=chunk(b"LIST", b"INFO") + chunk(b"id3 ", bytes(99))),
    "a long format": wav(0, fmt=b"fmt \x12" + FMT[5:] + b"\0\0"),
    "RF64": b"RF64\xff\xff\xff\xffWAVE" + chunk(b"ds64", struct.pack("<QQQI", 0, 10000, 0, 0)) + wav(0xFFFFFFFF)[12:],
    "extensible": written(SAMPLES, kind="WAVEX", subtype="PCM_16"),
    "24 bits": written(SAMPLES, subtype="PCM_24"),
    "32 bits": written(SAMPLES, subtype="PCM_32"),
    "floats": written(SAMPLES / 32768, subtype="FLOAT"),
    "doubles": written(SAMPLES / 32768, subtype="DOUBLE"),
    "FLAC": written(SAMPLES, kind="FLAC", subtype="PCM_16"),
    "AIFF": written(SAMPLES, kind="AIFF", subtype="PCM_16"),
    "AU": written(SAMPLES, kind="AU", subtype="PCM_16"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("piece", [1, 300, 10000])
def test_all_samples_of_a_pipe_are_read(name: str, piece: int) -> None:
    found = read_all(STREAMED[name], piece)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, SAMPLES.astype(np.float32) / 32768)


@pytest.mark.parametrize("count", [1, 5, 6, 10, 22])
def test_all_samples_of_a_short_pipe_are_read(count: int) -> None:
    for content in (SAMPLES[:count].tobytes(), written(SAMPLES[:count], subtype="PCM_16")):
        np.testing.assert_array_equal(read_all(content), SAMPLES[:count].astype(np.float32) / 32768)


@pytest.mark.parametrize("kind", ["PCM_U8", "ALAW", "ULAW"])
def test_8_bit_formats_are_decoded(kind: str) -> None:
    wave = np.sin(np.arange(4000) / 20).astype(np.float32) / 2
    np.testing.assert_allclose(read_all(written(wave, subtype=kind)), wave, atol=0.02)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_rates_are_resampled_on_request(rate: int, kind: str) -> None:
    content = written(np.sin(2 * np.pi * 440 * np.arange(rate) / rate) / 2, rate, kind)
    found, expected = read_all(content, resample=True), np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) / 2
    assert len(found) == 16000 and np.abs(found - expected)[500:-500].max() < 0.01
    with pytest.raises(ValueError, match=rf"{rate} Hz, expected 16000 Hz; .*--resample"):
        read_all(content)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_channel_must_be_chosen(kind: str) -> None:
    content = written(np.stack([0 * SAMPLES, SAMPLES], 1), kind=kind, subtype="PCM_16")
    np.testing.assert_array_equal(read_all(content, channel=1), SAMPLES.astype(np.float32) / 32768)
    with pytest.raises(ValueError, match="2 channels; choose one"):
        read_all(content)
    with pytest.raises(ValueError, match="channels 0 to 1, got 2"):
        read_all(content, channel=2)


@pytest.mark.parametrize("name", ["raw", "0xffffffff", "LIST before"])
def test_an_incomplete_last_sample_is_dropped_with_a_warning(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = read_all(STREAMED[name] + b"\x07")
    np.testing.assert_array_equal(found, SAMPLES.astype(np.float32) / 32768)
    assert "its last 1 bytes are left out" in caplog.text


def changed(at: int, value: int, size: int = 2) -> bytes:
    """A format chunk with another number in it."""
    return FMT[: 8 + at] + value.to_bytes(size, "little") + FMT[8 + at + size :]


NOT_AUDIO = {
    "nothing": (b"", "empty audio: nothing came"),
    "half a sample": (b"\0", "empty audio: no sample"),
    "a header alone": (wav(0, audio=b" ")[:-1], "empty audio: no sample"),
    "a cut header": (wav(0)[:30], "ended within its WAV header"),
    "a cut first line": (RIFF, "ended within its WAV header"),
    "audio that is cut": (wav(10001), "ended 1 bytes before the end"),
    "more than one file": (wav(10000) + wav(10000), "more than one file"),
    "no format": (RIFF + b"data\xff\xff\xff\xff" + bytes(100), "no format chunk"),
    "no WAV": (b"RIFF\x10\0\0\0AVI LIST", "is no WAV"),
    "a chunk without end": (RIFF + b"LIST\xff\xff\xff\x7f" + bytes(100), "a chunk b'LIST' of"),
    "an unknown kind": (wav(0, fmt=changed(0, 85)), "format 85"),
    "odd bits": (wav(0, fmt=changed(14, 12)), "12 bits"),
    "no channels": (wav(0, fmt=changed(2, 0)), "0 channels"),
    "a wrong frame": (wav(0, fmt=changed(12, 3)), "3 bytes a frame"),
    "no rate": (wav(0, fmt=changed(4, 0, 4)), "has 0 Hz, expected 16000 Hz"),
    "text": (b"RED LAMP\n", "has text"),
    "a longer text": ("Größe und ähnliches\n".encode() * 99, "has text"),
    "JSON": (b'{"config": {"sample_rate": 16000}}', "has text"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "has a gzip archive"),
    "MP4": (b"\0\0\0\x20ftypisom" + bytes(99), "has MP4"),
    "WebM": (b"\x1aE\xdf\xa3" + bytes(99), "has WebM"),
    "RIFX": (b"RIFX" + bytes(99), "has big-endian WAV"),
    "a broken FLAC": (STREAMED["FLAC"][:60], "unreadable audio: the pipe|empty audio"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_AUDIO)
def test_input_that_is_not_audio_is_refused_by_name(name: str) -> None:
    content, message = NOT_AUDIO[name]
    with pytest.raises(ValueError, match=message):
        read_all(content)
