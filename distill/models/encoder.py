"""The encoder of wav2vec 2.0: convolutional positions, then a stack of blocks; with sinusoids, that of Whisper."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import valid_mask
from distill.config.model import Encoder as EncoderSettings
from distill.config.model import Mask, Streaming
from distill.models.attention import (
    Attention,
    Context,
    KeyValue,
    NoAttention,
    RelativePositions,
    Zeros,
    attention_mask,
)
from distill.models.conformer import ConformerBlock
from distill.models.gates import Units
from distill.models.low_rank import linear, linear_macs
from distill.models.streaming import StreamState


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each added to its input; the norm before (pre-LN) or after (post-LN)."""

    def __init__(self, settings: EncoderSettings, index: int = 0) -> None:
        super().__init__()
        dim, (ffn_dim, heads, head_dim, *_) = settings.dim, settings.widths(index)
        self.norm_first = settings.norm_first
        self.attention = Attention(settings, index) if heads else NoAttention(head_dim)
        self.attention_norm = nn.LayerNorm(dim) if heads or not self.norm_first else nn.Identity()
        self.ffn_up = linear(dim, ffn_dim, settings.rank) if ffn_dim else nn.Identity()
        self.ffn_down = linear(ffn_dim, dim, settings.rank) if ffn_dim else Zeros()
        self.ffn_norm = nn.LayerNorm(dim) if ffn_dim or not self.norm_first else nn.Identity()
        self.dropout = nn.Dropout(settings.dropout)
        self.activation_dropout = nn.Dropout(settings.activation_dropout)

    @staticmethod
    def macs(settings: EncoderSettings, index: int, keys: int) -> dict[str, int]:
        """Multiply-adds per frame of a block, by part, where each frame attends to so many keys."""
        feed_forward = linear_macs(settings.dim, settings.widths(index).ffn_dim, settings.rank)
        return {**Attention.macs(settings, index, keys), "feed-forward": 2 * feed_forward}

    @staticmethod
    def units(settings: EncoderSettings, index: int) -> dict[str, Units]:
        """What can be pruned, by the width that it is of in the settings."""
        attention_norm, ffn_norm = (("attention_norm",), ("ffn_norm",)) if settings.norm_first else ((), ())
        return {
            "heads": Attention.units(settings, index, attention_norm),
            "ffn_dim": Units("ffn", settings.widths(index).ffn_dim, ("ffn_up",), "ffn_down", ffn_norm),
        }

    def empty_cache(self, batch: int) -> KeyValue:
        """The cache of new streams."""
        return self.attention.empty_cache(batch)

    def forward(self, x: Tensor, context: Context, cache: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """x (B, T, C) -> (B, T, C) and the cache for the next chunk."""
        if self.norm_first:
            attended, cache = self.attention(self.attention_norm(x), context, cache)
            x = x + self.dropout(attended)
            return x + self.dropout(self._ffn(self.ffn_norm(x))), cache
        attended, cache = self.attention(x, context, cache)
        x = self.attention_norm(x + self.dropout(attended))
        return self.ffn_norm(x + self.dropout(self._ffn(x))), cache

    def queries_and_keys(self, x: Tensor) -> Tensor:
        """Those of the attention to the block's input x (B, T, C), side by side: (B, T, 2 heads * head_dim)."""
        assert isinstance(self.attention, Attention)  # `distill.config.losses.Attention` refuses
        if self.norm_first:
            x = self.attention_norm(x)
        return torch.cat([self.attention.query(x), self.attention.key(x)], 2)

    def _ffn(self, x: Tensor) -> Tensor:
        return self.ffn_down(self.activation_dropout(F.gelu(self.ffn_up(x))))


BLOCKS: dict[str, type[TransformerBlock | ConformerBlock]] = {
    "transformer": TransformerBlock, "conformer": ConformerBlock,
}  # fmt: skip
"""Kinds of blocks by their name in the settings. Each has a cache of its own and its cost here, and its counterpart
for runtimes in `distill.export.network.COUNTERPARTS`."""


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


class Sinusoids(nn.Module):
    """Sine and cosine of the frame's number at rates from 1 to 1e-4 (Vaswani et al. 2017), added by the encoder.

    Whisper's table, for any number of frames: its training has seen 1500.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor, history: Tensor | None = None) -> Tensor:
        """x (B, T, C) -> (T, C)."""
        return sinusoids(x.shape[1], self.dim, x.device)


def sinusoids(frames: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Sines, then cosines: (T, C)."""
    rates = (-math.log(10000) / (dim // 2 - 1) * torch.arange(dim // 2, device=device)).exp()
    angles = torch.arange(frames, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)


def build_positions(settings: EncoderSettings) -> Positions | Sinusoids:
    """The positions of the settings' kind."""
    if settings.positions == "sinusoid":
        return Sinusoids(settings.dim)
    return Positions(settings.dim, settings.position_kernel, settings.position_groups, settings.position_causal)


class Encoded(NamedTuple):
    """hidden: (B, T, dim) each, see `distill.batch.Output`, as for the others."""

    hidden: tuple[Tensor, ...]
    normed: Tensor
    masked: Tensor | None = None
    attention: Mapping[int, Tensor] | None = None


class Encoder(nn.Module):
    """Features to hidden states; chunked attention where `streaming` has chunks."""

    def __init__(
        self, settings: EncoderSettings, features: int, streaming: Streaming, mask: Mask, tail: int = 0
    ) -> None:
        """tail: frames of silence behind each utterance that features have besides, and attention sees."""
        super().__init__()
        self.tail = tail
        self.settings, self.streaming, self.mask = settings, streaming, mask
        self.draws: torch.Generator | None = None  # for dropped blocks and chunks: the same on all training ranks
        self.feature_norm = nn.LayerNorm(features) if settings.feature_norm else nn.Identity()
        projects = settings.always_project or features != settings.dim
        self.projection = nn.Linear(features, settings.dim) if projects else nn.Identity()
        self.input_dropout = nn.Dropout(settings.input_dropout)
        self.positions = build_positions(settings)
        reduction = settings.time_reduction
        self.reduction = nn.Conv1d(settings.dim, settings.dim, reduction, reduction) if reduction > 1 else None
        # stands in for masked frames; counted, as in wav2vec 2.0, even where nothing is masked
        self.mask_embedding = nn.Parameter(torch.empty(settings.dim).uniform_(), mask.time_probability > 0)
        self.relative: RelativePositions | None = None
        if settings.relative_buckets:
            heads = settings.widths().heads
            self.relative = RelativePositions(heads, settings.relative_buckets, settings.relative_distance)
        self.norm = nn.LayerNorm(settings.dim)  # after the positions (post-LN) or after the last block (pre-LN)
        self.blocks = nn.ModuleList(BLOCKS[settings.block](settings, i) for i in range(settings.layers))
        self.dropout = nn.Dropout(settings.dropout)

    def forward(
        self, features: Tensor, lengths: Tensor, masked: bool | Tensor = False, attention: Collection[int] = ()
    ) -> Encoded:
        """Whole utterances: features (B, T + tail, C), lengths (B,); masked: mask frames outside of training too.

        A tensor masked (B, T) names the frames to mask, in place of random ones; it is cut or padded to T.
        attention: blocks, from 1, whose queries and keys are returned; outputs are the same with and without.
        The last hidden state of a pre-LN encoder is taken after the final norm, as the head's input. The same for every
        imported model.
        """
        inside, normed = valid_mask(lengths + self.tail, features.shape[1]), self.feature_norm(features)
        x = self.input_dropout(self.project(normed, inside))
        given = F.pad(masked, (0, x.shape[1] - masked.shape[1])) if isinstance(masked, Tensor) else None
        mask = self.mask if self.training or masked is True else Mask()
        x, hit = mask_spans(x, lengths, mask, self.mask_embedding, given)
        x = self.embed(x)
        if self.reduction is not None:
            x, inside = self.reduced(x, inside)
        streaming = drawn(self.streaming, self.draws) if self.training else self.streaming
        frame = torch.arange(x.shape[1], device=features.device)
        relative = None if self.relative is None else self.relative(frame, frame)
        context = Context(attention_mask(inside, streaming), relative, inside=inside, maps={})
        hidden, pairs = [x], {}
        x = self.dropout(x)
        for number, block in enumerate(self.blocks, 1):
            if number in attention:
                pairs[number] = block.queries_and_keys(x)  # type: ignore[operator]
            dropped = self.training and self.settings.layer_drop > 0
            if not (dropped and float(torch.rand((), generator=self.draws)) < self.settings.layer_drop):
                x, _ = block(x, context)
            tap = x
            if self.training and self.settings.layer_grad_scale:
                share = 1 / (len(self.blocks) - number + 2)
                tap = scaled_gradient(x, share)
                x = scaled_gradient(x, 1 - share)
            hidden.append(tap)
        hidden[-1] = self.finish(hidden[-1])
        if self.reduction is not None:
            hidden = [h.repeat_interleave(self.settings.time_reduction, 1)[:, : normed.shape[1]] for h in hidden]
        return self._without_tail(Encoded(tuple(hidden), normed, hit, pairs or None))

    def _without_tail(self, encoded: Encoded) -> Encoded:
        if not self.tail:
            return encoded
        hidden, normed, hit, pairs = encoded
        hidden, normed = tuple(h[:, : -self.tail] for h in hidden), normed[:, : -self.tail]
        hit = None if hit is None else hit[:, : -self.tail]
        return Encoded(hidden, normed, hit, pairs and {block: x[:, : -self.tail] for block, x in pairs.items()})

    def step(self, features: Tensor, lengths: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """The next chunk of streams: features (B, T, C), valid frames (B,) -> hidden states (B, T, dim), new state.

        The new state has advanced caches, and `start` and audio of the old one.
        """
        size, start = features.shape[1], state.start[:, None]
        inside = valid_mask(lengths, size)
        x = self.project(self.feature_norm(features), inside)
        history = torch.cat([state.history, x], 1)[:, size:]
        x = self.embed(x, state.history)
        offset = torch.arange(size, device=x.device)
        frames = torch.cat([state.frames, torch.where(inside, start + offset, -1)], 1)
        visible = self.streaming.visible(frames, start)
        itself = torch.arange(frames.shape[1], device=x.device) == offset[:, None] + state.frames.shape[1]
        relative = None if self.relative is None else self.relative(offset, frames - start)
        frames = torch.where(self.streaming.visible(frames, start + size), frames, -1)  # of the next chunk
        kept = (frames >= 0).any(0).nonzero()[:, 0]
        context, caches = Context(visible[:, None, None] | itself, relative, kept, inside, {}), []
        for block, cache in zip(self.blocks, state.caches):
            x, cache = block(x, context, cache)
            caches.append(cache)
        return self.finish(x), replace(state, history=history, frames=frames[:, kept], caches=caches)

    def project(self, features: Tensor, inside: Tensor) -> Tensor:
        """Normed features (B, T, C) to the encoder's width; padded frames are zero."""
        return self.projection(features) * inside[..., None]

    def reduced(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Every `time_reduction` frames as one (FitHuBERT, Lee et al. 2022): x (B, T, dim), inside (B, T).

        Zeros fill the last one up. Each state of a block is repeated for the frames that it is of, in place of the
        paper's upsampling in the heads, so that distillation by MSE is that of the mean of so many teacher frames.
        """
        assert self.reduction is not None
        size = self.settings.time_reduction
        x = F.pad(x * inside[..., None], (0, 0, 0, -x.shape[1] % size))
        return self.reduction(x.transpose(1, 2)).transpose(1, 2), inside[:, ::size]

    def embed(self, x: Tensor, history: Tensor | None = None) -> Tensor:
        """Add positions; x (B, T, dim), history (B, kernel - 1, dim)."""
        x = x + self.positions(x, history)
        return x if self.settings.norm_first else self.norm(x)

    def finish(self, x: Tensor) -> Tensor:
        """The final norm of a pre-LN encoder."""
        return self.norm(x) if self.settings.norm_first else x


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x, exactly, through which a gradient passes times `factor`."""
    return x.detach() + factor * (x - x.detach())


def drawn(streaming: Streaming, draws: torch.Generator | None = None) -> Streaming:
    """The chunks of a training batch: one of `train_chunks` and `train_histories`, if there are any."""
    if not streaming.train_chunks:
        return streaming

    def one_of(values: tuple[int, ...]) -> int:
        return values[int(torch.randint(len(values), (), generator=draws))]

    history = one_of(streaming.train_histories or (streaming.history_frames,))
    return streaming.model_copy(update={"chunk_frames": one_of(streaming.train_chunks), "history_frames": history})


def mask_spans(
    x: Tensor, lengths: Tensor, mask: Mask, embedding: Tensor, hit: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Replace random spans of frames by `embedding` (C,) and zero spans of channels, as wav2vec 2.0 does.

    Unlike fairseq's, spans of an utterance may start at the same frame, and there may be fewer than two: at its
    published probabilities 0.65 and 0.8 that masks 1 or 2 % of the frames less.

    x (B, T, C); hit (B, T): frames in place of random ones. The number of spans is such that `probability` of all would
    be hit if no two overlapped. Returns the masked x, and which frames are replaced (B, T), None where none can be.
    """
    _, frames, channels = x.shape
    sizes = lengths.to(x.device)
    if hit is None and mask.time_probability > 0:
        hit = spans(sizes, frames, mask.time_probability, mask.time_length)
    if hit is not None:
        x = torch.where(hit[..., None], embedding.to(x.dtype), x)
    if mask.channel_probability > 0:
        full = torch.full_like(sizes, channels)
        x = x * ~spans(full, channels, mask.channel_probability, mask.channel_length)[:, None]
    return x, hit


def spans(sizes: Tensor, width: int, probability: float, length: int) -> Tensor:
    """Random spans within sizes (B,): (B, width) bool. Of fewer frames a span leaves one, as in fairseq."""
    count = (probability * sizes / length + torch.rand(len(sizes), device=sizes.device)).long()
    most = max(1, int(count.max()))
    lengths = (sizes - 1).clamp(0, length)
    room = sizes - lengths + 1
    starts = (torch.rand(len(sizes), most, device=sizes.device) * room[:, None]).long()
    used = torch.arange(most, device=sizes.device) < count[:, None]
    position = torch.arange(width, device=sizes.device)
    hit = (position >= starts[..., None]) & (position < (starts + lengths[:, None])[..., None]) & used[..., None]
    return hit.any(1)
