"""A recogniser rewritten for runtimes: the same weights and numbers, made of matrix products.

Runtimes quantise and run matrix products best, so convolutions become products over windows of
frames, layout (N, T, C) throughout, and attention takes keys and values of the past as inputs that it
never copies: the caller keeps them in a ring and writes the new ones in (`StreamGraph`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.models.frontend import ConvLayer, FbankFrontEnd, FrontEnd, GaborLayer, WaveFrontEnd
from distill.models.recogniser import Recogniser
from distill.models.transformer import Attention, Block, Positions

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

    def forward(self, x: Tensor) -> Tensor:
        return self.product(windows(x, self.kernel, self.stride))


def windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Windows of `kernel` frames, `stride` apart: (N, T_in, C) -> (N, T, kernel * C), by reshaping slices."""
    count = (x.shape[1] - kernel) // stride + 1
    pieces = []
    for start in range(0, kernel, stride):
        width = min(stride, kernel - start)
        if width == 1:
            pieces.append(x[:, start : start + (count - 1) * stride + 1 : stride])
            continue
        piece = x[:, start : start + (count - 1) * stride + width]
        if width < stride:
            piece = F.pad(piece, (0, 0, 0, stride - width))
        # not unflatten and flatten: a traced graph would keep the sizes of its example
        piece = piece.reshape(x.shape[0], -1, stride * x.shape[2])
        pieces.append(piece[:, :, : width * x.shape[2]] if width < stride else piece)
    return torch.cat(pieces, 2) if len(pieces) > 1 else pieces[0]


class Layer(nn.Module):
    """A layer of a front-end, x (N, T_in, C_in) -> (N, T, C)."""

    def __init__(self, layer: ConvLayer | GaborLayer) -> None:
        super().__init__()
        self.convolution, self.norm = Convolution(layer.conv), layer.norm
        self.compressed = isinstance(layer, GaborLayer)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolution(x)
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

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is not None and self.scale is not None:
            x = (x - self.mean) * self.scale
        for layer in self.layers:
            x = layer(x)
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
    """Keys (N, heads, C / heads, R), transposed as products want them, and values (N, heads, R, C / heads)."""

    keys: Tensor
    values: Tensor


class Bias(NamedTuple):
    """Added to scores over the past and the frames themselves, all (N or 1, …, T or 1, R + T).

    mask: 0 or HIDDEN, for all heads. relative: of WavLM's positions (N or 1, heads, T, R + T), before the gates.
    """

    mask: Tensor
    relative: Tensor | None


def attend(attention: Attention, x: Tensor, bias: Bias, past: Past | None) -> tuple[Tensor, Past]:
    """x (N, T, C).

    Returns what is mixed (N, T, C), and keys and values of the new frames.
    """
    heads, width = attention.heads, attention.query.out_features // attention.heads
    query, keys, values = (
        layer(x).reshape(x.shape[0], -1, heads, width) for layer in (attention.query, attention.key, attention.value)
    )
    query, keys, values = query.transpose(1, 2) * width**-0.5, keys.permute(0, 2, 3, 1), values.transpose(1, 2)
    scores = query @ keys
    if past is not None:
        scores = torch.cat([query @ past.keys, scores], 3)
    scores = scores + bias.mask
    if bias.relative is not None:
        parts = x.reshape(x.shape[0], -1, heads, width).transpose(1, 2)
        scores = scores + attention.gated(parts, bias.relative)
    weights = scores.softmax(3)
    if past is None:
        mixed = weights @ values
    else:
        size = past.values.shape[2]
        mixed = weights[..., :size] @ past.values + weights[..., size:] @ values
    return attention.out(mixed.transpose(1, 2).reshape(x.shape[0], -1, heads * width)), Past(keys, values)


def run_block(block: nn.Module, x: Tensor, bias: Bias, past: Past | None) -> tuple[Tensor, Past]:
    """`transformer.Block` without dropout, on `attend`."""
    assert isinstance(block, Block)
    if block.norm_first:
        attended, new = attend(block.attention, block.attention_norm(x), bias, past)
        x = x + attended
        return x + block.ffn_down(F.gelu(block.ffn_up(block.ffn_norm(x)))), new
    attended, new = attend(block.attention, x, bias, past)
    x = block.attention_norm(x + attended)
    return block.ffn_norm(x + block.ffn_down(F.gelu(block.ffn_up(x)))), new


