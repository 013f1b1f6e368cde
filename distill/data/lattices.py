"""Teacher lattices of unlabelled cuts, stored in atomically written shards.

Arrays of all cuts of a shard (`distill.data.shards`) stand end to end, small numbers in small types, and are
compressed together. Scores are kept as float16, relative to the best sequence's: its own are exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.shards import Kind, Shards
from distill.search.determinise import SequenceGraph

LATTICES = Kind("lattices/2", "lattices", "stage 7")


@dataclass(frozen=True, eq=False)
class CutLattice:
    """The teacher's lattice of a cut.

    sequences: the lattice over units, None where no path was complete. confidence (T,): posterior of the best path's
    output in each frame. words: ids of the best path. counts: integers of the writer's choice, as many per cut;
    none counts as zeros. reason: why there is no lattice.
    """

    cut_id: str
    sequences: SequenceGraph | None
    confidence: np.ndarray
    words: Sequence[int] = ()
    counts: Sequence[int] = ()
    reason: str = "no complete path with units"


def write_shard(path: Path, cuts: Sequence[CutLattice], frame_shift: float, beam: float) -> None:
    """Writes a shard atomically; frame_shift: seconds per frame; beam: the lattice beam of all cuts."""
    width = max((len(cut.counts) for cut in cuts), default=0)
    graphs = [cut.sequences for cut in cuts if cut.sequences is not None]
    arrays = {
        "frame_shift": np.array(frame_shift),
        "asked_beam": np.array(beam),
        "ids": np.array([cut.cut_id for cut in cuts], dtype=np.str_),
        "reasons": np.array([cut.reason if cut.sequences is None else "" for cut in cuts], dtype=np.str_),
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
    LATTICES.write(path, arrays)


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
    with LATTICES.reading(path) as content:
        arcs = int(content["degree"].sum())
        sizes = {"found": len(content["ids"]), "degree": int(content["states"].sum()), "symbol": arcs, "total": arcs}
        for name, size in sizes.items():
            if len(content[name]) != size:
                raise ValueError(f"'{name}' has {len(content[name])} entries, expected {size}")
    return content


class Lattices(Shards[Shard]):
    """The shards of some parts.

    frame_shift: seconds per frame, beam: that of stage 7; None without shards. Raises FileNotFoundError or ValueError
    naming the file.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        super().__init__(LATTICES, Shard, folders)
        first = next(self.shards(), None)
        self.frame_shift = first.frame_shift if first else None
        self.beam = first.beam if first else None


@dataclass
class Summary:
    """Sizes and error rates of the lattices of a part, added shard by shard."""

    without_lattice: list[tuple[str, str]] = field(default_factory=list)  # cut id, reason
    utterances: int = 0
    bytes: int = 0
    counts: Any = 0  # arcs, frames, errors, oracle errors, words
    units: int = 0
    unit_arcs: int = 0
    narrowed: int = 0

    def add(self, shard: Shard) -> None:
        """Count a shard in."""
        graphs = list(shard.values())
        reasons = zip(shard.ids, shard.content["reasons"].tolist())
        self.without_lattice += [(cut_id, reason) for cut_id, reason in reasons if cut_id not in shard]
        self.utterances += len(shard.ids)
        self.bytes += shard.bytes
        self.counts += np.sum([shard.counts(cut_id) for cut_id in shard] or [[0] * 5], axis=0)
        self.units += sum(len(next(graph.ranked())[0]) for graph in graphs)
        self.unit_arcs += sum(graph.num_arcs for graph in graphs)
        self.narrowed += sum(graph.beam < shard.beam for graph in graphs)

    def figures(self, seconds: float) -> dict[str, float]:
        """Those of so much audio, for summary.json.

        depth: arcs of the searched lattices per frame. unit_arcs_per_unit: arcs of the stored ones per unit of the best
        sequence. wer, oracle_wer: of the best path and of the best of all paths, where the true words are known.
        """
        arcs, frames, errors, oracle, words = self.counts
        figures = {
            "utterances": self.utterances, "without_lattice": len(self.without_lattice),
            "audio_hours": round(seconds / 3600, 3), "bytes_per_second": round(self.bytes / seconds, 1),
            "depth": round(float(arcs) / max(1, frames), 2),
            "unit_arcs_per_unit": round(self.unit_arcs / max(1, self.units), 2), "narrowed": self.narrowed,
        }  # fmt: skip
        if words:
            rates = {"wer": errors, "oracle_wer": oracle}
            figures |= {name: round(100 * float(count) / words, 3) for name, count in rates.items()}
        return figures
