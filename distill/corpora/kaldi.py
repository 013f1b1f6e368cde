"""Kaldi data directories: every table is checked, with file and line, before any audio is opened."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.corpora.listing import COMMANDS, Listing, Source, Unusable, Utterance, at
from distill.text import read_lines

CHANNELS = {"A": 0, "B": 1}
ARCHIVE = re.compile(r"\.(ark|gz|\w+):\d+(\[.*\])?$")


class Table:
    """A table of a data directory: the first field of each line -> the rest of it and its place (folder/file:line).

    Blank lines are passed over, tabs and CRs are blanks. faults: names that cannot be used, with the reason, such as
    two different rows. Raises ValueError for another encoding than UTF-8, with its line.
    """

    def __init__(self, path: Path) -> None:
        self.name, self.exists = f"{path.parent.name}/{path.name}", path.is_file()
        self.rows: dict[str, tuple[str, str]] = {}
        self.faults: dict[str, str] = {}
        if not self.exists and path.exists():
            raise ValueError(f"{path} is not a file; a Kaldi data directory has a table of that name")
        for number, line in enumerate(read_lines(path) if self.exists else (), 1):
            name, *rest = line.removeprefix("\ufeff").split(maxsplit=1) or [""]
            if not name:
                continue
            row = "".join(rest).strip(), f"{self.name}:{number}"
            before, first = self.rows.setdefault(name, row)
            if before != row[0]:
                self.faults[name] = f"duplicate id: {first} and {row[1]} differ"

    def get(self, name: str) -> tuple[str, str]:
        """Value and place of a name, "" and a phrase where it has no line; raises Unusable for a fault."""
        if name in self.faults:
            raise Unusable(self.faults[name])
        return self.rows.get(name, ("", f"no line in {self.name}"))

    def need(self, name: str, kind: str) -> str:
        """The value of a name; raises Unusable where it has none."""
        value, place = self.get(name)
        if not value:
            raise Unusable(f"{kind}: {place}")
        return value


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
        return self.segments if self.segments.exists else self.audio

    def utterance(self, name: str, needs_text: bool) -> Utterance:
        """One of the listed utterances; raises Unusable for what is wrong or missing in any of the tables."""
        rest, place = self.listed.get(name)
        where = _stretch(rest, place) if self.segments.exists else {"recording": name}
        self.audio.get(where["recording"])
        if where["recording"] not in self.audio.rows:
            raise Unusable(f"no recording: {where['recording']} is not in {self.audio.name} ({place})")
        text = self.text.need(name, "empty text") if needs_text else self.text.get(name)[0]
        speaker = self.speakers.need(name, "no speaker") if self.speakers.exists else None
        return Utterance(name, text=text or None, speaker=speaker, place=place, **where)

    def left_over(self) -> list[tuple[str, str]]:
        """Transcripts and recordings that belong to no utterance, with the reason why they are not used."""
        names, used = self.listed.rows, {rest.split(maxsplit=1)[0] for rest, _ in self.listed.rows.values() if rest}
        rows = [(n, at("transcript without audio", p)) for n, (_, p) in self.text.rows.items() if n not in names]
        if self.segments.exists:
            rows += [(n, at("no supervision", p)) for n, (_, p) in self.audio.rows.items() if n not in used]
        return rows


def list_kaldi(folder: Path, *, needs_text: bool = True, allow_commands: bool = False) -> Listing:
    """The listing of a Kaldi data directory: wav.scp, and segments, text, utt2spk, reco2dur where they exist.

    Relative paths are looked for in the directory, then in the folder above it. Raises FileNotFoundError without
    wav.scp, ValueError for text that is not UTF-8 or a command that may not run, with file and line; what is wrong
    with one utterance goes to `left_out`.
    """
    folder = folder.resolve()
    if not (folder / "wav.scp").exists():
        way_out = (
            "is it a Kaldi data directory?" if any(folder.iterdir()) else "it is empty; remove it, or put audio there"
        )
        raise FileNotFoundError(f"{folder} has no wav.scp; {way_out}")
    tables = DataDir(*(Table(folder / name) for name in ("wav.scp", "segments", "text", "utt2spk")))
    if not tables.listed.rows:
        raise ValueError(f"{folder.parent / tables.listed.name} is empty; expected one line per utterance")
    listing = Listing(left_out=tables.left_over())
    for name, (value, place) in tables.audio.rows.items():
        try:
            listing.sources[name] = _source(value, place, folder, allow_commands)
        except Unusable as error:
            tables.audio.faults.setdefault(name, str(error))
    for name in tables.listed.rows:
        try:
            listing.utterances.append(tables.utterance(name, needs_text))
        except Unusable as error:
            listing.left_out.append((name, str(error)))
    for name, (value, place) in Table(folder / "reco2dur").rows.items():
        try:
            listing.durations[name] = float(value), place
        except ValueError:
            listing.durations[name] = math.nan, place
    return listing


def _source(value: str, place: str, folder: Path, allow_commands: bool) -> Source:
    """The audio of a line of wav.scp; raises Unusable for what is none, ValueError for a command that may not run."""
    if value.endswith("|") and allow_commands:
        return Source(value.removesuffix("|").strip(), place, command=True)
    if value.endswith("|") or value.startswith(("|", "pipe:")):
        raise ValueError(f"{folder.parent / place}: a command, {value!r}; {COMMANDS}")
    return Source(str(_located(value, folder, place)), place)


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
