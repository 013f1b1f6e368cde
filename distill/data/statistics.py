"""Statistics of training audio for front-ends: its level, and the mean and deviation of Fbank energies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from lhotse import CutSet

from distill.fbank import fbank

FAR = 10.0  # times louder or softer (20 dB) than the median utterance: not typical


def level(cuts: CutSet, count: int = 200) -> float:
    """Root mean square of the samples of `typical` cuts, from which a stored gain is chosen."""
    powers = [(float(np.square(wave, dtype=np.float64).sum()), wave.size) for wave in typical(cuts, count)]
    return float((sum(power for power, _ in powers) / sum(samples for _, samples in powers)) ** 0.5)


def fbank_statistics(cuts: CutSet, mels: int, count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse deviation of each mel energy over `typical` cuts: (mels,) each."""
    sums, squares, frames = torch.zeros(mels, dtype=torch.float64), torch.zeros(mels, dtype=torch.float64), 0
    for audio in typical(cuts, count):
        wave = torch.from_numpy(audio)
        energies = fbank(wave, torch.tensor([wave.shape[1]]), mels)[0].double()
        sums, squares, frames = sums + energies.sum(0), squares + energies.square().sum(0), frames + len(energies)
    mean = sums / frames
    deviation = (squares / frames - mean.square()).clamp_min(1e-4).sqrt()
    return mean.float(), (1 / deviation).float()


def typical(cuts: CutSet, count: int) -> Iterator[np.ndarray]:
    """Audio (1, N) of `count` cuts spread over the whole set, without those far from their median level.

    A few silent, damaged or very loud utterances do not move statistics of them. Raises ValueError where all audio is
    empty, silent or not finite.
    """
    every = list(cuts)
    chosen = [every[i * len(every) // count] for i in range(count)] if len(every) > count else every
    waves = ((cut.load_audio()[0].astype(np.float64)) for cut in chosen)
    levels = np.array([np.sqrt(np.square(wave).mean()) if wave.size else 0.0 for wave in waves])
    sounding = levels[np.isfinite(levels) & (levels > 0)]
    if not len(sounding):
        raise ValueError("the training audio is empty or silent: neither a gain nor a mean can be taken of it")
    low, high = np.median(sounding) / FAR, np.median(sounding) * FAR
    for cut, value in zip(chosen, levels, strict=True):
        if low <= value <= high:
            yield cut.load_audio()[:1].astype(np.float32)
