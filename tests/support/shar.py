"""Lhotse Shar of generated speech, and tars that are rewritten with faults."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from lhotse import CutSet

Member = tuple[str, bytes]


def write_shar(cuts: CutSet, folder: Path, kind: str = "wav", size: int | None = 5) -> Path:
    """The cuts as lhotse writes them, `size` in a shard; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    cuts.to_shar(folder, {"recording": kind}, shard_size=size, warn_unused_fields=False)
    return folder


def read_tar(path: Path) -> list[Member]:
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]


def write_tar(path: Path, members: Iterable[Member]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
