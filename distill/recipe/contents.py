"""Hashes of file contents, cached by size, modification time and inode, and of names and sizes of many files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distill.config.distortions import noise_clips

BLOCK = 1 << 20


class Contents:
    """Hashes of files. seen: path -> size, time, inode and hash, as a mark stores them."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Any]] = {}

    def remember(self, seen: object) -> None:
        """Take over the cache of a mark; malformed entries are dropped, so their files are read again."""
        if isinstance(seen, Mapping):
            good = {path: value for path, value in seen.items() if isinstance(value, list) and len(value) == 4}
            self.seen = good | self.seen

    def hashes(self, paths: Iterable[Path]) -> dict[Path, str]:
        """The hash of each file, "missing" where there is none; afterwards `seen` has these files only."""
        states = {path: state for path in paths if (state := _state(path))}
        known = {path: self.seen.get(str(path), [[]]) for path in states}
        new = [path for path, state in states.items() if known[path][:3] != state]
        with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock
            read = dict(zip(new, pool.map(file_hash, new)))
        digests = {path: read.get(path) or str(known[path][3]) for path in states}
        self.seen = {str(path): [*states[path], digest] for path, digest in digests.items()}
        return {path: digests.get(path, "missing") for path in paths}


def file_hash(path: Path) -> str:
    """SHA-256 of a file, as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()[:32]


def listing_hash(folder: Path, paths: Iterable[Path]) -> str:
    """Hash of the names and sizes of files below a folder, without reading them."""
    sizes = {path.relative_to(folder).as_posix(): _state(path)[:1] for path in paths}
    return hashlib.sha256(json.dumps(sorted(sizes.items())).encode()).hexdigest()[:16]


def noise_hashes(folder: Path, parts: Iterable[str]) -> dict[str, str]:
    """Hashes of the listings of recorded noise, by the folders below `folder` that are there."""
    there = [part for part in sorted(set(parts)) if (folder / part).is_dir()]
    return {part: listing_hash(folder / part, noise_clips(folder / part)) for part in there}


def _state(path: Path) -> list[int]:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]
