"""Manifests on disk, and the cut sets that training and decoding read."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from lhotse import CutSet, RecordingSet, SupervisionSet
from lhotse.cut import Cut, MonoCut

from .checks import Manifest, Skipped, check_manifest
from .layout import Roles

log = logging.getLogger(__name__)


def write_manifests(
    parts: Mapping[str, Manifest], roles: Roles, folder: Path, corpus: str, skipped: Skipped, jobs: int = 2
) -> None:
    """Checks every part and writes `<corpus>_recordings_<part>.jsonl.gz`, supervisions and skipped.tsv."""
    folder.mkdir(parents=True, exist_ok=True)
    unlabelled = set(roles.unlabelled)
    try:
        for part in roles.parts:
            manifest = check_manifest(part, parts[part], skipped, needs_text=part not in unlabelled, jobs=jobs)
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

    One supervision a cut, cuts named after their utterance. Unlabelled cuts carry no text; the true
    text, where known, goes to `supervision.custom["reference"]`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    hours = {}
    for name, parts in roles.by_name().items():
        cuts = [cut for part in parts for cut in utterance_cuts(read_manifest(manifests, corpus, part))]
        if name == "labelled":
            cuts += _at_other_speeds(manifests, corpus, roles)
        if name == "unlabelled":
            cuts = [hide_text(cut) for cut in cuts] + _hidden_share(manifests, corpus, roles, seed)
        cuts = _sample(cuts, roles.limit(name), seed)
        hours[name] = sum(cut.duration for cut in cuts) / 3600
        _store(CutSet.from_cuts(cuts), folder / f"{name}.jsonl.gz")
        log.info("%s: %d utterances, %.2f h", name, len(cuts), hours[name])
    return hours


def utterance_cuts(manifest: Manifest) -> list[MonoCut]:
    """One cut for each supervision, named after it."""
    cuts = CutSet.from_manifests(manifest.recordings, manifest.supervisions)
    single = cuts.trim_to_supervisions(keep_overlapping=False)
    return [cut.with_id(cut.supervisions[0].id) for cut in _ordered(single)]


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
    # Another name, so that both sets can be joined.
    return [hide_text(cut).with_id(f"{cut.id}-unlabelled") for cut in chosen]


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


def _ordered(cuts: Iterable[Cut]) -> list[MonoCut]:
    # Manifests follow the order of the file system; ours must be the same everywhere.
    return sorted((cut for cut in cuts if isinstance(cut, MonoCut)), key=lambda cut: cut.supervisions[0].id)


def _store(items: CutSet | RecordingSet | SupervisionSet, path: Path) -> None:
    temporary = path.with_name(f"tmp-{path.name}")
    items.to_file(temporary)
    os.replace(temporary, path)
