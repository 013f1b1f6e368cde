"""Data of one's own: Kaldi data directories, lhotse cuts and Shar, or folders of audio with or without transcripts."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from distill.config.job import Job
from distill.corpora.audio_folder import AUDIO, TRANSCRIPTS, files_below, list_folder
from distill.corpora.corpus import Corpus, Options, Roles, check_folder, first_file
from distill.corpora.cut_files import list_cuts
from distill.corpora.kaldi import list_kaldi
from distill.corpora.listing import Listing, Source, Unusable, Utterance
from distill.corpora.segmentation import add_cuts, read_segments, segment
from distill.corpora.shar import list_shar, shar_files
from distill.files import write_lines

log = logging.getLogger(__name__)

KALDI_LISTS = re.compile(r"wav\.scp|text|segments|(utt|spk|reco)2\w+")
AUDIO_FILES = re.compile(r'"type": *"file"[^{}]*?"source": *("(?:[^"\\]|\\.)*")')  # in a line of lhotse's cuts
WATCHED = {*AUDIO, *TRANSCRIPTS}
SUFFIXES = ("", ".jsonl.gz", ".jsonl")
SHARE, MOST = 0.1, 1000
"""Share of the labelled utterances, and the most, that dev and test are split off with where they are not given."""
FEWEST_SPEAKERS = 6
"""Where there are fewer, or some are unknown, dev and test are split off by recording, not by speaker."""
LONG = 35.0
"""Seconds beyond which an unlabelled recording without segments is cut where a detector finds speech."""


class Custom(Corpus):
    """The parts labelled, unlabelled, dev and test-*, or the corpus folder itself as one labelled part.

    A part is a Kaldi data directory (`labelled/wav.scp`), a file of cuts (`labelled.jsonl.gz`), a folder of lhotse's
    Shar (`labelled/cuts.000000.jsonl.gz`, `labelled/recording.000000.tar`) or a folder of audio.
    What is not given is made: dev and test split off, the labelled audio as unlabelled, texts and lexicon.
    """

    layout = "custom"

    def __init__(self, root: Path, options: Options | None = None) -> None:
        super().__init__(root, options)
        self.roles = own_roles(root)
        self.text = first_file(root, "lm.txt", "lm.txt.gz")
        self.lexicon = first_file(root, "lexicon.txt", "lexicon.txt.gz")
        self.inputs = files_of_own(root, self.roles.parts)
        self.renders = bool(self.roles.unlabelled)
        self.rendered = files_of_own(root, self.roles.unlabelled)
        if not self.renders:
            log.info("no unlabelled part in %s: the labelled audio serves as such, its text hidden", root)

    def listing(self, part: str) -> Listing:
        """Raises ValueError for a part that is there in two forms; dev and test may be split off the labelled part."""
        if part == "unlabelled":
            return self._cut(self._given(part))
        if part != "labelled" and _forms(self.root, part):
            return self._given(part)
        whole = self._labelled
        if not self.split:
            return whole
        wanted = [utterance for utterance in whole.utterances if self.split[utterance.name] == part]
        return replace(whole, utterances=wanted, left_out=whole.left_out if part == "labelled" else [])

    def _given(self, part: str) -> Listing:
        """The listing of a part as it lies in the corpus folder."""
        needs_text, commands = part not in self.roles.unlabelled, self.options.allow_commands
        if not (forms := _forms(self.root, part)):
            alone = part == "labelled" and not any(_forms(self.root, each) for each in self.roles.parts)
            if alone and (shar_files(self.root) or _is_kaldi(self.root) or _has_audio(self.root)):
                return _list_one(self.root, True, commands)  # the corpus folder itself
            raise FileNotFoundError(
                f"no {part} in {self.root}: expected a folder {part}/ of audio, Kaldi's tables or Shar, lhotse cuts"
                f" {part}.jsonl.gz, or a folder of audio without any parts"
            )
        if len(forms) > 1:
            raise ValueError(f"{self.root} has {' and '.join(p.name for p in forms)}; which of them is meant?")
        if forms[0].name != part:
            return list_cuts(forms[0], needs_text=needs_text, allow_commands=commands)
        return _list_one(forms[0], needs_text, commands)

    @cached_property
    def _labelled(self) -> Listing:
        """The labelled part as it lies there, which every part that is split off is taken from."""
        return self._given("labelled")

    @cached_property
    def split(self) -> Mapping[str, str]:
        """Utterance of the labelled part -> labelled, dev or test-split; empty where both are given."""
        missing = [part for part in (*self.roles.dev, *self.roles.tests) if not _forms(self.root, part)]
        utterances = self._labelled.utterances if missing else []
        return split_off(utterances, missing) if utterances else {}

    def render(self, folder: Path, job: Job | None = None) -> None:
        """Looks for speech in long recordings of the unlabelled part."""
        long = {
            name: source.value for name, source in _wholes(self._given("unlabelled")) if _seconds(source.value) > LONG
        }
        if long:
            segment(long, folder / "unlabelled.jsonl", self.options.jobs, job)

    def _cut(self, listing: Listing) -> Listing:
        """The listing with an utterance for each stretch of speech that was found in its long recordings."""
        found = read_segments(self.options.audio_dir / "unlabelled.jsonl")
        kept = [utterance for utterance in listing.utterances if utterance.recording not in found]
        speakers = {utterance.recording: utterance.speaker for utterance in listing.utterances}
        listing = replace(listing, utterances=kept)
        for name in [name for name in listing.sources if name in found]:
            add_cuts(listing, name, listing.sources[name], found[name], speakers.get(name))
        return listing

    def write_notes(self, folder: Path) -> None:
        """split.tsv: which utterance is in which part, where parts were split off."""
        rows = (f"{name}\t{part}" for name, part in sorted(self.split.items()))
        write_lines(folder / "split.tsv", ["utterance\tpart", *rows] if self.split else [])


def _forms(root: Path, part: str) -> list[Path]:
    """The files and folders of a part's name."""
    return [path for suffix in SUFFIXES if (path := root / f"{part}{suffix}").exists()]


