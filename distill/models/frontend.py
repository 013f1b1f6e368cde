"""Waveform to frames: the convolution stack of wav2vec 2.0 and its streamable variants."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import SAMPLE_RATE, valid_mask
from distill.config import FrontEnd as FrontEndSettings


class TimeNorm(nn.GroupNorm):
    """Each channel normalised over the valid frames of its utterance (fairseq's group norm, 1 channel a group).

    Statistics leave the padding out, so an utterance gives the same output alone and in a batch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, C, T), lengths (B,) -> (B, C, T)."""
        if lengths is None:
            return super().forward(x)
        inside = valid_mask(lengths, x.shape[2])[:, None].to(x.dtype)
        count = inside.sum(2, keepdim=True).clamp_min(1)
        mean = (x * inside).sum(2, keepdim=True) / count
        variance = ((x - mean).square() * inside).sum(2, keepdim=True) / count
        scaled = (x - mean) * (variance + self.eps).rsqrt()
        return scaled * self.weight[:, None] + self.bias[:, None]


class FrameNorm(nn.LayerNorm):
    """Each frame normalised over its channels: the norm that streams."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, C, T) -> (B, C, T)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvLayer(nn.Module):
    """Convolution, norm, GELU."""

    def __init__(self, inputs: int, shape: tuple[int, int, int], settings: FrontEndSettings, normed: bool) -> None:
        super().__init__()
        channels, kernel, stride = shape
        self.conv = nn.Conv1d(inputs, channels, kernel, stride, bias=settings.bias)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm: nn.Module | None = None
        if normed:
            self.norm = TimeNorm(channels) if settings.norm == "group" else FrameNorm(channels, settings.norm_eps)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, C_in, T_in), lengths (B,) of the output -> (B, C, T)."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, lengths)
        return F.gelu(x)


class GaborLayer(nn.Module):
    """First layer that starts as an auditory filterbank: Gabor pairs at mel centres, log-compressed.

    log(1 + |x|) takes the place of GELU, and the norm comes after it. The kernels are trained on; at
    first a frame of speech at the level of training (root mean square 1) lies on the bend of the log.
    """

    def __init__(self, shape: tuple[int, int, int], eps: float) -> None:
        super().__init__()
        channels, kernel, stride = shape
        self.conv = nn.Conv1d(1, channels, kernel, stride, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(2 * gabor_pairs(channels, kernel)[:, None])
        self.norm = FrameNorm(channels, eps)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, 1, N) -> (B, C, T)."""
        return self.norm(torch.log1p(self.conv(x).abs()), lengths)


def gabor_pairs(channels: int, kernel: int, low: float = 80.0, high: float = 7600.0) -> Tensor:
    """Unit-norm, zero-mean cosine and sine kernels under Gaussians at mel-spaced centres: (C, K)."""

    def mel(hertz: float) -> float:
        return 1127 * math.log1p(hertz / 700)

    edges = 700 * ((torch.linspace(mel(low), mel(high), channels // 2 + 2, dtype=torch.float64) / 1127).exp() - 1)
    centre, width = edges[1:-1], (edges[2:] - edges[:-2]).clamp_min(100)
    seconds = (torch.arange(kernel, dtype=torch.float64) - (kernel - 1) / 2) / SAMPLE_RATE
    taper = torch.hann_window(kernel + 2, periodic=False, dtype=torch.float64)[1:-1]
    envelope = (-2 * (seconds * width[:, None]).square()).exp() * taper
    angle = 2 * math.pi * centre[:, None] * seconds
    pairs = torch.stack([envelope * angle.cos(), envelope * angle.sin()], 1).flatten(0, 1)
    pairs = pairs - pairs.mean(1, keepdim=True)
    return (pairs / pairs.norm(dim=1, keepdim=True)).float()


class FrontEnd(nn.Module):
    """The convolution stack; its frames are `hop` samples apart and see `receptive` samples.

    A causal stack pads the waveform (never a layer's output) on the left, so that frame t ends with
    sample (t + 1) * hop and the only state it needs when streaming is the waveform's last
    `receptive - hop` samples.
    """

    gain: Tensor

    def __init__(self, settings: FrontEndSettings) -> None:
        super().__init__()
        self.settings = settings
        self.hop, self.receptive = settings.hop, settings.receptive
        self.context = self.receptive - self.hop if settings.causal else 0
        self.register_buffer("gain", torch.ones(()))
        self.layers = nn.ModuleList()
        inputs = 1
        for index, shape in enumerate(settings.layers):
            if index == 0 and settings.first == "gabor":
                self.layers.append(GaborLayer(shape, settings.norm_eps))
            else:
                normed = index == 0 or settings.norm_layers == "all"
                self.layers.append(ConvLayer(inputs, shape, settings, normed))
            inputs = shape[0]
        self.channels = inputs

    def lengths(self, samples: Tensor) -> Tensor:
        """Frames of waveforms: samples (B,) -> (B,)."""
        return ((samples + self.context - self.receptive) // self.hop + 1).clamp_min(0)

    def forward(self, wave: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """wave (B, N), samples (B,) -> features (B, T, C), lengths (B,)."""
        wave = self._normalise(wave, samples)
        short = max(0, self.receptive - self.context - wave.shape[1])
        wave = F.pad(wave, (self.context, short))
        return self.convolve(wave, samples), self.lengths(samples)

    def convolve(self, wave: Tensor, samples: Tensor | None = None) -> Tensor:
        """Normalised waveform with its left context (B, context + N) -> features (B, T, C)."""
        x = wave[:, None]
        length = None if samples is None else samples + self.context
        for layer, (_, kernel, stride) in zip(self.layers, self.settings.layers):
            if length is not None:
                length = ((length - kernel) // stride + 1).clamp_min(0)
            x = layer(x, length)
        return x.transpose(1, 2)

    def _normalise(self, wave: Tensor, samples: Tensor) -> Tensor:
        if self.settings.waveform == "gain":
            return wave * self.gain
        inside = valid_mask(samples, wave.shape[1])
        count = samples[:, None].clamp_min(1)
        mean = (wave * inside).sum(1, keepdim=True) / count
        centred = (wave - mean) * inside
        return centred * (centred.square().sum(1, keepdim=True) / count + 1e-7).rsqrt()
