"""The state of streams, of bounded size: joined to batches for `Recogniser.step`, and split again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class StreamState:
    """State of B streams, all tensors batch first; of each stream, bounded by chunk, history and sinks.

    audio (B, context + n): waveform from `context` samples before the next frame's hop. samples (B,): valid samples
    received. start (B,): frames computed. history (B, kernel - 1, C): input of the positional convolution.
    frames (B, P): numbers of the frames in the attention's caches, -1 for padding and for frames that the next chunk
    of this stream does not see. caches: of each block, a NamedTuple of tensors, batch first, time second, whose method
    `at` selects some of these frames.
    """

    audio: Tensor
    samples: Tensor
    start: Tensor
    history: Tensor
    frames: Tensor
    caches: list[Any]


TENSORS = [field.name for field in fields(StreamState) if field.name != "caches"]


def key(state: StreamState) -> int:
    """Batching key: streams with equal keys can share one `step`."""
    return state.audio.shape[1]


def join(states: Sequence[StreamState]) -> StreamState:
    """One state of streams with equal keys, whatever their age; shorter caches are padded at the beginning."""
    if len(states) == 1:
        return states[0]
    caches = [type(same[0])(*map(_stacked, zip(*same))) for same in zip(*(state.caches for state in states))]
    tensors = {name: _stacked([getattr(state, name) for state in states]) for name in TENSORS}
    return StreamState(**tensors, caches=caches)


def split(state: StreamState) -> list[StreamState]:
    """One state per stream of a batch, in memory of its own, without the frames that only others still see."""
    if len(state.samples) == 1:
        return [state]

    def row(number: int) -> StreamState:
        tensors = {name: getattr(state, name)[number : number + 1].clone() for name in TENSORS}
        kept = (state.frames[number] >= 0).nonzero()[:, 0]
        caches = [type(cache)(*(x[number : number + 1] for x in cache)).at(kept) for cache in state.caches]
        return StreamState(**tensors | {"frames": tensors["frames"][:, kept]}, caches=caches)

    return [row(number) for number in range(len(state.samples))]


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """Along the batch; padded at the beginning of axis 1, frame numbers with -1."""
    if tensors[0].ndim > 1:
        width, fill = max(x.shape[1] for x in tensors), 0 if tensors[0].is_floating_point() else -1
        tensors = [F.pad(x, (0, 0) * (x.ndim - 2) + (width - x.shape[1], 0), value=fill) for x in tensors]
    return torch.cat(list(tensors))
