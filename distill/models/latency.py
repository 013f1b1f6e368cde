"""Sources of a model's delay: the look-ahead of every part in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from distill.config.model import SAMPLE_RATE, Model


@dataclass(frozen=True)
class Part:
    """Look-ahead of one part in ms of audio, mean and maximum over the frames; None: until the utterance's end."""

    name: str
    mean: float | None
    max: float | None


@dataclass(frozen=True)
class ModelLatency:
    """Milliseconds of audio after a frame's own hop that its output depends on; None: up to the utterance's end.

    chunk_ms: length of a chunk. mean, max: over the frames of a chunk, all parts together. front_end:
    look-ahead of the front-end beyond the frame's own hop. parts: each source of it.
    """

    chunk_ms: float | None
    mean: float | None
    max: float | None
    front_end: float
    parts: tuple[Part, ...]


def latency(model: Model) -> ModelLatency:
    """Algorithmic look-ahead of a model: the delay that remains on the fastest computer."""
    front, encoder, chunk = model.front_end, model.encoder, model.streaming.chunk_frames
    frame, ahead = milliseconds(front.hop), milliseconds(front.ahead)
    window = milliseconds(max(0, front.unit[1] - front.unit[0] - front.context))  # 0 for a waveform
    centred = encoder.position_kernel - 1 - encoder.position_kernel // 2
    if encoder.position_causal or encoder.positions == "sinusoid":
        centred = 0
    inputs: dict[str, dict[str, float | None]] = {
        "waveform": {"waveform normalisation": None if front.waveform == "utterance" else 0.0},
        "fbank": {"Fbank window": window},
        "log_mel": {"maximum of the log-mels": None},
    }
    fixed: dict[str, float | None] = {
        **inputs[front.input],
        "norms of the convolutions": None if front.norm == "group" else 0.0,
        "convolutions": ahead - window,
        "positional convolution": centred * frame,
        "convolution modules": encoder.layers * encoder.conv_span[1] * frame,
    }
    attention = Part("attention within the chunk", (chunk - 1) / 2 * frame, (chunk - 1) * frame)
    parts = [
        *(Part(name, value, value) for name, value in fixed.items()),
        attention if chunk else Part("attention", None, None),
    ]
    means, most = [part.mean for part in parts], [part.max for part in parts]
    return ModelLatency(
        chunk_ms=chunk * frame if chunk else None,
        mean=None if None in means else sum(mean for mean in means if mean is not None),
        max=None if None in most else sum(value for value in most if value is not None),
        front_end=ahead,
        parts=tuple(parts),
    )


def milliseconds(samples: float) -> float:
    """Duration of so many samples."""
    return 1000 * samples / SAMPLE_RATE
