"""Settings of a network's shapes and of its streaming."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from distill.config.bounds import (
    EachOnce,
    Epsilon,
    Flag,
    Kernel,
    Positive,
    Probability,
    Rest,
    Scale,
    Share,
    Span,
    Weight,
    Whole,
    Width,
)
from distill.config.loading import Settings

SAMPLE_RATE = 16000
BLANK = 0  # the column of the blank in an output
FBANK_SHIFT, FBANK_WIDTH = 160, 400
"""Samples between two Fbank (or log-mel) frames, and samples that each of them sees: 10 and 25 ms."""
MOST_SAMPLES = 160_000
"""Samples that a frame sees at most: 10 s."""
MOST_FBANK = 124
"""Mels that Kaldi's Fbank has without an empty one."""
LEAST_GABOR = 3
"""Shortest kernel, in samples, of a Gabor pair without its mean."""


class FrontEnd(Settings):
    """Audio to frames: a stack of convolutions (channels, kernel, stride) over the waveform or over frames of 10 ms."""

    # fbank: Kaldi's log-mel energies; log_mel: Whisper's, relative to the utterance's maximum, which does not stream
    input: Literal["waveform", "fbank", "log_mel"] = "waveform"
    mels: Annotated[Whole, Field(ge=1, le=128)] = 80  # of frames of 10 ms; Fbank: 124 at most, as more would be empty
    layers: Annotated[tuple[tuple[Width, Width, Width], ...], Field(min_length=1, max_length=32)] = (
        (512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2
    )  # fmt: skip
    bias: Flag = False  # BASE-like stacks have none, Large-like stacks do
    norm: Literal["group", "frame"] = "group"  # statistics over time (does not stream) or over channels
    norm_layers: Literal["first", "all", "none"] = "first"  # none: of log_mel
    norm_eps: Epsilon = 1e-5  # of "frame" norms; larger where audio has digital silence (a norm of zeros explodes)
    first: Literal["random", "gabor"] = "random"  # gabor: log-compressed Gabor pairs at mel centres, trained on
    causal: Flag = False  # pad on the left, so that frame t ends with sample (t + 1) * hop
    # normalised per utterance, times a stored gain, or as it is (Fbank frames have a stored mean and scale instead)
    waveform: Literal["utterance", "gain", "none"] = "utterance"
    # added to the variance of an utterance that is normalised: 1e-7 in transformers, 1e-5 in fairseq and torchaudio
    waveform_eps: float = Field(default=1e-7, gt=0, le=1e-3)
    # frames of silence behind every utterance that the encoder attends to (log_mel): Whisper's training has up to 30 s
    # of them, and without any it puts the large activations that it keeps there into frames of speech
    tail: Annotated[Whole, Field(ge=0, le=1500)] = 0

    @property
    def unit(self) -> tuple[int, int]:
        """Shift and width, in samples, of an input of the first convolution."""
        return (1, 1) if self.input == "waveform" else (FBANK_SHIFT, FBANK_WIDTH)

    @property
    def stride(self) -> int:
        """Inputs of the first convolution per frame."""
        return math.prod(stride for _, _, stride in self.layers)

    @property
    def reach(self) -> int:
        """Inputs of the first convolution that one frame sees."""
        inputs, stride = 1, 1
        for _, kernel, step in self.layers:
            inputs += (kernel - 1) * stride
            stride *= step
        return inputs

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.stride * self.unit[0]

    @property
    def receptive(self) -> int:
        """Samples that one frame sees."""
        shift, width = self.unit
        return (self.reach - 1) * shift + width

    @property
    def context(self) -> int:
        """Samples before its own hop that a frame sees."""
        if self.input == "fbank":
            return (FBANK_WIDTH - FBANK_SHIFT) // 2  # frames are centred on their shift, as Kaldi's are
        if self.input == "log_mel":
            return self.receptive // 2  # frames and kernels are centred on the first sample of the hop
        return self.receptive - self.hop if self.causal else 0

    @property
    def ahead(self) -> int:
        """Samples after its own hop that a frame sees."""
        return max(0, self.receptive - self.hop - self.context)

    def window(self, frames: int) -> int:
        """Inputs of the first convolution (samples or Fbank frames) for so many frames."""
        return (frames - 1) * self.stride + self.reach

    def frames(self, samples: Any) -> Any:
        """Frames of utterances of so many samples: a number, array or tensor of them."""
        if self.input == "fbank":
            return self.frames_of_inputs((samples + FBANK_SHIFT // 2) // FBANK_SHIFT)
        if self.input == "log_mel":
            return samples // self.hop
        return self.frames_of_inputs(samples + self.context)

    def frames_of_inputs(self, inputs: Any) -> Any:
        """Frames of so many inputs of the first convolution, the padding of a causal stack included."""
        count = (inputs - self.reach) // self.stride + 1
        return count * (count > 0)

    @model_validator(mode="after")
    def _check(self) -> FrontEnd:
        if self.receptive > MOST_SAMPLES or self.hop > MOST_SAMPLES:
            raise ValueError(
                f"layers: a frame of these sees {self.receptive} samples and is {self.hop} after the last one;"
                f" at most {MOST_SAMPLES} are allowed"
            )
        if self.receptive < self.hop:
            raise ValueError(
                f"layers: a frame of these sees {self.receptive} samples and is {self.hop} after the last one, so that"
                " none sees the audio between; give larger kernels or smaller strides"
            )
        channels, kernel, _ = self.layers[0]
        if self.first == "gabor" and (channels % 2 or kernel < LEAST_GABOR):
            raise ValueError(
                f"layers: with first: gabor the first one must have an even number of channels and a kernel of"
                f" {LEAST_GABOR} or more (got {list(self.layers[0])})"
            )
        if (self.norm_layers == "none") != (self.input == "log_mel"):
            raise ValueError(
                f"norm_layers: {self.norm_layers} with input: {self.input}; log_mel has none, others have some"
            )
        if self.tail and self.input != "log_mel":
            raise ValueError(f"tail: {self.tail} frames of silence are for input: log_mel (got input: {self.input})")
        if self.input == "waveform":
            return self
        default = FrontEnd.model_fields["layers"].default
        wrong = {
            f"layers of a waveform stack ({len(default)}); one convolution, such as [[512, 3, 2]], is meant": (
                self.layers == default
            ),
            "first: gabor": self.first != "random",
            "causal: true (its frames are centred)": self.causal,
            f"waveform: {self.waveform} (write none: its frames are normalised)": self.waveform != "none",
            "norm: group": self.norm == "group",
            f"mels: {self.mels} (some have no frequency of their own)": self.input == "fbank"
            and self.mels > MOST_FBANK,
            "kernels of an even width": self.input == "log_mel" and not all(kernel % 2 for _, kernel, _ in self.layers),
        }
        excluded = [name for name, is_wrong in wrong.items() if is_wrong]
        if excluded:
            raise ValueError(f"a front-end with input: {self.input} cannot have {'; '.join(excluded)}")
        return self


class BlockWidths(NamedTuple):
    """Channels between the feed-forward layers, number of attention heads, channels of each head; of a conformer too.

    conv_dim: channels of its depthwise convolution. ffn_after_dim: those of its last feed-forward; ffn_dim: first.
    """

    ffn_dim: int
    heads: int
    head_dim: int
    conv_dim: int
    ffn_after_dim: int


class Encoder(Settings):
    """Transformer of wav2vec 2.0 (convolutional positions, then blocks) or of Whisper (sinusoids in their place).

    The blocks may be a conformer's: each begins with a norm and ends with one.
    """

    block: Literal["transformer", "conformer"] = "transformer"
    dim: Width = 768
    layers: Annotated[Whole, Field(ge=1, le=1000)] = 12
    ffn_dim: Width | tuple[Rest, ...] = 3072  # of all blocks, or of each; 0: no feed-forward layer
    heads: Width | tuple[Rest, ...] = 12  # of all blocks, or of each; 0: no attention
    head_dim: Width | None = None  # channels of a head; None: dim / heads
    ffn_after_dim: Width | tuple[Rest, ...] | None = None  # of a conformer's second feed-forward; None: ffn_dim
    conv_kernel: Kernel = 31  # conv_*: of a conformer's convolution modules
    conv_dim: Width | tuple[Width, ...] | None = None  # channels of all blocks, or of each; None: dim
    conv_causal: Flag = False
    # block, from 1, whose attention maps each block takes; 0: its own; empty: all have their own (ARMHuBERT)
    attention_of: tuple[Annotated[Whole, Field(ge=0, le=1000)], ...] = ()
    rank: Width | None = None  # of the blocks' linear maps, which are two factors where that is smaller; None: of none
    norm_first: Flag = False  # pre-LN (Large) or post-LN (BASE); of a conformer, only where the encoder's own norm is
    feature_norm: Flag = True  # a norm of the front-end's frames; Whisper has none
    # a projection even where features have the width already, as other libraries keep it
    always_project: Flag = False
    relative_buckets: Annotated[Whole, Field(ge=0, le=65536)] = 0  # WavLM's gated relative position bias: 320; 0: none
    relative_distance: Positive = 800  # frames beyond which all distances share a bucket
    positions: Literal["convolution", "sinusoid"] = "convolution"  # position_* are of the convolution
    position_kernel: Kernel = 128
    position_groups: Width = 16
    position_causal: Flag = False
    # frames that a convolution joins to one before the first block (FitHuBERT); each state stands for so many again
    time_reduction: Annotated[Whole, Field(ge=1, le=16)] = 1
    dropout: Share = 0.1
    attention_dropout: Share = 0.0
    activation_dropout: Share = 0.0
    layer_drop: Share = 0.0
    feature_grad_mult: Weight = 1.0  # scale of the front-end's gradient
    input_dropout: Share = 0.0  # of projected frames, before masks and positions
    # losses of all blocks pull alike: behind block i = 1.. of L gradients of later blocks are scaled by 1 - s, those of
    # losses on its output by s, s = 1 / (L - i + 2); attention maps have no share in it
    layer_grad_scale: Flag = False

    def widths(self, block: int = 0) -> BlockWidths:
        """The widths of one block."""
        after = self.ffn_dim if self.ffn_after_dim is None else self.ffn_after_dim
        given = (self.ffn_dim, self.heads, self.conv_dim or self.dim, after)
        ffn_dim, heads, conv_dim, last = (value[block] if isinstance(value, tuple) else value for value in given)
        return BlockWidths(ffn_dim, heads, self.head_dim or self.dim // heads, conv_dim, last)

    @property
    def of_gates(self) -> bool:
        """Whether blocks have widths of their own, as gates leave them."""
        return any(isinstance(each, tuple) for each in (self.ffn_dim, self.heads, self.conv_dim, self.ffn_after_dim))

    @property
    def conv_span(self) -> tuple[int, int]:
        """Frames before and after its own that a frame of a block's convolution sees."""
        if self.block != "conformer":
            return 0, 0
        left = self.conv_kernel - 1 if self.conv_causal else self.conv_kernel // 2
        return left, self.conv_kernel - 1 - left

    def source(self, block: int) -> int:
        """The block, from 1, whose attention maps a block, from 0, takes; 0: its own."""
        return self.attention_of[block] if self.attention_of else 0

    @model_validator(mode="after")
    def _check(self) -> Encoder:
        for name in ("ffn_dim", "heads", "conv_dim", "ffn_after_dim"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.layers:
                raise ValueError(f"{name} has {len(value)} widths for {self.layers} blocks")
        if self.head_dim is None and (isinstance(self.heads, tuple) or self.dim % self.heads):
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}; set head_dim, a head's channels")
        if self.relative_buckets and (isinstance(self.heads, tuple) or self.head_dim):
            raise ValueError("relative_buckets need the same heads in all blocks, of dim / heads channels each")
        if self.positions == "sinusoid" and (self.dim % 2 or self.dim < 4):
            raise ValueError(f"dim {self.dim} is not a multiple of 2, from 4 on, which positions: sinusoid need")
        if self.positions == "convolution" and self.dim % self.position_groups:
            raise ValueError(f"dim {self.dim} is not a multiple of position_groups {self.position_groups}")
        if self.relative_buckets and not 4 <= self.relative_buckets < 4 * self.relative_distance:
            raise ValueError(
                f"relative_buckets must be 0, or at least 4 and less than 4 times relative_distance"
                f" {self.relative_distance} (got {self.relative_buckets})"
            )
        return self

    @model_validator(mode="after")
    def _check_conformer(self) -> Encoder:
        of_conformers = ("conv_kernel", "conv_dim", "conv_causal", "ffn_after_dim")
        fields = type(self).model_fields
        given = [name for name in of_conformers if getattr(self, name) != fields[name].default]
        if given and self.block != "conformer":
            raise ValueError(
                f"{', '.join(given)}: of a conformer's blocks (got block: {self.block}); leave this out, or give block:"
                " conformer"
            )
        return self

    @model_validator(mode="after")
    def _check_sources(self) -> Encoder:
        if len(self.attention_of) not in (0, self.layers):
            raise ValueError(f"attention_of has {len(self.attention_of)} entries for {self.layers} blocks (layers)")
        for block, source in enumerate(self.attention_of):
            if source and (source > block or self.source(source - 1)):
                raise ValueError(
                    f"attention_of: block {block + 1} can take the maps of an earlier block that has its own, not of"
                    f" {source}"
                )
            ours, theirs = self.widths(block), self.widths(max(0, source - 1))
            if source and (ours.heads, ours.head_dim) != (theirs.heads, theirs.head_dim):
                raise ValueError(f"attention_of: blocks {source} and {block + 1} must have the same heads")
        if any(self.attention_of) and (self.relative_buckets or self.layer_drop):
            raise ValueError(
                "attention_of: blocks that take maps from others exclude relative_buckets, which each block's input"
                " gates, and layer_drop, as a dropped block has no maps"
            )
        return self


class Streaming(Settings):
    """Chunked attention: frame i of chunk c = i // chunk sees [c * chunk - history, (c + 1) * chunk) and the sinks.

    With `train_chunks` each training batch draws one of them (and one of `train_histories`), so that one
    model serves many latencies; elsewhere it runs at chunk_frames and history_frames.
    """

    chunk_frames: Span = 0  # 0: full context
    history_frames: Span = 0
    sink_frames: Span = 0  # attention sinks: first frames, visible for ever
    train_chunks: Annotated[tuple[Span, ...], EachOnce] = ()  # 0 stands for full context
    train_histories: Annotated[tuple[Span, ...], EachOnce] = ()  # empty: always history_frames

    def visible(self, key: Any, chunk_start: Any) -> Any:
        """The rule of attention: True where frame `key` is visible to the chunk that begins at frame `chunk_start`.

        Numbers, arrays or tensors that broadcast; negative keys stand for padding. For models with chunks: with full
        context (chunk_frames 0) every frame is visible.
        """
        past = (key >= chunk_start - self.history_frames) | (key < self.sink_frames)
        return past & (key >= 0) & (key < chunk_start + self.chunk_frames)

    @model_validator(mode="after")
    def _check(self) -> Streaming:
        if not self.chunk_frames and (self.train_chunks or self.sink_frames):
            raise ValueError("streaming.train_chunks and sink_frames need streaming.chunk_frames, the size it runs at")
        if self.train_histories and not self.train_chunks:
            raise ValueError("streaming.train_histories are drawn with train_chunks, which are empty")
        return self


class Mask(Settings):
    """Spans of frames and channels zeroed on the convolutions' output while training (as SpecAugment)."""

    time_probability: Probability = 0.0
    time_length: Positive = 10
    channel_probability: Probability = 0.0
    channel_length: Positive = 64


class Transducer(Settings):
    """Predictor and joiner of a transducer (RNN-T) on the encoder's last hidden states."""

    predictor: Literal["stateless", "lstm"] = "stateless"
    context: Annotated[Whole, Field(ge=1, le=64)] = 2  # last units that a stateless predictor sees
    dim: Width = 512  # of the predictor
    joiner_dim: Width = 512

    @model_validator(mode="after")
    def _check(self) -> Transducer:
        if self.predictor == "lstm" and self.context != type(self).model_fields["context"].default:
            raise ValueError(
                f"context: {self.context} units are what a stateless predictor sees (got predictor: lstm, which sees"
                " all); leave this out"
            )
        return self


class Pruning(Settings):
    """Gates (`distill.models.gates`), which training with the term `sparsity` closes.

    conv: channels of the front-end, but for Gabor pairs, and of a conformer's convolutions. layers: attention and
    feed-forward layers as a whole.
    """

    of: Literal["parameters", "macs"] = "parameters"  # what shares are of; macs: multiply-adds for a second of audio
    units: Annotated[tuple[Literal["conv", "heads", "ffn", "layers"], ...], EachOnce, Field(min_length=1)] = (
        "conv", "heads", "ffn",
    )  # fmt: skip
    lr_scale: Scale = 100.0  # learning rate of gates, and of the multipliers of `sparsity`, relative to the model's


class Model(Settings):
    """All settings that decide shapes, besides the number of outputs."""

    front_end: FrontEnd = FrontEnd()
    encoder: Encoder = Encoder()
    streaming: Streaming = Streaming()
    mask: Mask = Mask()
    shared_head_dim: Width | None = None  # width of the teacher whose prediction layer is shared; None: own head
    ctc_output: Flag = False  # a second output beside it, trained with CTC, for runtimes without a graph
    transducer: Transducer | None = None  # beside these outputs; the units need a blank, and no context
    pruning: Pruning | None = None

    @property
    def runtime_obstacle(self) -> str:
        """Why runtimes have no graph of such a model; empty where they have one."""
        parts = {
            "front_end.input: log_mel": self.front_end.input == "log_mel",
            "encoder.positions: sinusoid": self.encoder.positions == "sinusoid",
            "encoder.attention_of": any(self.encoder.attention_of),
            "encoder.time_reduction": self.encoder.time_reduction > 1,
            "encoder.heads: 0 in every block": not any(
                self.encoder.widths(i).heads for i in range(self.encoder.layers)
            ),
            "model.pruning (init_slim: true cuts off what its gates close)": self.pruning is not None,
        }
        blocking = [name for name, blocks in parts.items() if blocks]
        return f"runtimes have no graph of a model with {', '.join(blocking)}" if blocking else ""

    def transducer_obstacle(self, topology: str, context: bool) -> str:
        """Why its transducer does not fit a topology, whose outputs may depend on context; empty where it does."""
        if self.transducer is None or not (topology == "two_pdf" or context):
            return ""
        missing = "units without context; use other units than biphones" if context else "a blank; use --topology ctc"
        return f"model.transducer needs {missing}"

    @model_validator(mode="after")
    def _check_pruning(self) -> Model:
        units = self.pruning.units if self.pruning else ()
        shared = self.encoder.relative_buckets or any(self.encoder.attention_of)
        if shared and {"heads", "layers"} & set(units):
            raise ValueError(
                "pruning.units: heads and layers, while blocks share relative positions (WavLM) or maps (attention_of);"
                " prune conv and ffn"
            )
        return self

    @model_validator(mode="after")
    def _check_streaming(self) -> Model:
        if not self.streaming.chunk_frames:
            return self
        front, encoder = self.front_end, self.encoder
        blockers = {
            "front_end.norm: group": front.norm == "group",
            "front_end.waveform: utterance": front.waveform == "utterance",
            "front_end.input: log_mel (relative to the utterance's maximum)": front.input == "log_mel",
            "encoder.position_causal: false": encoder.positions == "convolution" and not encoder.position_causal,
            "encoder.conv_causal: false": encoder.block == "conformer" and not encoder.conv_causal,
            "encoder.time_reduction": encoder.time_reduction > 1,
            "encoder.positions: sinusoid (counted from the utterance's beginning)": encoder.positions == "sinusoid",
        }
        blocking = [name for name, blocks in blockers.items() if blocks]
        if blocking:
            raise ValueError(f"streaming.chunk_frames needs a model that streams, but it has {', '.join(blocking)}")
        return self


def lost_gates(start: str, before: Model, now: Model) -> str:
    """Why a model cannot start from the one called `start`, whose gates would be open again; empty where it can."""
    kinds = now.pruning.units if now.pruning else ()
    lost = [kind for kind in (before.pruning.units if before.pruning else ()) if kind not in kinds]
    return (
        f"{start} has gates (model.pruning) on {', '.join(lost)}, which are missing here, and what they close would be"
        " open again; cut it off with init_slim: true, or give these model.pruning.units, too"
        if lost
        else ""
    )


def frame_ratio(student: Model, teacher: Model) -> int:
    """Frames of the teacher for each of the student's; raises ValueError where that is no whole number."""
    ours, theirs = student.front_end.hop, teacher.front_end.hop
    if ours % theirs:
        raise ValueError(
            f"teacher and student frames do not fit: the teacher has one each {theirs} samples, the student each"
            f" {ours}; expected the same, or a multiple in the student"
        )
    return ours // theirs
