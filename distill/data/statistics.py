"""Statistics of training audio for front-ends: its level, and the mean and deviation of Fbank energies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from lhotse.cut import Cut

from distill.data.audio import Unreadable, read_audio
from distill.fbank import fbank

FAR = 10.0  # times louder or softer (20 dB) than the median utterance: not typical


def level(cuts: Sequence[Cut]) -> float:
    """Root mean square of the samples of `typical` cuts, from which a stored gain is chosen."""
    powers = [(float(np.square(wave, dtype=np.float64).sum()), wave.size) for wave in typical(cuts)]
    return float((sum(power for power, _ in powers) / sum(samples for _, samples in powers)) ** 0.5)


def fbank_statistics(cuts: Sequence[Cut], mels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and inverse deviation of each mel energy over `typical` cuts: (mels,) each."""
    sums, squares, frames = torch.zeros(mels, dtype=torch.float64), torch.zeros(mels, dtype=torch.float64), 0
    for audio in typical(cuts):
        wave = torch.from_numpy(audio)
        energies = fbank(wave, torch.tensor([wave.shape[1]]), mels)[0].double()
        sums, squares, frames = sums + energies.sum(0), squares + energies.square().sum(0), frames + len(energies)
    mean = sums / frames
    deviation = (squares / frames - mean.square()).clamp_min(1e-4).sqrt()
    return mean.float(), (1 / deviation).float()


def typical(cuts: Sequence[Cut]) -> Iterator[np.ndarray]:
    """Audio (1, N) of cuts without those far from their median level, and without what cannot be read.

    A few silent, damaged or very loud utterances do not move statistics of them. Raises ValueError where all audio is
    empty, silent or not finite.
    """
    levels = np.array([_level(cut) for cut in cuts])
    sounding = levels[levels > 0]
    if not len(sounding):
        raise ValueError("the training audio is empty or silent: neither a gain nor a mean can be taken of it")
    low, high = np.median(sounding) / FAR, np.median(sounding) * FAR
    for cut, value in zip(cuts, levels, strict=True):
        if low <= value <= high:
            yield read_audio(cut)[None]


def _level(cut: Cut) -> float:
    try:
        return float(np.sqrt(np.square(read_audio(cut), dtype=np.float64).mean()))
    except Unreadable:
        return 0.0
