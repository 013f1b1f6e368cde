"""Units of frames by k-means: features that are clustered, the inventory of centroids, and the labels of cuts.

The inventory says what its centroids are of, so that no other frames are labelled with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from torch import Tensor
from torchaudio.compliance import kaldi

from distill.batch import SAMPLE_RATE
from distill.config.model import FBANK_WIDTH, FrontEnd
from distill.config.units import HOP, MOST_CLUSTERS, Units
from distill.data.audio import Unreadable
from distill.data.shards import Kind, Shards
from distill.fbank import log_mel

INVENTORY = "inventory.npz"
LABELS = Kind("units/1", "units", "the training's stage")
CENTROIDS = Kind("centroids/1", "centroids", "the training's stage", "inventory")
PART = 10_000  # frames of a step of k-means at least, as in HuBERT's recipe
NEAR = 2  # frames by which counts of the same rate may differ: of padding, and of strides
CONVENTIONS = {
    "mfcc": "13 MFCC of Kaldi each 10 ms with first and second differences, not scaled; each second frame",
    "fbank": "80 log-mel energies of 25 ms each 20 ms, not scaled",
    "": "output of a block after its residual connections; of the last one after the encoder's final norm",
}
"""What is clustered, stored with the centroids; of hidden states as torchaudio, transformers and s3prl number them
(fairseq's `before residual` states are others)."""


def features(kind: str, wave: Tensor) -> Tensor:
    """Features of wave (N,) in -1..1 -> (T, D), T = (N - 400) // 320 + 1, not below 0.

    Frame t is of samples 320 t .. 320 t + 399, as that of a wav2vec 2.0 front-end without padding. mfcc: 39 dimensions;
    the differences are taken at 10 ms, and the first of each two frames is kept (HuBERT's labels of 100 Hz are read so
    by its 50 Hz model). fbank: 80.
    """
    if len(wave) < FBANK_WIDTH:
        return wave.new_zeros(0, 39 if kind == "mfcc" else 80)
    if kind == "fbank":
        return log_mel(wave.unfold(0, FBANK_WIDTH, HOP))
    cepstra = kaldi.mfcc(wave[None], sample_frequency=SAMPLE_RATE, use_energy=False).T
    first = torchaudio.functional.compute_deltas(cepstra)
    return torch.cat([cepstra, first, torchaudio.functional.compute_deltas(first)]).T[::2]


class Origin(Units):
    """What centroids are of: the settings, what they do not say, and the source's weights.

    parts: cut sets that they were found in. weights: digest of the experiment's, empty for features.
    """

    parts: tuple[str, ...]
    convention: str
    weights: str = ""

    @classmethod
    def of_settings(cls, settings: Units, parts: tuple[str, ...], weights: str = "") -> Origin:
        """That of units with these settings."""
        convention = CONVENTIONS["" if settings.experiment else settings.of]
        return cls(**settings.resolved(), parts=parts, convention=convention, weights=weights)


@dataclass(frozen=True, eq=False)
class Inventory:
    """centroids (K, D) float32, and what they are of."""

    centroids: np.ndarray
    origin: Origin

    def labels(self, frames: np.ndarray) -> np.ndarray:
        """The nearest centroid of each frame: (T, D) -> (T,) int16."""
        from sklearn.metrics import pairwise_distances_argmin

        return pairwise_distances_argmin(frames, self.centroids).astype(np.int16)

    def write(self, path: Path) -> None:
        """Write the inventory atomically."""
        CENTROIDS.write(path, {"centroids": self.centroids, "origin": np.array(self.origin.model_dump_json())})

    @classmethod
    def load(cls, path: Path, origin: Origin | None = None) -> Inventory:
        """Read an inventory; origin: what it must be of.

        Raises FileNotFoundError, or ValueError for one that is damaged, empty or of something else.
        """
        with CENTROIDS.reading(path) as content:
            found = Origin.parse(json.loads(str(content["origin"])), "origin")
            centroids = content["centroids"]
            if centroids.ndim != 2 or len(centroids) != found.clusters or not np.isfinite(centroids).all():
                raise ValueError(f"centroids {centroids.shape}, expected {found.clusters} rows of finite numbers")
        if origin is not None and found != origin:
            mine, other = origin.resolved(), found.resolved()
            differences = [
                f"{key}: expected {mine[key]!r}, got {other[key]!r}" for key in mine if mine[key] != other[key]
            ]
            raise ValueError(
                f"{path}: units of another origin ({'; '.join(differences)}); move the folder {path.parent} away, and"
                " give the same command again: it makes its own"
            )
        return cls(centroids, found)


def find_units(frames: Iterable[np.ndarray], origin: Origin) -> Inventory:
    """Mini-batch k-means (Sculley 2010) in one pass over frames (T, D) of utterances, k-means++ on the first part.

    A few parts of the frames are in memory at a time. Raises ValueError where there are fewer different frames than
    clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    size = max(PART, 10 * origin.clusters)
    estimator = MiniBatchKMeans(
        origin.clusters, random_state=origin.seed, init_size=size, reassignment_ratio=0, compute_labels=False
    )
    seen = 0
    for part in _parts(frames, size):
        if not seen and (different := len(np.unique(part, axis=0))) < origin.clusters:
            raise ValueError(
                f"units: {origin.clusters} clusters cannot be found in {different} different frames; set fewer"
                " units.clusters, or more units.hours"
            )
        estimator.partial_fit(part)
        seen += len(part)
    if not seen:
        raise ValueError(f"units: no frame in any audio of {', '.join(origin.parts)}; look at its skipped.tsv")
    return Inventory(estimator.cluster_centers_.astype(np.float32), origin)


def _parts(frames: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The frames in parts of so many at least, but for the last."""
    waiting: list[np.ndarray] = []
    for each in frames:
        waiting.append(each)
        if sum(map(len, waiting)) >= size:
            yield np.concatenate(waiting)
            waiting = []
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def write_shard(path: Path, cuts: Mapping[str, np.ndarray | str]) -> None:
    """Write a shard of labels (T,) int16, or why there are none, by cut id; the same bytes in any order."""
    ids = sorted(cuts)
    found = [np.zeros(0, np.int16) if isinstance(row := cuts[cut_id], str) else row for cut_id in ids]
    arrays = {
        "ids": np.array(ids, dtype=np.str_),
        "reasons": np.array([row if isinstance(row := cuts[cut_id], str) else "" for cut_id in ids], dtype=np.str_),
        "frames": np.array([len(row) for row in found], dtype=np.int32),
        "labels": np.concatenate([*found, np.zeros(0, np.int16)]),
    }
    LABELS.write(path, arrays)


class UnitShard(dict[str, np.ndarray]):
    """Labels (T,) int16 of a shard's cuts by cut id; reasons: why others have none.

    Raises FileNotFoundError or ValueError naming the file and the way out.
    """

    def __init__(self, path: Path) -> None:
        with LABELS.reading(path) as content:
            ids, reasons = (content[name].tolist() for name in ("ids", "reasons"))
            frames, labels = content["frames"], content["labels"]
            if not len(ids) == len(reasons) == len(frames) or frames.sum() != len(labels):
                raise ValueError(f"{len(labels)} labels of {len(ids)} cuts, expected {frames.sum()} of {len(frames)}")
        self.reasons = {cut_id: reason for cut_id, reason in zip(ids, reasons) if reason}
        rows = zip(ids, np.split(labels, np.cumsum(frames)[:-1]))
        super().__init__((cut_id, row) for cut_id, row in rows if cut_id not in self.reasons)


class UnitLabels(Shards[UnitShard]):
    """Labels of some parts at the frames of a model."""

    def __init__(self, folders: Sequence[Path], front_end: FrontEnd, clusters: int = MOST_CLUSTERS) -> None:
        super().__init__(LABELS, UnitShard, folders)
        self.front_end, self.clusters = front_end, clusters

    def of(self, cut: Any, samples: int) -> np.ndarray:
        """Labels (T,) of a lhotse cut of so many samples, T the model's frames: cut, or the last one repeated.

        Raises Unreadable for a cut without labels, or with labels of another frame rate; ValueError for labels that no
        cluster has.
        """
        shard = self.find(cut.id, (cut.custom or {}).get("block"))
        if shard is None:
            raise Unreadable(f"cut {cut.id} has no units; skipped.tsv of the units has the reason")
        labels, frames = shard[cut.id], self.front_end.frames(samples)
        if labels.max(initial=0) >= self.clusters:
            raise ValueError(
                f"cut {cut.id} has label {labels.max()} of {self.clusters} units: labels of another inventory; remove"
                " the folder of these units, and run the training's stage again: it makes them"
            )
        if abs(len(labels) - frames) > NEAR:
            raise Unreadable(
                f"cut {cut.id} has {len(labels)} units and {frames} frames of the model: labels of another frame rate"
            )
        return np.pad(labels[:frames], (0, max(0, frames - len(labels))), mode="edge")

    def padded(self, rows: Sequence[np.ndarray], samples: int) -> Tensor:
        """Labels of a batch whose longest waveform has so many samples: (B, T) int64, -1 behind each row's own."""
        result = torch.full((max(1, len(rows)), max(1, self.front_end.frames(samples))), -1)
        for number, row in enumerate(rows):
            result[number, : len(row)] = torch.from_numpy(row)
        return result


class Summary:
    """Figures of the labels of a part, added shard by shard; counts (K,): labels of each cluster."""

    def __init__(self, clusters: int) -> None:
        self.counts = np.zeros(clusters, np.int64)
        self.utterances = 0
        self.without_labels: list[tuple[str, str]] = []  # cut id, reason

    def add(self, shard: UnitShard) -> None:
        """Count a shard in."""
        self.utterances += len(shard) + len(shard.reasons)
        self.without_labels += shard.reasons.items()
        for labels in shard.values():
            self.counts += np.bincount(labels, minlength=len(self.counts))

    def figures(self) -> dict[str, Any]:
        """For summary.json. perplexity: exp of the entropy of the labels' distribution, at most the clusters."""
        shares = self.counts[self.counts > 0] / max(1, self.counts.sum())
        return {
            "utterances": self.utterances, "without_labels": len(self.without_labels),
            "frames": int(self.counts.sum()), "perplexity": round(float(np.exp(-(shares * np.log(shares)).sum())), 2),
            "counts": self.counts.tolist(),
        }  # fmt: skip
