"""Streams of different ages in one forward: their states joined to one batch, and taken apart again.

A stream's place in its utterance matters to nothing but its very beginning (nothing before it) and its end
(how many samples are valid). So each state is counted anew from its first chunk on: `start` is 0 before it
and 1 after it, and states with the same `key` go through `step` together.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.models.encoder import KeyValue
from distill.models.recogniser import Recogniser
from distill.models.streaming import StreamState


def key(model: Recogniser, state: StreamState) -> Hashable:
    """States of the same key may be joined; those are of streams that have each received all they were fed."""
    sinks = state.past_frames.numel() if model.settings.streaming.sink_frames else 0
    furthest = int(state.past_frames[0]) if sinks and model.encoder.relative is not None else 0
    return state.start, state.audio.shape[1], state.total, sinks, furthest


def join(states: Sequence[StreamState]) -> StreamState:
    """One state of the streams of several with the same key; shorter memories are filled up with invalid frames."""
    longest = max(states, key=lambda state: state.past_frames.numel())
    width = longest.past_frames.numel()
    past = [KeyValue(*(torch.cat([_wider(x, width) for x in side]) for side in zip(*pairs))) for pairs in
            zip(*(state.past for state in states))]  # fmt: skip
    inside = [F.pad(state.past_inside, (width - state.past_inside.shape[1], 0)) for state in states]
    together: dict = {name: torch.cat([getattr(s, name) for s in states]) for name in ("audio", "samples", "history")}
    return replace(longest, **together, past=past, past_inside=torch.cat(inside))


def _wider(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, 0, width - x.shape[2], 0))


def split(model: Recogniser, state: StreamState) -> list[StreamState]:
    """A state for each stream of a batch, counted anew (module docstring), in memory of its own."""
    shift = max(0, state.start - 1)
    past = replace(
        state,
        samples=state.samples - shift * model.front_end.hop,
        total=state.total - shift * model.front_end.hop,
        start=state.start - shift,
        past_frames=state.past_frames - shift,
    )
    return [_row(past, i) for i in range(len(state.samples))]


def _row(state: StreamState, i: int) -> StreamState:
    names = {field.name for field in fields(StreamState)} & {"audio", "samples", "history", "past_inside"}
    own: dict = {name: getattr(state, name)[i : i + 1].clone() for name in names}
    return replace(state, **own, past=[KeyValue(*(x[i : i + 1].clone() for x in pair)) for pair in state.past])
