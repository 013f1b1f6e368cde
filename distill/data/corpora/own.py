"""A corpus of one's own: Kaldi data directories and lhotse cuts, named after what they are for."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from distill.data.corpora.corpus import Corpus, Options, Roles, check_folder, need_file
from distill.data.cut_files import list_cuts
from distill.data.kaldi import list_kaldi
from distill.data.listing import Listing

KALDI_LISTS = re.compile(r"wav\.scp|text|segments|(utt|spk|reco)2\w+")
AUDIO_FILES = re.compile(r'"type": *"file"[^{}]*?"source": *("(?:[^"\\]|\\.)*")')  # in a line of lhotse's cuts


class Own(Corpus):
    """The parts labelled, unlabelled, dev and one or more test-*, beside lm.txt and lexicon.txt.

    Each part is a Kaldi data directory (`labelled/wav.scp`) or a file of cuts (`labelled.jsonl.gz`).
    """

    def __init__(self, root: Path, options: Options | None = None) -> None:
        super().__init__(root, options)
        self.roles = own_roles(root)
        self.text = need_file(root, "lm.txt", "lm.txt.gz", way_out="one sentence a line, for language models")
        self.lexicon = need_file(root, "lexicon.txt", "lexicon.txt.gz", way_out="expected lines 'WORD P1 P2 …'")
        self.inputs = files_of_own(root, self.roles)

    def listing(self, part: str) -> Listing:
        """Raises FileNotFoundError for a missing part, ValueError for one that is there in two forms."""
        paths = [path for name in (part, f"{part}.jsonl.gz", f"{part}.jsonl") if (path := self.root / name).exists()]
        if not paths:
            raise FileNotFoundError(
                f"no {part} in {self.root}: expected a Kaldi data directory {part}/ or lhotse cuts {part}.jsonl.gz"
            )
        if len(paths) > 1:
            raise ValueError(f"{self.root} has {' and '.join(path.name for path in paths)}; which of them is meant?")
        if paths[0].name != part:
            return list_cuts(paths[0], allow_commands=self.options.allow_commands)
        needs_text = part not in self.roles.unlabelled
        return list_kaldi(paths[0], needs_text=needs_text, allow_commands=self.options.allow_commands)


def own_roles(root: Path) -> Roles:
    """labelled, unlabelled, dev and every test-*; raises FileNotFoundError without the folder or a test set."""
    check_folder(root, "give --corpus-dir")
    paths = [path for path in root.glob("test-*") if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz"))]
    tests = sorted({path.name.removesuffix(".gz").removesuffix(".jsonl") for path in paths})
    if not tests:
        raise FileNotFoundError(f"no test set in {root}: expected test-NAME/ or test-NAME.jsonl.gz")
    return Roles(("labelled",), ("unlabelled",), ("dev",), {name: (name,) for name in tests})


def files_of_own(root: Path, roles: Roles) -> tuple[Path, ...]:
    """The tables of Kaldi data directories, the cuts, and the audio files that they name, as far as they exist."""
    files: dict[Path, None] = {}
    for part in roles.parts:
        cuts = [path for suffix in (".jsonl.gz", ".jsonl") if (path := root / f"{part}{suffix}").is_file()]
        tables = [path for path in sorted((root / part).glob("*")) if KALDI_LISTS.fullmatch(path.name)]
        audio = _audio_of_cuts(cuts[0]) if cuts else _audio_of_kaldi(root / part / "wav.scp")
        files |= dict.fromkeys(path for path in (*(cuts[:1] or tables), *audio) if os.path.isfile(path))
    return tuple(files)


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
            return  # the listing reports what is wrong with them
