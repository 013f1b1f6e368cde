"""Stored lhotse cuts, read field by field: no audio is opened, fetched or run before it has been checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distill.corpora.listing import COMMANDS, TOLERANCE, Listing, Source, Unusable, Utterance, at
from distill.corpora.objects import is_remote
from distill.text import read_lines


class Stretch(NamedTuple):
    """The part of a recording that a cut is made of."""

    recording: str
    channel: int
    start: float
    duration: float


def list_cuts(path: Path, *, needs_text: bool = True, allow_commands: bool = False) -> Listing:
    """The listing of lhotse cuts, one utterance per supervision; without any a whole cut, where no text is needed.

    Relative paths are looked for beside the file, then where the process runs. Raises ValueError for what is no JSON
    or a command that may not run, with file and line; what is wrong with one cut goes to `left_out`.
    """
    listing = Listing()
    read_cuts(path, listing, needs_text=needs_text, allow_commands=allow_commands)
    return listing


def read_cuts(
    path: Path,
    listing: Listing,
    filled: Callable[[dict[str, Any], str], dict[str, Any]] = lambda row, place: row,
    *,
    needs_text: bool = True,
    allow_commands: bool = False,
) -> None:
    """As `list_cuts`, into a listing; each row is first `filled`, which has its place and may raise Unusable."""
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected lhotse cuts")
    number = 0
    for number, row in _rows(path):
        name, place = str(row.get("id") or f"line {number}"), f"{path.name}:{number}"
        try:
            if not _is_text(row):
                name = f"line {number}"
                raise Unusable(f"half a character: a lone \\ud800 to \\udfff is no text ({place})")
            row = filled(row, place)
            cut = _stretch(row, listing.sources, path, place, allow_commands)
            if row.get("supervisions") or needs_text:
                segments = _objects(row, "supervisions", place)
            else:
                segments = [{"id": name, "start": 0.0, "duration": cut.duration}]
        except Unusable as error:
            listing.left_out.append((name, str(error)))
            continue
        for segment in segments:
            try:
                listing.utterances.append(_utterance(segment, cut, place))
            except Unusable as error:
                listing.left_out.append((str(segment.get("id") or name), str(error)))
    if not number:
        raise ValueError(f"{path} is empty; expected cuts with recordings and supervisions, made with lhotse")


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and JSON objects of a file; ValueError for anything else."""
    number = 0
    try:
        for number, line in enumerate(read_lines(path), 1):
            text = line.removeprefix("\ufeff")
            if not text.strip():
                continue
            row = json.loads(text)
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}:{number}: not a cut but a {type(row).__name__}; expected one lhotse cut a line"
                )
            yield number, row
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not JSON ({error}); expected one lhotse cut a line") from None


def _is_text(value: Any) -> bool:
    """False where JSON's escapes make strings that no UTF-8 file can store."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _stretch(
    row: Mapping[str, Any], sources: dict[str, Source], path: Path, place: str, allow_commands: bool
) -> Stretch:
    """The part of a recording that a cut is made of; adds the recording's audio to `sources`."""
    if row.get("type", "MonoCut") != "MonoCut":
        raise Unusable(f"not a cut of one recording: {row['type']}, expected MonoCut ({place})")
    recording, channel = row.get("recording"), row.get("channel", 0)
    if not isinstance(recording, dict) or not isinstance(recording.get("id"), str):
        raise Unusable(f"no recording: expected a recording with its id and sources ({place})")
    if any(not isinstance(t, dict) or t.get("name") != "Resample" for t in recording.get("transforms") or ()):
        raise Unusable(f"transformed audio: save it to files first, with CutSet.save_audios ({place})")
    among = _objects(recording, "sources", place)
    fitting = [s for s in among if isinstance(s.get("channels"), list) and channel in s["channels"]]
    if not fitting:
        raise Unusable(f"no such channel: {channel!r}, no source of the recording has it ({place})")
    name = recording["id"] if len(among) == 1 else f"{recording['id']}-{channel}"
    value, command = _audio(fitting[0], path, place, allow_commands)
    channels = fitting[0]["channels"]
    source = Source(value, place, command, _number(recording, "duration", place), len(channels))
    known = sources.setdefault(name, source)
    if (known.value, known.command) != (value, command):
        raise Unusable(f"duplicate recording: {name} is another file at {known.place} ({place})")
    return Stretch(name, channels.index(channel), _number(row, "start", place), _number(row, "duration", place))


def _audio(source: Mapping[str, Any], path: Path, place: str, allow_commands: bool) -> tuple[str, bool]:
    """The file, address or command of a source, and whether it is a command."""
    kind, value = source.get("type"), source.get("source")
    if not isinstance(value, str):
        raise Unusable(f"not an audio file: {type(value).__name__}, expected a path ({place})")
    if kind == "command" and not allow_commands:
        raise ValueError(f"{path}:{place.rpartition(':')[2]}: a command, {value!r}; {COMMANDS}")
    fitting = {"file": "://" not in value, "url": is_remote(value), "command": True}
    if not fitting.get(str(kind)):
        raise Unusable(f"not an audio file: {kind} {value[:80]}, expected a file, or a url of s3, gs or http ({place})")
    if kind == "file":
        beside = path.parent / value
        value = str(beside) if "\0" not in value and os.path.lexists(beside) else os.path.abspath(value)
    return value, kind == "command"


def _objects(row: Mapping[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    """The objects of a list that must not be empty."""
    objects = row.get(key)
    if not isinstance(objects, list) or not objects or not all(isinstance(item, dict) for item in objects):
        raise Unusable(
            at("no supervision", place) if key == "supervisions" else f"no {key}: expected a list of objects ({place})"
        )
    return objects


def _number(row: Mapping[str, Any], key: str, place: str) -> float:
    value = row.get(key)
    try:
        number = math.nan if isinstance(value, bool | str | None) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"not a number of seconds: {key} is {value!r} ({place})")
    return number


def _utterance(segment: Mapping[str, Any], cut: Stretch, place: str) -> Utterance:
    """The utterance of a supervision; raises Unusable where it does not fit its cut."""
    name, text, speaker = (segment.get(key) for key in ("id", "text", "speaker"))
    if not isinstance(name, str) or not name:
        raise Unusable(f"no id: a supervision has {name!r} ({place})")
    if not isinstance(text, str | None):
        raise Unusable(f"wrong text: {text!r}, expected a string ({place})")
    start, duration = _number(segment, "start", place), _number(segment, "duration", place)
    if cut.start < 0:
        raise Unusable(f"begins before its recording: {cut.start:g} s ({place})")
    if duration <= 0:
        raise Unusable(f"ends before it begins: {duration:g} s long ({place})")
    if start < -TOLERANCE or start + duration > cut.duration + TOLERANCE:
        raise Unusable(f"outside its cut: {start:g} to {start + duration:g} s of {cut.duration:g} s ({place})")
    begin = round(max(0.0, cut.start + start), 8)
    more = {"custom": custom} if (custom := _plain(segment.get("custom"))) else {}
    speaker = None if speaker is None else str(speaker)
    return Utterance(name, cut.recording, begin, round(begin + duration, 8), cut.channel, text, speaker, place, more)


def _plain(custom: Any) -> dict[str, Any]:
    """The custom fields that are plain values: others may name files or commands, which lhotse would open."""
    items = custom.items() if isinstance(custom, dict) else ()
    return {key: value for key, value in items if isinstance(value, str | int | float)}
