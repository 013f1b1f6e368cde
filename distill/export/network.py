"""A recogniser rewritten for runtimes: the same weights and outputs, made of matrix products.

Runtimes quantise and run matrix products best, so convolutions become products over windows of
frames, layout (N, T, C) throughout, and attention takes keys and values of the past as inputs: the caller
keeps them in a ring buffer, which grows to the model's history, and writes the new ones in (`StreamGraph`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.attention import Attention, NoAttention, attention_mask
from distill.models.conformer import ConformerBlock
from distill.models.encoder import Positions, TransformerBlock
from distill.models.front_end import ConvLayer, FbankFrontEnd, GaborLayer
from distill.models.heads import SharedHead
from distill.models.low_rank import LowRank
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


class SlidingConvolution(nn.Module):
    """A convolution that keeps the number of frames, a norm of its weights folded in; in 2-D, which runs faster."""

    def __init__(self, conv: nn.Conv1d, causal: bool) -> None:
        super().__init__()
        (self.kernel,) = conv.kernel_size
        self.left = self.kernel - 1 if causal else self.kernel // 2
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, (1, self.kernel), groups=conv.groups)
        with torch.no_grad():
            self.conv.weight.copy_(conv.weight[:, :, None])
            if self.conv.bias is not None and conv.bias is not None:
                self.conv.bias.copy_(conv.bias)

    def forward(self, x: Tensor, history: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (N, T, C), history (N, kernel - 1, C) of a stream -> (N, T, C), the next history."""
        if history is None:
            around = F.pad(x, (0, 0, self.left, self.kernel - 1 - self.left))
        else:
            around = torch.cat([history, x], 1)
        return self.conv(around.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2), around[:, x.shape[1] :]


class FoldedHead(nn.Module):
    """Hidden states (N, T, dim) to log-probabilities (N, T, V); a shared head's two products are one here.

    For a transducer the frames (N, T, J) that are joined.
    """

    def __init__(self, model: Recogniser, output: str) -> None:
        super().__init__()
        last, head, self.normalised = model.ctc if output == "ctc" else model.head.output, model.head, True
        if model.transducer is not None and output == "transducer":
            last, self.normalised = model.transducer.encoder_projection, False
        assert last is not None  # `Recogniser.select_output` refuses
        weight = last.weight
        if isinstance(head, SharedHead) and self.normalised:
            weight = (weight.double() @ head.shared_projection.weight.double()).float()
        self.product = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.product.weight.copy_(weight)
            self.product.bias.copy_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x).log_softmax(-1) if self.normalised else self.product(x)


class Past(NamedTuple):
    """Keys and values, (N, heads, R, head_dim) each; None where all heads are pruned."""

    keys: Tensor | None
    values: Tensor | None


class ConformerPast(NamedTuple):
    """Keys and values as in `Past`; conv (N, kernel - 1, conv_dim): last inputs of the depthwise convolution."""

    keys: Tensor | None
    values: Tensor | None
    conv: Tensor


BlockPast = Past | ConformerPast


class RuntimeContext(NamedTuple):
    """Input that all blocks share, over R past and T new frames of N streams.

    mask (N or 1, 1, T or 1, R + T): 0 or HIDDEN, added to scores. relative (N or 1, heads, T, R + T): of WavLM's
    positions, before the gates. inside (N or 1, T): False for padded new frames.
    """

    mask: Tensor
    relative: Tensor | None
    inside: Tensor


def product_of(layers: Sequence[nn.Linear | LowRank], scales: Sequence[float]) -> nn.Module:
    """Linear maps of one input, scaled, side by side: as one product, or of low rank by a first factor that is one."""
    if all(isinstance(layer, nn.Linear) for layer in layers):
        return _stacked(layers, scales)
    first, second = zip(*((layer.down, _stacked([layer.up], [k])) for layer, k in zip(layers, scales)))
    return nn.Sequential(_stacked(first, [1.0] * len(first)), Apart(second))


def _stacked(layers: Sequence[Any], scales: Sequence[float]) -> nn.Linear:
    made = nn.Linear(layers[0].in_features, sum(layer.out_features for layer in layers), layers[0].bias is not None)
    with torch.no_grad():
        made.weight.copy_(torch.cat([layer.weight * k for layer, k in zip(layers, scales)]))
        if made.bias is not None:
            made.bias.copy_(torch.cat([layer.bias * k for layer, k in zip(layers, scales)]))
    return made


class Apart(nn.Module):
    """Linear layers side by side, each on its own equal part of the channels."""

    def __init__(self, layers: Iterable[nn.Linear]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(layers)  # not "layers", which names the first convolution that stays fp32

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(part) for linear, part in zip(self.linears, x.chunk(len(self.linears), -1))], -1)


