"""The block of a conformer (Gulati et al. 2020, arXiv 2005.08100), with a convolution that streams."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config.model import Encoder as EncoderSettings
from distill.models.attention import Attention, Context, KeyValue, NoAttention, Zeros
from distill.models.gates import Units
from distill.models.low_rank import linear, linear_macs


class ConformerCache(NamedTuple):
    """Keys and values as in `KeyValue`; conv (B, kernel - 1, conv_dim): last inputs of the depthwise convolution."""

    keys: Tensor
    values: Tensor
    conv: Tensor

    def at(self, frames: Tensor) -> ConformerCache:
        """Only these of the P frames, in memory of its own."""
        return ConformerCache(self.keys[:, frames], self.values[:, frames], self.conv.clone())


class FeedForward(nn.Module):
    """Norm, up, SiLU, down: x (B, T, C) -> (B, T, C)."""

    def __init__(self, settings: EncoderSettings, ffn_dim: int) -> None:
        super().__init__()
        dim = settings.dim
        self.norm = nn.LayerNorm(dim)
        self.up = linear(dim, ffn_dim, settings.rank)
        self.down = linear(ffn_dim, dim, settings.rank)
        self.dropout = nn.Dropout(settings.dropout)
        self.activation_dropout = nn.Dropout(settings.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.activation_dropout(F.silu(self.up(self.norm(x))))))


class ConvolutionModule(nn.Module):
    """Norm, up times a gate (GLU), depthwise convolution, norm, SiLU, down.

    The second norm is over the channels of a frame: batch norm, which the paper has, depends on padding and on the
    batch. The convolution is causal, or centred and then looks half a kernel ahead. Padding is zero in front of it.
    """

    def __init__(self, settings: EncoderSettings, index: int) -> None:
        super().__init__()
        dim, conv_dim, kernel = settings.dim, settings.widths(index).conv_dim, settings.conv_kernel
        self.left, self.right = settings.conv_span
        self.norm = nn.LayerNorm(dim)
        self.up = linear(dim, conv_dim, settings.rank)
        self.gate = linear(dim, conv_dim, settings.rank)
        self.depthwise = nn.Conv1d(conv_dim, conv_dim, kernel, groups=conv_dim)
        self.depthwise_norm = nn.LayerNorm(conv_dim)
        self.down = linear(conv_dim, dim, settings.rank)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, x: Tensor, inside: Tensor | None, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, C), inside (B, T), before (B, kernel - 1, conv_dim) of a causal one -> (B, T, C), next before."""
        x = self.norm(x)
        gated = self.up(x) * self.gate(x).sigmoid()
        if inside is not None:
            gated = gated * inside[..., None]
        around = F.pad(gated, (0, 0, self.left, self.right)) if before is None else torch.cat([before, gated], 1)
        mixed = self.depthwise(around.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.down(F.silu(self.depthwise_norm(mixed)))), around[:, x.shape[1] :]


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, each added to its input; then a norm."""

    def __init__(self, settings: EncoderSettings, index: int = 0) -> None:
        super().__init__()
        ffn_dim, heads, head_dim, _, ffn_after_dim = settings.widths(index)
        self.ffn_before = FeedForward(settings, ffn_dim) if ffn_dim else Zeros()
        self.attention_norm = nn.LayerNorm(settings.dim) if heads else nn.Identity()
        self.attention = Attention(settings, index) if heads else NoAttention(head_dim)
        self.convolution = ConvolutionModule(settings, index)
        self.ffn_after = FeedForward(settings, ffn_after_dim) if ffn_after_dim else Zeros()
        self.norm = nn.LayerNorm(settings.dim)
        self.dropout = nn.Dropout(settings.dropout)

    @staticmethod
    def macs(settings: EncoderSettings, index: int, keys: int) -> dict[str, int]:
        """Multiply-adds per frame of a block, by part, where each frame attends to so many keys."""
        (ffn_dim, _, _, conv_dim, after), macs = settings.widths(index), partial(linear_macs, rank=settings.rank)
        dim, kernel = settings.dim, settings.conv_kernel
        return {
            **Attention.macs(settings, index, keys),
            "feed-forward": 2 * (macs(dim, ffn_dim) + macs(dim, after)),
            "convolution modules": 2 * macs(dim, conv_dim) + macs(conv_dim, dim) + conv_dim * kernel,
        }

    @staticmethod
    def units(settings: EncoderSettings, index: int) -> dict[str, Units]:
        """What can be pruned, by the width that it is of in the settings."""
        ffn_dim, _, _, conv_dim, after = settings.widths(index)
        made_by = tuple(f"convolution.{name}" for name in ("up", "gate", "depthwise", "depthwise_norm"))
        return {
            "ffn_dim": Units("ffn", ffn_dim, ("ffn_before.up",), "ffn_before.down", ("ffn_before.norm",)),
            "heads": Attention.units(settings, index, ("attention_norm",)),
            "conv_dim": Units("conv", conv_dim, made_by, "convolution.down", at_least=1),
            "ffn_after_dim": Units("ffn", after, ("ffn_after.up",), "ffn_after.down", ("ffn_after.norm",)),
        }

    def empty_cache(self, batch: int) -> ConformerCache:
        """The cache of new streams."""
        conv = self.convolution.depthwise.weight.new_zeros(
            batch, self.convolution.left, self.convolution.depthwise.in_channels
        )
        return ConformerCache(*self.attention.empty_cache(batch), conv)

    def forward(
        self, x: Tensor, context: Context, cache: ConformerCache | None = None
    ) -> tuple[Tensor, ConformerCache]:
        """x (B, T, C) -> (B, T, C) and the cache for the next chunk."""
        pair, before = (None, None) if cache is None else (KeyValue(cache.keys, cache.values), cache.conv)
        x = x + 0.5 * self.ffn_before(x)
        attended, new = self.attention(self.attention_norm(x), context, pair)
        x = x + self.dropout(attended)
        mixed, conv = self.convolution(x, context.inside, before)
        x = x + mixed
        return self.norm(x + 0.5 * self.ffn_after(x)), ConformerCache(new.keys, new.values, conv)

    def queries_and_keys(self, x: Tensor) -> Tensor:
        """Those of the attention to the block's input x (B, T, C), side by side: (B, T, 2 heads * head_dim).

        In training with dropout they are those of another draw than the block's own.
        """
        assert isinstance(self.attention, Attention)  # `distill.config.losses.Attention` refuses
        x = self.attention_norm(x + 0.5 * self.ffn_before(x))
        return torch.cat([self.attention.query(x), self.attention.key(x)], 2)
