"""Fetch the public recordings of sources.tsv, and write the audio that the tables of a corpus folder name.

Files that are there already are left as they are; an archive that was fetched whole is not fetched again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import http.client
import io
import os
import re
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from distill.batch import SAMPLE_RATE as RATE
from distill.data.corpora.corpus import read_table
from distill.data.corpora.spoken_commands import find_tables
from distill.files import as_flac, replacing

UNKNOWN = "not published"
TIMEOUT = 60  # seconds without a byte
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
    if path.is_file():
        check(source, path)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    url, again = source["archive"], f"call again, or fetch it by other means as {path}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, part.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
        wanted = answer.headers["Content-Length"]
        if wanted and part.stat().st_size != int(wanted):
            raise OSError(f"the connection ended after {part.stat().st_size} of {wanted} bytes")
        check(source, part)
    except (OSError, http.client.HTTPException) as error:
        part.unlink(missing_ok=True)
        reason = f"HTTP status {error.code}" if isinstance(error, urllib.error.HTTPError) else error
        raise OSError(f"{url}: {reason}; {again}") from None
    os.replace(part, path)
    return path


def check(source: Row, path: Path) -> None:
    """OSError unless an archive has the size and checksum that its source publishes, and can be read to its end."""
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    for name, found in (("bytes", str(size)), ("sha256", digest.hexdigest())):
        if source[name] not in (UNKNOWN, found):
            raise OSError(
                f"{path} does not have the {name} of sources.tsv: expected {source[name]}, got {found}; remove it"
            )
    try:
        with tarfile.open(path) as tar:
            tar.getmembers()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise OSError(f"{path} is no whole tar.gz archive ({error}); remove it and call again") from None


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
