"""Cut sets to batches: lhotse samples by duration, audio is read, augmented and padded here."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.dataset.sampling import DynamicBucketingSampler, SimpleCutSampler
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distill.batch import SAMPLE_RATE, Batch, pad_waves
from distill.config.training import Augment
from distill.config.training import Data as DataSettings
from distill.data.augment import Distortion, NoiseClips, utterance_rng
from distill.data.numerators import Numerators, text_of, usable

log = logging.getLogger(__name__)
LAST_UPDATE = 30  # seconds; as long as torchrun waits before it kills
EVERY_CUT = {"world_size": 1, "rank": 0}  # else lhotse gives each process of a torchrun other cuts


def load_cuts(folder: Path, parts: Sequence[str]) -> CutSet:
    """Read cut sets by name; raises FileNotFoundError with the way out for a missing one."""
    cuts = []
    for part in parts:
        path = folder / f"{part}.jsonl.gz"
        if not path.is_file():
            known = ", ".join(sorted(p.name.removesuffix(".jsonl.gz") for p in folder.glob("*.jsonl.gz")))
            raise FileNotFoundError(f"no cut set at {path}; stage 0 writes it (there: {known or 'nothing'})")
        cuts += list(CutSet.from_file(path).to_eager())
    if not cuts:
        raise ValueError(f"the cut sets {', '.join(parts)} in {folder} are empty; run stage 0 again")
    return CutSet.from_cuts(cuts)


class SpeechDataset(Dataset):
    """Sampled cuts to a Batch; augmentation is a function of seed, epoch and cut id."""

    def __init__(
        self,
        numerators: Numerators | None,
        distortion: Distortion | None,
        seed: int,
        with_clean: bool,
        keep_audio: bool,
    ) -> None:
        self.numerators, self.distortion = numerators, distortion
        self.seed, self.epoch, self.with_clean = seed, 0, with_clean
        self.kept: dict[str, np.ndarray] | None = {} if keep_audio else None

    def __getitem__(self, cuts: Iterable) -> Batch:
        clean = [self._read(cut) for cut in cuts]
        augmented = clean
        if self.distortion is not None:
            rngs = [utterance_rng(self.seed, self.epoch, cut.id) for cut in cuts]
            augmented = [self.distortion(wave, rng) for wave, rng in zip(clean, rngs)]
        wave, samples = pad_waves([torch.from_numpy(x) for x in augmented])
        graphs = self.numerators.batch([(cut.id, text_of(cut)) for cut in cuts]) if self.numerators else ()
        unchanged = pad_waves([torch.from_numpy(x) for x in clean])[0] if self.with_clean else None
        return Batch(tuple(cut.id for cut in cuts), wave, samples, graphs, unchanged)

    def _read(self, cut) -> np.ndarray:
        if self.kept is not None and cut.id in self.kept:
            kept = self.kept[cut.id]
            return kept.astype(np.float32) / 32768 if kept.dtype == np.int16 else kept
        if cut.sampling_rate != SAMPLE_RATE:
            raise ValueError(f"cut {cut.id} has {cut.sampling_rate} Hz, expected {SAMPLE_RATE}; resample the cuts")
        wave = cut.load_audio()[0].astype(np.float32)
        if self.kept is not None:
            short = np.round(wave * 32768).clip(-32768, 32767).astype(np.int16)
            exact = np.array_equal(short.astype(np.float32) / 32768, wave)  # else every later epoch would differ
            self.kept[cut.id] = short if exact else wave
        return wave

    def keep(self, cuts: Iterable) -> None:
        """Reads the audio to be kept before loading processes start: what they read themselves ends with them."""
        for cut in cuts:
            if self.kept is not None and cut.id not in self.kept:
                self._read(cut)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(cuts: Sequence, rank: int, world: int) -> list:
    """A rank's cuts of a batch, in the batch's order; the longest go first, each to the rank with the least audio."""
    loads, mine = [0.0] * world, []
    for place in sorted(range(len(cuts)), key=lambda place: (-cuts[place].duration, place)):
        least = loads.index(min(loads))
        loads[least] += cuts[place].duration
        if least == rank:
            mine.append(place)
    return [cuts[place] for place in sorted(mine)]


class _Shares(Dataset):
    """A rank's share of each batch; graphs travel from a loading process to the training process as numpy arrays.

    Tensors would travel as shared memory, with one open file for each, as long as the loading process keeps it.
    """

    def __init__(self, dataset: SpeechDataset, rank: int, world: int) -> None:
        self.dataset, self.rank, self.world = dataset, rank, world

    def __getitem__(self, cuts: CutSet) -> Batch:
        whole = list(cuts)
        mine = share(whole, self.rank, self.world)
        batch = replace(self.dataset[mine or whole[:1]], counted=bool(mine))
        return batch if get_worker_info() is None else replace(batch, graphs=[_packed(g) for g in batch.graphs])


def _packed(graph: Any) -> tuple[type, dict[str, Any]]:
    values = {field.name: getattr(graph, field.name) for field in fields(graph)}
    return type(graph), {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def _unpacked(packed: Any) -> Any:
    if not isinstance(packed, tuple):
        return packed
    kind, values = packed
    return kind(**{k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()})


def _begin_loading(worker: int) -> None:
    """Leave signals to the training process, which finishes its update first, but outlive one by LAST_UPDATE."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_UPDATE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class TrainLoader:
    """Epochs of batches, bucketed by duration, shuffled by seed and epoch; each rank gets its share of every batch."""

    def __init__(
        self, cuts: CutSet, dataset: SpeechDataset, settings: DataSettings, seed: int, rank: int, world: int
    ) -> None:
        self.cuts, self.dataset, self.settings = cuts, dataset, settings
        self.seed, self.rank, self.world = seed, rank, world

    def epoch(self, number: int, skip: int = 0) -> Generator[Batch, None, None]:
        """Batches of one epoch (counted from 0), without the first `skip` (already trained on)."""
        self.dataset.epoch = number
        chosen = islice(self._sampler(number), skip, None)  # nothing is read of those passed over
        workers = min(self.settings.workers, available_cores())  # more would only take turns, and torch warns
        if workers:
            self.dataset.keep(self.cuts)
        loader: DataLoader = DataLoader(
            _Shares(self.dataset, self.rank, self.world), sampler=chosen, batch_size=None, num_workers=workers,
            worker_init_fn=_begin_loading, multiprocessing_context="fork" if workers else None,
            generator=torch.Generator().manual_seed(number),  # torch's own belongs to the model alone
        )  # fmt: skip
        for batch in loader:
            yield replace(batch, graphs=[_unpacked(graph) for graph in batch.graphs])

    def count(self, number: int) -> int:
        """Number of batches of an epoch, from the manifest alone."""
        return sum(1 for _ in self._sampler(number))

    def _sampler(self, number: int):
        common = {"max_duration": self.settings.max_duration, **EVERY_CUT}
        if number == 0 and self.settings.short_first:
            ordered = CutSet.from_cuts(sorted(self.cuts, key=lambda cut: (cut.duration, cut.id)))
            return SimpleCutSampler(ordered, shuffle=False, **common)
        buckets = min(self.settings.buckets, len(self.cuts) // 10)
        if buckets < 2:
            sampler = SimpleCutSampler(self.cuts, shuffle=True, seed=self.seed, **common)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You are using DynamicBucketingSampler with an eagerly")
                sampler = DynamicBucketingSampler(
                    self.cuts, shuffle=True, seed=self.seed, num_buckets=buckets, **common
                )
        sampler.set_epoch(number)
        return sampler


def in_order(cuts: CutSet | Sequence[Any], dataset: SpeechDataset, max_duration: float) -> Iterator[Batch]:
    """All cuts once, longest first, for validation and decoding; a rank passes its own share."""
    if not len(cuts):
        return
    ordered = CutSet.from_cuts(sorted(cuts, key=lambda cut: (-cut.duration, cut.id)))
    for chosen in SimpleCutSampler(ordered, max_duration=max_duration, shuffle=False, **EVERY_CUT):
        yield dataset[chosen]


def train_loader(
    folder: Path,
    settings: DataSettings,
    augment: Augment,
    numerators: Numerators | None,
    seed: int,
    with_clean: bool,
    rank: int = 0,
    world: int = 1,
) -> tuple[TrainLoader, list[tuple[str, str]]]:
    """The loader of an experiment and the (cut id, reason) of cuts left out."""
    cuts = load_cuts(folder / "cuts", settings.train)
    skipped: list[tuple[str, str]] = []
    if numerators is not None:
        good, skipped = usable(cuts, numerators)
        if not good:
            raise ValueError(f"none of {len(cuts)} cuts can be trained on; the first: {skipped[0][1]}")
        cuts = CutSet.from_cuts(good)
    dataset = SpeechDataset(numerators, distortion(augment, folder), seed, with_clean, settings.keep_audio)
    return TrainLoader(cuts, dataset, settings, seed, rank, world), skipped


def distortion(augment: Augment, folder: Path) -> Distortion | None:
    """The augmentation of the settings, None without any; noise clips lie below the data folder."""
    values = augment.model_dump()
    part = values.pop("noise_part")
    if not any(values[f"{kind}_probability"] for kind in ("volume", "pitch", "noise")):
        return None
    clips = NoiseClips(folder / part) if part and augment.noise_probability else None
    return Distortion(**values, clips=clips)
