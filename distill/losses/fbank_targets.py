"""Fbank of the waveform as targets of a model's frames."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import valid_mask
from distill.config.model import FBANK_SHIFT, Model
from distill.fbank import fbank, fbank_lengths


def stacked_frames(model: Model, term: str) -> int:
    """Fbank frames per frame of a model; ValueError, naming the term, where that is no whole number."""
    stacked, rest = divmod(model.front_end.hop, FBANK_SHIFT)
    if rest:
        raise ValueError(
            f"objective.{term}: frames are {model.front_end.hop} samples apart (model.front_end), and must be a"
            f" multiple of {FBANK_SHIFT}"
        )
    return stacked


@torch.no_grad()
def stacked_fbank(wave: Tensor, samples: Tensor, mels: int, stacked: int, size: int) -> Tensor:
    """Stacked Fbank, a channel of mean 0 and variance 1 over its utterance: wave (B, N) -> (B, size, S * mels)."""
    x = fbank(wave, samples, mels)
    inside = valid_mask(fbank_lengths(samples), x.shape[1])[..., None]
    count = inside.sum(1, keepdim=True).clamp_min(1)
    centred = (x - (x * inside).sum(1, keepdim=True) / count) * inside
    x = centred * (centred.square().sum(1, keepdim=True) / count + 1e-5).rsqrt()
    return F.pad(x, (0, 0, 0, size * stacked - x.shape[1])).unflatten(1, (size, stacked)).flatten(2)
