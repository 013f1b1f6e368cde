"""A recogniser rewritten for runtimes: the same weights and outputs, made of matrix products.

Runtimes quantise and run matrix products best, so convolutions become products over windows of
frames, layout (N, T, C) throughout, and attention takes keys and values of the past as inputs: the caller
keeps them in a ring buffer, which grows to the model's history, and writes the new ones in (`StreamGraph`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.attention import attention_mask
from distill.models.encoder import Positions, TransformerBlock
from distill.models.front_end import ConvLayer, FbankFrontEnd, GaborLayer
from distill.models.heads import SharedHead
from distill.models.recogniser import Recogniser

HIDDEN = -1e30  # score of an invisible key: its weight after softmax is 0


class Convolution(nn.Module):
    """A convolution over time as one matrix product: x (N, T_in, C_in) -> (N, T, C)."""

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size[0], conv.stride[0]
        self.product = nn.Linear(conv.in_channels * self.kernel, conv.out_channels, bias=conv.bias is not None)
        with torch.no_grad():
            self.product.weight.copy_(conv.weight.transpose(1, 2).flatten(1))
            if conv.bias is not None:
                self.product.bias.copy_(conv.bias)

    def forward(self, x: Tensor, exact: bool) -> Tensor:
        return self.product(windows(x, self.kernel, self.stride, exact))


def windows(x: Tensor, kernel: int, stride: int, exact: bool = False) -> Tensor:
    """Windows of `kernel` frames, `stride` apart: (N, T_in, C) -> (N, T, kernel * C), by reshaping slices.

    exact: the last window ends with the last frame, so that the graph need not compute the number of windows.
    """
    channels = int(x.shape[2])  # a traced graph may keep this size of its example, and no other
    count = None if exact else (x.shape[1] - kernel) // stride + 1
    pieces = []
    for start in range(0, kernel, stride):
        width = min(stride, kernel - start)
        end = (start + width - kernel or None) if count is None else start + (count - 1) * stride + width
        if width == 1:
            pieces.append(x[:, start:end:stride])
            continue
        piece = x[:, start:end]
        if width < stride:
            piece = F.pad(piece, (0, 0, 0, stride - width))
        # not unflatten and flatten: a traced graph would keep the numbers of streams and frames too
        piece = piece.reshape(x.shape[0], -1, stride * channels)
        pieces.append(piece[:, :, : width * channels] if width < stride else piece)
    return torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0]


class Layer(nn.Module):
    """A layer of a front-end, x (N, T_in, C_in) -> (N, T, C)."""

    def __init__(self, layer: ConvLayer | GaborLayer) -> None:
        super().__init__()
        self.convolution, self.norm = Convolution(layer.conv), layer.norm
        self.compressed = isinstance(layer, GaborLayer)

    def forward(self, x: Tensor, exact: bool) -> Tensor:
        """exact: as for `windows`."""
        x, norm = self.convolution(x, exact), self.norm
        if self.compressed:
            x = torch.log1p(x.abs())
        if isinstance(norm, nn.LayerNorm):
            x = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        elif isinstance(norm, nn.GroupNorm):
            x = norm(x.transpose(1, 2)).transpose(1, 2)
        return x if self.compressed else F.gelu(x)


class Frames(nn.Module):
    """Front-end and projection: input of the first convolution (N, T_in, C_in) -> (N, T, dim).

    A waveform is normalised or scaled already and has one channel; the stored mean and scale of Fbank frames are
    applied here.
    """

    def __init__(self, model: Recogniser) -> None:
        super().__init__()
        front = model.front_end
        self.layers = nn.ModuleList(Layer(layer) for layer in front.layers)  # type: ignore[arg-type]
        self.feature_norm, self.projection = model.encoder.feature_norm, model.encoder.projection
        self.mean = nn.Parameter(front.mean.clone()) if isinstance(front, FbankFrontEnd) else None
        self.scale = nn.Parameter(front.scale.clone()) if isinstance(front, FbankFrontEnd) else None

    def forward(self, x: Tensor, exact: bool = False) -> Tensor:
        """exact: the last frame depends on the last input."""
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) * self.scale
        for layer in self.layers:
            x = layer(x, exact)
        return self.projection(self.feature_norm(x))


class FoldedPositions(nn.Module):
    """`encoder.Positions` with the norm of its weights folded in; two-dimensional, which runtimes run faster."""

    def __init__(self, positions: Positions) -> None:
        super().__init__()
        self.kernel, self.causal = positions.kernel, positions.causal
        conv = positions.conv
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, (1, self.kernel), groups=conv.groups)
        with torch.no_grad():
            self.conv.weight.copy_(conv.weight[:, :, None])
            if self.conv.bias is not None and conv.bias is not None:
                self.conv.bias.copy_(conv.bias)

    def forward(self, x: Tensor, history: Tensor | None) -> Tensor:
        """x (N, T, C), history (N, kernel - 1, C) of a stream -> (N, T, C)."""
        if history is None:
            left = self.kernel - 1 if self.causal else self.kernel // 2
            x = F.pad(x, (0, 0, left, self.kernel - 1 - left))
        else:
            x = torch.cat([history, x], 1)
        return F.gelu(self.conv(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2))


class FoldedHead(nn.Module):
    """Hidden states (N, T, dim) to log-probabilities (N, T, V); a shared head's two products are one here."""

    def __init__(self, model: Recogniser, output: str) -> None:
        super().__init__()
        last, head = model.ctc if output == "ctc" else model.head.output, model.head
        assert last is not None  # `Recogniser.select_output` refuses
        weight = last.weight
        if isinstance(head, SharedHead):
            weight = (weight.double() @ head.shared_projection.weight.double()).float()
        self.product = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.product.weight.copy_(weight)
            self.product.bias.copy_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x).log_softmax(-1)


