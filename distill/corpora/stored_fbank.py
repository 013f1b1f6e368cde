"""Stored 80-dimensional Fbank features, by the extractor that runtimes use."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.features.io import LilcomChunkyWriter, NumpyFilesWriter

from distill.corpora.manifests import store

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


def compute_fbank(cuts_path: Path, folder: Path, jobs: int = 1) -> int:
    """Stores the features of a cut set and writes `folder`/<name>.jsonl.gz; returns the number of cuts.

    A killed call continues after its last complete chunk.
    """
    name = cuts_path.name.removesuffix(".jsonl.gz")
    target = folder / f"{name}.jsonl.gz"
    if not target.is_file():
        extractor = NativeFbank(NativeFbankConfig())
        cuts = list(CutSet.from_file(cuts_path))
        chunks = [
            _compute_chunk(CutSet.from_cuts(cuts[start : start + CHUNK]), folder / name, index, extractor, jobs)
            for index, start in enumerate(range(0, len(cuts), CHUNK))
        ]
        store(CutSet.from_cuts(cut for path in chunks for cut in CutSet.from_file(path)), target)
    return sum(1 for _ in CutSet.from_file(target))


def _compute_chunk(cuts: CutSet, folder: Path, index: int, extractor: FeatureExtractor, jobs: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"cuts-{index:05d}.jsonl.gz"
    if not target.is_file():
        if len(cuts) < CHUNK:
            jobs = 1  # starting processes would take longer
        if jobs > 1:
            torch.set_num_threads(1)  # lhotse forks, and torch's threads do not survive that
        writer = LilcomChunkyWriter if importlib.util.find_spec("lilcom") else NumpyFilesWriter
        feats = folder / f"feats-{index:05d}"
        store(cuts.compute_and_store_features(extractor, feats, num_jobs=max(1, jobs), storage_type=writer), target)
    return target
