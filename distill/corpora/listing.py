"""Utterances as the tables of a corpus list them, before any audio is opened; the standard library alone."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.files import replacing

log = logging.getLogger(__name__)

COMMANDS = "commands in data run only with --allow-commands true"
TOLERANCE = 0.025
"""Seconds by which a manifest may differ from its audio, as in lhotse."""


class Unusable(ValueError):
    """Why a recording or utterance is left out, as skipped.tsv has it: the kind, a colon, the particulars."""


@dataclass(frozen=True)
class Source:
    """Audio of a recording: a file, or a command that writes it.

    place: file and line that name it. seconds, channels: as the corpus states them, None where it does not.
    """

    value: str
    place: str = ""
    command: bool = False
    seconds: float | None = None
    channels: int | None = None


@dataclass(frozen=True)
class Utterance:
    """One utterance of a recording; `place` is its file and line."""

    name: str
    recording: str
    start: float = 0.0  # seconds
    end: float | None = None  # seconds; None: the recording's end
    channel: int | None = None  # None: of a recording with one channel
    text: str | None = None
    speaker: str | None = None
    place: str = ""
    more: Mapping[str, Any] = field(default_factory=dict)  # other fields of the supervision


@dataclass
class Listing:
    """One part of a corpus: the source of every recording, by name, and the utterances.

    left_out: names of what its tables make unusable, with the reason. durations: seconds of recordings as a table has
    them, with the place; the audio's own count.
    """

    sources: dict[str, Source] = field(default_factory=dict)
    utterances: list[Utterance] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    durations: dict[str, tuple[float, str]] = field(default_factory=dict)

    def by_recording(self) -> dict[str, list[Utterance]]:
        """The utterances of each recording; those of a name that occurs twice go to `left_out`."""
        places: dict[str, list[str]] = {}
        for utterance in self.utterances:
            places.setdefault(utterance.name, []).append(utterance.place)
        self.left_out += [(name, f"duplicate id: {' and '.join(p)}") for name, p in places.items() if len(p) > 1]
        recordings: dict[str, list[Utterance]] = {}
        for utterance in self.utterances:
            if len(places[utterance.name]) == 1:
                recordings.setdefault(utterance.recording, []).append(utterance)
        return recordings


@dataclass
class Skipped:
    """The utterances, recordings and entries that are left out, as rows of part, name and reason."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, part: str, name: str, reason: str) -> None:
        """Adds a row."""
        self.rows.append((part, name, reason))

    def write(self, path: Path) -> None:
        """Writes part, name and reason as a TSV file, and logs how many of each kind."""
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(("part", "name", "reason"))
            writer.writerows(sorted(self.rows))
        for (part, reason), count in sorted(Counter((p, r.split(":")[0]) for p, _, r in self.rows).items()):
            log.warning("%s: %d skipped: %s (see %s)", part, count, reason, path.name)


def at(reason: str, place: str) -> str:
    """A reason with the file and line that it stands for."""
    if not place:
        return reason
    return f"{reason} ({place})" if ":" in reason else f"{reason}: {place}"


def first_few(items: Iterable[object], count: int = 5) -> str:
    """The first items of a list, and how many there are more, for a message."""
    listed = [str(item) for item in items]
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
