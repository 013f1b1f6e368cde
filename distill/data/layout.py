"""Where things lie in a corpus, and which part is what; only the standard library, so stages ask quickly."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Roles:
    """Which parts of a corpus are labelled, unlabelled, development and test sets."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    dev: tuple[str, ...]
    tests: Mapping[str, tuple[str, ...]]
    hidden_share: float = 0.0
    """Share of the labelled utterances that are also used as unlabelled audio, their text hidden."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Most utterances of a cut set, for rehearsals; `test` stands for every test set."""
    speeds: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Labelled parts that are trained on at other speeds too, beside their own: part -> factors."""

    def by_name(self) -> dict[str, tuple[str, ...]]:
        """Name of each cut set -> the parts it is made of."""
        sets = {"labelled": self.labelled, "unlabelled": self.unlabelled, "dev": self.dev}
        return sets | dict(self.tests)

    def limit(self, name: str) -> int | None:
        """Most utterances of the cut set `name`, None without a limit."""
        return self.limits.get("test" if name in self.tests else name)

    @property
    def parts(self) -> list[str]:
        """Every part once, in order."""
        return list(dict.fromkeys(part for parts in self.by_name().values() for part in parts))


LIBRISPEECH = Roles(
    labelled=("train-clean-100",),
    unlabelled=("train-clean-360",),
    dev=("dev-clean",),
    tests={"test-clean": ("test-clean",), "test-other": ("test-other",)},
)
SPOKEN_COMMANDS = Roles(
    labelled=("digits-train", "orders-train"),
    unlabelled=("keywords-train",),
    dev=("digits-dev_seen", "digits-dev_unseen", "orders-dev"),
    tests={
        "test-digits-seen": ("digits-test_seen",),
        "test-digits-unseen": ("digits-test_unseen",),
        "test-orders": ("orders-test_sure", "orders-test_unsure"),
        "test-orders-sure": ("orders-test_sure",),
    },
    hidden_share=0.5,
    speeds={"digits-train": (0.9, 1.1), "orders-train": (0.9, 1.1)},  # few speakers
)
KALDI_LISTS = re.compile(r"wav\.scp|text|segments|(utt|spk|reco)2\w+")
AUDIO_FILES = re.compile(r'"type": *"file"[^{}]*?"source": *("(?:[^"\\]|\\.)*")')  # in a line of lhotse's cuts
SPOKEN_COMMANDS_TABLES = {  # of what, the table, and the columns that are read
    "digits": ("fsdd/digits.tsv", ("utt", "path")),
    "strings": ("fsdd/connected.tsv", ("utt", "speaker", "split", "parts", "gaps_ms", "text")),
    "orders": ("intent/intent.tsv", ("utt", "path", "speaker", "split", "text", "checked")),
    "keywords": ("wakeword/wakeword.tsv", ("utt", "path", "speaker", "split", "text")),
}
REHEARSAL = {"labelled": 24, "unlabelled": 40, "dev": 6, "test": 8}


def own_roles(corpus_dir: Path) -> Roles:
    """Roles of a corpus of one's own: labelled, unlabelled, dev and every test-*.

    Raises FileNotFoundError without the folder or a test set.
    """
    check_folder(corpus_dir, "give --corpus-dir")
    found = [path for path in corpus_dir.glob("test-*") if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz"))]
    tests = sorted({path.name.removesuffix(".gz").removesuffix(".jsonl") for path in found})
    if not tests:
        raise FileNotFoundError(f"no test set in {corpus_dir}: expected test-NAME/ or test-NAME.jsonl.gz")
    return Roles(("labelled",), ("unlabelled",), ("dev",), {name: (name,) for name in tests})


def files_of_own(corpus_dir: Path, roles: Roles) -> tuple[Path, ...]:
    """What a corpus of one's own is made from: lists of Kaldi data directories, cuts, and the audio that they name."""
    found: dict[Path, None] = {}
    for part in roles.parts:
        cuts = [path for suffix in (".jsonl.gz", ".jsonl") if (path := corpus_dir / f"{part}{suffix}").is_file()]
        lists = [path for path in sorted((corpus_dir / part).glob("*")) if KALDI_LISTS.fullmatch(path.name)]
        audio = _audio_of_cuts(cuts[0]) if cuts else _audio_of_kaldi(corpus_dir / part / "wav.scp")
        found |= dict.fromkeys(path for path in (*(cuts[:1] or lists), *audio) if os.path.isfile(path))
    return tuple(found)


