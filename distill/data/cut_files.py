"""Stored lhotse cuts, read field by field: nothing in them is opened, fetched or run before it has been checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lhotse.audio import AudioSource

from distill.text import read_lines

from .audio import Unusable
from .kaldi import COMMANDS
from .manifests import Manifest, at
from .utterances import TOLERANCE, Source, Utterance, manifest_of


def prepare_cuts(path: Path | str, *, needs_text: bool = True, allow_commands: bool = False, jobs: int = 2) -> Manifest:
    """Recordings and supervisions of lhotse cuts, one utterance for each supervision.

    Relative paths are looked for beside the file, then where the process runs. Raises ValueError for what is no JSON
    or a command that may not run, with file and line; what is wrong with one cut is noted in `left_out`.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected lhotse cuts")
    sources: dict[str, Source] = {}
    utterances: list[Utterance] = []
    left_out: list[tuple[str, str]] = []
    number = 0
    for number, row in _rows(path):
        place = f"{path.name}:{number}"
        if _has_half_signs(row):
            left_out.append((f"line {number}", f"half a character: a lone \\ud800 to \\udfff is no text ({place})"))
            continue
        try:
            recording, channel = _add_source(row, sources, path, place, allow_commands)
            cut = Stretch(recording, channel, _number(row, "start", place), _number(row, "duration", place))
            segments = _objects(row, "supervisions", place)
        except Unusable as error:
            left_out.append((_name(row, number), str(error)))
            continue
        for segment in segments:
            try:
                utterances.append(_utterance(segment, cut, place, needs_text))
            except Unusable as error:
                left_out.append((str(segment.get("id") or _name(row, number)), str(error)))
    if not number:
        raise ValueError(f"{path} is empty; expected cuts with recordings and supervisions, made with lhotse")
    return manifest_of(sources, utterances, left_out, jobs)


class Stretch(NamedTuple):
    """The part of a recording that a cut is made of."""

    recording: str
    channel: int
    start: float
    duration: float


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and JSON objects of a file; ValueError for anything else."""
    number = 0
    try:
        for number, line in enumerate(read_lines(path), 1):
            if not line.removeprefix("\ufeff").strip():
                continue
            row = json.loads(line.removeprefix("\ufeff"))
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path}:{number}: not a cut but a {type(row).__name__}; expected one lhotse cut a line"
                )
            yield number, row
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not JSON ({error}); expected one lhotse cut a line") from None


def _has_half_signs(value: Any) -> bool:
    """Whether JSON's escapes have made text that no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _name(row: Mapping[str, Any], number: int) -> str:
    return str(row.get("id") or f"line {number}")


def _add_source(
    row: Mapping[str, Any], sources: dict[str, Source], path: Path, place: str, allow_commands: bool
) -> tuple[str, int]:
    """Notes the audio of a cut in `sources`; returns the recording's name there, and the channel of its file."""
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
    audio = _audio(fitting[0], path, place, allow_commands)
    channels = fitting[0]["channels"]
    known = sources.setdefault(name, Source(audio, place, _number(recording, "duration", place), len(channels)))
    if known.audio != audio:
        raise Unusable(f"duplicate recording: {name} is another file at {known.place} ({place})")
    return name, channels.index(channel)


def _audio(source: Mapping[str, Any], path: Path, place: str, allow_commands: bool) -> AudioSource:
    kind, value = source.get("type"), source.get("source")
    if not isinstance(value, str):
        raise Unusable(f"not an audio file: {type(value).__name__}, expected a path ({place})")
    if kind == "command" and not allow_commands:
        raise ValueError(f"{path}:{place.rpartition(':')[2]}: a command, {value!r}; {COMMANDS}")
    if kind not in ("file", "command") or (kind == "file" and "://" in value):
        raise Unusable(f"not an audio file: {kind} {value[:80]}, expected a file ({place})")
    if kind == "file":
        beside = path.parent / value
        value = str(beside) if "\0" not in value and os.path.lexists(beside) else os.path.abspath(value)
    return AudioSource(kind, [0], value)


def _objects(row: Mapping[str, Any], key: str, place: str) -> list[dict[str, Any]]:
    """The objects of a list that must not be empty."""
    found = row.get(key)
    if not isinstance(found, list) or not found or not all(isinstance(item, dict) for item in found):
        raise Unusable(
            at("no supervision", place) if key == "supervisions" else f"no {key}: expected a list of objects ({place})"
        )
    return found


def _number(row: Mapping[str, Any], key: str, place: str) -> float:
    value = row.get(key)
    try:
        number = math.nan if isinstance(value, bool | str | None) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Unusable(f"not a number of seconds: {key} is {value!r} ({place})")
    return number


def _utterance(segment: Mapping[str, Any], cut: Stretch, place: str, needs_text: bool) -> Utterance:
    """A supervision as an utterance of the recording; raises Unusable where it does not fit its cut."""
    name, text, speaker = (segment.get(key) for key in ("id", "text", "speaker"))
    if not isinstance(name, str) or not name:
        raise Unusable(f"no id: a supervision has {name!r} ({place})")
    if not isinstance(text, str | None):
        raise Unusable(f"wrong text: {text!r}, expected a string ({place})")
    if needs_text and not text:
        raise Unusable(at("empty text", place))
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
    """The custom fields that are plain values: others may name files, or commands, that lhotse would open."""
    items = custom.items() if isinstance(custom, dict) else ()
    return {key: value for key, value in items if isinstance(value, str | int | float)}
