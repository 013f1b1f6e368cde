"""Corpora as people have them, made from a seed: in each of three layouts, with faults and what stage 0 must list.

`make` writes one corpus; `spoil_later` spoils audio as it happens after stage 0. `python -m tests.support.bad_corpora
FOLDER --faults 40` writes a corpus of each layout for the whole recipe, with `expected.tsv` beside it: part, name and
kind of everything that must be left out.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from distill.corpora import Corpus, Custom, LibriSpeech
from distill.corpora.corpus import Roles
from distill.corpora.manifests import Checks, write_cut_sets, write_manifests

WORDS = {
    "RED": "R EH D",
    "BLUE": "B L UW",
    "LAMP": "L AE M P",
    "DOOR": "D AO R",
    "OPEN": "OW P AH N",
    "SHUT": "SH AH T",
}
PARTS = ("labelled", "unlabelled", "dev", "test-a")
LIBRISPEECH = {
    "labelled": "train-clean-100", "unlabelled": "train-clean-360", "dev": "dev-clean", "test-a": "test-clean",
}  # fmt: skip
LIBRI_ROLES = Roles(("train-clean-100",), ("train-clean-360",), ("dev-clean",), {"test-a": (LIBRISPEECH["test-a"],)})
LAYOUTS = ("kaldi", "cuts", "librispeech")
SECONDS = 0.4
NOT_UTF8 = b"\xe9\xff"


@dataclass
class Made:
    """A corpus on disk and what must become of it: left out (part, name) -> kind, kept (part, name) -> text.

    error: a pattern of the message that stage 0 must end with, None where it must succeed.
    """

    root: Path
    layout: str
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    kept: dict[tuple[str, str], str] = field(default_factory=dict)
    error: str | None = None


@lru_cache(maxsize=64)
def speech(rate: int = 16000, seconds: float = SECONDS, tone: int = 300) -> np.ndarray:
    """A tone with noise: (N,) in -1..1."""
    time = np.arange(round(rate * seconds)) / rate
    return 0.1 * np.sin(2 * np.pi * tone * time) + np.random.default_rng(tone).uniform(-0.05, 0.05, len(time))


def encoded(samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    """The bytes of an audio file; soundfile would wait for the disk after each that it writes itself."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype=subtype, format=container)
    return buffer.getvalue()


# Faults of audio files: each spoils `path` and returns the kind that must be listed, and the seconds of the header.


def written(samples: np.ndarray, kind: str, rate: int = 16000, subtype: str = "PCM_16") -> Callable:
    """A fault in the content of a file, as WAV whatever its name."""

    def spoil(path: Path) -> tuple[str, float]:
        path.write_bytes(encoded(samples, rate, subtype))
        return kind, len(samples) / rate

    return spoil


