"""The recogniser: front-end, encoder, head. One class for teacher, offline and streaming student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.batch import valid_mask
from distill.config import Model as ModelSettings
from distill.models.frontend import FrontEnd
from distill.models.transformer import Encoder, KeyValue


class Output(NamedTuple):
    """logits (B, T, V), lengths (B,), hidden: one (B, T, C) per block, counted from 0."""

    logits: Tensor
    lengths: Tensor
    hidden: tuple[Tensor, ...]


class Head(nn.Module):
    """Prediction layer; a shared one reads the student's last hidden state through its last W_i.

    papers/001 Eq. 2: W_i (d -> d_T) maps student to teacher. With it kept at inference, the
    teacher's prediction layer fits behind it and is taken over (`shared_dim` = d_T).
    """

    def __init__(self, dim: int, outputs: int, shared_dim: int | None) -> None:
        super().__init__()
        self.through = nn.Linear(dim, shared_dim, bias=False) if shared_dim else None
        self.output = nn.Linear(shared_dim or dim, outputs)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, C) -> logits (B, T, V)."""
        return self.output(hidden if self.through is None else self.through(hidden))


@dataclass
class StreamState:
    """Everything a stream remembers; bounded by chunk and history.

    pending (B, n): samples of a chunk that is not complete. context (B, receptive - hop): the waveform's last samples.
    samples (B,): valid samples received so far. start: frames decoded so far.
    history (B, kernel - 1, C): frames for the positions. past: keys and values per block. past_inside (B, T_past).
    """

    pending: Tensor
    context: Tensor
    samples: Tensor
    start: int
    history: Tensor
    past: list[KeyValue]
    past_inside: Tensor


class Recogniser(nn.Module):
    """Waveform to frame-wise unit logits."""

    def __init__(self, settings: ModelSettings, outputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.front_end = FrontEnd(settings.front_end)
        self.encoder = Encoder(settings.encoder, self.front_end.channels, settings.streaming, settings.mask)
        self.head = Head(settings.encoder.dim, outputs, settings.shared_head_dim)

    @property
    def outputs(self) -> int:
        """V, blank included."""
        return self.head.output.out_features

    def forward(self, wave: Tensor, samples: Tensor) -> Output:
        """Whole utterances, with chunked attention if the model streams: wave (B, N), samples (B,)."""
        if wave.ndim != 2 or samples.shape != wave.shape[:1]:
            raise ValueError(f"wave must be (B, N) and samples (B,), got {tuple(wave.shape)}, {tuple(samples.shape)}")
        features, lengths = self.front_end(wave, samples)
        hidden = self.encoder(features, lengths)
        return Output(self.head(hidden[-1]), lengths, hidden)

    def initial_state(self, batch: int) -> StreamState:
        """State of streams that have heard nothing; raises ValueError for a model with full context."""
        if not self.settings.streaming.chunk_frames:
            raise ValueError("this model has full context and cannot stream: streaming.chunk_frames is 0")
        weight = self.head.output.weight
        encoder = self.settings.encoder
        empty = weight.new_zeros(batch, encoder.heads, 0, encoder.dim // encoder.heads)
        return StreamState(
            pending=weight.new_zeros(batch, 0),
            context=weight.new_zeros(batch, self.front_end.context),
            samples=torch.zeros(batch, dtype=torch.int64, device=weight.device),
            start=0,
            history=weight.new_zeros(batch, encoder.position_kernel - 1, encoder.dim),
            past=[KeyValue(empty, empty)] * encoder.layers,
            past_inside=torch.zeros(batch, 0, dtype=torch.bool, device=weight.device),
        )

    def step(
        self, wave: Tensor, state: StreamState, samples: Tensor | None = None, final: bool = False
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Take any number of new samples, give the frames of all chunks that they complete.

        wave (B, n); samples (B,): how many of them are valid where a stream ends earlier (default: all).
        final: the streams end here, so the last, shorter chunk is decoded too.
        Returns logits (B, T', V), how many of the T' frames are valid (B,), and the new state. Together the
        pieces equal `forward`'s logits of the whole utterance.
        """
        if samples is None:
            samples = torch.full((len(wave),), wave.shape[1], device=wave.device)
        pending = torch.cat([state.pending, wave], 1)
        received = state.samples + samples.to(state.samples.device)
        chunk = self.settings.streaming.chunk_frames * self.front_end.hop
        before, pieces = state.start, []
        state = StreamState(**{**vars(state), "samples": received})
        while pending.shape[1] >= chunk:
            pieces.append(self._chunk(pending[:, :chunk], state))
            pending = pending[:, chunk:]
        rest = pending.shape[1] // self.front_end.hop * self.front_end.hop
        if final and rest:
            pieces.append(self._chunk(pending[:, :rest], state))
            pending = pending[:, rest:]
        state.pending = pending
        logits = torch.cat(pieces, 1) if pieces else wave.new_zeros(len(wave), 0, self.outputs)
        lengths = (self.front_end.lengths(received) - before).clamp(0, logits.shape[1])
        return logits, lengths, state

    def _chunk(self, wave: Tensor, state: StreamState) -> Tensor:
        """One chunk (B, frames * hop) -> logits (B, frames, V); updates the state."""
        wave = torch.cat([state.context, wave * self.front_end.gain], 1)
        features = self.encoder.feature_norm(self.front_end.convolve(wave))
        frames = features.shape[1]
        inside = valid_mask(self.front_end.lengths(state.samples) - state.start, frames)
        x = self.encoder.project(features, inside)
        history = torch.cat([state.history, x], 1)
        x = self.encoder.embed(x, state.history)
        seen = torch.cat([state.past_inside, inside], 1)
        itself = torch.eye(frames, seen.shape[1], dtype=torch.bool, device=seen.device).roll(len(seen[0]) - frames, 1)
        mask = seen[:, None, None] | itself
        keep = self.settings.streaming.history_frames
        past = []
        for block, before in zip(self.encoder.blocks, state.past):
            x, pair = block(x, mask, before)
            past.append(KeyValue(*(last(tensor, keep, 2) for tensor in pair)))
        state.context = last(wave, self.front_end.context, 1)
        state.history = last(history, state.history.shape[1], 1)
        state.past, state.past_inside = past, last(seen, keep, 1)
        state.start += frames
        return self.head(self.encoder.finish(x))


def last(x: Tensor, count: int, axis: int) -> Tensor:
    """The last `count` entries along an axis, or all if there are fewer."""
    count = min(count, x.shape[axis])
    return x.narrow(axis, x.shape[axis] - count, count)


def count_parameters(model: Recogniser) -> dict[str, int]:
    """Parameters of the trunk (front-end and encoder) and of the head (the shared head's W included)."""
    trunk = sum(p.numel() for part in (model.front_end, model.encoder) for p in part.parameters())
    return {"trunk": trunk, "head": sum(p.numel() for p in model.head.parameters())}
