"""Manifests on disk, and the cut sets that training and decoding read."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import MonoCut

from .layout import Roles
from .manifests import Manifest, Skipped, check_manifest, some

log = logging.getLogger(__name__)


def write_manifests(
    parts: Mapping[str, Manifest],
    roles: Roles,
    folder: Path,
    corpus: str,
    skipped: Skipped,
    jobs: int = 2,
    resample: bool = False,
) -> None:
    """Checks every part and writes `<corpus>_recordings_<part>.jsonl.gz`, supervisions and skipped.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    unlabelled = set(roles.unlabelled)
    try:
        for part in roles.parts:
            needs_text = part not in unlabelled
            manifest = check_manifest(part, parts[part], skipped, needs_text=needs_text, resample=resample, jobs=jobs)
            _store(manifest.recordings, folder / f"{corpus}_recordings_{part}.jsonl.gz")
            _store(manifest.supervisions, folder / f"{corpus}_supervisions_{part}.jsonl.gz")
    finally:
        skipped.write(folder / "skipped.tsv")


def read_manifest(folder: Path, corpus: str, part: str) -> Manifest:
    """One part as `write_manifests` left it."""
    return Manifest(
        RecordingSet.from_file(folder / f"{corpus}_recordings_{part}.jsonl.gz").to_eager(),
        SupervisionSet.from_file(folder / f"{corpus}_supervisions_{part}.jsonl.gz").to_eager(),
    )


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
    for name, parts in roles.by_name().items():
        cuts = [cut for part in parts for cut in utterance_cuts(read_manifest(manifests, corpus, part))]
        if name == "labelled":
            cuts += _at_other_speeds(manifests, corpus, roles)
        if name == "unlabelled":
            cuts = [hide_text(cut) for cut in cuts] + _hidden_share(manifests, corpus, roles, seed)
        cuts = _sample(_distinct(cuts, name, taken, name in roles.tests), roles.limit(name), seed)
        if name in ("labelled", "unlabelled"):
            trained_on |= set(map(_audio_of, cuts))
        elif seen := [cut.id for cut in cuts if _audio_of(cut) in trained_on]:
            log.warning("%s: %d utterances are of recordings that are trained on: %s", name, len(seen), some(seen))
        hours[name] = sum(cut.duration for cut in cuts) / 3600
        _store(CutSet.from_cuts(cuts), folder / f"{name}.jsonl.gz")
        log.info("%s: %d utterances, %.2f h", name, len(cuts), hours[name])
    return hours


def utterance_cuts(manifest: Manifest) -> list[MonoCut]:
    """One cut for each supervision, named after it, in the order of names: the file system has another everywhere."""
    recordings = {recording.id: recording for recording in manifest.recordings}
    return [
        MonoCut(s.id, s.start, s.duration, s.channel, [s.with_offset(-s.start)], recording=recordings[s.recording_id])
        for s in sorted(manifest.supervisions, key=lambda segment: segment.id)
    ]


def _distinct(cuts: list[MonoCut], role: str, taken: dict[str, MonoCut], may_share: bool) -> list[MonoCut]:
    """The cuts under names that no other cut has, `taken` by name grows by them; may_share: equal cuts may have one."""
    distinct, renamed = [], []
    for cut in cuts:
        name = cut.id
        while name in taken and not (may_share and taken[name] == cut):
            name = f"{name}-{role}"
        taken[name] = cut
        renamed += [name] if name != cut.id else []
        distinct.append(cut.with_id(name))
    if renamed:
        log.warning("%s: %d utterances have the name of another; their cuts: %s", role, len(renamed), some(renamed))
    return distinct


def _audio_of(cut: MonoCut) -> str:
    return str(cut.recording.sources[0].source) if cut.recording else ""


def hide_text(cut: MonoCut) -> MonoCut:
    """The cut without its text, which moves to the supervision's custom field `reference`."""
    segment = cut.supervisions[0]
    custom = dict(segment.custom or {})
    if segment.text:
        custom["reference"] = segment.text
    hidden = replace(segment, text=None, custom=custom or None)
    return replace(cut, supervisions=[hidden])


def _hidden_share(manifests: Path, corpus: str, roles: Roles, seed: int) -> list[MonoCut]:
    if not roles.hidden_share:
        return []
    cuts = [cut for part in roles.labelled for cut in utterance_cuts(read_manifest(manifests, corpus, part))]
    chosen = _sample(cuts, round(roles.hidden_share * len(cuts)), seed)
    return [hide_text(cut) for cut in chosen]


def _at_other_speeds(manifests: Path, corpus: str, roles: Roles) -> list[MonoCut]:
    return [
        cut.perturb_speed(factor)
        for part, factors in roles.speeds.items()
        for factor in factors
        for cut in utterance_cuts(read_manifest(manifests, corpus, part))
    ]


def _sample(cuts: list[MonoCut], count: int | None, seed: int) -> list[MonoCut]:
    """`count` of the cuts, or all, in the same order."""
    if count is None or count >= len(cuts):
        return cuts
    return [cuts[i] for i in sorted(random.Random(seed).sample(range(len(cuts)), count))]


def _store(items: CutSet | RecordingSet | SupervisionSet, path: Path) -> None:
    temporary = path.with_name(f"tmp-{path.name}")
    items.to_file(temporary)
    os.replace(temporary, path)
