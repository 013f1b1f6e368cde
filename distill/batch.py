"""Data of a training step, and the legend of dimension letters.

B  utterances of a batch        N  samples of a waveform (16 kHz)
T  frames (20 ms by default)    C  channels of a hidden layer
V  output units, blank first    S  states of a graph, A its arcs
U  units of a transcript        L  blocks of an encoder
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from distill.config.model import SAMPLE_RATE as SAMPLE_RATE

RATES = (4000, 192_000)
"""Lowest and highest sample rate that is converted to 16 kHz."""
MOST_PHASES = 3200
"""Kernels of a resampler; memory grows with them, up to gigabytes for rates without a simple ratio to 16 kHz."""


class Place(NamedTuple):
    """A place in an epoch: so many batches of a window (`distill.data.loader`), the windows before it done."""

    window: int = 0
    batch: int = 0


BEGIN = Place()


@dataclass(frozen=True)
class Batch:
    """Utterances padded to the longest.

    ids: cut ids; none where a rank's share of a batch is empty: then one stand-in, computed so that all ranks join the
    all-reduce, with weight 0. wave (B, N) float32 in -1..1, augmented; clean (B, N): before augmentation, None where
    unused. samples (B,): true lengths. graphs: for each utterance its numerator graph. units (B, T): k-means labels of
    its frames, -1 behind them. left_out: (cut id, reason) of utterances that cannot be used. after: the place in the
    epoch behind this batch. second (B, N): as wave, drawn independently, for the teacher. distortions (B, K): 1 for
    each distortion of wave, by the names of `distill.config.distortions.Distort`. tokens (B, U): units of the
    transcripts, 0 behind them.
    """

    ids: tuple[str, ...]
    wave: Tensor
    samples: Tensor
    graphs: Sequence = ()
    clean: Tensor | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    after: Place = BEGIN
    units: Tensor | None = None
    second: Tensor | None = None
    distortions: Tensor | None = None
    tokens: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on a device (graphs stay where they are)."""
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]  # every one of them is a tensor's field

    def row(self, number: int) -> Batch:
        """One utterance without its padding."""
        one, size = slice(number, number + 1), int(self.samples[number])
        clean, second = (None if wave is None else wave[one, :size] for wave in (self.clean, self.second))
        units = None if self.units is None else self.units[one, : int((self.units[number] >= 0).sum())]
        tokens = None if self.tokens is None else self.tokens[one, : int((self.tokens[number] > 0).sum())]
        return replace(
            self, ids=self.ids[one], wave=self.wave[one, :size], samples=self.samples[one], graphs=self.graphs[one],
            clean=clean, units=units, second=second,
            distortions=None if self.distortions is None else self.distortions[one], tokens=tokens,
        )  # fmt: skip

    @property
    def counted(self) -> bool:
        """False for a stand-in."""
        return bool(self.ids)

    @property
    def seconds(self) -> float:
        """Audio without padding."""
        return float(self.samples.sum()) / SAMPLE_RATE if self.counted else 0.0


class Joint(NamedTuple):
    """A transducer's logits at frame t behind u units: weight tanh(frames[t] + predicted[u]) + bias.

    frames (B, T, J), predicted (B, U + 1, J), weight (V, J), bias (V,).
    """

    frames: Tensor
    predicted: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, frames: Tensor, predicted: Tensor) -> Tensor:
        """Of some frames and predictions, (…, J) each, which broadcast: (…, V)."""
        return torch.nn.functional.linear(torch.tanh(frames + predicted), self.weight, self.bias)


class Output(NamedTuple):
    """A model's outputs for a batch.

    logits (B, T, V), lengths (B,). hidden: (B, T, C) each, 0 the first block's input, i the output of block i.
    ctc_logits (B, T, V): of the second, CTC output, None without one. mapped_last (B, T, d_T): the last hidden state
    behind a shared head's projection to the teacher's width, None where the head is not shared. features (B, T, F):
    what the front-end gives; normed (B, T, F): the same behind the encoder's norm. masked (B, T): True for frames that
    the mask embedding stands for, None without a mask. attention: {block: (B, T, 2 heads * head_dim)}, queries and keys
    of the blocks that a loss needs, from 1, or None; maps (B, heads, T, T) are not made of them here. joint: the
    transducer behind the given units, None without one. sparsity: scalar, share of the parameters of front-end and
    encoder that gates close, None without gates.
    """

    logits: Tensor
    lengths: Tensor
    hidden: tuple[Tensor, ...]
    ctc_logits: Tensor | None = None
    mapped_last: Tensor | None = None
    features: Tensor | None = None
    normed: Tensor | None = None
    masked: Tensor | None = None
    attention: Mapping[int, Tensor] | None = None
    joint: Joint | None = None
    sparsity: Tensor | None = None


class Targets(NamedTuple):
    """A teacher's outputs for a batch: logits (B, T, V), lengths (B,), ctc_logits (B, T, V) or None.

    hidden: {block: (B, T, d_T)}, numbered as in `Output`, of the blocks that a loss needs. normed (B, T, F): as in
    `Output`; codes (B, T, K): logits over the teacher's codewords; attention as in `Output`; None where no loss needs
    them. masked (B, T): frames to mask in the student, None where it draws its own. joint: as in `Output`.
    """

    logits: Tensor
    hidden: Mapping[int, Tensor]
    lengths: Tensor
    ctc_logits: Tensor | None = None
    normed: Tensor | None = None
    codes: Tensor | None = None
    attention: Mapping[int, Tensor] | None = None
    masked: Tensor | None = None
    joint: Joint | None = None


def convertible(rate: int) -> bool:
    """True for sample rates that can be converted to 16 kHz in bounded memory."""
    return RATES[0] <= rate <= RATES[1] and SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) <= MOST_PHASES


def valid_mask(lengths: Tensor, size: int) -> Tensor:
    """True where a position is inside its utterance: lengths (B,) -> (B, size)."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def mean_over_frames(x: Tensor, lengths: Tensor) -> Tensor:
    """Mean over each utterance's valid frames: x (B, T, C), lengths (B,) -> (B, C); 0 for one without frames."""
    inside = valid_mask(lengths, x.shape[1])[..., None]
    return x.where(inside, 0.0).sum(1) / lengths.clamp_min(1)[:, None]


def pad_waves(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack waveforms (N_b,) with zeros behind: (B, N) and the lengths (B,)."""
    samples = torch.tensor([len(wave) for wave in waves])
    return torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True), samples
