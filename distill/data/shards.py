"""Shards of labels: npz files written atomically, one for each block of a cut set.

A part is a folder of shards `00000.npz`, `00001.npz`, ... and, when all are there, `shards.json`.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from distill.files import replacing, write_text

INDEX = "shards.json"
KEPT_SHARDS = 256  # in memory, about 0.5 MB each: more than are shuffled together


@dataclass(frozen=True)
class Kind:
    """A kind of npz files. format: their array of this name. what, writer, one: content, stage and file in messages."""

    format: str
    what: str
    writer: str
    one: str = "shard"

    def write(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write a file atomically; others may write the same one at the same time."""
        with replacing(path, shared=True) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, format=np.array(self.format), **arrays)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def reading(self, path: Path) -> Iterator[dict[str, np.ndarray]]:
        """The arrays of a file.

        Raises FileNotFoundError, or ValueError for whatever the block finds wrong, naming the file and the way out.
        """
        self.check(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                content = {name: file[name] for name in file.files}
            if str(content["format"]) != self.format:
                raise ValueError(f"it has format '{content['format']}', expected '{self.format}'")
            yield content
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{path}: {self._damaged} ({error}); {self._again(path)}") from None

    def check(self, path: Path) -> None:
        """Raise for a file that is missing or cut short, without reading it."""
        if not path.is_file():
            raise FileNotFoundError(f"the {self.one} of {self.what} {path} is missing; {self._again(path)}")
        if not zipfile.is_zipfile(path):
            what = f"its {path.stat().st_size} bytes are no zip archive"
            raise ValueError(f"{path}: {self._damaged} ({what}); {self._again(path)}")

    @property
    def _damaged(self) -> str:
        return f"cut short or no {self.one} of {self.what}"

    def _again(self, path: Path) -> str:
        done = next((f" and {folder / '.done'}" for folder in path.parents if (folder / ".done").is_file()), "")
        return f"remove it{done}, and run {self.writer} again: it makes what is missing"

    def finish(self, folder: Path, shards: int) -> None:
        """Write the index of a part, after all of its shards."""
        write_text(folder / INDEX, json.dumps({"format": self.format, "shards": shards}) + "\n")

    def paths(self, folder: Path) -> list[Path]:
        """The shards of a part, each checked; raises FileNotFoundError or ValueError with the way out."""
        index = folder / INDEX
        try:
            count = int(json.loads(index.read_text(encoding="utf-8"))["shards"])
        except FileNotFoundError:
            raise FileNotFoundError(f"no {self.what} at {folder}; {self.writer} writes them") from None
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{index}: not readable; remove {folder.parent} and run {self.writer} again") from None
        paths = [shard_path(folder, number) for number in range(count)]
        for path in paths:
            self.check(path)
        return paths


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def missing(folder: Path, shards: int) -> list[int]:
    """Numbers of the shards that a part of so many lacks; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return [number for number in range(shards) if not shard_path(folder, number).is_file()]


Shard = TypeVar("Shard", bound=Mapping[str, Any])


class Shards(Generic[Shard]):
    """The shards of some parts by name (`unlabelled/12`), few in memory at a time.

    Raises FileNotFoundError or ValueError naming the file.
    """

    def __init__(self, kind: Kind, opened: Callable[[Path], Shard], folders: Sequence[Path]) -> None:
        """opened: a shard's content by cut id."""
        self._paths = {f"{part.name}/{n}": path for part in folders for n, path in enumerate(kind.paths(part))}
        self.shard = lru_cache(KEPT_SHARDS)(lambda name: opened(self._paths[name]))

    def shards(self) -> Iterator[Shard]:
        """All shards, in order."""
        return map(self.shard, self._paths)

    def find(self, cut_id: str, name: str | None = None) -> Shard | None:
        """The shard with a cut: the one of this name, without a name any; None where there is none."""
        shards = self.shards() if name is None else [self.shard(name)] if name in self._paths else []
        return next((shard for shard in shards if cut_id in shard), None)
