"""Strings of recorded digits, at equal level, with silence between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.batch import SAMPLE_RATE
from distill.corpora.audio import opened
from distill.corpora.listing import Source, Unusable
from distill.files import as_flac, replacing

LEVEL = 0.05
"""Root mean square of each digit."""


def render(digits: Mapping[str, Path], strings: Sequence[Mapping[str, str]], folder: Path) -> None:
    """Writes `<utt>.flac` for each string that has none; digits: name -> recording.

    strings: rows with `parts`, names of digits, and `gaps_ms`, silences around them. Raises FileNotFoundError for a
    digit without audio, ValueError for a row that does not fit its digits or for audio that cannot be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for row in strings:
        target = folder / f"{row['utt']}.flac"
        if not target.is_file():
            samples = np.clip(np.concatenate(_parts_of(row, digits)), -0.99, 0.99)
            with replacing(target, shared=True) as temporary:
                temporary.write_bytes(as_flac(samples, SAMPLE_RATE))


def _parts_of(row: Mapping[str, str], digits: Mapping[str, Path]) -> list[np.ndarray]:
    names, gaps = row["parts"].split(","), row["gaps_ms"].split(",")
    if len(gaps) != len(names) + 1 or not all(gap.isdigit() for gap in gaps):
        raise ValueError(
            f"connected.tsv, {row['utt']}: expected {len(names) + 1} gaps in ms around {len(names)} digits, "
            f"got {row['gaps_ms']!r}"
        )
    silences = [np.zeros(int(gap) * SAMPLE_RATE // 1000, np.float32) for gap in gaps]
    parts = [silences[0]]
    for name, silence in zip(names, silences[1:], strict=True):
        if name not in digits:
            raise ValueError(f"connected.tsv, {row['utt']}: digit {name!r} is not in digits.tsv")
        samples = read_digit(name, digits[name])
        parts += [samples * np.float32(LEVEL / (np.sqrt(np.mean(samples**2)) + 1e-5)), silence]
    return parts


def read_digit(name: str, path: Path) -> np.ndarray:
    """Samples (N,) float32 of one channel at 16 kHz; FileNotFoundError or ValueError with the way out."""
    if not path.is_file():
        raise FileNotFoundError(f"no audio of digit {name} at {path}; egs/spoken_commands/fetch.py fetches it")
    try:
        with opened(Source(str(path))) as file:
            rate, samples = file.samplerate, file.read(dtype="float32", always_2d=True)
    except Unusable as error:
        raise ValueError(f"{error}; remove it, and egs/spoken_commands/fetch.py fetches it again") from None
    if rate != SAMPLE_RATE or samples.shape[1] != 1:
        raise ValueError(f"{path}: expected one channel of {SAMPLE_RATE} Hz, got {samples.shape[1]} at {rate} Hz")
    return samples[:, 0]
