"""What a model costs, known from its settings alone: parameters, multiply-adds, and a prediction of its speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.batch import SAMPLE_RATE
from distill.config.model import FrontEnd, Model
from distill.fbank import FFT
from distill.models.encoder import Block, KeyValue, Positions
from distill.models.front_end import build_front_end
from distill.models.recogniser import Head, Recogniser, count_parameters

OFFLINE_SECONDS = 15.0
"""Length of the utterance that a model with full context is measured on."""


@dataclass(frozen=True)
class Frames:
    """How many frames go through the encoder at once, and how many past ones their attention sees."""

    now: int
    past: int
    per_second: float

    @property
    def seconds(self) -> float:
        return self.now / self.per_second


def frames_of(model: Model) -> Frames:
    """A chunk with its whole history, or 15 s with full context."""
    rate, streaming = SAMPLE_RATE / model.front_end.hop, model.streaming
    if streaming.chunk_frames:
        return Frames(streaming.chunk_frames, streaming.history_frames + streaming.sink_frames, rate)
    return Frames(round(OFFLINE_SECONDS * rate), 0, rate)


def parameters(model: Model, outputs: int) -> dict[str, int]:
    """Counts of trunk and head, without allocating anything."""
    with torch.device("meta"):
        return count_parameters(Recogniser(model, outputs))


def quantizer_parameters(features: int, dim: int, code_dim: int, groups: int = 2, entries: int = 320) -> int:
    """Parameters that wav2vec 2.0 has for its pre-training alone: quantizer and both projections.

    features: channels of the convolutions; code_dim: of codebooks and the contrastive loss (BASE 256, Large 768).
    """
    codebooks = entries * code_dim
    chooses = (features + 1) * groups * entries
    return codebooks + chooses + (code_dim + 1) * code_dim + (dim + 1) * code_dim


def macs(model: Model, outputs: int) -> dict[str, float]:
    """Multiply-adds for one second of audio, by part, of one output; norms and activations are not counted."""
    encoder, frames = model.encoder, frames_of(model)
    dim, rate, features = encoder.dim, frames.per_second, model.front_end.layers[-1][0]
    projects = encoder.always_project or features != dim
    through = model.shared_head_dim
    return {
        **_front_end_macs(model.front_end),
        "projection": rate * features * dim * projects,
        "positions": rate * dim * dim / encoder.position_groups * encoder.position_kernel,
        "attention projections": rate * encoder.layers * 4 * dim * dim,
        "attention": rate * encoder.layers * 2 * dim * (frames.past + frames.now),
        "feed-forward": rate * encoder.layers * 2 * dim * encoder.ffn_dim,
        "head": rate * (dim * through + through * outputs if through else dim * outputs),
    }


def _front_end_macs(front: FrontEnd) -> dict[str, float]:
    rate, channels, total = SAMPLE_RATE / front.unit[0], 1, 0.0
    fbank = {}
    if front.input == "fbank":
        channels = front.mels
        transform = FFT * FFT.bit_length()  # about 5 N log2 N / 2 operations, half of them multiplications
        fbank = {"Fbank": rate * (transform + (FFT // 2 + 1) * front.mels)}
    for width, kernel, stride in front.layers:
        rate /= stride
        total += rate * width * channels * kernel
        channels = width
    return {**fbank, "convolutions": total}


@torch.inference_mode()
def predict_rtf(model: Model, outputs: int, repeats: int = 5) -> dict[str, float]:
    """Seconds per second of audio on one thread of this machine, by part, and their sum as "total".

    Each part runs with random weights, one block for all blocks, so that a big model needs no big memory. What
    holds the parts together (making masks, copies of a stream's memory) is left out.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        frames = frames_of(model)
        parts = {
            name: _seconds(part, repeats) / frames.seconds for name, part in _parts(model, outputs, frames).items()
        }
    finally:
        torch.set_num_threads(threads)
    parts["blocks"] *= model.encoder.layers
    return {**parts, "total": sum(parts.values())}


def _parts(model: Model, outputs: int, frames: Frames) -> dict[str, Callable[[], object]]:
    front, encoder = build_front_end(model.front_end).eval(), model.encoder
    needed = front.context + frames.now * front.hop + front.ahead
    wave, samples = 0.1 * torch.randn(1, needed), torch.tensor([needed])
    positions = Positions(encoder.dim, encoder.position_kernel, encoder.position_groups, encoder.position_causal).eval()
    block, head = Block(encoder).eval(), Head(encoder.dim, outputs, model.shared_head_dim).eval()
    features, x = torch.randn(1, frames.now, front.channels), torch.randn(1, frames.now, encoder.dim)
    project = torch.nn.Linear(front.channels, encoder.dim)
    size = (1, encoder.heads, frames.past, encoder.dim // encoder.heads)
    past = KeyValue(torch.randn(size), torch.randn(size)) if frames.past else None
    mask = torch.ones(1, 1, frames.now, frames.past + frames.now, dtype=torch.bool)
    relative: Tensor | None = None
    if encoder.relative_buckets:
        relative = torch.zeros(encoder.heads, frames.now, frames.past + frames.now)
    return {
        "front-end": lambda: front.window(wave, samples, 0, frames.now),
        "projection and positions": lambda: (project(features), positions(x)),
        "blocks": lambda: block(x, mask, past, relative),
        "head": lambda: head(x),
    }


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Median of repeated calls after a first one that is not counted; the thread's own time, whoever else runs."""
    work()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return statistics.median(times)
