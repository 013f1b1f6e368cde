"""Stored 80-dimensional Fbank features, by the extractor that runtimes use."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.features.base import FeatureExtractor, register_extractor
from lhotse.features.io import LilcomChunkyWriter, NumpyFilesWriter

from distill.corpora.audio import readable
from distill.corpora.cut_sets import SUFFIX, CutBlocks, each_cut, write_cuts
from distill.files import own_name


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


def missing(cuts: Path, part: str, folder: Path) -> list[int]:
    """Numbers of the blocks of a cut set (in the folder `cuts`) whose features are not yet in `folder`."""
    if _target(folder, part).is_file():
        return []
    return [number for number in range(len(CutBlocks(cuts, part))) if not _chunk(folder, part, number).is_dir()]


def compute_chunk(cuts: Path, part: str, folder: Path, number: int) -> None:
    """Stores the features of a block with its cuts, as a folder that is there whole or not at all."""
    place = _chunk(folder, part, number)
    temporary = own_name(place)
    temporary.mkdir(parents=True, exist_ok=True)
    writer = LilcomChunkyWriter if importlib.util.find_spec("lilcom") else NumpyFilesWriter
    extractor, made = NativeFbank(NativeFbankConfig()), []
    with writer(temporary / "feats") as storage:
        for cut in CutBlocks(cuts, part).read(number):
            features = readable(cut).compute_and_store_features(extractor, storage).features
            features.storage_path = str(place / Path(features.storage_path).name)
            made.append(replace(cut, features=features))
    write_cuts(made, temporary / "cuts.jsonl.gz")
    try:
        temporary.rename(place)
    except OSError:
        if not place.is_dir():
            raise
        shutil.rmtree(temporary)  # another process has stored the same meanwhile


def finish(cuts: Path, part: str, folder: Path) -> int:
    """Writes the cut set with the features of all its blocks into `folder`; returns the number of cuts."""
    if not _target(folder, part).is_file():
        chunks = (_chunk(folder, part, number) for number in range(len(CutBlocks(cuts, part))))
        write_cuts((cut for chunk in chunks for cut in each_cut(chunk, ["cuts"])), _target(folder, part))
    return int(CutBlocks(folder, part).counts.sum())


def _target(folder: Path, part: str) -> Path:
    return folder / f"{part}{SUFFIX}"


def _chunk(folder: Path, part: str, number: int) -> Path:
    return folder / part / f"{number:05d}"
