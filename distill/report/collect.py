"""Copies the result files of an exp-dir into the repository, without the machine's paths in them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distill.config.bounds import SOURCES
from distill.files import write_json
from distill.report import calibration, differences, language_models
from distill.report.runs import TIMING, decoding_files, read_runs, superb_files


def collect(exp_dir: Path, target: Path, root: Path, only: Collection[str] = ()) -> list[Path]:
    """Copy what reports read of an exp-dir, or of some of its experiments, into `target`; returns the copies.

    Paths below `root` become relative, others are cut to their last part. Raises FileNotFoundError if there is
    nothing to copy.
    """
    runs = [run for run in read_runs(exp_dir) if not only or run.name in only]
    names = [] if only else [differences.DIFFERENCES, *language_models.files(exp_dir), *calibration.files(runs)]
    paths = [exp_dir / name for name in names]
    for run in runs:
        folder = exp_dir / run.name
        paths += [folder / "result.json", *decoding_files(folder), folder / TIMING, *superb_files(folder)]
    copies = []
    for path in filter(Path.is_file, paths):
        copies.append(target / path.relative_to(exp_dir))
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        write_json(copies[-1], portable(json.loads(path.read_text(encoding="utf-8")), root))
    return copies


def portable(value: Any, root: Path) -> Any:
    """The value with every absolute path in it relative to `root`, or cut to its last part outside of it."""
    if isinstance(value, Mapping):
        return {key: portable(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item, root) for item in value]
    return _portable_text(value, root) if isinstance(value, str) and "/" in value else value


def _portable_text(text: str, root: Path) -> str:
    try:
        words = shlex.split(text)
    except ValueError:
        return text.replace(f"{root}/", "")
    portable_words = [_portable_path(word, root) for word in words]
    return text if portable_words == words else shlex.join(portable_words)


def _portable_path(word: str, root: Path) -> str:
    """An absolute path, of a source such as fairseq:FILE too, relative to `root`; another word as it is."""
    kind, colon, path = word.partition(":")
    if kind not in SOURCES:
        kind, colon, path = "", "", word
    if not path.startswith("/"):
        return word
    relative = os.path.relpath(path, root)
    return kind + colon + (Path(relative).name if relative.startswith("../..") else relative)
