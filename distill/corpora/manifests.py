"""From the listings of a corpus to checked manifests and cut sets; skipped.tsv lists every utterance left out."""

from __future__ import annotations

import gzip
import json
import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet
from lhotse.cut import MonoCut

from distill.batch import SAMPLE_RATE, convertible
from distill.config.job import Job
from distill.corpora.audio import SEVERAL_CHANNELS, check_samples, opened, recording_of
from distill.corpora.corpus import Corpus, Roles
from distill.corpora.cut_sets import COMPRESSION, write_cuts
from distill.corpora.listing import Listing, Skipped, Source, Unusable, Utterance, at, first_few
from distill.corpora.shards import stored
from distill.files import replacing
from distill.text import normalise

log = logging.getLogger(__name__)

SHARD = 200
"""Recordings that are checked and stored together."""
SECONDS = (0.1, 35.0)
"""Shortest and longest utterance that is used."""
CHECKSUM = "crc32"
"""Custom field of a supervision: the checksum of its audio, so that cut sets of other audio are other files."""
OVERSHOOT = 0.1
"""Seconds by which an utterance may end after its recording: it is trimmed. Those that end later are left out."""


@dataclass(frozen=True)
class Manifest:
    """Recordings and supervisions of one part of a corpus."""

    recordings: RecordingSet
    supervisions: SupervisionSet


@dataclass(frozen=True)
class Checks:
    """How recordings are checked: by `threads`, their sampling rates converted or not, results stored in `shards`."""

    threads: int = 2
    resample: bool = False
    shards: Path | None = None
    job: Job | None = None

    def of(self, part: str, listing: Listing, needs_text: bool = True) -> Iterator[Checked]:
        """The checked recordings of a part, in its order; of a job its share. Every recording is decoded once."""
        recordings = listing.by_recording()

        def check(name: str) -> dict[str, Any]:
            return check_recording(name, listing.sources[name], recordings[name], needs_text, self.resample).as_plain()

        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            folder = self.shards and self.shards / part
            rows = stored(folder, list(recordings), lambda names: pool.map(check, names), self.job, SHARD)
            yield from (Checked.from_plain(row) for _, row in rows)


def check_share(corpus: Corpus, checks: Checks) -> None:
    """Checks a job's share of the recordings of every part."""
    listings = {part: corpus.listing(part) for part in corpus.roles.parts}
    for part, listing in listings.items():
        count = sum(1 for _ in checks.of(part, listing, part not in corpus.roles.unlabelled))
        log.info("%s: %d of %d recordings are this job's, and checked", part, count, len(listing.sources))


