"""Cuts on an errors page: speaker, FLAC audio for browsers, link to the audio file."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

import numpy as np

from distill.files import as_flac


def flac(samples: np.ndarray, rate: int) -> bytes:
    """Samples (N,) in ±1 as 16-bit FLAC."""
    return as_flac(np.round(samples * 32768).clip(-32768, 32767).astype(np.int16), rate)


def link(cut, folder: Path) -> str | None:
    """Address of the cut's audio file as seen from `folder`, with `#t=` for a part of it; None if it is no file."""
    recording = getattr(cut, "recording", None)
    if recording is None or len(recording.sources) != 1 or recording.sources[0].type != "file":
        return None
    if not os.path.isfile(recording.sources[0].source):  # but within a tar
        return None
    address = quote(os.path.relpath(recording.sources[0].source, folder))
    if cut.start == 0 and abs(cut.duration - recording.duration) < 0.01:
        return address
    return f"{address}#t={cut.start:.3f},{cut.end:.3f}"


def speakers(cuts: Iterable) -> dict[str, str]:
    """Cut id -> speaker; a cut without one is its own, as in Kaldi. Empty where no speaker at all is known."""
    named = {cut.id: _speaker(cut) for cut in cuts}
    return {name: speaker or name for name, speaker in named.items()} if any(named.values()) else {}


def _speaker(cut) -> str | None:
    return next((segment.speaker for segment in cut.supervisions if segment.speaker), None)
