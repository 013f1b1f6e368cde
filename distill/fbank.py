"""Kaldi's Fbank (`distill.mel`) in torch, on the device where the model is: the numbers that runtimes compute.

Frames are centred on their shift, the audio mirrored at both ends (Kaldi's snip_edges=false).
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.config.model import FBANK_SHIFT, FBANK_WIDTH
from distill.mel import FFT, FLOOR, PREEMPHASIS, mel_filters, povey_window
from distill.precision import in_single_precision


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


@in_single_precision
def log_mel(frames: Tensor, mels: int = 80) -> Tensor:
    """Windows of samples (..., 400) -> log-mel energies (..., mels), in single precision under autocast too."""
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], -1)
    window, filters = (torch.from_numpy(table).to(frames) for table in (povey_window(), mel_filters(mels)))
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * before) * window, FFT)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power @ filters).clamp_min(FLOOR).log()
