"""The transformer of wav2vec 2.0: convolutional positions, then post-LN or pre-LN blocks."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import valid_mask
from distill.config.model import Encoder as EncoderSettings
from distill.config.model import Mask, Streaming


class KeyValue(NamedTuple):
    """Keys and values of past frames: (B, heads, T_past, C / heads) each."""

    keys: Tensor
    values: Tensor


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
    """Multi-head self-attention with biased projections; with `gated`, each query weighs the relative bias."""

    def __init__(self, dim: int, heads: int, dropout: float, gated: bool = False) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.gate = nn.Linear(dim // heads, 8) if gated else None
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1)) if gated else None

    def forward(
        self, x: Tensor, mask: Tensor | None, past: KeyValue | None = None, relative: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x (B, T, C), mask True where a key is seen, broadcastable to (B, heads, T, T_past + T).

        relative (heads, T, T_past + T): bias of a gated attention.
        """
        query, keys, values = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if past is not None:
            keys, values = torch.cat([past.keys, keys], 2), torch.cat([past.values, values], 2)
        if relative is not None:
            bias = self.gated(self._split(x), relative)
            mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).flatten(2)), KeyValue(keys, values)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def gated(self, x: Tensor, relative: Tensor) -> Tensor:
        """WavLM's gates on the bias: x (B, heads, T, C / heads), relative (…, heads, T, T_k) -> (B, heads, T, T_k)."""
        assert self.gate is not None and self.gate_scale is not None
        # not unflatten: a traced graph would keep the sizes of its example
        update, reset = self.gate(x).reshape(*x.shape[:3], 2, 4).sum(4).sigmoid().chunk(2, 3)
        return (update * (reset * self.gate_scale - 1) + 2) * relative


class Block(nn.Module):
    """Attention and feed-forward, each added to its input; the norm before (pre-LN) or after (post-LN)."""

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        self.norm_first = settings.norm_first
        gated = settings.relative_buckets > 0
        self.attention = Attention(settings.dim, settings.heads, settings.attention_dropout, gated)
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.ffn_up = nn.Linear(settings.dim, settings.ffn_dim)
        self.ffn_down = nn.Linear(settings.ffn_dim, settings.dim)
        self.ffn_norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)
        self.activation_dropout = nn.Dropout(settings.activation_dropout)

    def forward(
        self, x: Tensor, mask: Tensor | None, past: KeyValue | None = None, relative: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """x (B, T, C) -> (B, T, C) and the keys and values seen."""
        if self.norm_first:
            attended, seen = self.attention(self.attention_norm(x), mask, past, relative)
            x = x + self.dropout(attended)
            return x + self.dropout(self._ffn(self.ffn_norm(x))), seen
        attended, seen = self.attention(x, mask, past, relative)
        x = self.attention_norm(x + self.dropout(attended))
        return self.ffn_norm(x + self.dropout(self._ffn(x))), seen

    def _ffn(self, x: Tensor) -> Tensor:
        return self.ffn_down(self.activation_dropout(F.gelu(self.ffn_up(x))))


class Positions(nn.Module):
    """Convolutional position embedding (weight-normed over its taps, GELU), added to the input by the encoder.

    A causal one pads on the left and so needs the last `kernel - 1` frames when streaming; a centred
    one looks half a kernel ahead, as wav2vec 2.0 does.
    """

    def __init__(self, dim: int, kernel: int, groups: int, causal: bool) -> None:
        super().__init__()
        self.kernel, self.causal = kernel, causal
        conv = nn.Conv1d(dim, dim, kernel, groups=groups)
        nn.init.normal_(conv.weight, std=math.sqrt(4 / (kernel * dim)))
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=2)

    def forward(self, x: Tensor, history: Tensor | None = None) -> Tensor:
        """x (B, T, C), history (B, kernel - 1, C) of a causal one (zeros if absent) -> (B, T, C)."""
        if history is not None:
            padded = torch.cat([history, x], 1).transpose(1, 2)
        else:
            left = self.kernel - 1 if self.causal else self.kernel // 2
            padded = F.pad(x.transpose(1, 2), (left, self.kernel - 1 - left))
        return F.gelu(self.conv(padded).transpose(1, 2))


