"""A recogniser rewritten for runtimes: the same weights and numbers, made of matrix products.

Runtimes quantise and run matrix products best, so convolutions become products over windows of
frames, layout (N, T, C) throughout, and attention takes keys and values of the past as inputs: the caller
keeps them in a ring, which grows to the model's history, and writes the new ones in (`StreamGraph`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.encoder import Block, Positions
from distill.models.front_end import ConvLayer, FbankFrontEnd, FrontEnd, GaborLayer, WaveFrontEnd
from distill.models.recogniser import Recogniser

HIDDEN = -1e30  # score of a key that is not seen: nothing is left of it after softmax


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

    exact: the last window ends with the last frame; a graph then need not compute where.
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
        x = self.convolution(x, exact)
        if self.compressed:
            return self._normed(torch.log1p(x.abs()))
        return F.gelu(self._normed(x))

    def _normed(self, x: Tensor) -> Tensor:
        if isinstance(self.norm, nn.LayerNorm):
            return F.layer_norm(x, self.norm.normalized_shape, self.norm.weight, self.norm.bias, self.norm.eps)
        if isinstance(self.norm, nn.GroupNorm):
            return self.norm(x.transpose(1, 2)).transpose(1, 2)
        return x


class Frames(nn.Module):
    """Front-end and projection: what the first convolution reads (N, T_in, C_in) -> (N, T, dim).

    A waveform is what its normalisation or gain made of it, with one channel; Fbank frames come as they
    are, and their mean and scale are applied here.
    """

    def __init__(self, model: Recogniser) -> None:
        super().__init__()
        front = model.front_end
        self.layers = nn.ModuleList(Layer(layer) for layer in front.layers)  # type: ignore[arg-type]
        self.feature_norm, self.projection = model.encoder.feature_norm, model.encoder.projection
        self.mean = nn.Parameter(front.mean.clone()) if isinstance(front, FbankFrontEnd) else None
        self.scale = nn.Parameter(front.scale.clone()) if isinstance(front, FbankFrontEnd) else None

    def forward(self, x: Tensor, exact: bool = False) -> Tensor:
        """exact: the last frame sees the last input."""
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) * self.scale
        for layer in self.layers:
            x = layer(x, exact)
        return self.projection(self.feature_norm(x))


class FoldedPositions(nn.Module):
    """`transformer.Positions` with the norm of its weights folded in; two-dimensional, which runtimes run faster."""

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
        last, through = model.ctc if output == "ctc" else model.head.output, model.head.through
        assert last is not None  # `Recogniser.read` refuses
        self.product = nn.Linear(last.in_features if through is None else through.in_features, last.out_features)
        with torch.no_grad():
            weight = last.weight if through is None else last.weight.double() @ through.weight.double()
            self.product.weight.copy_(weight)
            self.product.bias.copy_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x).log_softmax(-1)


class Past(NamedTuple):
    """Keys and values, (N, heads, R, C / heads) each."""

    keys: Tensor
    values: Tensor


class Bias(NamedTuple):
    """Added to scores over the past and the frames themselves, all (N or 1, …, T or 1, R + T).

    mask: 0 or HIDDEN, for all heads. relative: of WavLM's positions (N or 1, heads, T, R + T), before the gates.
    """

    mask: Tensor
    relative: Tensor | None


class RuntimeBlock(nn.Module):
    """`transformer.Block` without dropout, over frames of all streams one after another: (N * T, C).

    Keys, queries and values are one product, the scale of the scores is part of it.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        assert isinstance(block, Block)
        self.block, attention = block, block.attention
        self.heads, self.dim = attention.heads, attention.query.out_features
        self.width = self.dim // self.heads
        layers, scales = (attention.query, attention.key, attention.value), (self.width**-0.5, 1.0, 1.0)
        self.projections = nn.Linear(self.dim, 3 * self.dim)
        with torch.no_grad():
            self.projections.weight.copy_(torch.cat([layer.weight * k for layer, k in zip(layers, scales)]))
            self.projections.bias.copy_(torch.cat([layer.bias * k for layer, k in zip(layers, scales)]))

    def forward(self, x: Tensor, rows: tuple, bias: Bias, past: Past | None) -> tuple[Tensor, Past]:
        """rows: N and T, one of them -1.

        Returns (N * T, C), and keys and values of the new frames.
        """
        block = self.block
        if block.norm_first:
            attended, new = self.attend(block.attention_norm(x), rows, bias, past)
            x = x + attended
            return x + block.ffn_down(F.gelu(block.ffn_up(block.ffn_norm(x)))), new
        attended, new = self.attend(x, rows, bias, past)
        x = block.attention_norm(x + attended)
        return block.ffn_norm(x + block.ffn_down(F.gelu(block.ffn_up(x)))), new

    def attend(self, x: Tensor, rows: tuple, bias: Bias, past: Past | None) -> tuple[Tensor, Past]:
        """What is mixed (N * T, C), and keys and values of the new frames."""
        heads = self.projections(x).reshape(*rows, 3 * self.heads, self.width).transpose(1, 2)
        query, keys, values = heads.split(self.heads, 1)
        seen = new = Past(keys, values)
        if past is not None:
            seen = Past(torch.cat([past.keys, keys], 2), torch.cat([past.values, values], 2))
        scores = query @ seen.keys.transpose(2, 3) + bias.mask
        if bias.relative is not None:
            heard = x.reshape(*rows, self.heads, self.width).transpose(1, 2)
            scores = scores + self.block.attention.gated(heard, bias.relative)
        mixed = scores.softmax(3) @ seen.values
        return self.block.attention.out(mixed.transpose(1, 2).reshape(-1, self.dim)), new