class Past(NamedTuple):
    """Keys and values, (N, heads, R, head_dim) each."""

    keys: Tensor
    values: Tensor


class Bias(NamedTuple):
    """Added to scores over the past and the new frames, (N or 1, …, T or 1, R + T) each.

    mask: 0 or HIDDEN, for all heads. relative: of WavLM's positions (N or 1, heads, T, R + T), before the gates.
    """

    mask: Tensor
    relative: Tensor | None


class RuntimeBlock(nn.Module):
    """`TransformerBlock` without dropout, over the concatenated frames of all streams: (N * T, C).

    Keys, queries and values are one product, which includes the scale of the scores.
    """

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.block, attention = block, block.attention
        self.heads = attention.heads
        self.head_dim = attention.query.out_features // self.heads
        layers, scales = (attention.query, attention.key, attention.value), (self.head_dim**-0.5, 1.0, 1.0)
        self.projections = nn.Linear(attention.query.in_features, 3 * attention.query.out_features)
        with torch.no_grad():
            self.projections.weight.copy_(torch.cat([layer.weight * k for layer, k in zip(layers, scales)]))
            self.projections.bias.copy_(torch.cat([layer.bias * k for layer, k in zip(layers, scales)]))

    def empty_past(self, batch: int, size: int) -> Past:
        """Keys and values of `size` frames, all zeros."""
        return Past(*torch.zeros(2, batch, self.heads, size, self.head_dim))

    def forward(self, x: Tensor, rows: tuple, bias: Bias, past: Past | None) -> tuple[Tensor, Past]:
        """rows: N and T, one of them -1. Returns (N * T, C), and keys and values of the new frames."""
        block = self.block
        if block.norm_first:
            attended, new = self.attend(block.attention_norm(x), rows, bias, past)
            x = x + attended
            return x + block.ffn_down(F.gelu(block.ffn_up(block.ffn_norm(x)))), new
        attended, new = self.attend(x, rows, bias, past)
        x = block.attention_norm(x + attended)
        return block.ffn_norm(x + block.ffn_down(F.gelu(block.ffn_up(x)))), new

    def attend(self, x: Tensor, rows: tuple, bias: Bias, past: Past | None) -> tuple[Tensor, Past]:
        """Output of the attention (N * T, C), and keys and values of the new frames."""
        projected = self.projections(x).reshape(*rows, 3 * self.heads, self.head_dim).transpose(1, 2)
        query, keys, values = projected.split(self.heads, 1)
        seen = new = Past(keys, values)
        if past is not None:
            seen = Past(torch.cat([past.keys, keys], 2), torch.cat([past.values, values], 2))
        scores = query @ seen.keys.transpose(2, 3) + bias.mask
        if bias.relative is not None:
            heads = x.reshape(*rows, self.heads, self.head_dim).transpose(1, 2)
            scores = scores + self.block.attention.gated(heads, bias.relative)
        mixed = scores.softmax(3) @ seen.values
        return self.block.attention.out(mixed.transpose(1, 2).reshape(-1, self.heads * self.head_dim)), new


COUNTERPARTS: dict[type, type[RuntimeBlock]] = {TransformerBlock: RuntimeBlock}
"""The runtime's form of each kind of block."""


