"""Cut sets to batches: lhotse samples by duration, audio is read, augmented and padded here."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling import DynamicBucketingSampler, SimpleCutSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distill.batch import BEGIN, SAMPLE_RATE, Batch, Place, pad_waves
from distill.config.training import Augment
from distill.config.training import Data as DataSettings
from distill.corpora.cut_sets import CutBlocks, spread
from distill.data.audio import Unreadable, read_audio
from distill.data.augment import Distortion, NoiseClips, utterance_rng
from distill.data.distortions import Distorter
from distill.data.numerators import Numerators, Wanted
from distill.data.transcripts import Transcripts, padded_tokens
from distill.data.units import UnitLabels

LAST_UPDATE = 30  # seconds; as long as torchrun waits before it kills
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MOST_LOST = 100  # batches in a row without a usable utterance
EVERY_CUT = {"world_size": 1, "rank": 0}  # else lhotse gives each process of a torchrun other cuts


class SpeechDataset(Dataset):
    """Sampled cuts to a Batch; augmentation is a function of seed, epoch and cut id."""

    def __init__(
        self,
        numerators: Numerators | None,
        distortion: Distortion | None,
        seed: int,
        with_clean: bool,
        keep_audio: bool,
        units: UnitLabels | None = None,
        distorter: Distorter | None = None,
        with_second: bool = False,
        transcripts: Transcripts | None = None,
    ) -> None:
        """distortion: the augmentation, which a distorter's distortions follow. with_second: for the teacher."""
        self.transcripts = transcripts
        self.numerators, self.distortion, self.units, self.distorter = numerators, distortion, units, distorter
        self.seed, self.epoch, self.with_clean, self.with_second = seed, 0, with_clean, with_second
        self.kept: dict[str, np.ndarray] | None = {} if keep_audio else None

    def __getitem__(self, cuts: Iterable) -> Batch:
        """The batch of the cuts that can be used; `left_out` has the others. Raises ValueError for damaged lattices."""
        listed = list(cuts)
        found: list[Any] = [None] * len(listed)
        if self.numerators is not None:
            found = self.numerators.graphs([Wanted.of(cut) for cut in listed])
        ids, clean, graphs, labels, tokens, left_out = [], [], [], [], [], []
        for cut, graph in zip(listed, found):
            try:
                if isinstance(graph, str):
                    raise Unreadable(graph)
                units = None if self.transcripts is None else self.transcripts.of(cut)
                if isinstance(units, str):
                    raise Unreadable(units)
                wave = self._read(cut)
                labels += [] if self.units is None else [self.units.of(cut, len(wave))]
            except Unreadable as reason:
                left_out.append((cut.id, str(reason)))
                continue
            ids.append(cut.id)
            clean.append(wave)
            graphs += [] if graph is None else [graph]
            tokens += [] if units is None else [units]
        if not ids:
            clean = [np.zeros(SAMPLE_RATE, dtype=np.float32)]
            graphs = [self.numerators.any()] if self.numerators else []
        (padded, samples), distortions = self._changed(ids, clean)
        unchanged = pad_waves([torch.from_numpy(x) for x in clean])[0] if self.with_clean else None
        frame_units = None if self.units is None else self.units.padded(labels, padded.shape[1])
        second = self._changed([f"{cut_id}/second" for cut_id in ids], clean)[0][0] if self.with_second else None
        return Batch(
            tuple(ids), padded, samples, graphs, unchanged, tuple(left_out), units=frame_units, second=second,
            distortions=distortions, tokens=None if self.transcripts is None else padded_tokens(tokens),
        )  # fmt: skip

    def _changed(self, keys: Sequence[str], waves: Sequence[np.ndarray]) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Augmented and distorted waveforms, padded, with their lengths, and labels of the distortions (B, K).

        keys: random numbers depend on them, and on seed and epoch; none for a stand-in.
        """
        changed, labels = [], []
        for key, wave in zip(keys or [""], waves):
            rng = utterance_rng(self.seed, self.epoch, key)
            if self.distortion is not None:
                wave = self.distortion(wave, rng)
            if self.distorter is not None:
                wave, label = self.distorter(wave, rng)
                labels.append(torch.from_numpy(label))
            changed.append(torch.from_numpy(wave))
        return pad_waves(changed), torch.stack(labels) if labels else None

    def _read(self, cut) -> np.ndarray:
        if self.kept is not None and cut.id in self.kept:
            kept = self.kept[cut.id]
            return kept.astype(np.float32) / 32768 if kept.dtype == np.int16 else kept
        wave = read_audio(cut)
        if self.kept is not None:
            short = np.round(wave * 32768).clip(-32768, 32767).astype(np.int16)
            exact = np.array_equal(short.astype(np.float32) / 32768, wave)  # else every later epoch would differ
            self.kept[cut.id] = short if exact else wave
        return wave

    def keep(self, cuts: Iterable) -> None:
        """With kept audio, reads it and makes numerators before loading processes start: theirs end with them."""
        if self.kept is None:
            return
        listed = list(cuts)
        if self.numerators is not None:
            self.numerators.graphs([Wanted.of(cut) for cut in listed])
        for cut in listed:
            if cut.id not in self.kept:
                with contextlib.suppress(Unreadable):  # found again, and listed, as its batch is loaded
                    self._read(cut)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_share(cut_id: str, share: float) -> bool:
    """Whether a cut is one of a random share of all; a larger share contains all cuts of a smaller one."""
    return int.from_bytes(hashlib.sha256(cut_id.encode()).digest()[:8], "big") < share * 2**64


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

    Tensors would travel as shared memory, with one open file for each, as long as the loading process keeps it. Errors
    travel as values, or they would arrive as the text of a traceback.
    """

    def __init__(self, dataset: SpeechDataset, rank: int, world: int) -> None:
        self.dataset, self.rank, self.world = dataset, rank, world

    def __getitem__(self, drawn: tuple[Place, CutSet]) -> Batch | ValueError:
        after, cuts = drawn
        try:
            batch = replace(self.dataset[share(list(cuts), self.rank, self.world)], after=after)
        except ValueError as error:
            return error
        return batch if get_worker_info() is None else replace(batch, graphs=[_packed(g) for g in batch.graphs])