def with_sample(value: float) -> np.ndarray:
    """Speech of which one sample is another."""
    samples = speech().copy()
    samples[len(samples) // 2] = value
    return samples


def without_file(path: Path) -> tuple[str, float]:
    path.unlink()
    return "no such file", SECONDS


def replaced(make: Callable[[Path], Any], kind: str) -> Callable:
    """A fault that has something else in the place of the file."""

    def spoil(path: Path) -> tuple[str, float]:
        path.unlink()
        make(path)
        return kind, SECONDS

    return spoil


def cut_off(container: str) -> Callable:
    """A fault that leaves the first part of a file."""

    def spoil(path: Path) -> tuple[str, float]:
        data = encoded(speech(), container=container)
        path.write_bytes(data[: len(data) * 2 // 3])
        return "truncated or unreadable audio", SECONDS

    return spoil


def two_channels(path: Path) -> tuple[str, float]:
    path.write_bytes(encoded(np.stack([np.zeros_like(speech()), speech()], 1)))
    return "several channels", SECONDS


AUDIO_FAULTS: tuple[Callable[[Path], tuple[str, float]], ...] = (
    without_file,
    replaced(lambda path: path.write_bytes(b""), "empty audio"),
    replaced(lambda path: path.write_bytes(b"no audio at all\n" * 40), "truncated or unreadable audio"),
    replaced(lambda path: path.mkdir(), "not a regular file"),
    replaced(os.mkfifo, "not a regular file"),
    replaced(lambda path: path.symlink_to("nowhere.wav"), "no such file"),
    cut_off("WAV"),
    cut_off("FLAC"),
    two_channels,
    written(np.zeros(0), "empty audio"),
    written(np.zeros(6400), "silent audio"),
    written(with_sample(np.nan), "samples are not finite", subtype="FLOAT"),
    written(with_sample(-np.inf), "samples are not finite", subtype="DOUBLE"),
    written(with_sample(1e28), "absurdly loud", subtype="FLOAT"),
    written(32768 * speech(), "absurdly loud", subtype="FLOAT"),
    written(speech(8000), "wrong sampling rate", 8000),
    written(speech(44100), "wrong sampling rate", 44100),
)
LENGTH_FAULTS = (
    written(speech(seconds=0.05), "duration outside 0.1 to 35.0 s"),
    written(speech(seconds=36.0), "duration outside 0.1 to 35.0 s"),
)


def mp3(seconds: float) -> bytes:
    return encoded(speech(seconds=seconds), subtype="MPEG_LAYER_III", container="MP3")


@lru_cache
def ten_minutes() -> bytes:
    return encoded(np.zeros(600 * 16000), container="FLAC")


DIFFERS = "manifest and audio differ"
NOW_DIFFERS = {"several channels", "wrong sampling rate"}  # kinds of stage 0 that are a difference later
LATER_FAULTS = (
    *AUDIO_FAULTS,
    written(speech(seconds=0.01), DIFFERS),
    written(speech(seconds=SECONDS - 0.03), DIFFERS),
    written(speech(seconds=SECONDS + 0.03), DIFFERS),
    replaced(lambda path: path.write_bytes(ten_minutes()), DIFFERS),
    replaced(lambda path: path.write_bytes(mp3(2 * SECONDS)), DIFFERS),
)


def spoil_later(cuts: Iterable[Any], rng: random.Random, count: int) -> dict[str, str]:
    """Spoils the files of `count` of the lhotse cuts, and rewrites another as MP3; kinds by cut id.

    The kinds are those that reading the cut must give.
    """
    *chosen, harmless = rng.sample([cut for cut in cuts if cut.recording.num_channels == 1], count + 1)
    audio_of(harmless).write_bytes(mp3(SECONDS))
    kinds = {}
    for number, cut in enumerate(chosen):
        kind = LATER_FAULTS[number % len(LATER_FAULTS)](audio_of(cut))[0]
        kinds[cut.id] = DIFFERS if kind in NOW_DIFFERS else kind
    return kinds


def audio_of(cut: Any) -> Path:
    """The file of a lhotse cut."""
    return Path(cut.recording.sources[0].source)


def mend(path: Path) -> None:
    """The audio as it was before it was spoilt."""
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    write_audio(path)


def fitting(part: str, faults: Iterable[tuple[str, Callable]]) -> list[tuple[str, Callable]]:
    """The faults that are faults in a part: unlabelled audio needs no text."""
    return [fault for fault in faults if part != "unlabelled" or fault[0] != "empty text"]


# Kaldi data directories


class KaldiDir:
    """The tables of a data directory as lines, first field apart, and where the audio of each utterance is."""

    def __init__(self, folder: Path, texts: dict[str, str], segmented: bool) -> None:
        self.folder, self.segmented = folder, segmented
        self.audio = {name: write_audio(folder / "wav" / f"{name}.wav") for name in texts}
        self.recording = {name: f"rec-{name}" if segmented else name for name in texts}
        self.tables: dict[str, list[tuple[str, str]]] = {
            "wav.scp": [(self.recording[name], f"wav/{name}.wav") for name in texts],
            "text": list(texts.items()),
            "utt2spk": [(name, "ann") for name in texts],
        }
        if segmented:
            self.tables["segments"] = [(name, f"{self.recording[name]} 0.05 0.35") for name in texts]
        self.style = str

    def set(self, table: str, name: str, value: str) -> None:
        """Another value in the row of a name."""
        self.tables[table] = [(key, value if key == name else old) for key, old in self.tables[table]]

    def drop(self, table: str, name: str) -> None:
        self.tables[table] = [row for row in self.tables[table] if row[0] != name]

    def add(self, table: str, name: str, value: str) -> None:
        self.tables.setdefault(table, []).append((name, value))

    def spoil_audio(self, name: str, spoil: Callable) -> str:
        return spoil(self.audio[name])[0]

    def write(self) -> None:
        for table, rows in self.tables.items():
            lines = "".join(f"{name} {value}".rstrip() + "\n" for name, value in rows)
            (self.folder / table).write_bytes(self.style(lines).encode())


def on_row(table: str, value: str, kind: str) -> tuple[str, Callable]:
    """A fault that gives a row another value; {r} stands for the recording."""
    return kind, lambda d, n: d.set(table, d.recording[n] if table == "wav.scp" else n, value.format(r=d.recording[n]))


def on_table(kind: str, change: Callable[[KaldiDir, str], None]) -> tuple[str, Callable]:
    return kind, change


KALDI_FAULTS = (
    on_row("text", "", "empty text"),
    on_row("text", "...", "empty text"),
    on_table("empty text", lambda d, n: d.drop("text", n)),
    on_table("no speaker", lambda d, n: d.drop("utt2spk", n)),
    on_row("utt2spk", "", "no speaker"),
    on_table("duplicate id", lambda d, n: d.add("text", n, "SHUT")),
    on_table("duplicate id", lambda d, n: d.add("utt2spk", n, "bob")),
    on_table("duplicate id", lambda d, n: d.add("wav.scp", d.recording[n], "wav/other.wav")),
    on_row("wav.scp", "", "no path"),
    on_row("wav.scp", "wav/absent.wav", "no such file"),
    on_row("wav.scp", "raw_audio.ark:1024", "not an audio file"),
    on_row("wav.scp", "https://example.org/a.wav", "not an audio file"),
    on_row("wav.scp", "-", "not an audio file"),
    on_row("wav.scp", ".", "no such file"),
)
SEGMENT_FAULTS = (
    on_row("segments", "{r} 0.05", "wrong segment"),
    on_row("segments", "{r} 0.05 0.3 0 0", "wrong segment"),
    on_row("segments", "{r} 0.05 0.3 X", "no such channel"),
    on_row("segments", "{r} 0.05 0.3 5", "no such channel"),
    on_row("segments", "{r} a b", "not a number of seconds"),
    on_row("segments", "{r} 0.0 nan", "not a number of seconds"),
    on_row("segments", "{r} 0.0 inf", "not a number of seconds"),
    on_row("segments", "{r} -0.1 0.3", "begins before its recording"),
    on_row("segments", "{r} 0.3 0.1", "ends before it begins"),
    on_row("segments", "{r} 0.2 0.2", "ends before it begins"),
    on_row("segments", "{r} 5.0 5.3", "beyond its recording"),
    on_row("segments", "{r} 0.1 0.9", "beyond its recording"),
    on_row("segments", "{r} 0.1 0.15", "duration outside 0.1 to 35.0 s"),
    on_table("duplicate id", lambda d, n: d.add("segments", n, f"{d.recording[n]} 0.0 0.2")),
)


def stereo_by_channel(data: KaldiDir, name: str) -> None:
    two_channels(data.audio[name])
    data.set("segments", name, f"{data.recording[name]} 0.05 0.35 B")


FAULTS_OF_SPEAKERS = {"no speaker", "duplicate id"}
KALDI_ODDITIES: tuple[Callable[[KaldiDir, str], Any], ...] = (
    lambda d, n: setattr(d, "style", lambda text: text.replace("\n", "\n\n")),
    lambda d, n: setattr(d, "style", lambda text: text.replace("\n", "\r\n")),
    lambda d, n: setattr(d, "style", lambda text: text.replace(" ", "\t")),
    lambda d, n: setattr(d, "style", lambda text: "\ufeff" + text),
    lambda d, n: setattr(d, "style", lambda text: text.rstrip("\n")),
    lambda d, n: d.add("reco2dur", d.recording[n], "30.0"),
    lambda d, n: d.add("reco2dur", d.recording[n], "long"),
    lambda d, n: d.add("spk2gender", "ann", "f"),
    lambda d, n: d.add("text", n, dict(d.tables["text"])[n]),
    lambda d, n: d.set("wav.scp", d.recording[n], f"{d.folder.name}/wav/{n}.wav"),
    lambda d, n: d.set("wav.scp", d.recording[n], str(d.audio[n].resolve())),
)
SEGMENT_ODDITIES: tuple[Callable[[KaldiDir, str], Any], ...] = (
    lambda d, n: d.set("segments", n, f"{d.recording[n]} 0.1 0.45"),
    lambda d, n: d.set("segments", n, f"{d.recording[n]} 0.1 -1"),
    lambda d, n: d.set("segments", n, f"{d.recording[n]} 0.05 0.35 1"),
    stereo_by_channel,
)


def kaldi_part(made: Made, part: str, texts: dict[str, str], rng: random.Random, faults: int) -> KaldiDir:
    """A data directory with some faults, some oddities that must do no harm, and sometimes rows of nothing."""
    data = KaldiDir(made.root / part, texts, segmented=rng.random() < 0.5)
    of_tables = [
        f for f in KALDI_FAULTS + SEGMENT_FAULTS * data.segmented if part != "unlabelled" or f[0] != "empty text"
    ]
    names = list(texts)
    for name in names[:faults]:
        if rng.random() < 0.4:
            spoils = AUDIO_FAULTS + LENGTH_FAULTS * (not data.segmented)
            kind = data.spoil_audio(name, rng.choice(spoils))
        else:
            kind, change = rng.choice(of_tables)
            change(data, name)
        made.skipped[part, name] = kind
    if rng.random() < 0.3:
        data.add("text", "nobody-1", "RED")
        made.skipped[part, "nobody-1"] = "transcript without audio"
    if data.segmented and rng.random() < 0.3:
        data.add("wav.scp", "unused", data.tables["wav.scp"][-1][1])
        made.skipped[part, "unused"] = "no supervision"
    speakers = any(made.skipped.get((part, name)) in ("no speaker", "duplicate id") for name in names)
    oddities = [
        o for o in KALDI_ODDITIES + SEGMENT_ODDITIES * data.segmented if not speakers or o is not KALDI_ODDITIES[5]
    ]
    rng.choice(oddities)(data, names[-1])
    data.write()
    return data


def break_kaldi(made: Made, data: KaldiDir, rng: random.Random) -> None:
    """One fault of a data directory that ends stage 0."""
    table = rng.choice(sorted(set(data.tables) & {"wav.scp", "text", "utt2spk", "segments"}))
    path, part = data.folder / table, data.folder.name
    lines = path.read_bytes().rstrip(b"\r\n").count(b"\n") + 2
    kind = rng.choice(("bytes", "command", "command", "no wav.scp", "empty", "folder"))
    if kind == "bytes":
        path.write_bytes(path.read_bytes().rstrip(b"\r\n") + b"\nu" + NOT_UTF8 + b" a\n")
        made.error = rf"{part}/{table}:{lines}: not UTF-8"
    elif kind == "command":
        command = rng.choice(("touch {0} |", "| touch {0}", "cat a.wav; touch {0} |")).format(made.root / "executed")
        data.set("wav.scp", data.tables["wav.scp"][-1][0], command)
        data.write()
        made.error = rf"{part}/wav.scp:\d+: a command.*--allow-commands"
    elif kind == "no wav.scp":
        (data.folder / "wav.scp").unlink()
        made.error = rf"{part} has no wav.scp"
    elif kind == "empty":
        listed = "segments" if data.segmented else "wav.scp"
        (data.folder / listed).write_bytes(b"\n \n")
        made.error = rf"{part}/{listed} is empty"
    else:
        path.unlink()
        path.mkdir()
        made.error = rf"{part}/{table} is not a file"


# lhotse cuts


def cut_row(name: str, text: str, audio: Path) -> dict[str, Any]:
    """A MonoCut of a whole file as lhotse stores it."""
    sources = [{"type": "file", "channels": [0], "source": str(audio)}]
    return {
        "id": name, "start": 0, "duration": SECONDS, "channel": 0,
        "supervisions": [
            {"id": name, "recording_id": name, "start": 0.0, "duration": SECONDS, "channel": 0, "text": text}
        ],
        "recording": {
            "id": name, "sources": sources, "sampling_rate": 16000, "num_samples": 6400, "duration": SECONDS,
            "channel_ids": [0],
        },
        "type": "MonoCut",
    }  # fmt: skip


def segment_of(row: dict[str, Any]) -> dict[str, Any]:
    return row["supervisions"][0]


def source_of(row: dict[str, Any]) -> dict[str, Any]:
    return row["recording"]["sources"][0]


CUT_FAULTS: tuple[tuple[str, Callable[[dict[str, Any]], Any]], ...] = (
    ("no recording", lambda row: row.pop("recording")),
    ("no recording", lambda row: row.update(recording=None, features={"storage_path": "feats"})),
    ("no supervision", lambda row: row.pop("supervisions")),
    ("no supervision", lambda row: row.update(supervisions=[])),
    ("no supervision", lambda row: row.update(supervisions=["HELLO"])),
    ("not a cut of one recording", lambda row: row.update(type="MixedCut", tracks=[])),
    ("not a cut of one recording", lambda row: row.update(type="PaddingCut")),
    ("not a cut of one recording", lambda row: row.update(type="MultiCut", channel=[0, 1])),
    ("no such channel", lambda row: row.update(channel=1)),
    ("not an audio file", lambda row: source_of(row).update(type="url", source="ftp://example.org/a.wav")),
    ("not an audio file", lambda row: source_of(row).update(type="memory")),
    ("not an audio file", lambda row: source_of(row).update(source=None)),
    ("no such file", lambda row: source_of(row).update(source="absent.wav")),
    (
        "transformed audio",
        lambda row: row["recording"].update(transforms=[{"name": "Speed", "kwargs": {"factor": 0.9}}]),
    ),
    ("manifest and audio differ", lambda row: row["recording"].update(duration=30.0, num_samples=480000)),
    ("not a number of seconds", lambda row: row.update(duration=float("nan"))),
    ("not a number of seconds", lambda row: row.update(start="0")),
    ("not a number of seconds", lambda row: segment_of(row).update(duration=float("inf"))),
    ("not a number of seconds", lambda row: segment_of(row).pop("start")),
    ("outside its cut", lambda row: segment_of(row).update(start=-0.2)),
    ("outside its cut", lambda row: segment_of(row).update(start=0.2)),
    ("ends before it begins", lambda row: segment_of(row).update(duration=-0.2)),
    ("begins before its recording", lambda row: row.update(start=-0.2)),
    ("beyond its recording", lambda row: row.update(start=0.3)),
    ("duration outside 0.1 to 35.0 s", lambda row: segment_of(row).update(duration=0.01)),
    ("wrong text", lambda row: segment_of(row).update(text=["A"])),
    ("empty text", lambda row: segment_of(row).update(text="")),
    ("empty text", lambda row: segment_of(row).pop("text")),
    ("empty text", lambda row: segment_of(row).update(text=" ?!")),
)


def of_second_channel(row: dict[str, Any]) -> None:
    two_channels(Path(source_of(row)["source"]))
    source_of(row)["channels"] = [0, 1]
    row["channel"] = segment_of(row)["channel"] = 1


CUT_ODDITIES: tuple[Callable[[dict[str, Any]], Any], ...] = (
    lambda row: row.pop("type"),
    lambda row: row.update(custom={"snr": 3.0}),
    lambda row: segment_of(row).update(custom={"lang": "en", "noise": {"type": "command", "source": "touch executed"}}),
    lambda row: segment_of(row).update(duration=SECONDS + 0.01),
    lambda row: source_of(row).update(source=f"audio/{Path(source_of(row)['source']).name}"),
    lambda row: row["recording"].pop("channel_ids"),
    of_second_channel,
)


def cuts_part(made: Made, part: str, texts: dict[str, str], rng: random.Random, faults: int) -> Path:
    """A file of cuts with some faults and an oddity that must do no harm."""
    audio = {name: write_audio(made.root / "audio" / f"{part}-{name}.wav") for name in texts}
    rows = {name: cut_row(name, text, audio[name]) for name, text in texts.items()}
    of_rows = fitting(part, CUT_FAULTS)
    lines: list[dict[str, Any]] = list(rows.values())
    for name in list(texts)[:faults]:
        choice = rng.random()
        if choice < 0.4:
            kind, seconds = rng.choice(AUDIO_FAULTS + LENGTH_FAULTS)(audio[name])
            row, kind = rows[name], "manifest and audio differ" if kind == "several channels" else kind
            for item in (row, segment_of(row), row["recording"]):
                item["duration"] = seconds or SECONDS
        elif choice < 0.5:
            lines.append(dict(rows[name]))
            kind = "duplicate id"
        else:
            kind, change = rng.choice(of_rows)
            change(rows[name])
        made.skipped[part, name] = kind
    rng.choice(CUT_ODDITIES)(rows[list(texts)[-1]])
    text = rng.choice(("\n", "\n\n", "\r\n")).join(map(json.dumps, lines)) + rng.choice(("", "\n"))
    path = made.root / f"{part}{rng.choice(('.jsonl', '.jsonl.gz'))}"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def break_cuts(made: Made, path: Path, rng: random.Random) -> None:
    """One fault of a file of cuts that ends stage 0."""
    name = path.name
    kind = rng.choice(("json", "list", "bytes", "empty", "cut off", "command", "command"))
    line: bytes = {
        "json": b'{"id": "a", "start": 0.0, ', "list": b"[1, 2]", "bytes": b'{"id": "' + NOT_UTF8 + b'"}'
    }.get(kind, b"")  # fmt: skip
    made.error = {
        "json": rf"{name}:1: not JSON", "list": rf"{name}:1: not a cut but a list", "bytes": rf"{name}:1: not UTF-8",
        "empty": rf"{name} is empty", "cut off": rf"{name.removesuffix('.gz')}.gz:\d+: it is no whole gzip archive",
        "command": rf"{name}:1: a command.*--allow-commands",
    }[kind]  # fmt: skip
    if kind == "command":
        row = cut_row("a", "RED", made.root / "audio/a.wav")
        source_of(row).update(type="command", source=f"touch {made.root / 'executed'}")
        line = json.dumps(row).encode()
    if kind == "cut off":
        target = path.with_name(path.name.removesuffix(".gz") + ".gz")
        whole = gzip.compress(os.urandom(200).hex().encode() * 50)
        path.unlink()
        target.write_bytes(whole[: len(whole) // 2])
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(line))
    else:
        path.write_bytes(line)


# LibriSpeech


def librispeech_part(made: Made, part: str, texts: dict[str, str], rng: random.Random, faults: int) -> Path:
    """A part with one chapter, some faults and an oddity that must do no harm; returns its transcripts."""
    folder = made.root / "LibriSpeech" / LIBRISPEECH[part] / "1" / "7"
    audio = {name: write_audio(folder / f"{name}.flac") for name in texts}
    lines = dict(texts)
    more: list[str] = []
    for name in list(texts)[:faults]:
        kind = rng.choice(("audio", "audio", "no audio", "no line", "twice", "elsewhere", "empty"))
        if kind == "audio":
            reason = rng.choice((*AUDIO_FAULTS[1:], *LENGTH_FAULTS))(audio[name])[0]
        elif kind == "no audio":
            audio[name].unlink()
            reason = "transcript without audio"
        elif kind == "no line":
            del lines[name]
            reason = "no supervision"
        elif kind == "twice":
            more.append(f"{name} SHUT")
            reason = "duplicate id"
        elif kind == "elsewhere":
            write_audio(folder.parent / "8" / f"{name}.flac")
            reason = "duplicate id"
        elif part == "unlabelled":
            continue
        else:
            lines[name] = rng.choice(("", "?"))
            reason = "empty text"
        made.skipped[part, name] = reason
    text = "".join(f"{line}\n" for line in [*(f"{n} {t}".rstrip() for n, t in lines.items()), *more])
    ends = rng.choice(("\n", "\r\n", "\n\n"))
    path = folder / "1-7.trans.txt"
    path.write_bytes((rng.choice(("", "\ufeff")) + text.replace("\n", ends)).encode())
    return path


def break_librispeech(made: Made, path: Path, rng: random.Random) -> None:
    """One fault of a part that ends stage 0."""
    if rng.random() < 0.5:
        path.write_bytes(path.read_bytes() + b"1-7-0009 " + NOT_UTF8)
        made.error = rf"{path.name}:\d+: not UTF-8"
    else:
        part = path.parents[2]
        part.rename(part.with_name("elsewhere"))
        made.error = rf"no corpus folder at .*{part.name}"


# Whole corpora


def write_audio(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound(200 + 50 * (sum(path.stem.encode()) % 20), path.suffix[1:]))
    return path


@lru_cache
def sound(tone: int, container: str) -> bytes:
    return encoded(speech(tone=tone), container=container)


WRITERS: dict[str, tuple[Callable, Callable]] = {
    "kaldi": (kaldi_part, break_kaldi),
    "cuts": (cuts_part, break_cuts),
    "librispeech": (librispeech_part, break_librispeech),
}


def make(root: Path, layout: str, seed: str, faults: int = 2, sound: int = 2, broken: float = 0.2) -> Made:
    """A corpus of the layout in the new folder `root`.

    faults: most of a part; sound: utterances of a part without any; broken: share of corpora that stage 0 must refuse.
    """
    rng = random.Random(f"{seed}/{layout}")
    made = Made(root, layout)
    root.mkdir(parents=True)
    write_part, break_part = WRITERS[layout]
    same_names = rng.random() < 0.3
    breaks = rng.choice(PARTS) if rng.random() < broken else None
    for speaker, part in enumerate(PARTS):
        spoiled = rng.randint(0, faults)
        prefix = "1-7" if layout == "librispeech" or same_names else f"{speaker}-7"
        texts = {f"{prefix}-{i:04d}": " ".join(rng.choices(list(WORDS), k=2)) for i in range(spoiled + sound)}
        written_part = write_part(made, part, texts, rng, spoiled)
        made.kept |= {(part, name): text for name, text in texts.items() if (part, name) not in made.skipped}
        if part == breaks:
            break_part(made, written_part, rng)
    write_texts(root, rng, WORDS)
    return made


def write_texts(root: Path, rng: random.Random, words: Iterable[str]) -> None:
    """The text corpus and the lexicon, which are without faults, under the names of both kinds of recipes."""
    lexicon = "".join(f"{word} {WORDS[word]}\n" for word in words)
    text = "".join(" ".join(rng.choices(list(WORDS), k=rng.randint(1, 4))) + "\n" for _ in range(50))
    for name in ("lexicon.txt", "librispeech-lexicon.txt"):
        (root / name).write_text(lexicon)
    for name in ("lm.txt", "librispeech-lm-norm.txt"):
        (root / name).write_text(text)


def stage_0(made: Made, out: Path) -> None:
    """Manifests and cut sets as local/prepare_corpus.py makes them."""
    corpus: Corpus
    if made.layout == "librispeech":
        corpus = LibriSpeech(made.root)
        corpus.roles = LIBRI_ROLES
    else:
        corpus = Custom(made.root)
    write_manifests(corpus, out / "manifests", "mine", Checks(threads=1, shards=out / "checked"))
    write_cut_sets(out / "manifests", "mine", corpus.roles, out / "cuts")


def listing(made: Made, out: Path) -> dict[tuple[str, str], str]:
    """Kinds of skipped.tsv, by part and name; each name is there once."""
    names = {name: part for part, name in LIBRISPEECH.items()} if made.layout == "librispeech" else {}
    with (out / "manifests/skipped.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = {(names.get(row["part"], row["part"]), row["name"]): row["reason"].split(":")[0] for row in rows}
    assert len(found) == len(rows), "a name is listed twice"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--faults", type=int, default=40, help="most faults of a part")
    parser.add_argument("--sound", type=int, default=12, help="utterances of a part without a fault")
    parser.add_argument("--seed", default="1")
    args = parser.parse_args()
    for layout in LAYOUTS:
        made = make(args.folder / layout, layout, args.seed, args.faults, args.sound, broken=0)
        names = LIBRISPEECH if layout == "librispeech" else {part: part for part in PARTS}
        rows = sorted((names[part], name, kind) for (part, name), kind in made.skipped.items())
        (made.root / "expected.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
