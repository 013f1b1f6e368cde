"""Teacher lattices of unlabelled cuts, stored in atomically written shards.

A part is a folder of shards `00000.npz`, `00001.npz`, ... and, when all are there, `shards.json`. Arrays of
all cuts of a shard stand end to end, small numbers in small types, and are compressed together. Scores are
kept as float16, relative to the best sequence's: its own are exactly 0.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from distill.files import replacing, write_text
from distill.search.determinise import SequenceGraph

FORMAT = "lattices/1"
INDEX = "shards.json"
SHARD = 250  # cuts

Cut = TypeVar("Cut")


@dataclass(frozen=True, eq=False)
class CutLattice:
    """The teacher's lattice of a cut.

    sequences: the lattice over units, None where no path was complete. confidence (T,): posterior of the best path's
    output in each frame. words: ids of the best path. counts: integers of the writer's choice, as many per cut;
    none counts as zeros.
    """

    cut_id: str
    sequences: SequenceGraph | None
    confidence: np.ndarray
    words: Sequence[int] = ()
    counts: Sequence[int] = ()


def write_shard(path: Path, cuts: Sequence[CutLattice], frame_shift: float, beam: float) -> None:
    """Writes a shard atomically; frame_shift: seconds per frame; beam: the lattice beam of all cuts."""
    width = max((len(cut.counts) for cut in cuts), default=0)
    graphs = [cut.sequences for cut in cuts if cut.sequences is not None]
    arrays = {
        "format": np.array(FORMAT),
        "frame_shift": np.array(frame_shift),
        "asked_beam": np.array(beam),
        "ids": np.array([cut.cut_id for cut in cuts], dtype=np.str_),
        "found": np.array([cut.sequences is not None for cut in cuts], dtype=bool),
        "frames": _small([len(cut.confidence) for cut in cuts]),
        "confidence": np.round(255 * _joined([cut.confidence for cut in cuts])).astype(np.uint8),
        "said": _small([len(cut.words) for cut in cuts]),
        "words": _small(_joined([np.asarray(cut.words) for cut in cuts])),
        "counts": np.array([cut.counts or [0] * width for cut in cuts], dtype=np.int64).reshape(len(cuts), width),
        "states": _small([graph.num_states for graph in graphs]),
        "best": np.array([graph.best for graph in graphs], dtype=np.float32).reshape(-1, 2),
        "beam": np.array([graph.beam for graph in graphs], dtype=np.float32),
        **_arrays(graphs),
    }
    with replacing(path, shared=True) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _arrays(graphs: Sequence[SequenceGraph]) -> dict[str, np.ndarray]:
    """Arrays of the graphs, end to end, as small numbers."""
    degree = [np.bincount(graph.src, minlength=graph.num_states) for graph in graphs]
    # the sum is never above 0, and stays so when it is rounded
    total = [graph.graph.astype(np.float64) + graph.acoustic for graph in graphs]
    final = [graph.final_graph.astype(np.float64) + graph.final_acoustic for graph in graphs]
    return {
        "degree": _small(_joined(degree)),
        "ahead": _small(_joined([graph.dst - graph.src for graph in graphs])),
        "symbol": _small(_joined([graph.symbol for graph in graphs])),
        "total": np.minimum(_joined(total), 0).astype(np.float16),
        "graph": _joined([graph.graph for graph in graphs]).astype(np.float16),
        "final_total": np.minimum(_joined(final), 0).astype(np.float16),
        "final_graph": _joined([graph.final_graph for graph in graphs]).astype(np.float16),
        "earliest": _small(_joined([graph.earliest for graph in graphs])),
        "range": _small(_joined([graph.latest - graph.earliest for graph in graphs])),
    }


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([*arrays, np.zeros(0, dtype=np.int64)])


def _small(values: np.ndarray | Sequence[int]) -> np.ndarray:
    """Counts in the smallest type that fits."""
    array = np.asarray(values, dtype=np.int64)
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))


class Shard(Mapping[str, SequenceGraph]):
    """The lattices of a shard by cut id, unpacked on access.

    Raises FileNotFoundError or ValueError naming the file and the way out.
    """

    def __init__(self, path: Path) -> None:
        content = _read(path)
        self.bytes = path.stat().st_size
        self.frame_shift, self.beam = float(content["frame_shift"]), float(content["asked_beam"])
        self.content, self.ids = content, content["ids"].tolist()
        self._row = {name: row for row, name in enumerate(self.ids)}
        self._graph = {name: k for k, name in enumerate(np.array(self.ids)[content["found"]].tolist())}
        self._frames, self._words, self._states = (_bounds(content[name]) for name in ("frames", "said", "states"))
        self._first = _bounds(content["degree"])

    def __len__(self) -> int:
        return len(self._graph)

    def __iter__(self) -> Iterator[str]:
        return iter(self._graph)

    def __getitem__(self, cut_id: str) -> SequenceGraph:
        k = self._graph[cut_id]
        states = slice(self._states[k], self._states[k + 1])
        arcs = slice(self._first[states.start], self._first[states.stop])
        src = np.repeat(np.arange(states.stop - states.start), self._get("degree", states, np.int64))
        graph, total = self._get("graph", arcs, np.float32), self._get("total", arcs, np.float32)
        final_graph, final = self._get("final_graph", states, np.float32), self._get("final_total", states, np.float32)
        ends = np.isfinite(final)
        earliest = self._get("earliest", states, np.int32)
        return SequenceGraph(
            src=src.astype(np.int32),
            dst=(src + self._get("ahead", arcs, np.int64)).astype(np.int32),
            symbol=self._get("symbol", arcs, np.int32),
            graph=graph,
            acoustic=total - graph,
            final_graph=np.where(ends, final_graph, np.float32(-np.inf)),
            final_acoustic=np.where(ends, final, 0) - np.where(ends, final_graph, 0),
            earliest=earliest,
            latest=earliest + self._get("range", states, np.int32),
            best=(float(self.content["best"][k, 0]), float(self.content["best"][k, 1])),
            beam=float(self.content["beam"][k]),
        )

    def _get(self, name: str, part: slice, kind: type) -> np.ndarray:
        return self.content[name][part].astype(kind)

    def confidence(self, cut_id: str) -> np.ndarray:
        """Posterior of the best path's output in each frame, (T,) float32."""
        row = self._row[cut_id]
        return self.content["confidence"][self._frames[row] : self._frames[row + 1]].astype(np.float32) / 255

    def words(self, cut_id: str) -> list[int]:
        """Word ids of the best path."""
        row = self._row[cut_id]
        return self.content["words"][self._words[row] : self._words[row + 1]].tolist()

    def counts(self, cut_id: str) -> list[int]:
        """The writer's integers."""
        return self.content["counts"][self._row[cut_id]].tolist()


