"""Audio to frames: the convolution stack of wav2vec 2.0, its streamable variants, Fbank, and Whisper's log-mels."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import SAMPLE_RATE, valid_mask
from distill.config.model import FrontEnd as FrontEndSettings
from distill.fbank import fbank, fbank_frames
from distill.models.log_mel import log_mel


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
        return self.frames(x.transpose(1, 2)).transpose(1, 2)

    def frames(self, x: Tensor) -> Tensor:
        """x (B, T, C) -> (B, T, C)."""
        return super().forward(x)


BLOCKS = 4  # of a stride's length in a kernel, up to which they are multiplied apart


def frame_convolution(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """What `conv` makes of x (B, T_in, C_in), as (B, T, C), with products of matrices.

    On a CPU that takes two thirds of the time of a convolution and its gradients, which copy to other layouts and
    back. A kernel of a few strides is a sum of products of blocks that are already there; others are unfolded.
    """
    (outputs, inputs, kernel), stride = conv.weight.shape, conv.stride[0]
    blocks, rest = divmod(kernel, stride)
    if rest or blocks > BLOCKS:
        return F.linear(x.unfold(1, kernel, stride).flatten(2), conv.weight.flatten(1), conv.bias)
    frames = (x.shape[1] - kernel) // stride + 1
    cut = x[:, : (frames + blocks - 1) * stride].reshape(len(x), -1, stride * inputs)
    weight = conv.weight.unflatten(2, (blocks, stride)).permute(2, 0, 3, 1).reshape(blocks * outputs, -1)
    parts = F.linear(cut, weight).unflatten(2, (blocks, outputs))
    y = sum((parts[:, place : place + frames, place] for place in range(1, blocks)), start=parts[:, :frames, 0])
    return y if conv.bias is None else y + conv.bias


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

    def frames(self, x: Tensor) -> Tensor:
        """The same, where the norm is of frames or none, of x (B, T_in, C_in) -> (B, T, C)."""
        x = frame_convolution(x, self.conv)
        return F.gelu(self.norm.frames(x) if isinstance(self.norm, FrameNorm) else x)


class GaborLayer(nn.Module):
    """First layer that starts as an auditory filterbank: Gabor pairs at mel centres, log-compressed.

    log(1 + |x|) takes the place of GELU, and the norm comes after it. The kernels are trained on; at
    first a frame of speech at the level of training (root mean square 1) lies on the bend of the log.
    """

    def __init__(self, shape: tuple[int, int, int], eps: float) -> None:
        super().__init__()
        channels, kernel, stride = shape
        self.conv = nn.Conv1d(1, channels, kernel, stride, bias=False)
        # also where the model is made on another device: transformers can leave a torch.linspace that ignores it behind
        with torch.no_grad(), torch.device("cpu"):
            self.conv.weight.copy_(2 * gabor_pairs(channels, kernel)[:, None])
        self.norm = FrameNorm(channels, eps)

    def forward(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """x (B, 1, N) -> (B, C, T)."""
        return self.norm(torch.log1p(self.conv(x).abs()), lengths)

    def frames(self, x: Tensor) -> Tensor:
        """The same of x (B, N, 1) -> (B, T, C)."""
        return self.norm.frames(torch.log1p(frame_convolution(x, self.conv).abs()))


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
    """Convolutions over the waveform or over frames of 10 ms; frames are `hop` samples apart.

    Frame t depends on samples t * hop - context to (t + 1) * hop + ahead, and on no others:

        samples   0        hop       2 hop      3 hop      4 hop
                  |---------|----------|----------|----------|
        frame 1   [ context |   hop    | ahead ]
        frame 2             [ context  |   hop    | ahead ]

    (context = ahead = hop here). Frame 1 can be computed once the `ahead` samples behind its hop have arrived, and a
    stream keeps the last `context` samples before its next frame's hop. A causal stack has ahead = 0; samples before
    the first are zeros (waveform) or mirrored (Fbank).
    """

    def __init__(self, settings: FrontEndSettings, channels: int) -> None:
        super().__init__()
        self.settings = settings
        self.hop, self.receptive = settings.hop, settings.receptive
        self.context, self.ahead = settings.context, settings.ahead
        self.layers = nn.ModuleList()
        for index, shape in enumerate(settings.layers):
            if index == 0 and settings.first == "gabor":
                self.layers.append(GaborLayer(shape, settings.norm_eps))
            else:
                normed = settings.norm_layers == "all" or (settings.norm_layers == "first" and index == 0)
                self.layers.append(ConvLayer(channels, shape, settings, normed))
            channels = shape[0]
        self.channels = channels

    def lengths(self, samples: Tensor) -> Tensor:
        """Frames of waveforms: samples (B,) -> (B,)."""
        return self.settings.frames(samples)

    def forward(self, wave: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """wave (B, N), samples (B,) -> features (B, T, C), lengths (B,)."""
        raise NotImplementedError

    def window(self, wave: Tensor, samples: Tensor, start: Tensor, frames: int) -> Tensor:
        """Some frames of streams: wave (B, context + frames * hop + ahead) around them -> (B, frames, C).

        samples (B,): samples received so far; start (B,): number of the first frame.
        """
        raise NotImplementedError

    def convolve(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (B, C, T_in), lengths (B,) of it where norms over time need them -> features (B, T, C)."""
        if self.training and self.settings.norm == "frame" and x.device.type == "cpu":
            x = x.transpose(1, 2)
            for layer in self.layers:
                x = layer.frames(x)  # type: ignore[operator]  # torch types modules as tensors
            return x
        for layer, (_, kernel, stride) in zip(self.layers, self.settings.layers):
            if lengths is not None:
                lengths = ((lengths - kernel) // stride + 1).clamp_min(0)
            x = layer(x, lengths)
        return x.transpose(1, 2)


class WaveFrontEnd(FrontEnd):
    """The convolution stack of wav2vec 2.0 on the waveform.

    A causal stack pads the waveform (never a layer's output) on the left, so that frame t ends with
    sample (t + 1) * hop.
    """

    gain: Tensor

    def __init__(self, settings: FrontEndSettings) -> None:
        super().__init__(settings, 1)
        self.register_buffer("gain", torch.ones(()))

    def forward(self, wave: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        wave = self._normalise(wave, samples)
        short = max(0, self.receptive - self.context - wave.shape[1])
        wave = F.pad(wave, (self.context, short))
        return self.convolve(wave[:, None], samples + self.context), self.lengths(samples)

    def window(self, wave: Tensor, samples: Tensor, start: Tensor, frames: int) -> Tensor:
        return self.convolve((wave * self.gain)[:, None])

    def _normalise(self, wave: Tensor, samples: Tensor) -> Tensor:
        if self.settings.waveform != "utterance":
            return wave * self.gain
        inside = valid_mask(samples, wave.shape[1])
        count = samples[:, None].clamp_min(1)
        mean = (wave * inside).sum(1, keepdim=True) / count
        centred = (wave - mean) * inside
        return centred * (centred.square().sum(1, keepdim=True) / count + self.settings.waveform_eps).rsqrt()


class FbankFrontEnd(FrontEnd):
    """Kaldi's Fbank and (usually) one convolution; the frames' mean and scale are stored.

    The convolution pads nothing: frame t begins with Fbank frame t * stride, as in the windows that
    runtimes cut, and looks `reach - stride` Fbank frames ahead.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, settings: FrontEndSettings) -> None:
        super().__init__(settings, settings.mels)
        self.register_buffer("mean", torch.zeros(settings.mels))
        self.register_buffer("scale", torch.ones(settings.mels))

    def forward(self, wave: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        frames = fbank(wave, samples, self.settings.mels)
        return self.from_fbank(frames), self.lengths(samples)

    def from_fbank(self, frames: Tensor) -> Tensor:
        """Fbank frames (B, J, mels) as a runtime computes them -> features (B, T, C)."""
        short = max(0, self.settings.reach - frames.shape[1])
        x = F.pad(((frames - self.mean) * self.scale).transpose(1, 2), (0, short))
        return self.convolve(x)

    def window(self, wave: Tensor, samples: Tensor, start: Tensor, frames: int) -> Tensor:
        first, begins = start * self.settings.stride, start * self.hop - self.context
        count = self.settings.window(frames)
        return self.from_fbank(fbank_frames(wave, samples, first, count, begins, self.settings.mels))


class LogMelFrontEnd(FrontEnd):
    """Whisper's log-mel energies and convolutions, each centred, with zeros on its left (Radford et al. 2022, §2.2).

    On the right nothing is padded: the audio is followed by silence, of which a frame sees as much as its receptive
    field, so that the T frames of an utterance are the first T of those of Whisper's 30 s. `tail` more of them follow
    the longest utterance's, for the encoder, which leaves them out of its output.
    """

    def __init__(self, settings: FrontEndSettings) -> None:
        super().__init__(settings, settings.mels)

    def forward(self, wave: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        wave = F.pad(wave * valid_mask(samples, wave.shape[1]), (0, self.settings.tail * self.hop))
        frames = max(1, wave.shape[1] // self.hop)
        x = log_mel(wave, self.settings.mels)
        x = x[:, :, : self.settings.window(frames) - self.settings.reach // 2]
        return self.convolve(x), self.lengths(samples)

    def convolve(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        for layer, (_, kernel, _) in zip(self.layers, self.settings.layers):
            x = layer(F.pad(x, (kernel // 2, 0)), None)
        return x.transpose(1, 2)


FRONT_ENDS: dict[str, type[WaveFrontEnd | FbankFrontEnd | LogMelFrontEnd]] = {
    "waveform": WaveFrontEnd,
    "fbank": FbankFrontEnd,
    "log_mel": LogMelFrontEnd,
}
"""Front-ends by the settings' input."""


def build_front_end(settings: FrontEndSettings) -> FrontEnd:
    """The front-end for the settings' input."""
    return FRONT_ENDS[settings.input](settings)
