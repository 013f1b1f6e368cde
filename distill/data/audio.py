"""The audio of a cut, or why it cannot be used."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.batch import SAMPLE_RATE


class Unreadable(ValueError):
    """Audio of a cut that cannot be used; the message is the reason."""


def read_audio(cut: Any) -> np.ndarray:
    """Samples (N,) float32 of a lhotse cut; raises Unreadable."""
    if cut.sampling_rate != SAMPLE_RATE:
        raise Unreadable(f"cut {cut.id} has {cut.sampling_rate} Hz, expected {SAMPLE_RATE}; resample the cuts")
    try:
        wave = cut.load_audio()[0].astype(np.float32)
    except Exception as error:  # each backend of lhotse has its own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Unreadable(f"cut {cut.id}: its audio cannot be read: {lines[0][:300]}") from None
    if not wave.size or not np.isfinite(wave).all():
        raise Unreadable(f"cut {cut.id}: {'samples that are not finite' if wave.size else 'no samples'}")
    return wave
