"""The recogniser: front-end, encoder, head. One class for teacher, offline and streaming student."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Output
from distill.config.model import Model as ModelSettings
from distill.models.encoder import BLOCKS, Encoder, scaled_gradient
from distill.models.front_end import GaborLayer, build_front_end
from distill.models.gates import Gates, Units
from distill.models.heads import SharedHead, build_head
from distill.models.macs import trunk_macs
from distill.models.streaming import StreamState
from distill.models.transducer import Transducer


class Recogniser(nn.Module):
    """Waveform to frame-wise unit logits."""

    def __init__(self, settings: ModelSettings, outputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.front_end = build_front_end(settings.front_end)
        channels, tail = self.front_end.channels, settings.front_end.tail
        self.encoder = Encoder(settings.encoder, channels, settings.streaming, settings.mask, tail)
        self.head = build_head(settings.encoder.dim, outputs, settings.shared_head_dim)
        self.ctc = nn.Linear(self.head.output.in_features, outputs) if settings.ctc_output else None
        self.transducer: Transducer | None = None
        if settings.transducer is not None:
            self.transducer = Transducer(settings.transducer, settings.encoder.dim, outputs)
        self.selected = "main"
        trunk = nn.ModuleDict({"front_end": self.front_end, "encoder": self.encoder})
        self.gates = Gates(settings.pruning, trunk, prunable(self), partial(trunk_macs, settings))

    @property
    def outputs(self) -> int:
        """V, blank included."""
        return self.head.output.out_features

    def forward(
        self, wave: Tensor, samples: Tensor, masked: bool | Tensor = False, attention: Collection[int] = (),
        tokens: Tensor | None = None,
    ) -> Output:  # fmt: skip
        """Whole utterances, with chunked attention if the model streams: wave (B, N), samples (B,).

        masked: mask frames and channels outside of training too; or frames (B, T) to mask. attention: blocks of
        `Output.attention`. tokens (B, U): units before which a transducer's predictor is asked, 0 behind each row's.
        """
        if wave.ndim != 2 or samples.shape != wave.shape[:1]:
            raise ValueError(f"wave must be (B, N) and samples (B,), got {tuple(wave.shape)}, {tuple(samples.shape)}")
        self.gates.draw()
        features, lengths = self.front_end(wave, samples)
        if self.training and self.encoder.settings.feature_grad_mult != 1:  # of a penalty on features too, as fairseq
            features = scaled_gradient(features, self.encoder.settings.feature_grad_mult)
        hidden, normed, hit, pairs = self.encoder(features, lengths, masked, attention)
        mapped = self.head.mapped(hidden[-1])
        ctc_logits = None if self.ctc is None else self.ctc(mapped)
        mapped_last = mapped if isinstance(self.head, SharedHead) else None
        logits = self.head.output(mapped)
        joint = None if self.transducer is None else self.transducer(hidden[-1], tokens)
        sparsity = self.gates.sparsity()
        return Output(logits, lengths, hidden, ctc_logits, mapped_last, features, normed, hit, pairs, joint, sparsity)

    def select_output(self, output: str) -> Recogniser:
        """Make `step` return the logits of the output "main" (LF-MMI) or "ctc" from now on; returns itself.

        transducer: frames (B, T, J) that are joined with a predictor's in place of logits. Raises ValueError where the
        model has no such output.
        """
        if output not in ("main", "ctc", "transducer"):
            raise ValueError(f"output '{output}' is not known; expected main, ctc or transducer")
        if output == "transducer" and self.transducer is None:
            raise ValueError("this model has no transducer; train one with model.transducer: {}")
        if output == "ctc" and self.ctc is None:
            raise ValueError("this model has no second, CTC output; train one with model.ctc_output: true")
        self.selected = output
        return self

    def set_chunk(self, chunk_frames: int, history_frames: int) -> Recogniser:
        """Use other chunks from now on, as a model trained with `train_chunks` can; returns itself.

        Raises ValueError where the model cannot stream at all.
        """
        frames: dict = {"chunk_frames": chunk_frames, "history_frames": history_frames}
        if not chunk_frames:  # full context has neither sinks nor other chunks
            frames |= {"sink_frames": 0, "train_chunks": (), "train_histories": ()}
        values = self.settings.model_dump()
        self.settings = ModelSettings.model_validate({**values, "streaming": {**values["streaming"], **frames}})
        self.encoder.streaming = self.settings.streaming
        return self

    def initial_state(self, batch: int) -> StreamState:
        """State of new streams; raises ValueError for a model with full context."""
        if not self.settings.streaming.chunk_frames:
            raise ValueError("this model has full context and cannot stream: streaming.chunk_frames is 0")
        weight, encoder = self.head.output.weight, self.settings.encoder
        zeros = torch.zeros(batch, dtype=torch.int64, device=weight.device)
        return StreamState(
            audio=weight.new_zeros(batch, self.front_end.context),
            samples=zeros,
            start=zeros,
            history=weight.new_zeros(batch, encoder.position_kernel - 1, encoder.dim),
            frames=zeros[:, None][:, :0],
            caches=[block.empty_cache(batch) for block in self.encoder.blocks],  # type: ignore[operator]
        )

    def step(
        self, wave: Tensor, state: StreamState, samples: Tensor | None = None, final: bool = False
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Take any number of new samples, return the frames of all chunks that they complete.

        wave (B, n); samples (B,): how many of them are valid where a stream ends earlier (default: all).
        final: the streams end here, so the last, shorter chunk is computed too.
        Returns logits (B, T', V) of the selected output, how many of the T' frames are valid (B,), and the new
        state. Concatenated, they equal `forward`'s logits of the whole utterance.
        """
        if samples is None:
            samples = torch.full((len(wave),), wave.shape[1], device=wave.device)
        self.gates.draw()
        front, chunk, before = self.settings.front_end, self.settings.streaming.chunk_frames, state.start
        received = state.samples + samples.to(state.samples.device)
        state = replace(state, audio=torch.cat([state.audio, wave], 1), samples=received)
        chunks = [self._output(wave.new_zeros(len(wave), 0, self.settings.encoder.dim))]
        while state.audio.shape[1] >= front.context + chunk * front.hop + front.ahead:
            logits, state = self._advance(state, chunk)
            chunks.append(logits)
        if final and (rest := front.frames(state.audio.shape[1] - front.context)):
            logits, state = self._advance(state, rest)
            chunks.append(logits)
        logits = torch.cat(chunks, 1)
        return logits, (front.frames(received) - before).clamp(0, logits.shape[1]), state

    def _output(self, hidden: Tensor) -> Tensor:
        """The selected output of hidden states (B, T, C)."""
        if self.transducer is not None and self.selected == "transducer":
            return self.transducer.encoder_projection(hidden)
        mapped = self.head.mapped(hidden)
        return self.ctc(mapped) if self.ctc is not None and self.selected == "ctc" else self.head.output(mapped)

    def _advance(self, state: StreamState, frames: int) -> tuple[Tensor, StreamState]:
        """The next frames of the state's audio -> logits (B, frames, V), the new state."""
        front = self.settings.front_end
        needed = front.context + frames * front.hop + front.ahead
        audio = F.pad(state.audio[:, :needed], (0, max(0, needed - state.audio.shape[1])))  # at an utterance's end
        features = self.front_end.window(audio, state.samples, state.start, frames)
        hidden, state = self.encoder.step(features, front.frames(state.samples) - state.start, state)
        logits = self._output(hidden)
        return logits, replace(state, audio=state.audio[:, frames * front.hop :], start=state.start + frames)