class RuntimeAttention(nn.Module):
    """`Attention` over the concatenated frames of all streams: (N * T, C).

    Keys, queries and values are one product, which includes the scale of the scores.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention, self.heads, self.head_dim = attention, attention.heads, attention.head_dim
        layers, scales = (attention.query, attention.key, attention.value), (self.head_dim**-0.5, 1.0, 1.0)
        self.projections = product_of(layers, scales)

    def empty_past(self, batch: int, size: int) -> Past:
        """Keys and values of `size` frames, all zeros."""
        return Past(*torch.zeros(2, batch, self.heads, size, self.head_dim))

    def forward(self, x: Tensor, rows: tuple, context: RuntimeContext, past: Past | None) -> tuple[Tensor, Past]:
        """rows: N and T, one of them -1. Returns (N * T, C), and keys and values of the new frames."""
        projected = self.projections(x).reshape(*rows, 3 * self.heads, self.head_dim).transpose(1, 2)
        query, keys, values = projected.split(self.heads, 1)
        new = Past(keys, values)
        if past is not None:
            keys, values = (torch.cat(pair, 2) for pair in zip(past, new))  # type: ignore[arg-type]  # it has heads
        scores = query @ keys.transpose(2, 3) + context.mask
        if context.relative is not None:
            heads = x.reshape(*rows, self.heads, self.head_dim).transpose(1, 2)
            scores = scores + self.attention.gated(heads, context.relative)
        mixed = scores.softmax(3) @ values
        return self.attention.out(mixed.transpose(1, 2).reshape(-1, self.heads * self.head_dim)), new


class RuntimeNoAttention(nn.Module):
    """`NoAttention` in the place of `RuntimeAttention`."""

    def empty_past(self, batch: int, size: int) -> Past:
        """Nothing."""
        return Past(None, None)

    def forward(self, x: Tensor, rows: tuple, context: RuntimeContext, past: Past | None) -> tuple[Tensor, Past]:
        return torch.zeros_like(x), Past(None, None)


def runtime_attention(attention: Attention | NoAttention) -> RuntimeAttention | RuntimeNoAttention:
    """The runtime's form of an attention."""
    return RuntimeAttention(attention) if isinstance(attention, Attention) else RuntimeNoAttention()


class RuntimeBlock(nn.Module):
    """`TransformerBlock` without dropout, over the concatenated frames of all streams: (N * T, C)."""

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.block, self.attention = block, runtime_attention(block.attention)

    def empty_past(self, batch: int, size: int) -> Past:
        """Keys and values of `size` frames, all zeros."""
        return self.attention.empty_past(batch, size)

    def forward(self, x: Tensor, rows: tuple, context: RuntimeContext, past: Past | None) -> tuple[Tensor, Past]:
        """rows: N and T, one of them -1. Returns (N * T, C), and keys and values of the new frames."""
        block = self.block
        if block.norm_first:
            attended, new = self.attention(block.attention_norm(x), rows, context, past)
            x = x + attended
            return x + block.ffn_down(F.gelu(block.ffn_up(block.ffn_norm(x)))), new
        attended, new = self.attention(x, rows, context, past)
        x = block.attention_norm(x + attended)
        return block.ffn_norm(x + block.ffn_down(F.gelu(block.ffn_up(x)))), new


class RuntimeConformerBlock(nn.Module):
    """`ConformerBlock` without dropout, over the concatenated frames of all streams: (N * T, C).

    The convolution's input and its gate are one product.
    """

    def __init__(self, block: ConformerBlock) -> None:
        super().__init__()
        self.block, self.attention = block, runtime_attention(block.attention)
        conv = block.convolution
        self.kept, self.conv_dim = conv.left, conv.depthwise.in_channels
        self.up = product_of([conv.up, conv.gate], (1.0, 1.0))
        self.depthwise = SlidingConvolution(conv.depthwise, causal=conv.right == 0)

    def empty_past(self, batch: int, size: int) -> ConformerPast:
        """Keys and values of `size` frames and what the convolution sees before the first, all zeros."""
        return ConformerPast(*self.attention.empty_past(batch, size), torch.zeros(batch, self.kept, self.conv_dim))

    def forward(
        self, x: Tensor, rows: tuple, context: RuntimeContext, past: ConformerPast | None
    ) -> tuple[Tensor, ConformerPast]:
        """As `RuntimeBlock.forward`; of the new past, conv takes the place of the one before."""
        block, conv = self.block, self.block.convolution
        pair, before = (None, None) if past is None else (Past(past.keys, past.values), past.conv)
        x = x + 0.5 * block.ffn_before(x)
        attended, new = self.attention(block.attention_norm(x), rows, context, pair)
        x = x + attended
        gated = F.glu(self.up(conv.norm(x)), 1).reshape(*rows, self.conv_dim) * context.inside[..., None]
        mixed, after = self.depthwise(gated, before)
        x = x + conv.down(F.silu(conv.depthwise_norm(mixed.reshape(-1, self.conv_dim))))
        return block.norm(x + 0.5 * block.ffn_after(x)), ConformerPast(new.keys, new.values, after)


