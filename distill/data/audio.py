"""The audio of a cut, or why it cannot be used: the rules of stage 0, as files may have changed since."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.batch import SAMPLE_RATE
from distill.corpora.audio import range_fault, readable
from distill.corpora.listing import Unusable
from distill.corpora.objects import Unreachable


class Unreadable(ValueError):
    """Audio of a cut that cannot be used; the message is the reason."""


def read_audio(cut: Any) -> np.ndarray:
    """Samples (N,) float32 of a lhotse cut; raises Unreadable, or Unreachable where no object of a bucket can be."""
    if cut.sampling_rate != SAMPLE_RATE:
        raise Unreadable(f"cut {cut.id} has {cut.sampling_rate} Hz, expected {SAMPLE_RATE}; resample the cuts")
    names = ", ".join(str(audio.source) for audio in cut.recording.sources)
    try:
        wave = readable(cut).load_audio()[0].astype(np.float32)
        fault = range_fault(float(wave.min()), float(wave.max()), names) if wave.size else f"empty audio: {names}"
    except Unusable as error:
        fault = str(error)
    except Unreachable:
        raise
    except Exception as error:  # each backend of lhotse has its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fault = f"truncated or unreadable audio: {' '.join(lines[:2])[:400]}"  # the second has the first backend's
    if fault:
        raise Unreadable(f"cut {cut.id}: {fault}")
    return wave
