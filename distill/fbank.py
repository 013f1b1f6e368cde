"""Kaldi's Fbank in torch, on the device where the model is: the numbers that runtimes compute.

80 log-mel energies of 25 ms each 10 ms: 20 to 7600 Hz, povey window, pre-emphasis 0.97, DC removed, no
dither; frames centred on their shift, the audio mirrored at both ends (Kaldi's snip_edges=false).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from distill.batch import SAMPLE_RATE
from distill.config.model import FBANK_SHIFT, FBANK_WIDTH

FFT = 512
FLOOR = 1.1920928955078125e-07  # float32's epsilon, as Kaldi's


def fbank_lengths(samples: Tensor) -> Tensor:
    """Frames of waveforms: samples (B,) -> (B,)."""
    return (samples + FBANK_SHIFT // 2) // FBANK_SHIFT


def fbank(wave: Tensor, samples: Tensor, mels: int = 80) -> Tensor:
    """All frames of padded waveforms: wave (B, N) in -1..1, samples (B,) -> (B, J, mels), J of the longest."""
    count = int(fbank_lengths(torch.as_tensor(wave.shape[1])))
    return fbank_frames(wave, samples, 0, count, 0, mels)


def fbank_frames(
    wave: Tensor, samples: Tensor, first: int | Tensor, count: int, begins: int | Tensor, mels: int = 80
) -> Tensor:
    """Frames first .. first + count - 1 of utterances of which `wave` (B, N) is a part -> (B, count, mels).

    first, begins: number of the first frame, and index in the utterance of the part's first sample; of all, or (B,) of
    each. samples (B,): lengths of the utterances as
    known so far; a frame that lies inside does not depend on them.
    """
    if wave.shape[1] == 0 or count == 0:
        return wave.new_zeros(len(wave), count, mels)
    first, begins = (torch.as_tensor(value, device=wave.device).reshape(-1, 1) for value in (first, begins))
    start = FBANK_SHIFT * (first + torch.arange(count, device=wave.device)) - (FBANK_WIDTH - FBANK_SHIFT) // 2
    index = (start[..., None] + torch.arange(FBANK_WIDTH, device=wave.device)).flatten(1)
    ends = samples.to(wave.device)[:, None]
    index = torch.where(index < 0, -1 - index, index)
    index = torch.where(index < ends, index, 2 * ends - 1 - index) - begins
    frames = wave.gather(1, index.clamp(0, wave.shape[1] - 1)).unflatten(1, (count, FBANK_WIDTH))
    return log_mel(frames, mels)


def log_mel(frames: Tensor, mels: int = 80) -> Tensor:
    """Windows of samples (..., 400) -> log-mel energies (..., mels)."""
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    spectrum = torch.fft.rfft((frames - 0.97 * before) * povey_window().to(frames), FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ mel_filters(mels).to(frames)).clamp_min(FLOOR).log()


@lru_cache(maxsize=1)
def povey_window() -> Tensor:
    """Kaldi's window, a Hann window to the power 0.85: (400,)."""
    return torch.hann_window(FBANK_WIDTH, periodic=False, dtype=torch.float64).pow(0.85)


@lru_cache(maxsize=4)
def mel_filters(mels: int, low: float = 20.0, high: float = 7600.0) -> Tensor:
    """Triangles on the mel axis, Nyquist left out as Kaldi does: (FFT / 2 + 1, mels)."""

    def mel(hertz: Tensor | float) -> Tensor:
        return 1127 * torch.log1p(torch.as_tensor(hertz, dtype=torch.float64) / 700)

    edges = torch.linspace(float(mel(low)), float(mel(high)), mels + 2, dtype=torch.float64)
    bins = mel(torch.arange(FFT // 2 + 1, dtype=torch.float64) * SAMPLE_RATE / FFT)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp_min(0)
    filters[-1] = 0
    if not math.isfinite(float(filters.sum())) or bool((filters.sum(0) == 0).any()):
        raise ValueError(f"{mels} mel filters are too many for a transform of {FFT} samples: some would be empty")
    return filters