class RuntimeGraph(nn.Module):
    """What both kinds of graph share; takes the model's own layers where nothing is to be rewritten.

    output: "main" (what LF-MMI trained) or "ctc" (the second output, for runtimes without a graph).
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__()
        model.read(output)
        self.settings, self.hop = model.settings, model.front_end.hop
        self.frames, self.positions = Frames(model), FoldedPositions(model.encoder.positions)
        self.norm, self.relative = model.encoder.norm, model.encoder.relative
        self.blocks = nn.ModuleList(RuntimeBlock(block) for block in model.encoder.blocks)
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

    Keys and values of the past lie behind those of the `sinks`, the first frames of all, in rings of `history`
    frames: frame f in slot sinks + f % history. The graph gives those of the new frames, and the caller writes
    them over the oldest, those of sinks into slot f as well. Slots that no frame has reached yet may be left out
    at the end, so that a stream's beginning costs less.
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__(model, output)
        streaming = model.settings.streaming
        if not streaming.chunk_frames:
            raise ValueError("this model has full context and cannot stream: streaming.chunk_frames is 0")
        self.chunk, self.history, self.sinks = streaming.chunk_frames, streaming.history_frames, streaming.sink_frames
        self.input_size, self.input_shift = input_window(model.front_end, self.chunk)

    def forward(
        self, x: Tensor, valid: Tensor, processed: Tensor, positions: Tensor, past: Sequence[Past]
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """x (N, T_in, C_in), what T frames see (`input_window`), T at most a chunk; processed (N,): frames before it.

        valid (N,): how many of the T frames are real, at least one. positions (N, kernel - 1, dim). Returns
        log-probabilities (N, T, V), new positions, new keys and values.
        """
        slots = torch.arange(past[0].keys.shape[2] - self.sinks, device=x.device)
        age = torch.remainder(processed[:, None] - 1 - slots, max(1, self.history)) + 1
        if self.sinks:
            age = torch.cat([processed[:, None] - torch.arange(self.sinks, device=x.device), age], 1)
        return self.run(x, valid, processed, age, positions, past)

    def run(
        self, x: Tensor, valid: Tensor, processed: Tensor, age: Tensor, positions: Tensor, past: Sequence[Past]
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """`forward` over any arrangement of the past: age (N or 1, R), how many frames before the chunk each lies.

        The first `sinks` of R are the sinks.
        """
        x = self.frames(x, exact=True)
        frame = torch.arange(x.shape[1], device=x.device)
        inside = frame < valid[:, None]
        x = x * inside[..., None]
        history = torch.cat([positions, x], 1)[:, x.shape[1] :]
        x, rows = self.embedded(x, positions).reshape(-1, self.dim), (-1, x.shape[1])
        mask = hide(torch.cat([self._seen(age, processed[:, None]), inside], 1))[:, None, None]
        relative: Tensor | None = None
        if self.relative is not None:
            relative = self.relative(frame, torch.cat([-age, frame.expand(age.shape[0], -1)], 1))
        bias, new = Bias(mask, relative), []
        for block, before in zip(self.blocks, past):
            x, pair = block(x, rows, bias, before)
            new.append(pair)
        return self.log_probs(x).reshape(*rows, self.head.product.out_features), history, new

    def _seen(self, age: Tensor, processed: Tensor) -> Tensor:
        """Which of the past is seen: sinks that have been, and what is young enough and no sink."""
        seen = (age <= self.history) & (age <= processed - self.sinks)
        if not self.sinks:
            return seen
        return torch.cat([age[:, : self.sinks] > 0, seen[:, self.sinks :]], 1)

    def initial_past(self, batch: int = 1) -> list[Past]:
        """Rings of full size that hold nothing."""
        encoder = self.settings.encoder
        width = encoder.dim // encoder.heads
        size = self.sinks + self.history
        return [Past(*torch.zeros(2, batch, encoder.heads, size, width)) for _ in range(encoder.layers)]

    def initial_positions(self, batch: int = 1) -> Tensor:
        """Frames before the first one: zeros."""
        encoder = self.settings.encoder
        return torch.zeros(batch, encoder.position_kernel - 1, encoder.dim)


def hide(seen: Tensor) -> Tensor:
    """0 where a key is seen, HIDDEN where not."""
    return torch.where(seen, 0.0, HIDDEN)


def input_window(front: FrontEnd, frames: int) -> tuple[int, int]:
    """Size and shift of what a front-end reads for so many frames: samples, or Fbank frames."""
    stride = front.settings.stride
    return (frames - 1) * stride + front.settings.reach, frames * stride


class WholeGraph(RuntimeGraph):
    """Whole utterances, with chunked attention if the model streams.

    Input as for `Frames`: of a waveform model the normalised waveform, without the zeros that a causal
    stack pads on the left, which are added here.
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__(model, output)
        wave = isinstance(model.front_end, WaveFrontEnd)
        self.left, self.receptive = (model.front_end.context if wave else 0), model.settings.front_end.reach
        self.stride = model.settings.front_end.stride

    def lengths(self, inputs: Tensor) -> Tensor:
        """Frames of utterances of so many samples or Fbank frames: (N,) -> (N,)."""
        return torch.div(inputs + self.left - self.receptive, self.stride, rounding_mode="floor") + 1

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """x (N, T_in, C_in), lengths (N,) in frames of the output (None: all valid) -> log-probabilities (N, T, V)."""
        x = self.frames(F.pad(x, (0, 0, self.left, 0)))
        frame = torch.arange(x.shape[1], device=x.device)
        inside = None if lengths is None else frame < lengths[:, None]
        if inside is not None:
            x = x * inside[..., None]
        bias = Bias(self._mask(frame, inside), None if self.relative is None else self.relative(frame, frame))
        x, rows = self.embedded(x, None).reshape(-1, self.dim), (x.shape[0], -1)
        for block in self.blocks:
            x, _ = block(x, rows, bias, None)
        return self.log_probs(x).reshape(*rows, self.head.product.out_features)

    def _mask(self, frame: Tensor, inside: Tensor | None) -> Tensor:
        """(N or 1, 1, T or 1, T): 0 for keys that are seen."""
        streaming = self.settings.streaming
        seen = torch.ones_like(frame, dtype=torch.bool)[None, None, None]
        if streaming.chunk_frames:
            size, history = streaming.chunk_frames, streaming.history_frames
            start = (torch.div(frame, size, rounding_mode="floor") * size)[:, None]
            remembered = (frame >= start - history) | (frame < streaming.sink_frames)
            seen = (remembered & (frame < start + size))[None, None]
        if inside is not None:
            seen = (seen & inside[:, None, None]) | (frame == frame[:, None])
        return hide(seen)
