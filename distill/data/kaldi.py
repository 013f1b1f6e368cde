"""Kaldi data directories: every table is checked with file and line before a library reads any of it."""

from __future__ import annotations

import logging
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse.audio import AudioSource

from distill.text import read_lines

from .audio import Unusable
from .layout import check_folder
from .manifests import Manifest, at, some
from .utterances import Source, Utterance, file_source, manifest_of

log = logging.getLogger(__name__)

COMMANDS = "commands that are found in data run only with --allow-commands true"
CHANNELS = {"A": 0, "B": 1}
ARCHIVE = re.compile(r"\.(ark|gz|\w+):\d+(\[.*\])?$")


@dataclass
class Table:
    """A table by the first field of its lines, each with the rest of the line and its place (folder/file:line)."""

    name: str
    there: bool
    rows: dict[str, tuple[str, str]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def get(self, name: str) -> tuple[str, str] | None:
        """The row of a name, None where there is none; raises Unusable for one that is at fault."""
        if name in self.faults:
            raise Unusable(self.faults[name])
        return self.rows.get(name)


def read_table(path: Path) -> Table:
    """A table of a data directory, empty where there is none; blank lines are passed over, tabs and CRs are blanks.

    A name with two different rows is a fault of that name. Raises ValueError for what is no UTF-8 text, with its line.
    """
    table = Table(f"{path.parent.name}/{path.name}", path.is_file())
    if not table.there:
        if path.exists():
            raise ValueError(f"{path} is not a file; a Kaldi data directory has a table of that name")
        return table
    for number, line in enumerate(read_lines(path), 1):
        name, *rest = line.removeprefix("\ufeff").split(maxsplit=1) or [""]
        if not name:
            continue
        row = "".join(rest).strip(), f"{table.name}:{number}"
        before, first = table.rows.setdefault(name, row)
        if before != row[0]:
            table.faults[name] = f"duplicate id: {first} and {row[1]} differ"
    return table


@dataclass(frozen=True)
class DataDir:
    """The tables of a data directory."""

    audio: Table
    segments: Table
    text: Table
    speakers: Table

    @property
    def listed(self) -> Table:
        """The table that lists the utterances."""
        return self.segments if self.segments.there else self.audio

    def utterance(self, name: str, needs_text: bool) -> Utterance:
        """One of the listed utterances; raises Unusable for what is wrong or missing in any of the tables."""
        rest, place = self.listed.get(name) or ("", "")
        where = _stretch(rest, place) if self.segments.there else {"recording": name}
        if self.audio.get(where["recording"]) is None:
            raise Unusable(f"no recording: {where['recording']} is not in {self.audio.name} ({place})")
        text = self._text(name) if needs_text else (self.text.get(name) or ("", ""))[0]
        return Utterance(name, text=text or None, speaker=self._speaker(name), place=place, **where)

    def _text(self, name: str) -> str:
        text, place = self.text.get(name) or ("", f"no line in {self.text.name}")
        if not text:
            raise Unusable(f"empty text: {place}")
        return text

    def _speaker(self, name: str) -> str | None:
        if not self.speakers.there:
            return None
        speaker, place = self.speakers.get(name) or ("", f"no line in {self.speakers.name}")
        if not speaker:
            raise Unusable(f"no speaker: {place}")
        return speaker

    def left_over(self) -> list[tuple[str, str]]:
        """Transcripts and recordings that belong to no utterance, with the reason why they are not used."""
        names, used = self.listed.rows, {rest.split(maxsplit=1)[0] for rest, _ in self.listed.rows.values() if rest}
        rows = [(n, at("transcript without audio", p)) for n, (_, p) in self.text.rows.items() if n not in names]
        if self.segments.there:
            rows += [(n, at("no supervision", p)) for n, (_, p) in self.audio.rows.items() if n not in used]
        return rows


def prepare_kaldi(
    data_dir: Path | str, *, needs_text: bool = True, allow_commands: bool = False, jobs: int = 2
) -> Manifest:
    """Recordings and supervisions of a Kaldi data directory: wav.scp, and segments, text, utt2spk where there are any.

    Relative paths are looked for in the directory, then in the folder above it. Raises FileNotFoundError without
    wav.scp, ValueError for text that is not UTF-8 or a command that may not run, with file and line; what is wrong
    with one utterance is noted in the manifest's `left_out`.
    """
    folder = check_folder(Path(data_dir), "expected a Kaldi data directory with wav.scp").resolve()
    if not (folder / "wav.scp").exists():
        raise FileNotFoundError(f"{folder} holds no wav.scp; is it a Kaldi data directory?")
    tables = DataDir(*(read_table(folder / name) for name in ("wav.scp", "segments", "text", "utt2spk")))
    if not tables.listed.rows:
        raise ValueError(f"{folder.parent / tables.listed.name} is empty; expected a line for each utterance")
    sources = _sources(tables.audio, folder, allow_commands)
    utterances, left_out = [], tables.left_over()
    for name in tables.listed.rows:
        try:
            utterances.append(tables.utterance(name, needs_text))
        except Unusable as error:
            left_out.append((name, str(error)))
    manifest = manifest_of(sources, utterances, left_out, jobs)
    _compare_durations(manifest, read_table(folder / "reco2dur"))
    return manifest


def _sources(audio: Table, folder: Path, allow_commands: bool) -> dict[str, Source]:
    """Where the audio of each recording is; what is none becomes a fault of its row."""
    sources = {}
    for name, (value, place) in audio.rows.items():
        try:
            if value.endswith("|") and allow_commands:
                sources[name] = Source(AudioSource("command", [0], value.removesuffix("|").strip()), place)
            elif value.endswith("|") or value.startswith(("|", "pipe:")):
                raise ValueError(f"{folder.parent / place}: a command, {value!r}; {COMMANDS}")
            else:
                sources[name] = file_source(_located(value, folder, place), place)
        except Unusable as error:
            audio.faults.setdefault(name, str(error))
    return sources


def _located(value: str, folder: Path, place: str) -> Path:
    """An audio file, looked for in the data directory and above it; raises Unusable for what is no path."""
    for base in (folder, folder.parent):
        if "\0" not in value and os.path.lexists(base / value) and value not in ("", "."):
            return base / value
    if not value:
        raise Unusable(at("no path", place))
    if value == "-" or "://" in value or ARCHIVE.search(value):
        raise Unusable(f"not an audio file: {value}, expected a path; copy the audio to a file ({place})")
    where = "" if os.path.isabs(value) else f" in {folder.name} or above"
    raise Unusable(f"no such file: {value}{where} ({place})")


def _stretch(rest: str, place: str) -> dict[str, Any]:
    """Recording, start, end and channel of a line of segments, without the utterance's name."""
    fields = rest.split()
    if len(fields) not in (3, 4):
        raise Unusable(f"wrong segment: expected 'UTTERANCE RECORDING START END [CHANNEL]', got {rest!r} ({place})")
    start, end = (_seconds(value, place) for value in fields[1:3])
    if start < 0:
        raise Unusable(f"begins before its recording: {start:g} s ({place})")
    if end <= start and end != -1:  # Kaldi's way to write the recording's end
        raise Unusable(f"ends before it begins: {start:g} to {end:g} s ({place})")
    channel = fields[3] if len(fields) == 4 else None
    if channel is not None and not (channel in CHANNELS or (channel.isascii() and channel.isdigit())):
        raise Unusable(f"no such channel: {channel}, expected 0, 1, A or B ({place})")
    return {
        "recording": fields[0],
        "start": start,
        "end": None if end == -1 else end,
        "channel": None if channel is None else CHANNELS[channel] if channel in CHANNELS else int(channel),
    }


def _seconds(value: str, place: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise Unusable(f"not a number of seconds: {value} ({place})")
    return seconds


def _compare_durations(manifest: Manifest, table: Table) -> None:
    """Durations are taken from the audio; a table that says otherwise is worth a warning."""
    wrong = []
    for recording in manifest.recordings:
        value, place = table.rows.get(recording.id, ("", ""))
        if value:
            try:
                wrong += [place] if abs(_seconds(value, place) - recording.duration) > 0.1 else []
            except Unusable:
                wrong.append(place)
    if wrong:
        log.warning("%d durations differ from their audio, which is what counts: %s", len(wrong), some(wrong))
