"""Plain folders of audio, with transcripts beside the files, in tables, or without."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.corpora.listing import Listing, Source, Utterance, at
from distill.corpora.tables import read_table, read_transcripts
from distill.text import read_lines

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3")
BESIDE = (".txt", ".lab")
TRANSCRIPTS = (*BESIDE, ".tsv")
COLUMNS = {  # what a table says -> names of its column, those of Common Voice and others
    "audio": ("path", "file", "filename", "audio", "wav"),
    "text": ("text", "transcript", "transcription", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk"),
}


class Transcript(NamedTuple):
    """What is known of an audio file, and where it stands."""

    text: str
    speaker: str | None
    place: str


def list_folder(folder: Path, *, needs_text: bool = True) -> Listing:
    """The listing of a folder of audio files, each an utterance, named after its path below the folder.

    Transcripts are NAME.txt or NAME.lab beside NAME.flac, LibriSpeech's *.trans.txt, or one table *.tsv in the folder.
    The speaker is the table's, else the first folder below. Raises ValueError for several tables, tables without the
    columns, and text that is not UTF-8; what is wrong with one file goes to `left_out`.
    """
    folder, listing = folder.resolve(), Listing()
    audio: dict[Path, list[Path]] = {}
    inside = files_below(folder)
    for path in inside:
        if path.suffix.lower() in AUDIO:
            audio.setdefault(path.with_suffix(""), []).append(path)
    known: dict[Path, list[Transcript]] = {}
    for stem, transcript in _transcripts(folder, inside, audio.keys()):
        known.setdefault(stem, []).append(transcript)
    for stem, paths in audio.items():
        name = "-".join(stem.relative_to(folder).parts)
        found = known.pop(stem, [])
        if len(paths) > 1 or len({transcript.text for transcript in found}) > 1:
            places = [str(p.relative_to(folder)) for p in paths] if len(paths) > 1 else [t.place for t in found]
            listing.left_out.append((name, f"duplicate id: {' and '.join(places)}"))
        elif needs_text and not found:
            beside = " nor ".join(paths[0].with_suffix(suffix).name for suffix in BESIDE)
            listing.left_out.append((name, f"no supervision: no {beside}, and no line in a *.trans.txt or *.tsv"))
        else:
            listing.sources[name] = Source(str(paths[0]))
            listing.utterances.append(_utterance(name, stem.relative_to(folder), found))
    listing.left_out += [(s.name, at("transcript without audio", one.place)) for s, t in known.items() for one in t]
    return listing


def files_below(folder: Path) -> list[Path]:
    """The files in a folder and below, sorted; links to folders are followed, each folder is visited once."""
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
        else:
            seen.add(real)
            folders.sort()
            files += [Path(place, name) for name in names]
    return sorted(files)


def _utterance(name: str, below: Path, found: list[Transcript]) -> Utterance:
    text, speaker, place = found[0] if found else Transcript("", None, "")
    speaker = speaker or (below.parts[0] if len(below.parts) > 1 else None)
    return Utterance(name, name, text=text or None, speaker=speaker, place=place)


def _transcripts(folder: Path, inside: Sequence[Path], audio: Collection[Path]) -> Iterator[tuple[Path, Transcript]]:
    """Path of an audio file without its suffix, and what is known of it."""
    for path in inside:
        place = str(path.relative_to(folder))
        if path.name.endswith(".trans.txt"):
            for number, name, text in read_transcripts(path):
                yield path.with_name(name), Transcript(text, None, f"{place}:{number}")
        elif path.suffix.lower() in BESIDE and path.with_suffix("") in audio:
            yield path.with_suffix(""), Transcript(" ".join(read_lines(path)).strip(), None, place)
    tables = sorted(folder.glob("*.tsv"))
    if len(tables) > 1:
        raise ValueError(
            f"{folder} holds {len(tables)} tables, {tables[0].name} and {tables[1].name} among them; leave the one"
            " with the transcripts there"
        )
    for table in tables:
        yield from _rows(table)


def _rows(table: Path) -> Iterator[tuple[Path, Transcript]]:
    """The rows of a table; audio is looked for beside it, and in clips, where Common Voice has it."""
    rows = read_table(table)
    names = {kind: next((n for n in known if rows and n in rows[0]), None) for kind, known in COLUMNS.items()}
    for kind in ("audio", "text"):
        if names[kind] is None:
            raise ValueError(
                f"{table}: the first line names no column of the {kind}: {' or '.join(COLUMNS[kind])};"
                f" between tabs it has {', '.join(map(repr, rows[0])) if rows else 'no rows'}"
            )
    for number, row in enumerate(rows, 2):
        values = {kind: (row[name] or "").strip() if name else "" for kind, name in names.items()}
        path = table.parent / values["audio"]
        if not path.exists() and (clip := table.parent / "clips" / values["audio"]).exists():
            path = clip
        stem = path.with_suffix("") if path.suffix.lower() in AUDIO else path
        yield stem, Transcript(values["text"], values["speaker"] or None, f"{table.name}:{number}")
