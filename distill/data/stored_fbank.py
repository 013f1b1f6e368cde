"""Stored 80-dimensional Fbank features: lhotse's writers, an extractor that runtimes compute too."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lhotse import CutSet, Fbank, FbankConfig, KaldifeatFbank, KaldifeatFbankConfig
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.features.io import FeaturesWriter, LilcomChunkyWriter, NumpyFilesWriter

log = logging.getLogger(__name__)

CHUNK = 500
"""Utterances computed between two points where a killed run continues."""


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
        online = kaldi_native_fbank.OnlineFbank(self._options())
        online.accept_waveform(sampling_rate, np.asarray(samples, dtype=np.float32).reshape(-1))
        online.input_finished()
        frames = [online.get_frame(i) for i in range(online.num_frames_ready)]
        return np.stack(frames).astype(np.float32)

    def _options(self) -> Any:
        import kaldi_native_fbank

        options = kaldi_native_fbank.FbankOptions()
        options.frame_opts.samp_freq = self.config.sampling_rate
        options.frame_opts.dither = 0.0
        options.frame_opts.snip_edges = False
        options.mel_opts.num_bins = self.config.num_filters
        options.mel_opts.low_freq = self.config.low_freq
        options.mel_opts.high_freq = self.config.high_freq
        return options


def default_extractor() -> FeatureExtractor:
    """kaldifeat where it is installed, else kaldi-native-fbank, else lhotse's own in torch."""
    if importlib.util.find_spec("kaldifeat"):
        config = KaldifeatFbankConfig()
        config.mel_opts.num_bins, config.mel_opts.high_freq = 80, -400.0
        config.frame_opts.dither, config.frame_opts.snip_edges = 0.0, False
        return KaldifeatFbank(config)
    if importlib.util.find_spec("kaldi_native_fbank"):
        return NativeFbank(NativeFbankConfig())
    return Fbank(FbankConfig(num_filters=80, dither=0.0, snip_edges=False))


def compute_fbank(cuts_path: Path, folder: Path, jobs: int = 1) -> int:
    """Stores the features of a cut set and writes `folder`/<name>.jsonl.gz; returns how many cuts.

    Chunks that are there are kept, so a killed call continues.
    """
    name = cuts_path.name.removesuffix(".jsonl.gz")
    target = folder / f"{name}.jsonl.gz"
    if not target.is_file():
        extractor = default_extractor()
        log.info("%s: Fbank by %s", name, extractor.name)
        chunks = [
            _compute_chunk(chunk, folder / name, index, extractor, jobs)
            for index, chunk in enumerate(_chunks(CutSet.from_file(cuts_path)))
        ]
        temporary = folder / f"tmp-{target.name}"
        CutSet.from_cuts(cut for path in chunks for cut in CutSet.from_file(path)).to_file(temporary)
        os.replace(temporary, target)
    return sum(1 for _ in CutSet.from_file(target))


def _chunks(cuts: CutSet) -> Iterator[CutSet]:
    listed = list(cuts)
    for start in range(0, len(listed), CHUNK):
        yield CutSet.from_cuts(listed[start : start + CHUNK])


def _compute_chunk(cuts: CutSet, folder: Path, index: int, extractor: FeatureExtractor, jobs: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"cuts-{index:05d}.jsonl.gz"
    if not target.is_file():
        done = cuts.compute_and_store_features(
            extractor, folder / f"feats-{index:05d}", num_jobs=_jobs(len(cuts), jobs), storage_type=_writer()
        )
        temporary = folder / f"tmp-{target.name}"
        done.to_file(temporary)
        os.replace(temporary, target)
    return target


def _jobs(utterances: int, jobs: int) -> int:
    if utterances < CHUNK or jobs < 2:
        return 1  # starting processes would take longer
    torch.set_num_threads(1)  # lhotse forks, and torch's threads do not survive that
    return jobs


def _writer() -> type[FeaturesWriter]:
    return LilcomChunkyWriter if importlib.util.find_spec("lilcom") else NumpyFilesWriter