def prunable(model: Recogniser) -> dict[str, Units]:
    """What can be pruned of a model, by the names of gates: channels of convolutions, and units of blocks.

    Channels of the last convolution only where a projection behind it takes any number of them; Gabor pairs stay.
    """
    settings, layers, found = model.settings, model.front_end.layers, dict[str, Units]()
    for i, layer in enumerate(layers):
        made_by = [f"front_end.layers.{i}.{part}" for part in ("conv", "norm") if getattr(layer, part) is not None]
        taken_by = f"front_end.layers.{i + 1}.conv"
        if i + 1 == len(layers):
            made_by += ["encoder.feature_norm"]
            taken_by = "encoder.projection"
        if not (isinstance(layer, GaborLayer) or isinstance(model.get_submodule(taken_by), nn.Identity)):
            found[f"conv{i}"] = Units("conv", settings.front_end.layers[i][0], tuple(made_by), taken_by, at_least=1)
    for i in range(settings.encoder.layers):
        for width, units in BLOCKS[settings.encoder.block].units(settings.encoder, i).items():
            found[f"block{i}_{width}"] = units.below(f"encoder.blocks.{i}")
    return found


def build_model(settings: ModelSettings, outputs: int, seed: int = 0) -> Recogniser:
    """A recogniser with random weights drawn from `seed`, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Recogniser(settings, outputs)


def without_values(settings: ModelSettings, outputs: int = 1) -> Recogniser:
    """A recogniser of tensors that take no memory and have no values, only shapes."""
    with torch.device("meta"):
        return Recogniser(settings, outputs)


def count_parameters(model: Recogniser) -> dict[str, int]:
    """Parameters of the trunk (front-end and encoder) and of the head (shared W, second output and transducer too)."""
    trunk = sum(p.numel() for part in (model.front_end, model.encoder) for p in part.parameters())
    heads = [part for part in (model.head, model.ctc, model.transducer) if part is not None]
    return {"trunk": trunk, "head": sum(p.numel() for part in heads for p in part.parameters())}
