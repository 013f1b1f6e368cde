"""Audio of a corpus: opened without ever blocking on a pipe or device, checked by header and samples."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np
import soundfile
from lhotse import Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.augmentation import AudioTransform

from distill.corpora.listing import TOLERANCE, Source, Unusable
from distill.corpora.objects import MEMBER, is_remote, read_object

LOUDEST = 10.0
"""Highest sample that is used, full scale being 1: float files of mixed speech go over it, not by 20 dB."""
FLATTEST = 2 / 32768
"""Silence: audio that varies by less, one step up and down in 16 bits."""
BLOCK = 1 << 19
"""Samples decoded at a time: 33 s, so a recording of hours takes no more memory than an utterance."""
COMMAND_SECONDS = 600
UNKNOWN_LENGTH = 0x7FFF0000
"""WAV headers of streams announce as many bytes or more (sox, ffmpeg), as their length is not known."""

SEVERAL_CHANNELS = "several channels: {}, expected 1; mix them to one, or name one in a table"


@contextmanager
def opened(source: Source) -> Iterator[soundfile.SoundFile]:
    """The audio of a source; Unusable if it is none, is cut off or has no samples.

    Its `name` is a path, or a BytesIO of what was read from a tar, a bucket or a command.
    """
    data = io.BytesIO(_output(source.value)) if source.command else _file_or_bytes(source.value)
    try:
        with soundfile.SoundFile(data) as file:
            if not file.frames:
                raise Unusable(f"empty audio: {source.value}")
            announced, there = _bytes(file.extra_info)
            if there < announced < UNKNOWN_LENGTH:
                raise Unusable(
                    f"truncated or unreadable audio: {source.value} ({there} bytes of samples, header: {announced})"
                )
            yield file
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:  # TypeError: .raw, for want of a header
        reason = (str(error).splitlines() or [""])[0]
        raise Unusable(f"truncated or unreadable audio: {source.value} ({reason})") from None


def _file_or_bytes(value: str) -> str | io.BytesIO:
    """The path itself, or the bytes of a member of a tar or of an object."""
    within = MEMBER.fullmatch(value)
    if not within and not is_remote(value):
        return _regular_file(value)
    place, offset, size = (within[1], int(within[2]), int(within[3])) if within else (value, 0, -1)
    if is_remote(place):
        data = read_object(place, offset, size)
    else:
        with open(_regular_file(place), "rb") as file:
            file.seek(offset)
            data = file.read(size)
    if len(data) < size:
        raise Unusable(f"truncated or unreadable audio: {value} ({len(data)} bytes, expected {size})")
    if not data:
        raise Unusable(f"empty audio: {value}")
    return io.BytesIO(data)


def _regular_file(name: str) -> str:
    try:
        status = os.stat(name)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise Unusable(f"no such file: {name!r}" if "\0" in name else f"no such file: {name}") from None
    except OSError as error:
        raise Unusable(f"no access: {name} ({error.strerror})") from None
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise Unusable(f"not a regular file: {name}")
    if not status.st_size:
        raise Unusable(f"empty audio: {name}")
    if not os.access(name, os.R_OK):
        raise Unusable(f"no access: {name} (permission denied)")
    return name


def _output(command: str) -> bytes:
    process = subprocess.Popen(
        command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise Unusable(f"command failed: no end after {COMMAND_SECONDS} s ({command})") from None
    finally:
        if process.returncode is None:  # the shell's children too: they keep its output open
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    if process.returncode:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        raise Unusable(f"command failed: status {process.returncode} ({command}){''.join(f': {e}' for e in last)}")
    if not output:
        raise Unusable(f"empty audio: {command}")
    return output


def _bytes(header: str) -> tuple[int, int]:
    """Bytes of samples in the header and in the file, from libsndfile's log; (0, 0) where they agree."""
    match = re.search(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", header, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def recording_of(name: str, source: Source, file: soundfile.SoundFile) -> Recording:
    """The recording of a source by its header, all channels; Unusable if the corpus states another length or number."""
    seconds, channels = file.frames / file.samplerate, file.channels
    if source.seconds is not None and abs(source.seconds - seconds) > TOLERANCE:
        stated, actual = f"{source.seconds:.2f} s in the manifest", f"{seconds:.2f} s in the audio"
        raise Unusable(f"manifest and audio differ: {stated}, {actual}")
    if source.channels not in (None, channels):
        raise Unusable(
            f"manifest and audio differ: channels, {source.channels} in the manifest, {channels} in the audio"
        )
    kind = "command" if source.command else "url" if is_remote(source.value) else "file"
    audio = AudioSource(kind, list(range(channels)), source.value)
    return Recording(name, [audio], file.samplerate, file.frames, seconds)


def readable(cut: Any) -> Any:
    """The cut of one recording as lhotse can read it, members of tars and objects in memory.

    Unusable unless the headers are as stage 0 found them. Pipes are not opened, and audio of hours that took the place
    of an utterance's is not decoded.
    """
    recording, sources = cut.recording, []
    seconds, rate = recording.duration, recording.sampling_rate
    for item in reversed(recording.transforms or []):
        transform = AudioTransform.from_dict(item) if isinstance(item, dict) else item
        seconds = transform.reverse_timestamps(0.0, seconds, recording.sampling_rate)[1]
        rate = getattr(transform, "source_sampling_rate", rate)
    for audio in recording.sources:
        if audio.type in ("file", "url"):
            source = Source(audio.source, seconds=seconds, channels=len(audio.channels))
            with opened(source) as file:
                if file.samplerate != rate:
                    raise Unusable(f"manifest and audio differ: {rate} Hz, now {file.samplerate} Hz: {audio.source}")
                try:
                    recording_of(recording.id, source, file)
                except Unusable as error:
                    raise Unusable(f"{error} ({audio.source})") from None
                if isinstance(file.name, io.BytesIO):
                    audio = AudioSource("memory", audio.channels, file.name.getvalue())
        sources.append(audio)
    return cut if sources == recording.sources else replace(cut, recording=replace(recording, sources=sources))


def check_samples(
    file: soundfile.SoundFile, segments: Sequence[SupervisionSegment], name: str
) -> list[tuple[str | None, str]]:
    """Of each segment why its samples are unusable, or None, and their CRC-32; the file is decoded once, to its end.

    Raises Unusable where it cannot be.
    """
    rate, count = file.samplerate, file.frames
    ends = [(round(s.start * rate), min(round(s.end * rate), count)) for s in segments]
    beginning: dict[int, list[int]] = {}
    for number, (start, _) in enumerate(ends):
        beginning.setdefault(start, []).append(number)
    lows, highs, checksums = [np.inf] * len(ends), [-np.inf] * len(ends), [0] * len(ends)
    within: list[int] = []
    for start, end in pairwise(sorted({0, count, *(bound for pair in ends for bound in pair)})):
        within = [number for number in within if ends[number][1] > start] + beginning.get(start, [])
        for block in _blocks(file, end - start, name):
            for number in within:
                samples = block[:, int(segments[number].channel)]
                lows[number] = np.minimum(lows[number], samples.min())  # NaN where a sample is
                highs[number] = np.maximum(highs[number], samples.max())
                checksums[number] = crc32(samples.tobytes(), checksums[number])
    faults = [range_fault(float(low), float(high), name) for low, high in zip(lows, highs, strict=True)]
    return list(zip(faults, (f"{checksum:08x}" for checksum in checksums), strict=True))


def _blocks(file: soundfile.SoundFile, count: int, name: str) -> Iterator[np.ndarray]:
    """The next `count` samples of all channels, some (N, C) at a time; raises Unusable where the file ends earlier."""
    while count > 0:
        block = file.read(min(count, BLOCK), dtype="float32", always_2d=True)
        if not len(block):
            raise Unusable(f"truncated or unreadable audio: {name} ({count} samples are missing)")
        yield block
        count -= len(block)


def range_fault(low: float, high: float, name: str) -> str | None:
    if not np.isfinite([low, high]).all():
        return f"samples are not finite: {name}"
    if max(-low, high) > LOUDEST:
        return f"absurdly loud: samples up to {max(-low, high):.3g}, full scale is 1 ({name})"
    if high - low <= FLATTEST:
        return f"silent audio: {name}"
    return None
