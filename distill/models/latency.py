"""Where a model's delay comes from: every part's look-ahead in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass

from distill.batch import SAMPLE_RATE
from distill.config import Model


@dataclass(frozen=True)
class Latency:
    """Milliseconds of audio after a frame that its output waits for; None where it waits for the end.

    chunk: length of a chunk. mean, max: over the frames of a chunk, the front-end's own included.
    front_end: samples that the convolutions see beyond the frame's own hop.
    """

    chunk: float | None
    mean: float | None
    max: float | None
    front_end: float


def latency(model: Model) -> Latency:
    """Algorithmic look-ahead of a model: a frame waits for the last frame of its chunk."""
    front = model.front_end
    frame = 1000 * front.hop / SAMPLE_RATE
    ahead = 0.0 if front.causal else 1000 * (front.receptive - front.hop) / SAMPLE_RATE
    chunk = model.streaming.chunk_frames
    if not chunk:
        return Latency(None, None, None, ahead)
    return Latency(chunk * frame, (chunk - 1) / 2 * frame + ahead, (chunk - 1) * frame + ahead, ahead)