COUNTERPARTS: dict[type, type[RuntimeBlock | RuntimeConformerBlock]] = {
    TransformerBlock: RuntimeBlock, ConformerBlock: RuntimeConformerBlock,
}  # fmt: skip
"""The runtime's form of each kind of block."""


class RuntimeGraph(nn.Module):
    """The common part of both graphs; layers that need no rewriting are the model's own.

    output: "main" (trained with LF-MMI), "ctc" (the second output, for runtimes without a decoding graph) or
    "transducer" (frames for its joiner).
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__()
        model.select_output(output)
        if obstacle := model.settings.runtime_obstacle:
            raise ValueError(obstacle)
        self.settings, self.hop = model.settings, model.front_end.hop
        positions = model.encoder.positions
        assert isinstance(positions, Positions)  # `runtime_obstacle` refuses others
        self.frames, self.positions = Frames(model), SlidingConvolution(positions.conv, positions.causal)
        self.norm, self.relative = model.encoder.norm, model.encoder.relative
        self.blocks = nn.ModuleList(COUNTERPARTS[type(block)](block) for block in model.encoder.blocks)  # type: ignore[arg-type]
        self.dim = model.settings.encoder.dim
        self.head = FoldedHead(model, output)

    def embedded(self, x: Tensor, history: Tensor | None) -> tuple[Tensor, Tensor]:
        """`Encoder.embed`, and the next history."""
        positions, history = self.positions(x, history)
        x = x + F.gelu(positions)
        return x if self.settings.encoder.norm_first else self.norm(x), history

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
        self, x: Tensor, valid: Tensor, processed: Tensor, positions: Tensor, past: Sequence[BlockPast]
    ) -> tuple[Tensor, Tensor, list[BlockPast]]:
        """x (N, T_in, C_in), input of T frames (`FrontEnd.window`), at most a chunk; processed (N,): frames before.

        valid (N,): how many of the T frames are real, at least one. positions (N, kernel - 1, dim). Returns
        log-probabilities (N, T, V), new positions, and the blocks' new keys and values, each with its other states.
        """
        start = processed[:, None]
        size = next(block.keys.shape[2] for block in past if block.keys is not None)
        slots = torch.arange(size - self.sinks, device=x.device)
        frames = start - 1 - torch.remainder(start - 1 - slots, max(1, self.history))
        frames = torch.where(frames < self.sinks, -1, frames)  # they have slots of their own
        if self.sinks:
            first = torch.arange(self.sinks, device=x.device)
            frames = torch.cat([torch.where(first < start, first, -1), frames], 1)
        return self.run(x, valid, processed, frames, positions, past)

    def run(
        self, x: Tensor, valid: Tensor, processed: Tensor, frames: Tensor, positions: Tensor, past: Sequence[BlockPast]
    ) -> tuple[Tensor, Tensor, list[BlockPast]]:
        """`forward` over any arrangement of the past: the frame (N, R) in each slot, negative for unused ones."""
        x, start = self.frames(x, exact=True), processed[:, None]
        offset = torch.arange(x.shape[1], device=x.device)
        inside = offset < valid[:, None]
        x = x * inside[..., None]
        rows = (-1, x.shape[1])
        x, positions = self.embedded(x, positions)
        x = x.reshape(-1, self.dim)
        seen = self.streaming.visible(frames, start)
        relative: Tensor | None = None
        if self.relative is not None:
            relative = self.relative(offset, torch.cat([frames - start, offset.expand(frames.shape[0], -1)], 1))
        mask, new = hidden_unless(torch.cat([seen, inside], 1))[:, None, None], []
        for block, before in zip(self.blocks, past):
            x, after = block(x, rows, RuntimeContext(mask, relative, inside), before)
            new.append(after)
        return self.log_probs(x).reshape(*rows, self.head.product.out_features), positions, new

    def initial_past(self, batch: int = 1) -> list[BlockPast]:
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
        relative = None if self.relative is None else self.relative(frame, frame)
        context, rows = RuntimeContext(mask, relative, inside), (x.shape[0], -1)
        x = self.embedded(x, None)[0].reshape(-1, self.dim)
        for block in self.blocks:
            x, _ = block(x, rows, context, None)
        return self.log_probs(x).reshape(*rows, self.head.product.out_features)
