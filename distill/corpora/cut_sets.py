"""Cut sets on disk: lhotse's jsonl.gz, packed in blocks that can be read one by one, and an index of the blocks."""

from __future__ import annotations

import gzip
import json
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from distill.files import replacing, write_text

BLOCK = 250  # cuts; also those of a shard of lattices
COMPRESSION = 6  # three times as fast as 9, 2 % larger
SUFFIX = ".jsonl.gz"
INDEX = ".blocks.tsv"


class CutBlocks:
    """A cut set on disk, of any size: `read` gives a block of its cuts.

    part: its name. counts, seconds: cuts and their duration, for each block. Raises FileNotFoundError or ValueError
    with the way out.
    """

    def __init__(self, folder: Path, part: str) -> None:
        self.part, self.path = part, _path(folder, part)
        index = self.path.with_name(part + INDEX)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "loadtxt: input contained no data")
                sizes, counts, self.seconds = np.loadtxt(index, ndmin=2).reshape(-1, 3).T
        except (OSError, ValueError):
            raise ValueError(f"no readable index {index.name} beside {self.path}; run stage 0 again") from None
        self.counts = counts.astype(np.int64)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        if len(sizes) and self._ends[-1] != self.path.stat().st_size:
            raise ValueError(f"{self.path} is not the file of its index {index.name}; run stage 0 again")

    def __len__(self) -> int:
        return len(self.counts)

    def read(self, number: int) -> list[Cut]:
        """The cuts of a block, each with the block's name (`unlabelled/12`) in its custom field `block`."""
        first = int(self._ends[number - 1]) if number else 0
        try:
            with self.path.open("rb") as file:
                file.seek(first)
                lines = gzip.decompress(file.read(int(self._ends[number]) - first)).splitlines()
            if len(lines) != self.counts[number]:
                raise ValueError(f"{len(lines)} cuts, expected {self.counts[number]}")
            cuts = [deserialize_item(json.loads(line)) for line in lines]
        except (EOFError, OSError, ValueError, KeyError, zlib.error) as error:
            raise ValueError(
                f"{self.path}: block {number} is damaged or not that of its index ({error}); run stage 0 again"
            ) from None
        for cut in cuts:
            cut.custom = {**(cut.custom or {}), "block": f"{self.part}/{number}"}
        return cuts


def write_cuts(cuts: Iterable[Cut], path: Path) -> float:
    """Write a cut set and its index, block by block; returns its hours."""
    rows, rest = [], iter(cuts)
    with replacing(path) as temporary, temporary.open("wb") as file:
        while block := list(islice(rest, BLOCK)):
            lines = "".join(json.dumps(_row(cut), ensure_ascii=False) + "\n" for cut in block)
            size = file.write(_packed(lines.encode()))
            rows.append((size, len(block), sum(cut.duration for cut in block)))
        if not rows:
            file.write(_packed(b""))
    index = path.with_name(path.name.removesuffix(SUFFIX) + INDEX)
    write_text(index, "".join("{}\t{}\t{:.4f}\n".format(*row) for row in rows))
    return sum(row[2] for row in rows) / 3600


def _packed(data: bytes) -> bytes:
    """In gzip's format, without a time; gzip's own header differs between versions of Python."""
    packing = zlib.compressobj(COMPRESSION, zlib.DEFLATED, 31)
    return packing.compress(data) + packing.flush()


def _row(cut: Cut) -> dict[str, Any]:
    """A cut as lhotse writes it, without the name of a block that it was read from."""
    row = cut.to_dict()
    if (custom := row.get("custom")) and "block" in custom:
        custom = {key: value for key, value in custom.items() if key != "block"}
        row = {**row, "custom": custom} if custom else {key: row[key] for key in row if key != "custom"}
    return row


def each_cut(folder: Path, parts: Sequence[str]) -> Iterator[Cut]:
    """The cuts of some cut sets, one block in memory at a time."""
    files = (CutBlocks(folder, part) for part in parts)
    return (cut for blocks in files for number in range(len(blocks)) for cut in blocks.read(number))


def spread(files: Sequence[CutBlocks], count: int, seed: int | None = None) -> Iterator[Cut]:
    """`count` cuts spread over some cut sets, or all; seed: in a random order of blocks, and of cuts in each."""
    rng = np.random.default_rng(seed)
    places = [(file, number) for file in files for number in range(len(file))]
    ends = np.cumsum([0, *(file.counts[number] for file, number in places)])[1:]
    chosen = np.unique(np.arange(count) * ends[-1] // count) if places else ends
    block = np.searchsorted(ends, chosen, side="right")
    blocks = np.unique(block)
    for each in blocks if seed is None else rng.permutation(blocks):
        file, number = places[each]
        cuts, mine = file.read(number), chosen[block == each] - (ends[each] - file.counts[number])
        yield from (cuts[place] for place in (mine if seed is None else rng.permutation(mine)))


def load_cuts(folder: Path, parts: Sequence[str]) -> CutSet:
    """Cut sets by name, whole in memory; raises FileNotFoundError or ValueError with the way out."""
    cuts: list[Any] = [cut for part in parts for cut in CutSet.from_file(_path(folder, part)) or ()]
    if not cuts:
        raise ValueError(f"the cut sets {', '.join(parts)} in {folder} are empty; run stage 0 again")
    return CutSet.from_cuts(cuts)


def _path(folder: Path, part: str) -> Path:
    path = folder / f"{part}{SUFFIX}"
    if not path.is_file():
        known = ", ".join(sorted(p.name.removesuffix(SUFFIX) for p in folder.glob(f"*{SUFFIX}")))
        raise FileNotFoundError(f"no cut set at {path}; stage 0 writes it (there: {known or 'nothing'})")
    return path