class Encoder(nn.Module):
    """Features to hidden states; chunked attention where `streaming` asks for it."""

    def __init__(self, settings: EncoderSettings, features: int, streaming: Streaming, mask: Mask) -> None:
        super().__init__()
        self.settings, self.streaming, self.mask = settings, streaming, mask
        self.draws: torch.Generator | None = None  # of blocks to drop and of chunks: training ranks draw the same
        self.feature_norm = nn.LayerNorm(features)
        projects = settings.always_project or features != settings.dim
        self.projection = nn.Linear(features, settings.dim) if projects else nn.Identity()
        self.positions = Positions(
            settings.dim, settings.position_kernel, settings.position_groups, settings.position_causal
        )
        # stands in for masked frames; counted, as in wav2vec 2.0, even where nothing is masked
        self.mask_embedding = nn.Parameter(torch.empty(settings.dim).uniform_(), mask.time_probability > 0)
        self.relative: RelativePositions | None = None
        if settings.relative_buckets:
            self.relative = RelativePositions(settings.heads, settings.relative_buckets, settings.relative_distance)
        self.norm = nn.LayerNorm(settings.dim)  # after the positions (post-LN) or after the last block (pre-LN)
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.layers))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Whole utterances: features (B, T, C), lengths (B,) -> hidden states (B, T, dim), see `distill.batch.Output`.

        The last one of a pre-LN encoder is taken after the final norm, as the head's input. The same for every
        imported model.
        """
        inside = valid_mask(lengths, features.shape[1])
        x = self.project(self.feature_norm(features), inside)
        if self.training:
            x = mask_spans(x, lengths, self.mask, self.mask_embedding)
        x = self.embed(x)
        streaming = drawn(self.streaming, self.draws) if self.training else self.streaming
        mask = attention_mask(inside, streaming)
        frame = torch.arange(features.shape[1], device=features.device)
        relative = self.relative_bias(frame, frame)
        hidden = [x]
        for block in self.blocks:
            dropped = self.training and self.settings.layer_drop > 0
            if not (dropped and float(torch.rand((), generator=self.draws)) < self.settings.layer_drop):
                x, _ = block(x, mask, None, relative)
            hidden.append(x)
        return (*hidden[:-1], self.finish(hidden[-1]))

    def project(self, features: Tensor, inside: Tensor) -> Tensor:
        """Normed features (B, T, C) to the encoder's width; padded frames are zero."""
        return self.projection(features) * inside[..., None]

    def embed(self, x: Tensor, history: Tensor | None = None) -> Tensor:
        """Add positions; x (B, T, dim), history (B, kernel - 1, dim)."""
        x = x + self.positions(x, history)
        return self.dropout(x if self.settings.norm_first else self.norm(x))

    def relative_bias(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Bias (heads, T, T_k) of frame numbers (T,), (T_k,); None for models without."""
        return None if self.relative is None else self.relative(queries, keys)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm of a pre-LN encoder."""
        return self.norm(x) if self.settings.norm_first else x


def drawn(streaming: Streaming, draws: torch.Generator | None = None) -> Streaming:
    """What a training batch runs at: one of `train_chunks` and `train_histories`, if there are any."""
    if not streaming.train_chunks:
        return streaming

    def one_of(values: tuple[int, ...]) -> int:
        return values[int(torch.randint(len(values), (), generator=draws))]

    history = one_of(streaming.train_histories or (streaming.history_frames,))
    return streaming.model_copy(update={"chunk_frames": one_of(streaming.train_chunks), "history_frames": history})


def attention_mask(inside: Tensor, streaming: Streaming) -> Tensor:
    """Which keys each frame sees: inside (B, T) bool -> (B, 1, T, T), or (B, 1, 1, T) with full context.

    Frame i of chunk c = i // chunk sees columns [c * chunk - history, (c + 1) * chunk) of its utterance,
    and the sinks before its chunk.
    """
    keys = inside[:, None, None, :]
    if not streaming.chunk_frames:
        return keys | ~inside.any(1)[:, None, None, None]  # an utterance without frames sees anything
    frame = torch.arange(inside.shape[1], device=inside.device)
    chunk_start = (frame // streaming.chunk_frames * streaming.chunk_frames)[:, None]
    remembered = (frame >= chunk_start - streaming.history_frames) | (frame < streaming.sink_frames)
    seen = remembered & (frame < chunk_start + streaming.chunk_frames)
    itself = frame == frame[:, None]  # padded frames see themselves, so that no row is empty
    return (seen & keys) | itself


def mask_spans(x: Tensor, lengths: Tensor, mask: Mask, embedding: Tensor) -> Tensor:
    """Replace random spans of frames by `embedding` (C,) and zero spans of channels, as wav2vec 2.0 does.

    x (B, T, C). The number of spans is such that `probability` of all would be hit if no two overlapped.
    """
    _, frames, channels = x.shape
    sizes = lengths.to(x.device)
    if mask.time_probability > 0:
        hit = _spans(sizes, frames, mask.time_probability, mask.time_length)
        x = torch.where(hit[..., None], embedding.to(x.dtype), x)
    if mask.channel_probability > 0:
        full = torch.full_like(sizes, channels)
        x = x * ~_spans(full, channels, mask.channel_probability, mask.channel_length)[:, None]
    return x


def _spans(sizes: Tensor, width: int, probability: float, length: int) -> Tensor:
    """Random spans within sizes (B,): (B, width) bool."""
    count = (probability * sizes / length + torch.rand(len(sizes), device=sizes.device)).long()
    most = max(1, int(count.max()))
    room = (sizes - length).clamp_min(0) + 1
    starts = (torch.rand(len(sizes), most, device=sizes.device) * room[:, None]).long()
    used = torch.arange(most, device=sizes.device) < count[:, None]
    position = torch.arange(width, device=sizes.device)
    hit = (position >= starts[..., None]) & (position < starts[..., None] + length) & used[..., None]
    return hit.any(1)
