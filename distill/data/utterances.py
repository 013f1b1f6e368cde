"""From the rows of a corpus' tables to recordings and supervisions; what cannot be is left out with its reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.audio import AudioSource

from .audio import SEVERAL_CHANNELS, Unusable, recording_of
from .manifests import Manifest, at

TOLERANCE = 0.025
"""Seconds by which a manifest may differ from its audio, as in lhotse."""


@dataclass(frozen=True)
class Source:
    """A file or command with audio; `place` is the file and line that names it."""

    audio: AudioSource
    place: str = ""
    seconds: float | None = None  # as a manifest has it
    channels: int | None = None  # likewise


@dataclass(frozen=True)
class Utterance:
    """One utterance as the tables of a corpus give it; `place` is the file and line of it."""

    name: str
    recording: str
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: the recording's end
    channel: int | None = None  # None: of a recording with one channel
    text: str | None = None
    speaker: str | None = None
    place: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)  # other fields of the supervision


def manifest_of(
    sources: Mapping[str, Source], utterances: Iterable[Utterance], left_out: Iterable[tuple[str, str]], jobs: int
) -> Manifest:
    """The manifest of utterances; `left_out` (name, reason) grows by the doubled ones and those without audio."""
    left_out = list(left_out)
    chosen = _without_doubles(list(utterances), left_out)
    used = list(dict.fromkeys(utterance.recording for utterance in chosen))
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        recordings = dict(zip(used, pool.map(lambda name: _recording(name, sources[name]), used), strict=True))
    segments, places = [], {}
    for utterance in chosen:
        recording = recordings[utterance.recording]
        try:
            segments.append(_segment(utterance, recording))
        except Unusable as error:
            left_out.append((utterance.name, str(error)))
            continue
        places[utterance.name] = utterance.place
    kept = {segment.recording_id for segment in segments}
    return Manifest(
        RecordingSet.from_recordings(r for r in recordings.values() if isinstance(r, Recording) and r.id in kept),
        SupervisionSet.from_segments(segments),
        tuple(left_out),
        places,
    )


def file_source(path: Path | str, place: str = "") -> Source:
    """An audio file; its header is not read yet."""
    return Source(AudioSource("file", [0], str(path)), place)


def _recording(name: str, source: Source) -> Recording | Unusable:
    try:
        recording = recording_of(name, source.audio)
        if source.seconds is not None and abs(source.seconds - recording.duration) > TOLERANCE:
            stated, found = f"{source.seconds:.2f} s in the manifest", f"{recording.duration:.2f} s in the audio"
            raise Unusable(f"manifest and audio differ: {stated}, {found}")
        if source.channels not in (None, recording.num_channels):
            stated, found = f"{source.channels} in the manifest", f"{recording.num_channels} in the audio"
            raise Unusable(f"manifest and audio differ: channels, {stated}, {found}")
        return recording
    except Unusable as error:
        return Unusable(at(str(error), source.place))


def _without_doubles(utterances: Sequence[Utterance], left_out: list[tuple[str, str]]) -> list[Utterance]:
    """The utterances whose name is there once; which of several is the right one cannot be known."""
    places: dict[str, list[str]] = {}
    for utterance in utterances:
        places.setdefault(utterance.name, []).append(utterance.place)
    doubled = {name: where for name, where in places.items() if len(where) > 1}
    left_out += [(name, f"duplicate id: {' and '.join(where)}") for name, where in doubled.items()]
    return [utterance for utterance in utterances if utterance.name not in doubled]


def _segment(utterance: Utterance, recording: Recording | Unusable) -> SupervisionSegment:
    if isinstance(recording, Unusable):
        raise recording
    end = recording.duration if utterance.end is None else utterance.end
    try:
        channel = _channel(utterance.channel, recording.num_channels)
    except Unusable as error:
        raise Unusable(at(str(error), utterance.place)) from None
    return SupervisionSegment(
        utterance.name, recording.id, utterance.start, round(end - utterance.start, 8),
        channel=channel, text=utterance.text, speaker=utterance.speaker,
        **utterance.more,
    )  # fmt: skip


def _channel(asked: int | None, there: int) -> int:
    if there == 1 and asked in (None, 0, 1):  # tables count from 0 or from 1; here it makes no difference
        return 0
    if asked is None:
        raise Unusable(SEVERAL_CHANNELS.format(there))
    if not 0 <= asked < there:
        raise Unusable(f"no such channel: {asked}, the recording has {there} (counted from 0)")
    return asked
