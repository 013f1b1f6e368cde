"""Streaming: a state of bounded size, and the step that gives what the masked whole-utterance forward gives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.batch import valid_mask
from distill.config.model import Streaming
from distill.models.encoder import KeyValue

if TYPE_CHECKING:
    from distill.models.recogniser import Recogniser


@dataclass
class StreamState:
    """Everything a stream remembers; bounded by chunk, history and sinks.

    audio (B, context + n): the waveform from `context` samples before the next frame's hop on.
    samples (B,): valid samples received so far. total: samples received, padding of ended streams included.
    start: frames decoded so far. history (B, kernel - 1, C): frames for the positions.
    past: keys and values per block, of frames `past_frames` (T_past,), valid where `past_inside` (B, T_past).
    """

    audio: Tensor
    samples: Tensor
    total: int
    start: int
    history: Tensor
    past: list[KeyValue]
    past_frames: Tensor
    past_inside: Tensor


def initial_state(model: Recogniser, batch: int) -> StreamState:
    """State of streams that have heard nothing; raises ValueError for a model with full context."""
    if not model.settings.streaming.chunk_frames:
        raise ValueError("this model has full context and cannot stream: streaming.chunk_frames is 0")
    weight, encoder = model.head.output.weight, model.settings.encoder
    device = weight.device
    empty = weight.new_zeros(batch, encoder.heads, 0, encoder.dim // encoder.heads)
    return StreamState(
        audio=weight.new_zeros(batch, model.front_end.context),
        samples=torch.zeros(batch, dtype=torch.int64, device=device),
        total=0,
        start=0,
        history=weight.new_zeros(batch, encoder.position_kernel - 1, encoder.dim),
        past=[KeyValue(empty, empty)] * encoder.layers,
        past_frames=torch.zeros(0, dtype=torch.int64, device=device),
        past_inside=torch.zeros(batch, 0, dtype=torch.bool, device=device),
    )


def step(
    model: Recogniser, wave: Tensor, state: StreamState, samples: Tensor | None, final: bool
) -> tuple[Tensor, Tensor, StreamState]:
    """`Recogniser.step`: wave (B, n), samples (B,) -> logits (B, T', V), valid frames (B,), the new state."""
    if samples is None:
        samples = torch.full((len(wave),), wave.shape[1], device=wave.device)
    front, size, before = model.front_end, model.settings.streaming.chunk_frames, state.start
    state = replace(
        state,
        audio=torch.cat([state.audio, wave], 1),
        samples=state.samples + samples.to(state.samples.device),
        total=state.total + wave.shape[1],
    )
    pieces = []
    while state.audio.shape[1] >= front.context + size * front.hop + front.ahead:
        pieces.append(_chunk(model, state, size))
    rest = int(front.lengths(torch.tensor(state.total))) - state.start if final else 0
    if rest > 0:
        pieces.append(_chunk(model, state, rest))
    logits = torch.cat(pieces, 1) if pieces else wave.new_zeros(len(wave), 0, model.outputs)
    lengths = (front.lengths(state.samples) - before).clamp(0, logits.shape[1])
    return logits, lengths, state


def _chunk(model: Recogniser, state: StreamState, frames: int) -> Tensor:
    """The next frames of the state's audio -> logits (B, frames, V); moves the state on."""
    front, encoder = model.front_end, model.encoder
    needed = front.context + frames * front.hop + front.ahead
    audio = state.audio[:, :needed]
    audio = F.pad(audio, (0, needed - audio.shape[1]))  # of an utterance's last frames only
    features = encoder.feature_norm(front.window(audio, state.samples, state.start, frames))
    inside = valid_mask(front.lengths(state.samples) - state.start, frames)
    x = encoder.project(features, inside)
    history = torch.cat([state.history, x], 1)
    x = encoder.embed(x, state.history)
    x = _attend(model, x, inside, state)
    state.audio = state.audio[:, frames * front.hop :]
    state.history = last(history, state.history.shape[1], 1)
    state.start += frames
    return model.predict(encoder.finish(x))


def _attend(model: Recogniser, x: Tensor, inside: Tensor, state: StreamState) -> Tensor:
    """All blocks over a chunk x (B, frames, C) and what is remembered; moves the memory on."""
    frames, encoder, streaming = x.shape[1], model.encoder, model.settings.streaming
    queries = torch.arange(state.start, state.start + frames, device=x.device)
    keys = torch.cat([state.past_frames, queries])
    seen = torch.cat([state.past_inside, inside], 1)
    mask = seen[:, None, None] | (queries[:, None] == keys)
    relative, past = encoder.relative_bias(queries, keys), []
    for block, before in zip(encoder.blocks, state.past):
        x, pair = block(x, mask, before, relative)
        past.append(KeyValue(*(remembered(tensor, streaming, 2) for tensor in pair)))
    state.past = past
    state.past_frames, state.past_inside = remembered(keys, streaming, 0), remembered(seen, streaming, 1)
    return x


def remembered(x: Tensor, streaming: Streaming, axis: int) -> Tensor:
    """What the next chunk sees along an axis of frames: the first `sink_frames` and the last `history_frames`."""
    sinks = min(streaming.sink_frames, x.shape[axis])
    recent = last(x, min(streaming.history_frames, x.shape[axis] - sinks), axis)
    return torch.cat([x.narrow(axis, 0, sinks), recent], axis) if sinks else recent


def last(x: Tensor, count: int, axis: int) -> Tensor:
    """The last `count` entries along an axis, or all if there are fewer."""
    count = min(count, x.shape[axis])
    return x.narrow(axis, x.shape[axis] - count, count)
