"""Whisper's log-mel energies in torch, on the device where the model is (Radford et al. 2022, §2.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from distill.config.model import FBANK_SHIFT, FBANK_WIDTH, SAMPLE_RATE
from distill.precision import in_single_precision

FLOOR, RANGE = 1e-10, 8.0
"""Least energy, and what lies below the utterance's maximum at most, in decades."""


@in_single_precision
def log_mel(wave: Tensor, mels: int) -> Tensor:
    """Waveforms (B, N) in -1..1, zero behind their ends -> (B, mels, J), all J frames that any sample is in.

    Frame j is centred on sample 160 j; the audio is mirrored before its first sample, and silent behind its last. In
    single precision under autocast too.
    """
    frames = wave.shape[1] // FBANK_SHIFT + 3
    silence = (frames - 1) * FBANK_SHIFT + FBANK_WIDTH // 2 - wave.shape[1]
    x = F.pad(F.pad(wave, (0, silence)), (FBANK_WIDTH // 2, 0), mode="reflect")
    window = torch.hann_window(FBANK_WIDTH, device=x.device)
    spectrum = torch.stft(x, FBANK_WIDTH, FBANK_SHIFT, window=window, center=False, return_complex=True)
    filters = melscale_fbanks(
        FBANK_WIDTH // 2 + 1, 0.0, SAMPLE_RATE / 2, mels, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    ).to(x)
    energies = (filters.T @ spectrum.abs().square()).clamp_min(FLOOR).log10()
    return (energies.maximum(energies.amax((1, 2), keepdim=True) - RANGE) + 4) / 4
