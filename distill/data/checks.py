"""Checks of audio and transcripts: what cannot be used is counted and listed, never dropped silently."""

from __future__ import annotations

import csv
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import soundfile
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from ..text import normalise

log = logging.getLogger(__name__)
Item = TypeVar("Item")

SAMPLING_RATE = 16000
SECONDS = (0.1, 35.0)
"""Shortest and longest utterance that is used."""


@dataclass
class Skipped:
    """The list of what was left out, and why."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, part: str, name: str, reason: str) -> None:
        """Notes that `name` of `part` is left out."""
        self.rows.append((part, name, reason))

    def write(self, path: Path) -> None:
        """Writes part, name and reason as a TSV file, and logs how many of each kind."""
        temporary = path.with_name(path.name + ".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(("part", "name", "reason"))
            writer.writerows(sorted(self.rows))
        os.replace(temporary, path)
        for (part, reason), count in sorted(Counter((p, r.split(":")[0]) for p, _, r in self.rows).items()):
            log.warning("%s: %d skipped: %s (see %s)", part, count, reason, path.name)


@dataclass(frozen=True)
class Manifest:
    """Recordings and supervisions of one part of a corpus."""

    recordings: RecordingSet
    supervisions: SupervisionSet


def check_manifest(
    part: str, manifest: Manifest, skipped: Skipped, *, needs_text: bool = True, jobs: int = 2
) -> Manifest:
    """The usable rest of a part, its text normalised; raises ValueError if nothing is left.

    Left out: recordings that are truncated, of another sampling rate or without supervision, and
    supervisions of an unusable duration, without text (where it is needed) or without recording.
    """
    recordings = list(manifest.recordings)
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        faults = list(pool.map(recording_fault, recordings))
    good = _keep(part, recordings, faults, skipped, lambda recording: recording.id)
    known = {recording.id for recording in good}
    segments = [s for s in manifest.supervisions if s.recording_id in known]
    _note_orphans(part, manifest, skipped)
    faults = [segment_fault(segment, needs_text) for segment in segments]
    segments = _keep(part, segments, faults, skipped, lambda segment: segment.id)
    used = {segment.recording_id for segment in segments}
    unused = known - used - {s.recording_id for s in manifest.supervisions}
    for name in unused:
        skipped.add(part, name, "no supervision")
    if not segments:
        reasons = Counter(row[2] for row in skipped.rows if row[0] == part).most_common(3)
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons) or "it is empty"
        raise ValueError(f"{part}: no usable utterance is left: {told}")
    return Manifest(
        RecordingSet.from_recordings(r for r in good if r.id in used),
        SupervisionSet.from_segments(_with_normal_text(s) for s in segments),
    )


def recording_fault(recording: Recording) -> str | None:
    """What makes a recording unusable, or None; only its end is decoded, which a truncated file lacks."""
    if recording.sampling_rate != SAMPLING_RATE:
        return f"wrong sampling rate: {recording.sampling_rate} Hz, expected {SAMPLING_RATE} Hz"
    for source in recording.sources:
        if source.type == "file" and (fault := file_fault(Path(source.source))):
            return fault
    return None


def file_fault(path: Path) -> str | None:
    """What makes an audio file unusable, or None."""
    if not path.is_file():
        return f"no such file: {path}"
    try:
        with soundfile.SoundFile(path) as file:
            if not file.frames:
                return f"empty audio: {path}"
            tail = min(file.frames, 4096)
            file.seek(file.frames - tail)
            read = len(file.read(tail, dtype="int16"))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return f"truncated or unreadable audio: {path} ({str(error).splitlines()[0]})"
    return None if read == tail else f"truncated or unreadable audio: {path}"


def segment_fault(segment: SupervisionSegment, needs_text: bool) -> str | None:
    """What makes a supervision unusable, or None."""
    if not SECONDS[0] <= segment.duration <= SECONDS[1]:
        return f"duration outside {SECONDS[0]} to {SECONDS[1]} s: {segment.duration:.2f} s"
    if needs_text and not normalise(segment.text or ""):
        return "empty text"
    return None


def _note_orphans(part: str, manifest: Manifest, skipped: Skipped) -> None:
    known = {recording.id for recording in manifest.recordings}
    for segment in manifest.supervisions:
        if segment.recording_id not in known:
            skipped.add(part, segment.id, f"no recording: {segment.recording_id}")


def _keep(
    part: str,
    items: Sequence[Item],
    faults: Sequence[str | None],
    skipped: Skipped,
    name: Callable[[Item], str],
) -> list[Item]:
    for item, fault in zip(items, faults, strict=True):
        if fault:
            skipped.add(part, name(item), fault)
    return [item for item, fault in zip(items, faults, strict=True) if not fault]


def _with_normal_text(segment: SupervisionSegment) -> SupervisionSegment:
    return segment if segment.text is None else segment.transform_text(normalise)


def some(items: Iterable[object], count: int = 5) -> str:
    """The first few items of a list for an error message."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