def _packed(graph: Any) -> tuple[type, dict[str, Any]]:
    values = {field.name: getattr(graph, field.name) for field in fields(graph)}
    return type(graph), {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in values.items()}


def _unpacked(packed: Any) -> Any:
    if not isinstance(packed, tuple):
        return packed
    kind, values = packed
    return kind(**{k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in values.items()})


def _started(loader: DataLoader) -> Iterator:
    """Its batches; its processes begin with END_SIGNALS blocked, or one of them would be ended before it is ready."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _begin_loading(worker: int) -> None:
    """Leave signals to the training process, which finishes its update first, but outlive one by LAST_UPDATE."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(LAST_UPDATE))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)


class TrainLoader:
    """Epochs of batches, bucketed by duration, shuffled by seed and epoch; each rank gets its share of every batch.

    An epoch goes through windows of about `settings.window` cuts, blocks of cuts in an order of its own; only one
    window is in memory. A smaller corpus is one window.
    """

    def __init__(
        self, files: Sequence[CutBlocks], dataset: SpeechDataset, settings: DataSettings, seed: int, rank: int,
        world: int,
    ) -> None:  # fmt: skip
        if not sum(map(len, files)):
            raise ValueError(f"the cut sets {', '.join(settings.train)} are empty; run stage 0 again")
        self.files, self.dataset, self.settings = files, dataset, settings
        self.seed, self.rank, self.world = seed, rank, world
        self.counts = np.concatenate([file.counts for file in files])
        self.seconds = np.concatenate([file.seconds for file in files])
        self._first = np.cumsum([0, *(len(file) for file in files)])  # block of each file
        self.windows = min(-(-int(self.counts.sum()) // settings.window), len(self.counts))
        self._read = lru_cache(1)(self._window)

    def epoch(self, number: int, start: Place = BEGIN) -> Generator[Batch, None, None]:
        """Batches of one epoch (counted from 0) from a place in it: the `after` of the last batch trained on.

        Raises ValueError where no utterance of an epoch, or of MOST_LOST batches in a row, can be used, or the share
        of the cuts has none.
        """
        self.dataset.epoch = number
        workers = min(self.settings.workers, available_cores())  # more would only take turns, and torch warns
        if workers:
            self.dataset.keep(cut for blocks in self._order(0) for cut in self._read(tuple(blocks)))
        loader: DataLoader = DataLoader(
            _Shares(self.dataset, self.rank, self.world), sampler=self._draws(number, start), batch_size=None,
            num_workers=workers, worker_init_fn=_begin_loading, multiprocessing_context="fork" if workers else None,
            generator=torch.Generator().manual_seed(number),  # torch's own belongs to the model alone
        )  # fmt: skip
        drawn = used = lost = 0
        for batch in _started(loader):
            if isinstance(batch, ValueError):
                raise batch
            drawn += 1
            used, lost = (used + 1, 0) if batch.ids else (used, lost + bool(batch.left_out))
            if lost == MOST_LOST:
                raise ValueError(f"{lost} batches in a row without a usable utterance; {batch.left_out[0][1]}")
            yield replace(batch, graphs=[_unpacked(graph) for graph in batch.graphs])
        if start == BEGIN and not drawn:
            raise ValueError(
                f"data.share: {self.settings.share} of {self.counts.sum()} cuts are none; give a larger share"
            )
        if lost and not used:
            raise ValueError(f"none of {self.counts.sum()} cuts can be trained on; {batch.left_out[0][1]}")

    def count(self, number: int) -> int:
        """Number of batches of an epoch, from the manifest alone; an estimate where there are several windows."""
        if self.windows == 1:
            return sum(1 for _ in self._draws(number, BEGIN))
        return self._estimate

    @cached_property
    def _estimate(self) -> int:
        blocks = next(self._order(0))
        batches = sum(1 for _ in self._sampler(self._read(tuple(blocks)), 1, 0))
        return round(batches * self.seconds.sum() / self.seconds[blocks].sum())

    def sample(self, count: int) -> list[Cut]:
        """`count` cuts spread over the whole, or all."""
        return list(spread(self.files, count))

    def _draws(self, number: int, start: Place) -> Iterator[tuple[Place, CutSet]]:
        """Cuts of each batch, the same on every rank, and the place after it."""
        for window, blocks in islice(enumerate(self._order(number)), start.window, None):
            skip = start.batch if window == start.window else 0
            batches = self._sampler(self._read(tuple(blocks)), number, window)
            for batch, cuts in islice(enumerate(batches, 1), skip, None):
                yield Place(window, batch), cuts

    def _order(self, number: int) -> Iterator[np.ndarray]:
        """Numbers of the blocks of each window of an epoch."""
        blocks = np.arange(len(self.counts))
        if self.windows > 1:
            blocks = np.random.default_rng((self.seed, number)).permutation(blocks)
        return iter(np.array_split(blocks, self.windows))

    def _window(self, blocks: tuple[int, ...]) -> CutSet:
        every = (cut for block in blocks for cut in self._block(block))
        return CutSet.from_cuts(cut for cut in every if in_share(cut.id, self.settings.share))

    def _block(self, block: int) -> list[Cut]:
        file = int(np.searchsorted(self._first, block, side="right")) - 1
        return self.files[file].read(block - int(self._first[file]))

    def _sampler(self, cuts: CutSet, number: int, window: int):
        common = {"max_duration": self.settings.max_duration, **EVERY_CUT}
        if number == 0 and self.settings.short_first:
            ordered = CutSet.from_cuts(sorted(cuts, key=lambda cut: (cut.duration, cut.id)))
            return SimpleCutSampler(ordered, shuffle=False, **common)
        buckets, seed = min(self.settings.buckets, len(cuts) // 10), self.seed + window
        if buckets < 2:
            sampler = SimpleCutSampler(cuts, shuffle=True, seed=seed, **common)
        else:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "You are using DynamicBucketingSampler with an eagerly")
                sampler = DynamicBucketingSampler(cuts, shuffle=True, seed=seed, num_buckets=buckets, **common)
        sampler.set_epoch(number)
        return sampler


def in_order(
    cuts: CutSet | Sequence[Any], dataset: SpeechDataset, max_duration: float, strict: bool = True
) -> Iterator[Batch]:
    """All cuts once, longest first, for validation and decoding; a rank passes its own share.

    strict: raises ValueError for a cut that cannot be used, else its batch lists it.
    """
    if not len(cuts):
        return
    ordered = CutSet.from_cuts(sorted(cuts, key=lambda cut: (-cut.duration, cut.id)))
    for chosen in SimpleCutSampler(ordered, max_duration=max_duration, shuffle=False, **EVERY_CUT):
        batch = dataset[chosen]
        if strict and batch.left_out:
            raise ValueError(batch.left_out[0][1])
        yield batch


def distortion(augment: Augment, folder: Path) -> Distortion | None:
    """The augmentation of the settings, None without any; noise clips lie below the data folder."""
    values = augment.model_dump()
    part = values.pop("noise_part")
    if not any(values[f"{kind}_probability"] for kind in ("volume", "pitch", "noise")):
        return None
    clips = NoiseClips(folder / part) if part and augment.noise_probability else None
    return Distortion(**values, clips=clips)
