"""Where a model's delay comes from: every part's look-ahead in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from distill.batch import SAMPLE_RATE
from distill.config.model import FrontEnd, Model


@dataclass(frozen=True)
class Part:
    """Look-ahead of one part in ms of audio, mean and maximum over the frames; None: it waits for the end."""

    name: str
    mean: float | None
    max: float | None


@dataclass(frozen=True)
class Latency:
    """Milliseconds of audio after a frame's own hop that its output waits for; None where it waits for the end.

    chunk_ms: length of a chunk. mean, max: over the frames of a chunk, all parts together. front_end: what
    the front-end sees beyond the frame's own hop. parts: each source of it.
    """

    chunk_ms: float | None
    mean: float | None
    max: float | None
    front_end: float
    parts: tuple[Part, ...]


def latency(model: Model) -> Latency:
    """Algorithmic look-ahead of a model: what no computer, however fast, can take away."""
    front, frame = model.front_end, milliseconds(model.front_end.hop)
    parts = (*_front_end(front), _positions(model, frame), _attention(model, frame))
    chunk = model.streaming.chunk_frames
    means, most = [part.mean for part in parts], [part.max for part in parts]
    return Latency(
        chunk_ms=chunk * frame if chunk else None,
        mean=None if None in means else sum(mean for mean in means if mean is not None),
        max=None if None in most else sum(value for value in most if value is not None),
        front_end=milliseconds(front.ahead),
        parts=parts,
    )


def milliseconds(samples: float) -> float:
    """Duration of so many samples."""
    return 1000 * samples / SAMPLE_RATE


def _front_end(front: FrontEnd) -> list[Part]:
    normalised = None if front.waveform == "utterance" else 0.0
    over_time = None if front.norm == "group" else 0.0
    window = 0.0 if front.input == "waveform" else milliseconds(max(0, front.unit[1] - front.unit[0] - front.context))
    stack = milliseconds(front.ahead) - window
    parts = [
        Part("waveform normalisation", normalised, normalised),
        Part("norms of the convolutions", over_time, over_time),
        Part("convolutions", stack, stack),
    ]
    return parts if front.input == "waveform" else [Part("Fbank window", window, window), *parts[1:]]


def _positions(model: Model, frame: float) -> Part:
    """A centred convolution sees half its kernel ahead of the chunk, which is why models with one do not stream."""
    encoder = model.encoder
    ahead = 0.0 if encoder.position_causal else (encoder.position_kernel - 1 - encoder.position_kernel // 2) * frame
    return Part("positional convolution", ahead, ahead)


def _attention(model: Model, frame: float) -> Part:
    chunk = model.streaming.chunk_frames
    if not chunk:
        return Part("attention", None, None)
    return Part("attention within the chunk", (chunk - 1) / 2 * frame, (chunk - 1) * frame)