def _list_one(folder: Path, needs_text: bool, commands: bool) -> Listing:
    """A folder of Shar, a Kaldi data directory, or a folder of audio."""
    if shar_files(folder):
        return list_shar(folder, needs_text=needs_text, allow_commands=commands)
    if _is_kaldi(folder) or not _has_audio(folder):
        return list_kaldi(folder, needs_text=needs_text, allow_commands=commands)
    return list_folder(folder, needs_text=needs_text)


def _is_kaldi(folder: Path) -> bool:
    return any(KALDI_LISTS.fullmatch(path.name) for path in folder.glob("*"))


def _has_audio(folder: Path) -> bool:
    return any(path.suffix.lower() in AUDIO for path in files_below(folder))


def _wholes(listing: Listing) -> Iterator[tuple[str, Source]]:
    """Recordings in files that are one utterance as a whole."""
    for utterance in listing.utterances:
        source = listing.sources.get(utterance.recording)
        if source and not source.command and not utterance.start and utterance.end is None:
            yield utterance.recording, source


def _seconds(path: str) -> float:
    """Duration by the header, 0 for what is no audio, which later checks report."""
    from distill.corpora.audio import opened

    try:
        with opened(Source(path)) as file:
            return file.frames / file.samplerate
    except Unusable:
        return 0.0


def split_off(utterances: list[Utterance], parts: list[str]) -> dict[str, str]:
    """Utterance -> part: `SHARE` of them for each of `parts`, whole speakers or recordings, the rest labelled.

    The same for the same utterances, by hashes of the names. Raises ValueError for too few speakers or recordings.
    """
    speakers = {utterance.speaker for utterance in utterances}
    by_speaker = None not in speakers and len(speakers) >= FEWEST_SPEAKERS
    kind = "speaker" if by_speaker else "recording"
    groups = {u.name: (u.speaker or "") if by_speaker else u.recording for u in utterances}
    sizes = Counter(groups.values())
    order = iter(sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).digest()))
    if len(sizes) <= len(parts):
        raise ValueError(
            f"{', '.join(parts)} cannot be split off {len(utterances)} labelled utterances of {len(sizes)} recordings;"
            " give them as folders of their own"
        )
    part_of = dict.fromkeys(sizes, "labelled")
    for number, part in enumerate(parts):
        count, enough = 0, min(MOST, SHARE * len(utterances))
        while count < enough and sum(each == "labelled" for each in part_of.values()) > len(parts) - number:
            group = next(order)
            part_of[group], count = part, count + sizes[group]
    log.info("not given and therefore split off the labelled part, by %s: %s (split.tsv lists them)", kind, ", ".join(
        f"{part} {sum(p == part for p in part_of.values())} {kind}s,"
        f" {sum(sizes[group] for group, p in part_of.items() if p == part)} utterances" for part in parts))  # fmt: skip
    return {name: part_of[group] for name, group in groups.items()}


def own_roles(root: Path) -> Roles:
    """The parts that are given, test-split without a test set; raises FileNotFoundError without the folder."""
    check_folder(root, "give --corpus-dir")
    tests = sorted({
        path.name.removesuffix(".gz").removesuffix(".jsonl")
        for path in root.glob("test-*")
        if path.is_dir() or path.name.endswith(SUFFIXES[1:])
    })  # fmt: skip
    unlabelled = ("unlabelled",) if _forms(root, "unlabelled") else ()
    hidden = 0.0 if unlabelled else 1.0
    return Roles(("labelled",), unlabelled, ("dev",), {name: (name,) for name in tests or ["test-split"]}, hidden)


def files_of_own(root: Path, parts: Sequence[str]) -> tuple[Path, ...]:
    """The tables of Kaldi data directories, cuts, Shar, and the audio files that they name, as far as they exist."""
    files: dict[Path, None] = {}
    for part in parts if _forms(root, "labelled") else ("",):
        cuts = [path for suffix in (".jsonl.gz", ".jsonl") if part and (path := root / f"{part}{suffix}").is_file()]
        tables = [path for path in sorted((root / part).glob("*")) if KALDI_LISTS.fullmatch(path.name)]
        if shar := shar_files(root / part):
            tables = shar
        elif not cuts and not _is_kaldi(root / part):
            tables = [path for path in files_below(root / part) if path.suffix.lower() in WATCHED]
        audio = _audio_of_cuts(cuts[0]) if cuts else _audio_of_kaldi(root / part / "wav.scp")
        files |= dict.fromkeys(path for path in (*(cuts[:1] or tables), *audio) if os.path.isfile(path))
    return tuple(files)


def _audio_of_kaldi(wav_scp: Path) -> Iterator[Path]:
    if not wav_scp.is_file():
        return
    with wav_scp.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            place = "".join(line.split(maxsplit=1)[1:]).strip()
            if not place.endswith("|"):
                yield from (base / place for base in (wav_scp.parent, wav_scp.parents[1]))


def _audio_of_cuts(path: Path) -> Iterator[Path]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", errors="surrogateescape") as lines:
        try:
            for line in lines:
                for source in AUDIO_FILES.findall(line):
                    yield path.parent / json.loads(source)
                    yield Path(json.loads(source)).absolute()
        except (OSError, EOFError, ValueError):
            return  # the listing reports what is wrong with them