def write_manifests(corpus: Corpus, folder: Path, name: str, checks: Checks = Checks()) -> None:
    """Checks every part and writes `<name>_recordings_<part>.jsonl.gz`, supervisions and skipped.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    skipped = Skipped()
    listings = {part: corpus.listing(part) for part in corpus.roles.parts}  # what cannot be read fails before any check
    try:
        for part, listing in listings.items():
            manifest = checked_manifest(part, listing, skipped, checks, part not in corpus.roles.unlabelled)
            store(manifest.recordings, folder / f"{name}_recordings_{part}.jsonl.gz")
            store(manifest.supervisions, folder / f"{name}_supervisions_{part}.jsonl.gz")
    finally:
        skipped.write(folder / "skipped.tsv")


def read_manifest(folder: Path, corpus: str, part: str) -> Manifest:
    """One part as `write_manifests` left it."""
    return Manifest(
        RecordingSet.from_file(folder / f"{corpus}_recordings_{part}.jsonl.gz").to_eager(),
        SupervisionSet.from_file(folder / f"{corpus}_supervisions_{part}.jsonl.gz").to_eager(),
    )


def checked_manifest(
    part: str, listing: Listing, skipped: Skipped, checks: Checks = Checks(), needs_text: bool = True
) -> Manifest:
    """The usable utterances of a part, their text normalised; raises ValueError if there is none.

    Left out: recordings that cannot be decoded or have another sampling rate (unless they are to be resampled), and
    utterances beyond their recording, of an unusable duration, without text (where it is needed), or with samples that
    are silence, not finite or absurdly loud.
    """
    results = list(checks.of(part, listing, needs_text))
    for name, reason in [*listing.left_out, *(row for result in results for row in result.left_out)]:
        skipped.add(part, name, reason)
    good = [segment for result in results for segment in result.segments]
    if not good:
        reasons = [reason for each, _, reason in skipped.rows if each == part]
        examples = {reason.split(":")[0]: reason for reason in reversed(reasons)}  # the first of each kind
        counts = Counter(reason.split(":")[0] for reason in reasons).most_common(3)
        listed = "; ".join(f"{examples[kind]} ({count} such)" for kind, count in counts) or "it is empty"
        raise ValueError(f"{part}: no usable utterance is left: {listed}")
    if shorter := [name for result in results for name in result.trimmed]:
        log.warning("%s: %d utterances end with their recording, up to %g s early: %s",
                    part, len(shorter), OVERSHOOT, first_few(shorter))  # fmt: skip
    kept = [result.recording for result in results if result.recording is not None and result.segments]
    _warn_of_durations(kept, listing.durations)
    return Manifest(
        RecordingSet.from_recordings(kept),
        SupervisionSet.from_segments(s if s.text is None else s.transform_text(normalise) for s in good),
    )


@dataclass
class Checked:
    """A recording, its usable utterances, the names of those that were trimmed, and (name, reason) of the others."""

    recording: Recording | None = None
    segments: list[SupervisionSegment] = field(default_factory=list)
    trimmed: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def as_plain(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        segments = [segment.to_dict() for segment in self.segments]
        return {**vars(self), "recording": self.recording and self.recording.to_dict(), "segments": segments}

    @staticmethod
    def from_plain(row: Mapping[str, Any]) -> Checked:
        """What `as_plain` gave."""
        recording, segments, trimmed, left_out = (row[name] for name in vars(Checked()))
        return Checked(
            recording and Recording.from_dict(recording), [*map(SupervisionSegment.from_dict, segments)],
            trimmed, [(name, reason) for name, reason in left_out],
        )  # fmt: skip


def check_recording(
    name: str, source: Source, utterances: Sequence[Utterance], needs_text: bool, resample: bool
) -> Checked:
    """Checks the header of a recording, then its utterances, then their samples if one is left."""
    places = {utterance.name: utterance.place for utterance in utterances}
    left_out: list[tuple[str, str]] = []
    segments: list[SupervisionSegment] = []
    try:
        with opened(source) as file:
            recording = recording_of(name, source, file)
            for utterance in utterances:
                try:
                    segments.append(supervision_of(utterance, recording, needs_text, resample))
                except Unusable as error:
                    left_out.append((utterance.name, at(str(error), utterance.place)))
            samples = check_samples(file, segments, source.value) if segments else []
    except Unusable as error:
        return Checked(left_out=[(name, at(str(error), source.place)) for name in places])
    checked = list(zip(segments, samples, strict=True))
    left_out += [(s.id, at(fault, places[s.id])) for s, (fault, _) in checked if fault]
    good = [
        replace(s, custom={**(s.custom or {}), CHECKSUM: checksum}) for s, (fault, checksum) in checked if not fault
    ]
    if good and recording.sampling_rate != SAMPLE_RATE:
        recording = recording.resample(SAMPLE_RATE)
        good = [trimmed(segment, recording.duration) for segment in good]
    ends = {utterance.name: utterance.end or 0.0 for utterance in utterances}
    return Checked(recording, good, [s.id for s in good if ends[s.id] - s.end > 0.001], left_out)


def supervision_of(utterance: Utterance, recording: Recording, needs_text: bool, resample: bool) -> SupervisionSegment:
    """The supervision of an utterance, trimmed to its recording; raises Unusable with what is wrong with it."""
    channel = channel_of(utterance, recording.num_channels)
    check_rate(recording.sampling_rate, resample)
    seconds = recording.duration
    end = seconds if utterance.end is None else utterance.end
    segment = trimmed(SupervisionSegment(
        utterance.name, recording.id, utterance.start, round(end - utterance.start, 8),
        channel=channel, text=utterance.text, speaker=utterance.speaker,
        **utterance.more,
    ), seconds)  # fmt: skip
    if segment.start < 0:
        raise Unusable(f"begins before its recording: {segment.start:g} s")
    if segment.end > seconds + 1e-6:
        raise Unusable(f"beyond its recording: {segment.start:g} to {segment.end:g} s of {seconds:g} s")
    if not SECONDS[0] <= segment.duration <= SECONDS[1]:
        raise Unusable(f"duration outside {SECONDS[0]} to {SECONDS[1]} s: {segment.duration:.2f} s")
    if needs_text and not normalise(segment.text or ""):
        raise Unusable("empty text")
    return segment


def channel_of(utterance: Utterance, channels: int) -> int:
    """The channel of an utterance, counted from 0; raises Unusable where its recording does not have it."""
    channel = utterance.channel
    if channels == 1 and channel in (None, 0, 1):  # tables count from 0 or from 1
        return 0
    if channel is None:
        raise Unusable(SEVERAL_CHANNELS.format(channels))
    if not 0 <= channel < channels:
        raise Unusable(f"no such channel: {channel}, the recording has {channels} (counted from 0)")
    return channel


def check_rate(rate: int, resample: bool) -> None:
    """Raises Unusable for a rate other than 16 kHz, unless it is to be converted and can be in bounded time."""
    if rate == SAMPLE_RATE:
        return
    if not resample:
        raise Unusable(f"wrong sampling rate: {rate} Hz, expected {SAMPLE_RATE} Hz; --resample true converts it")
    if not convertible(rate):
        raise Unusable(f"wrong sampling rate: {rate} Hz cannot be converted to {SAMPLE_RATE} Hz; resample it to that")


def trimmed(segment: SupervisionSegment, seconds: float) -> SupervisionSegment:
    """The supervision, ended with its recording of `seconds` where it ends no more than `OVERSHOOT` later."""
    over = segment.end - seconds
    return replace(segment, duration=round(seconds - segment.start, 8)) if 0 < over <= OVERSHOOT else segment


def _warn_of_durations(recordings: Iterable[Recording], stated: Mapping[str, tuple[float, str]]) -> None:
    """Logs durations in a table that differ from their audio, whose own are used."""
    wrong = [place for recording in recordings for seconds, place in (stated.get(recording.id, (None, "")),)
             if seconds is not None and not abs(seconds - recording.duration) <= 0.1]  # fmt: skip
    if wrong:
        log.warning("%d durations differ from their audio, which counts: %s", len(wrong), first_few(wrong))


def write_cut_sets(manifests: Path, corpus: str, roles: Roles, folder: Path, seed: int = 42) -> dict[str, float]:
    """Writes one cut set a role, `<role>.jsonl.gz`; returns the hours of each.

    One supervision a cut, cuts named after their utterance, or `<utterance>-<role>` where an earlier set has another
    cut of that name: sets can be joined. Test sets may share cuts. Unlabelled cuts carry no text; the true text, where
    known, goes to `supervision.custom["reference"]`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hours = {}
    taken: dict[str, MonoCut] = {}
    trained_on: set[str] = set()

    def cuts_of(*parts: str) -> list[MonoCut]:
        return [cut for part in parts for cut in utterance_cuts(read_manifest(manifests, corpus, part))]

    for name, parts in roles.by_name().items():
        cuts = cuts_of(*parts)
        if name == "labelled":
            for part, factors in roles.speeds.items():
                cuts += [cut.perturb_speed(factor) for factor in factors for cut in cuts_of(part)]
        if name == "unlabelled":
            labelled = cuts_of(*roles.labelled) if roles.hidden_share else []
            cuts = [
                *map(hide_text, cuts),
                *map(hide_text, _sample(labelled, round(roles.hidden_share * len(labelled)), seed)),
            ]
        cuts = _sample(_distinct(cuts, name, taken, name in roles.tests), roles.limit(name), seed)
        if name in ("labelled", "unlabelled"):
            trained_on |= set(map(_audio_of, cuts))
        elif seen := [cut.id for cut in cuts if _audio_of(cut) in trained_on]:
            log.warning("%s: %d utterances are of recordings that are trained on: %s", name, len(seen), first_few(seen))
        hours[name] = write_cuts(cuts, folder / f"{name}.jsonl.gz")
        log.info("%s: %d utterances, %.2f h", name, len(cuts), hours[name])
    return hours