class RuntimeGraph(nn.Module):
    """The common part of both graphs; layers that need no rewriting are the model's own.

    output: "main" (trained with LF-MMI) or "ctc" (the second output, for runtimes without a decoding graph).
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__()
        model.select_output(output)
        if obstacle := model.settings.runtime_obstacle:
            raise ValueError(obstacle)
        self.settings, self.hop = model.settings, model.front_end.hop
        self.frames, self.positions = Frames(model), FoldedPositions(cast(Positions, model.encoder.positions))
        self.norm, self.relative = model.encoder.norm, model.encoder.relative
        self.blocks = nn.ModuleList(COUNTERPARTS[type(block)](block) for block in model.encoder.blocks)  # type: ignore[arg-type]
        self.dim = model.settings.encoder.dim
        self.head = FoldedHead(model, output)

    def embedded(self, x: Tensor, history: Tensor | None) -> Tensor:
        """`Encoder.embed`."""
        x = x + self.positions(x, history)
        return x if self.settings.encoder.norm_first else self.norm(x)

    def log_probs(self, x: Tensor) -> Tensor:
        """Final norm and head: (…, dim) -> (…, V)."""
        return self.head(self.norm(x) if self.settings.encoder.norm_first else x)


class StreamGraph(RuntimeGraph):
    """One chunk of a stream, or its last frames; all of its state are inputs and outputs of bounded sizes.

    Keys and values of the past lie behind those of the `sinks`, the first frames of the stream, in ring buffers of
    `history` frames: frame f in slot sinks + f % history. The graph returns those of the new frames, and the caller
    writes them over the oldest, those of sinks into slot f as well. Unused slots at the end may be left out, so that a
    stream's beginning costs less.
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__(model, output)
        self.streaming, front = model.settings.streaming, model.settings.front_end
        if not self.streaming.chunk_frames:
            raise ValueError("this model has full context and cannot stream: streaming.chunk_frames is 0")
        self.chunk_frames = self.streaming.chunk_frames
        self.history, self.sinks = self.streaming.history_frames, self.streaming.sink_frames
        self.input_size, self.input_shift = front.window(self.chunk_frames), self.chunk_frames * front.stride

    def forward(
        self, x: Tensor, valid: Tensor, processed: Tensor, positions: Tensor, past: Sequence[Past]
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """x (N, T_in, C_in), input of T frames (`FrontEnd.window`), at most a chunk; processed (N,): frames before.

        valid (N,): how many of the T frames are real, at least one. positions (N, kernel - 1, dim). Returns
        log-probabilities (N, T, V), new positions, new keys and values.
        """
        start = processed[:, None]
        slots = torch.arange(past[0].keys.shape[2] - self.sinks, device=x.device)
        frames = start - 1 - torch.remainder(start - 1 - slots, max(1, self.history))
        frames = torch.where(frames < self.sinks, -1, frames)  # they have slots of their own
        if self.sinks:
            first = torch.arange(self.sinks, device=x.device)
            frames = torch.cat([torch.where(first < start, first, -1), frames], 1)
        return self.run(x, valid, processed, frames, positions, past)

    def run(
        self, x: Tensor, valid: Tensor, processed: Tensor, frames: Tensor, positions: Tensor, past: Sequence[Past]
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """`forward` over any arrangement of the past: the frame (N, R) in each slot, negative for unused ones."""
        x, start = self.frames(x, exact=True), processed[:, None]
        offset = torch.arange(x.shape[1], device=x.device)
        inside = offset < valid[:, None]
        x = x * inside[..., None]
        history = torch.cat([positions, x], 1)[:, x.shape[1] :]
        x, rows = self.embedded(x, positions).reshape(-1, self.dim), (-1, x.shape[1])
        seen = self.streaming.visible(frames, start)
        relative: Tensor | None = None
        if self.relative is not None:
            relative = self.relative(offset, torch.cat([frames - start, offset.expand(frames.shape[0], -1)], 1))
        bias, new = Bias(hidden_unless(torch.cat([seen, inside], 1))[:, None, None], relative), []
        for block, before in zip(self.blocks, past):
            x, pair = block(x, rows, bias, before)
            new.append(pair)
        return self.log_probs(x).reshape(*rows, self.head.product.out_features), history, new

    def initial_past(self, batch: int = 1) -> list[Past]:
        """Ring buffers of full size, all zeros."""
        return [block.empty_past(batch, self.sinks + self.history) for block in self.blocks]  # type: ignore[operator]


def hidden_unless(visible: Tensor) -> Tensor:
    """0 for visible keys, HIDDEN for others."""
    return torch.where(visible, 0.0, HIDDEN)


class WholeGraph(RuntimeGraph):
    """Whole utterances, with chunked attention if the model streams.

    Input as for `Frames`: of a waveform model the normalised waveform, without the zeros that a causal
    stack pads on the left, which are added here.
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__(model, output)
        front = model.settings.front_end
        self.left = front.context if front.input == "waveform" else 0

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (N, T_in, C_in), lengths (N,) in frames of the output (None: all valid) -> log-probabilities (N, T, V)."""
        x = self.frames(F.pad(x, (0, 0, self.left, 0)))
        frame = torch.arange(x.shape[1], device=x.device)
        inside = torch.ones_like(frame, dtype=torch.bool)[None]
        if lengths is not None:
            inside = frame < lengths[:, None]
            x = x * inside[..., None]
        mask = hidden_unless(attention_mask(inside, self.settings.streaming))
        bias = Bias(mask, None if self.relative is None else self.relative(frame, frame))
        x, rows = self.embedded(x, None).reshape(-1, self.dim), (x.shape[0], -1)
        for block in self.blocks:
            x, _ = block(x, rows, bias, None)
        return self.log_probs(x).reshape(*rows, self.head.product.out_features)