def _audio_of_kaldi(wav_scp: Path) -> Iterator[Path]:
    if not wav_scp.is_file():
        return
    with wav_scp.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            place = "".join(line.split(maxsplit=1)[1:]).strip()
            if not place.endswith("|"):
                yield from (base / place for base in (wav_scp.parent, wav_scp.parents[1]))


def _audio_of_cuts(path: Path) -> Iterator[Path]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", errors="surrogateescape") as lines:
        try:
            for line in lines:
                for source in AUDIO_FILES.findall(line):
                    yield path.parent / json.loads(source)
                    yield Path(json.loads(source)).absolute()
        except (OSError, EOFError, ValueError):
            return  # whoever reads the cuts says what is wrong with them


def librispeech_root(corpus_dir: Path) -> Path:
    """The folder `LibriSpeech` itself, given it or its parent; FileNotFoundError if there is none."""
    for root in (corpus_dir / "LibriSpeech", corpus_dir):
        if any(root.glob("*-clean*")):
            return root.resolve()
    raise FileNotFoundError(
        f"no LibriSpeech in {corpus_dir}: unpack https://www.openslr.org/12 there, so that "
        f"{corpus_dir}/LibriSpeech/train-clean-100 exists, or give --corpus-dir; "
        "--mini true needs no corpus"
    )


def check_folder(folder: Path, hint: str) -> Path:
    """The folder itself; FileNotFoundError with the way out if it does not exist."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no corpus folder at {folder}; {hint}")
    return folder


def find_resource(corpus_dir: Path, names: Iterable[str], hint: str) -> Path:
    """The first of `names` in the corpus folder, its `lm` folder or its parent, else FileNotFoundError."""
    names = list(names)
    for folder in (corpus_dir, corpus_dir / "lm", corpus_dir.parent):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise FileNotFoundError(f"no {' or '.join(names)} in {corpus_dir} or {corpus_dir / 'lm'}; {hint}")


def spoken_commands_tables(corpus_dir: Path) -> dict[str, Path]:
    """The tables of spoken commands by what they list; FileNotFoundError says what has to lie where."""
    tables = {kind: corpus_dir / name for kind, (name, _) in SPOKEN_COMMANDS_TABLES.items()}
    missing = [str(path) for path in tables.values() if not path.is_file()]
    if missing:
        wanted = "".join(f"\n  {name}: {', '.join(columns)}" for name, columns in SPOKEN_COMMANDS_TABLES.values())
        raise FileNotFoundError(
            f"no {' or '.join(missing)}; give the folder of spoken commands as --corpus-dir. It holds these tables "
            f"(tab-separated, the first line names the columns) and the audio at the paths in them:{wanted}\n"
            "egs/spoken_commands/README.md says where both come from; egs/spoken_commands/fetch.py fetches the audio"
        )
    return tables


def read_table(path: Path, columns: Iterable[str] = ()) -> list[dict[str, str]]:
    """The rows of a TSV table with a heading line.

    Raises FileNotFoundError if there is none, ValueError for a column or cell that is missing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}; is {path.parent.parent} the corpus folder?")
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            found = ", ".join(reader.fieldnames or ()) or "nothing"
            raise ValueError(f"{path}: the first line names no column {', '.join(absent)}; it has {found}")
        rows = []
        for row in reader:
            if short := [name for name in columns if row[name] is None]:
                raise ValueError(
                    f"{path}:{reader.line_num}: no {', '.join(short)} in this line; cells are tab-separated"
                )
            rows.append(row)
    return rows