class RuntimeGraph(nn.Module):
    """What both kinds of graph share; takes the model's own layers where nothing is to be rewritten.

    output: "main" (what LF-MMI trained) or "ctc" (the second output, for runtimes without a graph).
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__()
        model.read(output)
        self.settings, self.hop = model.settings, model.front_end.hop
        self.frames, self.positions = Frames(model), FoldedPositions(model.encoder.positions)
        self.norm, self.blocks, self.relative = model.encoder.norm, model.encoder.blocks, model.encoder.relative
        self.head = FoldedHead(model, output)

    def embedded(self, x: Tensor, history: Tensor | None) -> Tensor:
        """`Encoder.embed`."""
        x = x + self.positions(x, history)
        return x if self.settings.encoder.norm_first else self.norm(x)

    def log_probs(self, x: Tensor) -> Tensor:
        """Final norm and head: (N, T, dim) -> (N, T, V)."""
        return self.head(self.norm(x) if self.settings.encoder.norm_first else x)


class StreamGraph(RuntimeGraph):
    """One chunk of a stream; all of its state are inputs and outputs of fixed sizes.

    Keys and values of the past lie behind those of the `sinks`, the first frames of all, in rings of `ring` frames,
    a multiple of the chunk: frame f in slot sinks + f % ring. The graph gives those of the new frames, and the
    caller writes them over the oldest, those of sinks into slot f as well.
    """

    def __init__(self, model: Recogniser, output: str = "main") -> None:
        super().__init__(model, output)
        streaming = model.settings.streaming
        if not streaming.chunk_frames:
            raise ValueError("this model has full context and cannot stream: streaming.chunk_frames is 0")
        self.chunk, self.history, self.sinks = streaming.chunk_frames, streaming.history_frames, streaming.sink_frames
        self.ring = -(-self.history // self.chunk) * self.chunk
        self.input_size, self.input_shift = input_window(model.front_end, self.chunk)

    def forward(
        self, x: Tensor, valid: Tensor, processed: Tensor, positions: Tensor, past: Sequence[Past]
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """x (N, input_size, C_in), valid (N,): frames of the chunk that are real; processed (N,): frames before it.

        positions (N, kernel - 1, dim). Returns log-probabilities (N, chunk, V), new positions, new keys and values.
        """
        slots = torch.arange(self.ring, device=x.device)
        age = torch.remainder(processed[:, None] - 1 - slots, max(1, self.ring)) + 1
        if self.sinks:
            age = torch.cat([processed[:, None] - torch.arange(self.sinks, device=x.device), age], 1)
        return self.run(x, valid, processed, age, positions, past)

    def run(
        self, x: Tensor, valid: Tensor, processed: Tensor, age: Tensor, positions: Tensor, past: Sequence[Past]
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """`forward` over any arrangement of the past: age (N or 1, R), how many frames before the chunk each lies.

        The first `sinks` of R are the sinks.
        """
        frame = torch.arange(self.chunk, device=x.device)
        inside = frame < valid[:, None]
        x = self.frames(x) * inside[..., None]
        history = torch.cat([positions, x], 1)[:, self.chunk :]
        x = self.embedded(x, positions)
        past_bias = hide(self._seen(age, processed[:, None]))[:, None, None].expand(-1, -1, self.chunk, -1)
        mask, relative = torch.cat([past_bias, self._chunk_bias(inside)], 3), None
        if self.relative is not None:
            relative = self.relative(frame, torch.cat([-age, frame.expand(age.shape[0], -1)], 1))
        bias, new = Bias(mask, relative), []
        for block, before in zip(self.blocks, past):
            x, pair = run_block(block, x, bias, before)
            new.append(pair)
        return self.log_probs(x), history, new

    def _seen(self, age: Tensor, processed: Tensor) -> Tensor:
        """Which of the past is seen: sinks that have been, and what is young enough and no sink."""
        seen = (age <= self.history) & (age <= processed - self.sinks)
        if not self.sinks:
            return seen
        return torch.cat([age[:, : self.sinks] > 0, seen[:, self.sinks :]], 1)

    def _chunk_bias(self, inside: Tensor) -> Tensor:
        """Frames of the chunk see all real ones and themselves: (N, chunk) -> (N, 1, chunk, chunk)."""
        itself = torch.eye(self.chunk, dtype=torch.bool, device=inside.device)
        return hide(inside[:, None, None] | itself)

    def initial_past(self, batch: int = 1) -> list[Past]:
        """Empty rings."""
        encoder = self.settings.encoder
        width = encoder.dim // encoder.heads
        size = self.sinks + self.ring
        keys, values = (batch, encoder.heads, width, size), (batch, encoder.heads, size, width)
        return [Past(torch.zeros(keys), torch.zeros(values)) for _ in range(encoder.layers)]

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
        x = self.embedded(x, None)
        for block in self.blocks:
            x, _ = run_block(block, x, bias, None)
        return self.log_probs(x)

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
