"""The recogniser: front-end, encoder, head. One class for teacher, offline and streaming student."""

from __future__ import annotations

from torch import Tensor, nn

from distill.batch import Output
from distill.config.model import Model as ModelSettings
from distill.models import streaming
from distill.models.encoder import Encoder
from distill.models.front_end import build_front_end
from distill.models.streaming import StreamState


class Head(nn.Module):
    """Prediction layer; a shared one reads the student's last hidden state through its last W_i.

    papers/001 Eq. 2: W_i (d -> d_T) maps student to teacher. With it kept at inference, the
    teacher's prediction layer fits behind it and is taken over (`shared_dim` = d_T).
    """

    def __init__(self, dim: int, outputs: int, shared_dim: int | None) -> None:
        super().__init__()
        self.through = nn.Linear(dim, shared_dim, bias=False) if shared_dim else None
        self.output = nn.Linear(shared_dim or dim, outputs)
        nn.init.normal_(self.output.weight, std=0.02)
        nn.init.zeros_(self.output.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, C) -> logits (B, T, V)."""
        return self.output(self.mapped(hidden))

    def mapped(self, hidden: Tensor) -> Tensor:
        """What prediction layers read: hidden (B, T, C) at the width of a shared head."""
        return hidden if self.through is None else self.through(hidden)


class Recogniser(nn.Module):
    """Waveform to frame-wise unit logits."""

    def __init__(self, settings: ModelSettings, outputs: int) -> None:
        super().__init__()
        self.settings = settings
        self.front_end = build_front_end(settings.front_end)
        self.encoder = Encoder(settings.encoder, self.front_end.channels, settings.streaming, settings.mask)
        self.head = Head(settings.encoder.dim, outputs, settings.shared_head_dim)
        self.ctc = nn.Linear(self.head.output.in_features, outputs) if settings.ctc_output else None
        self.main_output = True

    @property
    def outputs(self) -> int:
        """V, blank included."""
        return self.head.output.out_features

    def forward(self, wave: Tensor, samples: Tensor) -> Output:
        """Whole utterances, with chunked attention if the model streams: wave (B, N), samples (B,)."""
        if wave.ndim != 2 or samples.shape != wave.shape[:1]:
            raise ValueError(f"wave must be (B, N) and samples (B,), got {tuple(wave.shape)}, {tuple(samples.shape)}")
        features, lengths = self.front_end(wave, samples)
        hidden = self.encoder(features, lengths)
        mapped = self.head.mapped(hidden[-1])
        ctc_logits = None if self.ctc is None else self.ctc(mapped)
        mapped_last = None if self.head.through is None else mapped
        return Output(self.head.output(mapped), lengths, hidden, ctc_logits, mapped_last)

    def predict(self, hidden: Tensor) -> Tensor:
        """What `step` gives of the last hidden state (B, T, C): logits (B, T, V) of the output chosen by `read`."""
        if self.ctc is not None and not self.main_output:
            return self.ctc(self.head.mapped(hidden))
        return self.head(hidden)

    def read(self, output: str) -> Recogniser:
        """Let `step` give the output "main" (LF-MMI) or "ctc" from here on; returns itself.

        Raises ValueError where the model has no such output.
        """
        if output not in ("main", "ctc"):
            raise ValueError(f"output '{output}' is not known; expected main or ctc")
        if output == "ctc" and self.ctc is None:
            raise ValueError("this model has no second, CTC output; train one with model.ctc_output: true")
        self.main_output = output == "main"
        return self

    def run_at(self, chunk_frames: int, history_frames: int) -> Recogniser:
        """Use other chunks from here on, as a model trained with `train_chunks` can; returns itself.

        Raises ValueError where the model cannot stream at all.
        """
        frames: dict = {"chunk_frames": chunk_frames, "history_frames": history_frames}
        if not chunk_frames:  # full context: neither sinks nor other chunks mean anything
            frames |= {"sink_frames": 0, "train_chunks": (), "train_histories": ()}
        values = self.settings.model_dump()
        self.settings = ModelSettings.model_validate({**values, "streaming": {**values["streaming"], **frames}})
        self.encoder.streaming = self.settings.streaming
        return self

    def initial_state(self, batch: int) -> StreamState:
        """State of streams that have heard nothing; raises ValueError for a model with full context."""
        return streaming.initial_state(self, batch)

    def step(
        self, wave: Tensor, state: StreamState, samples: Tensor | None = None, final: bool = False
    ) -> tuple[Tensor, Tensor, StreamState]:
        """Take any number of new samples, give the frames of all chunks that they complete.

        wave (B, n); samples (B,): how many of them are valid where a stream ends earlier (default: all).
        final: the streams end here, so the last, shorter chunk is decoded too.
        Returns logits (B, T', V), how many of the T' frames are valid (B,), and the new state. Together the
        pieces equal `forward`'s logits of the whole utterance.
        """
        return streaming.step(self, wave, state, samples, final)


def count_parameters(model: Recogniser) -> dict[str, int]:
    """Parameters of the trunk (front-end and encoder) and of the head (a shared W and a second output included)."""
    trunk = sum(p.numel() for part in (model.front_end, model.encoder) for p in part.parameters())
    heads = [model.head] if model.ctc is None else [model.head, model.ctc]
    return {"trunk": trunk, "head": sum(p.numel() for part in heads for p in part.parameters())}
