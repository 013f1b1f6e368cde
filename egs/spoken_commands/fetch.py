"""Fetch the public recordings of sources.tsv, and write the audio that the tables of a corpus folder name.

Files that are there already are left as they are; an archive that was fetched whole is not fetched again.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from distill.batch import SAMPLE_RATE as RATE
from distill.corpora.download import Published, check
from distill.corpora.download import fetch as download_file
from distill.corpora.spoken_commands import find_tables
from distill.corpora.tables import read_table
from distill.files import as_flac, replacing

UNKNOWN = "not published"
BEFORE, AFTER = 0.3, 0.5  # seconds kept around speech
SPEECH = 10 ** (-35 / 20)  # level of speech against the loudest 10 ms

TABLES = {  # source -> its table, and the column that names the original file
    "fsdd": ("digits", "utt"),
    "intent": ("orders", "utt"),
    "wakeword": ("keywords", "orig"),
}

Row = Mapping[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus-dir", type=Path, required=True, help="folder with the tables; audio is written there")
    parser.add_argument("--sources", type=Path, default=Path(__file__).with_name("sources.tsv"))
    args = parser.parse_args()
    tables = find_tables(args.corpus_dir)
    for source in read_table(args.sources, ("name", "licence", "homepage", "archive", "bytes", "sha256")):
        if source["name"] not in TABLES:
            raise ValueError(f"{args.sources}: source {source['name']!r} is none of {', '.join(TABLES)}")
        kind, column = TABLES[source["name"]]
        rows = read_table(tables[kind], ("utt", "path", column))
        print(f"{source['name']} ({source['licence']}, {source['homepage']})")
        written = fetch(source, rows, args.corpus_dir)
        print(f"{source['name']}: {written} of {len(rows)} files written, the others were there")


def fetch(source: Row, rows: list[dict[str, str]], corpus_dir: Path) -> int:
    """Write the missing audio of one source below `corpus_dir`/NAME; returns how many files.

    Raises ValueError for a table that points outside of its folder, OSError if the archive cannot be fetched, is not
    the one it should be, or lacks a file.
    """
    folder = corpus_dir / source["name"]
    missing = {}
    for row in rows:
        target = folder / row["path"]
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{folder}: path {row['path']!r} of {row['utt']} leads out of the folder; mend the table")
        if not target.is_file():
            missing[ORIGINALS[source["name"]](row)] = target
    if not missing:
        return 0
    archive = download(source, corpus_dir / "archives" / f"{source['name']}.tar.gz")
    return unpack(archive, missing, trimmed=source["name"] != "fsdd")


def _digit(row: Row) -> str:
    found = re.fullmatch(r"fsdd-(\w+)-(\d)-(\d+)", row["utt"])
    if not found:
        raise ValueError(f"digits.tsv: utt {row['utt']!r} is not fsdd-SPEAKER-DIGIT-NUMBER; mend the table")
    return f"recordings/{found[2]}_{found[1]}_{int(found[3])}.wav"


ORIGINALS: Mapping[str, Callable[[Row], str]] = {  # a table's row -> its file in the archive
    "fsdd": _digit,
    "intent": lambda row: f"data/speech/clean/{row['utt'].removeprefix('sti-')}.wav",
    "wakeword": lambda row: f"audio/{row['orig']}",
}


def download(source: Row, path: Path) -> Path:
    """The archive of a source, fetched where it is not there; OSError with the way out if that fails."""
    known = {name: source[name] if source[name] != UNKNOWN else "" for name in ("bytes", "sha256")}
    digest = f"sha256:{known['sha256']}" if known["sha256"] else ""
    file = Published(source["homepage"], source["archive"], int(known["bytes"] or 0), digest)
    if path.is_file():
        check(file, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        download_file(file, path)
    except ConnectionError as error:
        raise OSError(f"{error}; call again, or fetch it by other means as {path}") from None
    return path


def unpack(archive: Path, wanted: Mapping[str, Path], trimmed: bool) -> int:
    """Write files of an archive as 16 kHz FLAC: name in the archive, below its one folder -> path.

    Returns how many; raises OSError that counts and names those that are missing or no audio.
    """
    faults = dict.fromkeys(wanted, "not in the archive")
    with tarfile.open(archive) as tar:
        for member in tar:
            name = "/".join(PurePosixPath(member.name).parts[1:])
            content = tar.extractfile(member) if name in wanted and member.isfile() else None
            if content is None:
                continue
            try:
                samples, rate = soundfile.read(io.BytesIO(content.read()), dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError):
                faults[name] = "no audio"
                continue
            write(converted(samples[:, 0], rate, trimmed), wanted[name])
            del faults[name]
    if faults:
        some = "; ".join(f"{name}: {fault}" for name, fault in list(faults.items())[:3])
        raise OSError(
            f"{archive}: {len(faults)} of {len(wanted)} files that the table names: {some}; is it this version?"
        )
    return len(wanted)


def converted(samples: np.ndarray, rate: int, trimmed: bool) -> np.ndarray:
    """Samples (N,) at any rate -> (M,) at 16 kHz, silence before and after speech cut short if so wanted."""
    if rate != RATE:
        samples = resample(torch.from_numpy(samples), rate, RATE).numpy()
    if not trimmed or len(samples) < RATE // 100:
        return samples
    frames = samples[: len(samples) // (RATE // 100) * (RATE // 100)].reshape(-1, RATE // 100)
    level = np.sqrt(np.mean(frames**2, axis=1))
    speech = np.flatnonzero(level >= SPEECH * level.max()) * (RATE // 100)
    return samples[max(0, speech[0] - int(BEFORE * RATE)) : speech[-1] + RATE // 100 + int(AFTER * RATE)]


def write(samples: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(as_flac(samples.clip(-1, 1), RATE))


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, csv.Error) as error:
        sys.exit(f"fetch.py: {error}")
