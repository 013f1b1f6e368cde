"""Checks of audio and transcripts: what cannot be used is counted and listed, never dropped silently."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from distill.batch import convertible
from distill.files import replacing
from distill.text import normalise

from .audio import sample_faults

log = logging.getLogger(__name__)

SAMPLING_RATE = 16000
SECONDS = (0.1, 35.0)
"""Shortest and longest utterance that is used."""
OVERSHOOT = 0.1
"""Seconds that an utterance may go on after its recording's end: it is ended there. What goes on longer is left out."""


@dataclass
class Skipped:
    """The list of what was left out, and why."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, part: str, name: str, reason: str) -> None:
        """Notes that `name` of `part` is left out."""
        self.rows.append((part, name, reason))

    def write(self, path: Path) -> None:
        """Writes part, name and reason as a TSV file, and logs how many of each kind."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(("part", "name", "reason"))
            writer.writerows(sorted(self.rows))
        for (part, reason), count in sorted(Counter((p, r.split(":")[0]) for p, _, r in self.rows).items()):
            log.warning("%s: %d skipped: %s (see %s)", part, count, reason, path.name)


@dataclass(frozen=True)
class Manifest:
    """Recordings and supervisions of one part of a corpus.

    left_out: names and reasons of what its tables make unusable. places: file and line of each supervision.
    """

    recordings: RecordingSet
    supervisions: SupervisionSet
    left_out: tuple[tuple[str, str], ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


def check_manifest(
    part: str, manifest: Manifest, skipped: Skipped, *, needs_text: bool = True, resample: bool = False, jobs: int = 2
) -> Manifest:
    """The usable rest of a part, its text normalised; raises ValueError if nothing is left.

    Left out: recordings that cannot be decoded, of another sampling rate (unless they are to be resampled) or without
    supervision, and supervisions beyond their recording, of an unusable duration, without text (where it is needed),
    or whose samples are silence, not finite or absurdly loud. Every recording is decoded once.
    """
    for name, reason in manifest.left_out:
        skipped.add(part, name, reason)
    segments: dict[str, list[SupervisionSegment]] = {recording.id: [] for recording in manifest.recordings}
    for segment in manifest.supervisions:
        if segment.recording_id in segments:
            segments[segment.recording_id].append(segment)
        else:
            skipped.add(part, segment.id, f"no recording: {segment.recording_id}")
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        checked = pool.map(lambda r: check_recording(r, segments[r.id], needs_text, resample), manifest.recordings)
        recordings, good, trimmed = _sort_out(part, checked, manifest.places, skipped)
    if not good:
        reasons = Counter(row[2] for row in skipped.rows if row[0] == part).most_common(3)
        told = "; ".join(f"{reason} ({count})" for reason, count in reasons) or "it is empty"
        raise ValueError(f"{part}: no usable utterance is left: {told}")
    if trimmed:
        log.warning("%s: %d utterances end with their recording, up to %g s early: %s",
                    part, len(trimmed), OVERSHOOT, some(trimmed))  # fmt: skip
    return Manifest(
        RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(_with_normal_text(s) for s in good)
    )


@dataclass(frozen=True)
class Checked:
    """A recording as it is used, and each of its supervisions, trimmed to it, with what makes it unusable."""

    recording: Recording
    segments: list[SupervisionSegment]
    faults: list[str | None]
    trimmed: list[str]


def check_recording(
    recording: Recording, segments: Sequence[SupervisionSegment], needs_text: bool, resample: bool
) -> Checked:
    """Checks a recording and its supervisions; its samples are decoded where something of it may be used."""
    fault = rate_fault(recording, resample)
    inside = [trim(segment, recording.duration) for segment in segments]
    faults = [fault or segment_fault(segment, needs_text, recording.duration) for segment in inside]
    usable = [i for i, fault in enumerate(faults) if fault is None]
    for i, fault in zip(usable, sample_faults(recording, [inside[i] for i in usable]) if usable else (), strict=True):
        faults[i] = fault
    if recording.sampling_rate != SAMPLING_RATE and resample:
        recording = recording.resample(SAMPLING_RATE)
        inside = [trim(segment, recording.duration) for segment in inside]
    trimmed = [s.id for s, before in zip(inside, segments, strict=True) if before.duration - s.duration > 0.001]
    return Checked(recording, inside, faults, trimmed)


def _sort_out(
    part: str, checked: Iterable[Checked], places: Mapping[str, str], skipped: Skipped
) -> tuple[list[Recording], list[SupervisionSegment], list[str]]:
    recordings, good, trimmed = [], [], []
    for one in checked:
        kept = []
        for segment, fault in zip(one.segments, one.faults, strict=True):
            if fault:
                skipped.add(part, segment.id, at(fault, places.get(segment.id, "")))
            else:
                kept.append(segment)
        if not one.segments:
            skipped.add(part, one.recording.id, "no supervision")
        recordings += [one.recording] if kept else []
        good += kept
        trimmed += [segment.id for segment in kept if segment.id in one.trimmed]
    return recordings, good, trimmed


def rate_fault(recording: Recording, resample: bool) -> str | None:
    """A sampling rate other than the recipe's, unless it may be converted and can be in bounded time; or None."""
    rate = recording.sampling_rate
    if rate == SAMPLING_RATE:
        return None
    if not resample:
        return f"wrong sampling rate: {rate} Hz, expected {SAMPLING_RATE} Hz; --resample true converts it"
    if not convertible(rate):
        return f"wrong sampling rate: {rate} Hz cannot be converted to {SAMPLING_RATE} Hz; resample it to that"
    return None


def trim(segment: SupervisionSegment, seconds: float) -> SupervisionSegment:
    """The supervision, ended with its recording of `seconds` where it goes on for no more than `OVERSHOOT`."""
    over = segment.end - seconds
    return replace(segment, duration=round(seconds - segment.start, 8)) if 0 < over <= OVERSHOOT else segment


def segment_fault(segment: SupervisionSegment, needs_text: bool, seconds: float) -> str | None:
    """What makes a supervision of a recording of `seconds` unusable, or None."""
    if segment.start < 0:
        return f"begins before its recording: {segment.start:g} s"
    if segment.end > seconds + 1e-6:
        return f"beyond its recording: {segment.start:g} to {segment.end:g} s of {seconds:g} s"
    if not SECONDS[0] <= segment.duration <= SECONDS[1]:
        return f"duration outside {SECONDS[0]} to {SECONDS[1]} s: {segment.duration:.2f} s"
    if needs_text and not normalise(segment.text or ""):
        return "empty text"
    return None


def at(reason: str, place: str) -> str:
    """A reason, its kind before a colon, with the file and line that it stands for."""
    if not place:
        return reason
    return f"{reason} ({place})" if ":" in reason else f"{reason}: {place}"


def _with_normal_text(segment: SupervisionSegment) -> SupervisionSegment:
    return segment if segment.text is None else segment.transform_text(normalise)


def some(items: Iterable[object], count: int = 5) -> str:
    """The first few items of a list for an error message."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