def _bounds(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _read(path: Path) -> dict[str, np.ndarray]:
    again = f"remove it and {path.parent.parent / '.done'}, and run stage 7 again: it makes what is missing"
    if not path.is_file():
        raise FileNotFoundError(f"the lattices' shard {path} is missing; {again}")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError(f"its {path.stat().st_size} bytes are no zip archive")
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
        if str(content["format"]) != FORMAT:
            raise ValueError(f"it has format '{content['format']}', expected '{FORMAT}'")
        arcs = int(content["degree"].sum())
        sizes = {"found": len(content["ids"]), "degree": int(content["states"].sum()), "symbol": arcs, "total": arcs}
        for name, size in sizes.items():
            if len(content[name]) != size:
                raise ValueError(f"'{name}' has {len(content[name])} entries, expected {size}")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: cut short or not a shard of lattices ({error}); {again}") from None
    return content


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npz"


def missing(folder: Path, cuts: int) -> list[int]:
    """Numbers of the shards that a part of so many cuts lacks; makes the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return [number for number in range(math.ceil(cuts / SHARD)) if not shard_path(folder, number).is_file()]


def shard_of(cuts: Sequence[Cut], number: int) -> Sequence[Cut]:
    """The cuts of a shard, from those of the part."""
    return cuts[number * SHARD : (number + 1) * SHARD]


def finish(folder: Path, cuts: int) -> None:
    """Writes the index of a part of so many cuts, after all of its shards."""
    index = {"format": FORMAT, "shards": math.ceil(cuts / SHARD)}
    write_text(folder / INDEX, json.dumps(index) + "\n")


class Lattices(Mapping[str, SequenceGraph]):
    """All shards of some parts: lattices by cut id.

    without_path: cuts in which no path was complete. bytes: size on disk. frame_shift: seconds per frame, beam: that of
    stage 7; None without shards. Raises FileNotFoundError or ValueError naming the file.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.shards = [shard for folder in folders for shard in _shards(folder)]
        self._shard_of = {name: shard for shard in self.shards for name in shard}
        self.without_path = {name for shard in self.shards for name in shard.ids} - set(self._shard_of)
        self.bytes = sum(shard.bytes for shard in self.shards)
        self.frame_shift = self.shards[0].frame_shift if self.shards else None
        self.beam = min((shard.beam for shard in self.shards), default=None)

    def __len__(self) -> int:
        return len(self._shard_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def __getitem__(self, cut_id: str) -> SequenceGraph:
        return self._shard_of[cut_id][cut_id]

    def confidence(self, cut_id: str) -> np.ndarray | None:
        """Posterior (T,) of the best path's output in each frame, None for a cut without a lattice."""
        shard = self._shard_of.get(cut_id)
        return None if shard is None else shard.confidence(cut_id)

    def counts(self, cut_id: str) -> list[int]:
        """The writer's integers of a cut with a lattice."""
        return self._shard_of[cut_id].counts(cut_id)

    def summary(self, seconds: float) -> dict[str, float]:
        """Sizes and error rates of the lattices of so much audio, for summary.json.

        depth: arcs of the searched lattices per frame. unit_arcs_per_unit: arcs of the stored ones per unit of the best
        sequence. wer, oracle_wer: of the best path and of the best of all paths, where the true words are known.
        """
        arcs, frames, errors, oracle, words = np.sum([self.counts(name) for name in self] or [[0] * 5], axis=0)
        graphs = [self[name] for name in self]
        units = sum(len(next(graph.ranked())[0]) for graph in graphs)
        summary = {
            "utterances": len(self) + len(self.without_path), "without_lattice": len(self.without_path),
            "audio_hours": round(seconds / 3600, 3), "bytes_per_second": round(self.bytes / seconds, 1),
            "depth": round(float(arcs) / max(1, frames), 2),
            "unit_arcs_per_unit": round(sum(graph.num_arcs for graph in graphs) / max(1, units), 2),
            "narrowed": sum(graph.beam < (self.beam or 0.0) for graph in graphs),
        }  # fmt: skip
        if words:
            rates = {"wer": errors, "oracle_wer": oracle}
            summary |= {name: round(100 * float(count) / words, 3) for name, count in rates.items()}
        return summary


def _shards(folder: Path) -> Iterator[Shard]:
    index = folder / INDEX
    try:
        count = int(json.loads(index.read_text(encoding="utf-8"))["shards"])
    except FileNotFoundError:
        raise FileNotFoundError(
            f"no lattices at {folder}; stage 7 writes them (run.sh --stage 7 --stop-stage 7)"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{index}: not readable; remove {folder.parent} and run stage 7 again") from None
    return (Shard(shard_path(folder, number)) for number in range(count))
