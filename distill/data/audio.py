"""The audio of a cut, or why it cannot be used: the rules of stage 0, as files may have changed since."""

from __future__ import annotations

from typing import Any

import numpy as np
from lhotse import Recording
from lhotse.augmentation import AudioTransform

from distill.batch import SAMPLE_RATE
from distill.corpora.audio import opened, range_fault, recording_of
from distill.corpora.listing import Source, Unusable


class Unreadable(ValueError):
    """Audio of a cut that cannot be used; the message is the reason."""


def read_audio(cut: Any) -> np.ndarray:
    """Samples (N,) float32 of a lhotse cut; raises Unreadable."""
    if cut.sampling_rate != SAMPLE_RATE:
        raise Unreadable(f"cut {cut.id} has {cut.sampling_rate} Hz, expected {SAMPLE_RATE}; resample the cuts")
    try:
        names = check_files(cut.recording)
        wave = cut.load_audio()[0].astype(np.float32)
        fault = range_fault(float(wave.min()), float(wave.max()), names) if wave.size else f"empty audio: {names}"
    except Unusable as error:
        fault = str(error)
    except Exception as error:  # each backend of lhotse has its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fault = f"truncated or unreadable audio: {' '.join(lines[:2])[:400]}"  # the second has the first backend's
    if fault:
        raise Unreadable(f"cut {cut.id}: {fault}")
    return wave


def check_files(recording: Recording) -> str:
    """The names of a recording's files; Unusable unless their headers are as stage 0 found them.

    Pipes are not opened, and audio of hours that took the place of an utterance's is not decoded.
    """
    seconds, rate = recording.duration, recording.sampling_rate
    for item in reversed(recording.transforms or []):
        transform = AudioTransform.from_dict(item) if isinstance(item, dict) else item
        seconds = transform.reverse_timestamps(0.0, seconds, recording.sampling_rate)[1]
        rate = getattr(transform, "source_sampling_rate", rate)
    for audio in recording.sources:
        if audio.type == "file":
            source = Source(audio.source, seconds=seconds, channels=len(audio.channels))
            with opened(source) as file:
                if file.samplerate != rate:
                    raise Unusable(f"manifest and audio differ: {rate} Hz, now {file.samplerate} Hz: {audio.source}")
                try:
                    recording_of(recording.id, source, file)
                except Unusable as error:
                    raise Unusable(f"{error} ({audio.source})") from None
    return ", ".join(str(audio.source) for audio in recording.sources)
