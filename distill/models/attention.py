"""Multi-head self-attention over chunks with a cache, and the mask and relative positions of its scores."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config.model import Encoder as EncoderSettings
from distill.config.model import Streaming
from distill.models.gates import Units
from distill.models.low_rank import linear, linear_macs


class KeyValue(NamedTuple):
    """Cache of an attention layer: projected keys and values of P past frames, (B, P, heads * head_dim) each.

    Keys have no channels where the maps are another block's.
    """

    keys: Tensor
    values: Tensor

    def at(self, frames: Tensor) -> KeyValue:
        """Only these of the P frames, in memory of its own."""
        return KeyValue(self.keys[:, frames], self.values[:, frames])


class Context(NamedTuple):
    """Input that the blocks of a forward share, over P cached frames and T new ones.

    mask: True where a key is visible, broadcastable to (B, heads, T, P + T). relative (…, heads, T, P + T): bias of a
    gated attention, or None. kept (P',): indices among the P + T frames that stay in the cache, None: all. inside
    (B, T): False for padded ones of the new frames, None: all are real. maps: {block, from 1: its queries (B, T, heads
    * head_dim) and keys (B, P + T, heads * head_dim)}, of blocks whose maps others take; they add them.
    """

    mask: Tensor
    relative: Tensor | None = None
    kept: Tensor | None = None
    inside: Tensor | None = None
    maps: dict[int, tuple[Tensor, Tensor]] | None = None


class RelativePositions(nn.Module):
    """A learnt bias per head and bucket of distance, logarithmic for long ones (WavLM, arXiv 2110.13900)."""

    def __init__(self, heads: int, buckets: int, furthest: int) -> None:
        super().__init__()
        self.buckets, self.furthest = buckets, furthest
        self.bias = nn.Embedding(buckets, heads)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Frame numbers of queries (T,) and keys (..., T_k) -> bias (..., heads, T, T_k)."""
        distance = keys[..., None, :] - queries[:, None]
        half = self.buckets // 2
        exact = half // 2
        size = distance.abs()
        log_size = torch.log(size.clamp_min(1).float() / exact) / math.log(self.furthest / exact)
        far = (exact + log_size * (half - exact)).long().clamp_max(half - 1)
        bucket = torch.where(size < exact, size, far) + half * (distance > 0)
        return self.bias(bucket).transpose(-1, -2).transpose(-2, -3)  # not movedim, which exports badly


class Attention(nn.Module):
    """Multi-head self-attention with biased projections; with relative positions, each query gates their bias.

    With `attention_of` a block has values alone, and takes queries and keys from another one: its maps without dropout,
    made again, as they are too large to be kept (ARMHuBERT, Jang et al. 2023).
    """

    def __init__(self, settings: EncoderSettings, index: int) -> None:
        super().__init__()
        self.number, self.source = index + 1, settings.source(index)
        self.lends = self.number in settings.attention_of
        _, self.heads, self.head_dim, *_ = settings.widths(index)
        self.dropout = 0.0 if self.source else settings.attention_dropout
        dim, width, rank = settings.dim, self.heads * self.head_dim, settings.rank
        if not self.source:
            self.query, self.key = linear(dim, width, rank), linear(dim, width, rank)
        self.value = linear(dim, width, rank)
        self.out = linear(width, dim, rank)
        gated = settings.relative_buckets > 0
        self.gate = nn.Linear(self.head_dim, 8) if gated else None
        self.gate_scale = nn.Parameter(torch.ones(1, self.heads, 1, 1)) if gated else None

    @staticmethod
    def macs(settings: EncoderSettings, index: int, keys: int) -> dict[str, int]:
        """Multiply-adds per frame, by part, where each frame attends to so many keys."""
        _, heads, head_dim, *_ = settings.widths(index)
        width, projections = heads * head_dim, 2 if settings.source(index) else 4
        projection = linear_macs(settings.dim, width, settings.rank)
        return {"attention projections": projections * projection, "attention": 2 * width * keys}

    @staticmethod
    def units(settings: EncoderSettings, index: int, alone: tuple[str, ...] = ()) -> Units:
        """What can be pruned of a block's `attention`: its heads. alone: the modules that it alone has use for."""
        own = ("value",) if settings.source(index) else ("query", "key", "value")
        made_by = tuple(f"attention.{name}" for name in own)
        return Units("heads", settings.widths(index).heads, made_by, "attention.out", alone)

    def empty_cache(self, batch: int) -> KeyValue:
        """The cache of new streams."""
        values = next(self.value.parameters()).new_zeros(batch, 0, self.value.out_features)
        return KeyValue(values[:, :, :0] if self.source else values, values)

    def forward(self, x: Tensor, context: Context, cache: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """x (B, T, C) -> (B, T, C) and the cache for the next chunk."""
        maps = context.maps if context.maps is not None else {}
        query, keys = maps[self.source] if self.source else (self.query(x), self.key(x))
        values = self.value(x)
        if cache is not None:
            values = torch.cat([cache.values, values], 1)
            keys = keys if self.source else torch.cat([cache.keys, keys], 1)
        if self.lends:
            maps[self.number] = query, keys
        mask = context.mask
        if context.relative is not None:
            mask = self.gated(self._split(x), context.relative).masked_fill(~mask, float("-inf"))
        mixed = F.scaled_dot_product_attention(
            self._split(query), self._split(keys), self._split(values), attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )  # fmt: skip
        pair = KeyValue(values[:, :, :0] if self.source else keys, values)
        return self.out(mixed.transpose(1, 2).flatten(2)), pair if context.kept is None else pair.at(context.kept)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def gated(self, x: Tensor, relative: Tensor) -> Tensor:
        """WavLM's gates on the bias: x (B, heads, T, C / heads), relative (…, heads, T, T_k) -> (B, heads, T, T_k)."""
        assert self.gate is not None and self.gate_scale is not None
        # not unflatten: a traced graph would keep the sizes of its example
        update, reset = self.gate(x).reshape(*x.shape[:3], 2, 4).sum(4).sigmoid().chunk(2, 3)
        return (update * (reset * self.gate_scale - 1) + 2) * relative


class NoAttention(nn.Module):
    """In the place of an attention whose heads are all pruned: zeros, and a cache without channels."""

    heads = 0

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def empty_cache(self, batch: int) -> KeyValue:
        """The cache of new streams."""
        return KeyValue(*torch.zeros(2, batch, 0, 0))

    def forward(self, x: Tensor, context: Context, cache: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """x (B, T, C) -> (B, T, C) and the cache for the next chunk."""
        past = 0 if cache is None else cache.keys.shape[1]
        pair = KeyValue(*x.new_zeros(2, len(x), past + x.shape[1], 0))
        return torch.zeros_like(x), pair if context.kept is None else pair.at(context.kept)


class Zeros(nn.Module):
    """In the place of a layer whose units are all pruned."""

    def forward(self, x: Tensor) -> Tensor:
        """x (…, C) -> (…, C)."""
        return torch.zeros_like(x)


def attention_mask(inside: Tensor, streaming: Streaming) -> Tensor:
    """Mask of whole utterances: inside (B, T) bool -> (B, 1, T, T), or (B, 1, 1, T) with full context."""
    keys = inside[:, None, None, :]
    if not streaming.chunk_frames:
        return keys | ~inside.any(1)[:, None, None, None]  # of an utterance without frames, every key
    frame = torch.arange(inside.shape[1], device=inside.device)
    chunk_start = torch.div(frame, streaming.chunk_frames, rounding_mode="floor") * streaming.chunk_frames
    itself = frame == frame[:, None]  # visible to padded frames too, so that no row is empty
    return (streaming.visible(frame, chunk_start[:, None]) & keys) | itself
