"""Cost of a model from its settings alone: parameters, operations of its training, and a prediction of its speed."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from distill.config.experiment import Experiment
from distill.config.model import BlockWidths, Model
from distill.models.attention import Context
from distill.models.encoder import BLOCKS, build_positions
from distill.models.front_end import build_front_end
from distill.models.heads import build_head
from distill.models.macs import TRANSFORMS, Frames, frames_of, macs
from distill.models.recogniser import count_parameters, without_values
from distill.models.transducer import Transducer


def parameters(model: Model, outputs: int) -> dict[str, int]:
    """Parameters of trunk and head, without allocating them."""
    return count_parameters(without_values(model, outputs))


def quantizer_parameters(features: int, dim: int, code_dim: int, groups: int = 2, entries: int = 320) -> int:
    """Parameters of wav2vec 2.0 that only its pre-training uses: quantizer and both projections.

    features: channels of the convolutions; code_dim: of codebooks and the contrastive loss (BASE 256, Large 768).
    """
    codebooks = entries * code_dim
    chooses = (features + 1) * groups * entries
    return codebooks + chooses + (code_dim + 1) * code_dim + (dim + 1) * code_dim


def training_flops(experiment: Experiment, teacher: Model | None, outputs: int) -> float:
    """Operations of an update for one second of audio, two for a multiply-add: forward, backward, teacher's forward.

    The backward pass takes twice the forward; parts that are frozen from beginning to end have none. Activations that
    are computed again are not counted, as usual for model FLOPs utilisation (MFU, arXiv 2204.02311).
    """
    own = macs(experiment.model, outputs)
    frozen = sum(
        own.get(part, 0.0)
        for part in (*TRANSFORMS.values(), "convolutions")
        if experiment.frozen.get("front_end") == "all"
    )
    passes = 1 + bool(experiment.teacher and experiment.teacher.masked)
    theirs = passes * sum(macs(teacher, outputs).values()) if teacher is not None else 0.0
    return 2 * (3 * sum(own.values()) - 2 * frozen + theirs)


@torch.inference_mode()
def predict_rtf(model: Model, outputs: int, repeats: int = 5) -> dict[str, float]:
    """Seconds per second of audio on one thread of this machine, by part, and their sum as "total".

    Each part runs with random weights, one block for all blocks of the same widths, so that a big model needs little
    memory. The time between the parts (masks, copies of a stream's state) is left out.
    """
    frames, encoder, threads = frames_of(model), model.encoder, torch.get_num_threads()
    joined = replace(frames, now=frames.now // encoder.time_reduction)  # with more than one there is no past
    alike = Counter(encoder.widths(index) for index in range(encoder.layers))
    torch.set_num_threads(1)
    try:
        parts = {name: _seconds(part, repeats) for name, part in _parts(model, outputs, frames).items()}
        parts["blocks"] = sum(
            count * _seconds(_block(model, widths, joined), repeats) for widths, count in alike.items()
        )
    finally:
        torch.set_num_threads(threads)
    rtf = {name: seconds / frames.seconds for name, seconds in parts.items()}
    return {**rtf, "total": sum(rtf.values())}


def _parts(model: Model, outputs: int, frames: Frames) -> dict[str, Callable[[], object]]:
    front, encoder = build_front_end(model.front_end).eval(), model.encoder
    needed = front.context + frames.now * front.hop + front.ahead
    wave, samples, start = 0.1 * torch.randn(1, needed), torch.tensor([needed]), torch.tensor([0])
    streams = model.streaming.chunk_frames > 0
    positions = build_positions(encoder).eval()
    head = build_head(encoder.dim, outputs, model.shared_head_dim).eval()
    features, x = torch.randn(1, frames.now, front.channels), torch.randn(1, frames.now, encoder.dim)
    project = torch.nn.Linear(front.channels, encoder.dim)
    parts: dict[str, Callable[[], object]] = {
        "front-end": lambda: front.window(wave, samples, start, frames.now) if streams else front(wave, samples),
        "projection and positions": lambda: (project(features), positions(x)),
        "head": lambda: head(x),
    }
    if model.transducer is not None:
        transducer = Transducer(model.transducer, encoder.dim, outputs).eval()
        parts["transducer"] = lambda: _unit_in_each_frame(transducer, x[0])
    return parts


def _unit_in_each_frame(transducer: Transducer, hidden: Tensor) -> None:
    """Predictor and joiner of hidden (T, C), called as often as decoding without a beam does at most."""
    state, unit = transducer.predictor.start(1), torch.tensor([1])
    for frame in transducer.encoder_projection(hidden):
        transducer.logits(frame, transducer.predictor_projection(transducer.predictor.read(state)))
        state = transducer.predictor.advance(state, unit)


def _block(model: Model, widths: BlockWidths, frames: Frames) -> Callable[[], object]:
    """One block with a full cache."""
    encoder = model.encoder.model_copy(update=widths._asdict())
    block = BLOCKS[encoder.block](encoder).eval()

    def context(queries: int, keys: int) -> Context:
        relative = torch.zeros(widths.heads, queries, keys) if encoder.relative_buckets else None
        return Context(torch.ones(1, 1, queries, keys, dtype=torch.bool), relative)

    past, x = (torch.randn(1, count, encoder.dim) for count in (frames.past, frames.now))
    cache = block(past, context(frames.past, frames.past))[1] if frames.past else None
    now = context(frames.now, frames.past + frames.now)
    return lambda: block(x, now, cache)


def _seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor time of this thread over repeated calls, after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.thread_time()
        work()
        times.append(time.thread_time() - started)
    return statistics.median(times)