def utterance_cuts(manifest: Manifest) -> list[MonoCut]:
    """One cut per supervision, named after it, sorted by name, so that no order depends on the file system."""
    recordings = {recording.id: recording for recording in manifest.recordings}
    return [
        MonoCut(s.id, s.start, s.duration, s.channel, [s.with_offset(-s.start)], recording=recordings[s.recording_id])
        for s in sorted(manifest.supervisions, key=lambda segment: segment.id)
    ]


def hide_text(cut: MonoCut) -> MonoCut:
    """The cut without its text, which moves to the supervision's custom field `reference`."""
    segment = cut.supervisions[0]
    custom = dict(segment.custom or {}) | ({"reference": segment.text} if segment.text else {})
    return replace(cut, supervisions=[replace(segment, text=None, custom=custom or None)])


def _distinct(cuts: list[MonoCut], role: str, taken: dict[str, MonoCut], may_share: bool) -> list[MonoCut]:
    """The cuts under names that no other cut has; adds them to `taken`, by name; may_share: equal cuts may have one."""
    distinct, renamed = [], []
    for cut in cuts:
        name = cut.id
        while name in taken and not (may_share and taken[name] == cut):
            name = f"{name}-{role}"
        taken[name] = cut
        renamed += [name] if name != cut.id else []
        distinct.append(cut.with_id(name))
    if renamed:
        log.warning(
            "%s: %d utterances have the name of another; their cuts: %s", role, len(renamed), first_few(renamed)
        )
    return distinct


def _audio_of(cut: MonoCut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording else ""


def _sample(cuts: list[MonoCut], count: int | None, seed: int) -> list[MonoCut]:
    """`count` of the cuts, or all, in the same order."""
    if count is None or count >= len(cuts):
        return cuts
    return [cuts[i] for i in sorted(random.Random(seed).sample(range(len(cuts)), count))]


def store(items: RecordingSet | SupervisionSet, path: Path) -> None:
    """Writes lhotse's items as it does, but the same bytes for the same items: no time, no name."""
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", COMPRESSION, raw, mtime=0) as file,
    ):
        for item in items.to_dicts():
            file.write((json.dumps(item, ensure_ascii=False) + "\n").encode())
