"""Corpora as lhotse manifests: LibriSpeech, spoken commands, and corpora of one's own.

Every `prepare_*` returns the parts of its corpus as recordings and supervisions, as they stand on disk;
`write_manifests` (`cuts.py`) checks and stores them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from lhotse import Recording, RecordingSet, SupervisionSegment, SupervisionSet

from distill.files import as_flac, replacing
from distill.text import read_lines

from .audio import file_fault
from .cut_files import prepare_cuts
from .kaldi import prepare_kaldi
from .layout import (
    LIBRISPEECH,
    SPOKEN_COMMANDS,
    SPOKEN_COMMANDS_TABLES,
    check_folder,
    librispeech_root,
    own_roles,
    read_table,
    spoken_commands_tables,
)
from .manifests import SAMPLING_RATE, Manifest, Skipped
from .utterances import Utterance, file_source, manifest_of

# LibriSpeech


def prepare_librispeech(
    corpus_dir: Path | str, skipped: Skipped, parts: Sequence[str] = LIBRISPEECH.parts, jobs: int = 2
) -> dict[str, Manifest]:
    """LibriSpeech's parts; transcripts without audio and audio without a transcript are noted in `skipped`.

    Raises FileNotFoundError for a missing corpus or part, ValueError for transcripts that are no UTF-8 text.
    """
    root = librispeech_root(Path(corpus_dir))
    return {part: _librispeech_part(root / part, skipped, jobs) for part in parts}


def _librispeech_part(folder: Path, skipped: Skipped, jobs: int) -> Manifest:
    check_folder(folder, f"unpack {folder.name}.tar.gz of https://www.openslr.org/12 beside the others")
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*.flac")):
        files.setdefault(path.stem, []).append(path)
    utterances = list(_transcripts(folder))
    left_out = [(name, _twice(paths, folder)) for name, paths in files.items() if len(paths) > 1]
    for name in dict.fromkeys(u.name for u in utterances if u.name not in files):
        skipped.add(folder.name, name, "transcript without audio")
    for name in sorted(files.keys() - {u.name for u in utterances}):
        skipped.add(folder.name, name, "no supervision")
    sources = {name: file_source(paths[0]) for name, paths in files.items() if len(paths) == 1}
    return manifest_of(sources, [u for u in utterances if u.name in sources], left_out, jobs)


def _transcripts(folder: Path) -> Iterator[Utterance]:
    """The lines 'UTTERANCE TEXT' of a part's *.trans.txt; the speaker is the first number of an utterance's name."""
    for path in sorted(path for path in folder.rglob("*.trans.txt") if path.is_file()):
        for number, line in enumerate(read_lines(path), 1):
            name, *text = line.removeprefix("\ufeff").split(maxsplit=1) or [""]
            if name:
                place = f"{path.relative_to(folder.parent)}:{number}"
                speaker, said = name.split("-")[0], "".join(text).strip()
                more = {"language": "English"}
                yield Utterance(name, name, text=said, speaker=speaker, place=place, more=more)


def _twice(paths: Sequence[Path], folder: Path) -> str:
    return f"duplicate id: {' and '.join(str(path.relative_to(folder.parent)) for path in paths)}"


# Spoken commands


def prepare_spoken_commands(
    corpus_dir: Path | str, audio_dir: Path | str, skipped: Skipped, jobs: int = 2
) -> dict[str, Manifest]:
    """Digit strings (rendered into `audio_dir` by `render_digit_strings`), coffee orders and keywords.

    Parts are named `<kind>-<split>`. Raises FileNotFoundError for a missing folder or table, ValueError for a bad one.
    """
    corpus_dir, audio_dir = Path(corpus_dir).resolve(), Path(audio_dir).resolve()
    tables = {kind: read_table(path, SPOKEN_COMMANDS_TABLES[kind][1])
              for kind, path in spoken_commands_tables(corpus_dir).items()}  # fmt: skip
    strings = [row | {"path": f"{row['utt']}.flac"} for row in tables["strings"]]
    orders = [_by_certainty(row) for row in tables["orders"]]
    sources = {
        "digits": (audio_dir, strings),
        "orders": (corpus_dir / "intent", orders),
        "keywords": (corpus_dir / "wakeword", tables["keywords"]),
    }
    found: dict[str, Manifest] = {}
    for part in SPOKEN_COMMANDS.parts:
        kind, _, split = part.partition("-")
        folder, rows = sources[kind]
        chosen = [row for row in rows if row["split"] == split]
        found[part] = _from_rows(part, chosen, folder, skipped, jobs)
    return found


def _by_certainty(order: dict[str, str]) -> dict[str, str]:
    """The row with the test split in two: transcripts that are sure, and those `checked` calls unsure."""
    if order["split"] != "test":
        return order
    return order | {"split": "test_unsure" if order["checked"] == "unsure" else "test_sure"}


def _from_rows(part: str, rows: Sequence[Mapping[str, str]], folder: Path, skipped: Skipped, jobs: int) -> Manifest:
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        faults = list(pool.map(lambda row: file_fault(folder / row["path"]), rows))
    recordings, segments = [], []
    for row, fault in zip(rows, faults, strict=True):
        if fault:
            skipped.add(part, row["utt"], fault)
            continue
        recording = Recording.from_file(folder / row["path"], recording_id=row["utt"])
        recordings.append(recording)
        segments.append(
            SupervisionSegment(
                row["utt"], row["utt"], 0.0, recording.duration, text=row["text"], speaker=row["speaker"]
            )
        )
    return Manifest(RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(segments))


def render_digit_strings(corpus_dir: Path | str, audio_dir: Path | str) -> None:
    """Writes the strings of `fsdd/connected.tsv` as FLAC: digits at equal level, silence between them.

    Raises FileNotFoundError for a digit without audio, ValueError for a row that does not fit its digits or for
    audio that cannot be used.
    """
    tables = spoken_commands_tables(Path(corpus_dir))
    paths = {
        row["utt"]: tables["digits"].parent / row["path"]
        for row in read_table(tables["digits"], SPOKEN_COMMANDS_TABLES["digits"][1])
    }
    Path(audio_dir).mkdir(parents=True, exist_ok=True)
    for row in read_table(tables["strings"], SPOKEN_COMMANDS_TABLES["strings"][1]):
        target = Path(audio_dir) / f"{row['utt']}.flac"
        if not target.is_file():
            samples = np.clip(np.concatenate(_string_parts(row, paths)), -0.99, 0.99)
            with replacing(target) as temporary:
                temporary.write_bytes(as_flac(samples, SAMPLING_RATE))


def _string_parts(row: Mapping[str, str], paths: Mapping[str, Path]) -> list[np.ndarray]:
    names, gaps = row["parts"].split(","), row["gaps_ms"].split(",")
    if len(gaps) != len(names) + 1 or not all(gap.isdigit() for gap in gaps):
        raise ValueError(
            f"connected.tsv, {row['utt']}: expected {len(names) + 1} gaps in ms around {len(names)} digits, "
            f"got {row['gaps_ms']!r}"
        )
    silences = [np.zeros(int(gap) * SAMPLING_RATE // 1000, np.float32) for gap in gaps]
    parts = [silences[0]]
    for name, silence in zip(names, silences[1:], strict=True):
        digit = _read_digit(row["utt"], name, paths)
        parts += [digit * np.float32(0.05 / (np.sqrt(np.mean(digit**2)) + 1e-5)), silence]
    return parts


def _read_digit(string: str, name: str, paths: Mapping[str, Path]) -> np.ndarray:
    """Samples (N,) of a digit; FileNotFoundError or ValueError with the string it is for."""
    if name not in paths:
        raise ValueError(f"connected.tsv, {string}: digit {name!r} is not in digits.tsv")
    if not paths[name].is_file():
        raise FileNotFoundError(f"no audio of digit {name} at {paths[name]}; egs/spoken_commands/fetch.py fetches it")
    if fault := file_fault(paths[name]):
        raise ValueError(f"{fault}; remove it, and egs/spoken_commands/fetch.py fetches it again")
    digit, rate = soundfile.read(paths[name], dtype="float32")
    if rate != SAMPLING_RATE or digit.ndim != 1:
        raise ValueError(f"{paths[name]}: expected one channel of {SAMPLING_RATE} Hz, got {digit.ndim} at {rate} Hz")
    return digit


# Corpora of one's own


def prepare_own(corpus_dir: Path | str, *, allow_commands: bool = False, jobs: int = 2) -> dict[str, Manifest]:
    """The parts of a folder of Kaldi data dirs and lhotse cut sets named after what they are for.

    Expected below `corpus_dir`: labelled, unlabelled, dev and one or more test-*, each either a Kaldi data directory
    (`labelled/wav.scp`) or cuts (`labelled.jsonl.gz`). Raises FileNotFoundError otherwise, ValueError for a part that
    is there in two forms, for tables that cannot be read and for commands that may not run.
    """
    corpus_dir, manifests = Path(corpus_dir), {}
    roles = own_roles(corpus_dir)
    for part in roles.parts:
        found = [path for name in (part, f"{part}.jsonl.gz", f"{part}.jsonl") if (path := corpus_dir / name).exists()]
        if not found:
            raise FileNotFoundError(
                f"no {part} in {corpus_dir}: expected a Kaldi data directory {part}/ or lhotse cuts {part}.jsonl.gz"
            )
        if len(found) > 1:
            raise ValueError(f"{corpus_dir} holds {' and '.join(path.name for path in found)}; which of them is meant?")
        prepare = prepare_kaldi if found[0].name == part else prepare_cuts
        needs_text = part not in roles.unlabelled
        manifests[part] = prepare(found[0], needs_text=needs_text, allow_commands=allow_commands, jobs=jobs)
    return manifests
