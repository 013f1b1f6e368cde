"""Stored 80-dimensional Fbank features, by the extractor that runtimes use."""

from __future__ import annotations

import importlib.util
import math
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.features.io import LilcomChunkyWriter, NumpyFilesWriter

from distill.corpora.manifests import store
from distill.files import own_name

CHUNK = 500
"""Utterances of a chunk."""


@dataclass
class NativeFbankConfig:
    """Kaldi's Fbank as sherpa-onnx computes it: 20 to 7600 Hz, no dither, every frame of 10 ms."""

    num_filters: int = 80
    sampling_rate: int = 16000
    low_freq: float = 20.0
    high_freq: float = -400.0

    def to_dict(self) -> dict[str, Any]:
        """The fields, for lhotse's manifests."""
        return vars(self).copy()

    @staticmethod
    def from_dict(data: dict[str, Any]) -> NativeFbankConfig:
        """The settings that `to_dict` wrote."""
        return NativeFbankConfig(**data)


@register_extractor
class NativeFbank(FeatureExtractor):
    """Fbank by kaldi-native-fbank, which runtimes use."""

    name = "kaldi-native-fbank"
    config_type = NativeFbankConfig

    @property
    def frame_shift(self) -> float:
        """Seconds from frame to frame."""
        return 0.01

    def feature_dim(self, sampling_rate: int) -> int:
        """Number of mel filters."""
        return int(self.config.num_filters)

    def extract(self, samples: Any, sampling_rate: int) -> np.ndarray:
        """Samples (N,) or (1, N) in ±1 -> log-mel energies (T, num_filters), T = round(N / 160)."""
        import kaldi_native_fbank

        if sampling_rate != self.config.sampling_rate:
            raise ValueError(f"Fbank: expected {self.config.sampling_rate} Hz, got {sampling_rate} Hz")
        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = self.config.sampling_rate
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = self.config.num_filters
        options.mel_opts.low_freq = self.config.low_freq
        options.mel_opts.high_freq = self.config.high_freq
        online = kaldi_native_fbank.OnlineFbank(options)
        online.accept_waveform(sampling_rate, np.asarray(samples, dtype=np.float32).reshape(-1))
        online.input_finished()
        frames = [online.get_frame(i) for i in range(online.num_frames_ready)]
        return np.stack(frames).astype(np.float32)


def missing(cuts_path: Path, folder: Path) -> list[int]:
    """Numbers of the chunks of a cut set whose features are not yet in `folder`."""
    if _target(cuts_path, folder).is_file():
        return []
    return [number for number in range(_count(cuts_path)) if not _chunk(cuts_path, folder, number).is_dir()]


def compute_chunk(cuts_path: Path, folder: Path, number: int) -> None:
    """Stores the features of a chunk with its cuts, as a folder that is there whole or not at all."""
    place = _chunk(cuts_path, folder, number)
    temporary = own_name(place)
    temporary.mkdir(parents=True, exist_ok=True)
    cuts = CutSet.from_cuts(_cuts(cuts_path)[number * CHUNK : (number + 1) * CHUNK])
    writer = LilcomChunkyWriter if importlib.util.find_spec("lilcom") else NumpyFilesWriter
    extractor = NativeFbank(NativeFbankConfig())
    made = cuts.compute_and_store_features(extractor, temporary / "feats", storage_type=writer, progress_bar=False)
    for cut in made:
        cut.features.storage_path = str(place / Path(cut.features.storage_path).name)
    store(made, temporary / "cuts.jsonl.gz")
    try:
        temporary.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(temporary)  # another process has stored the same meanwhile


def finish(cuts_path: Path, folder: Path) -> int:
    """Writes `folder`/<name>.jsonl.gz of all chunks; returns the number of cuts."""
    target = _target(cuts_path, folder)
    if not target.is_file():
        chunks = (_chunk(cuts_path, folder, number) / "cuts.jsonl.gz" for number in range(_count(cuts_path)))
        store(CutSet.from_cuts(cut for path in chunks for cut in CutSet.from_file(path)), target)
    return sum(1 for _ in CutSet.from_file(target))


@cache
def _cuts(cuts_path: Path) -> list[Any]:
    """A cut set, read once per process."""
    return list(CutSet.from_file(cuts_path))


def _count(cuts_path: Path) -> int:
    """The number of chunks of a cut set."""
    return math.ceil(len(_cuts(cuts_path)) / CHUNK)


def _target(cuts_path: Path, folder: Path) -> Path:
    return folder / cuts_path.name


def _chunk(cuts_path: Path, folder: Path, number: int) -> Path:
    return folder / cuts_path.name.removesuffix(".jsonl.gz") / f"{number:05d}"
