"""Cost of a model from its settings alone: parameters, multiply-adds, and a prediction of its speed."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.config.experiment import Experiment
from distill.config.model import FBANK_WIDTH, SAMPLE_RATE, BlockWidths, FrontEnd, Model
from distill.fbank import FFT
from distill.models.attention import Context
from distill.models.encoder import BLOCKS, build_positions
from distill.models.front_end import build_front_end
from distill.models.heads import build_head
from distill.models.recogniser import count_parameters, without_values
from distill.models.transducer import Transducer

TRANSFORMS = {"fbank": "Fbank", "log_mel": "log-mels"}
"""The part before the convolutions, by a front-end's input."""
OFFLINE_SECONDS = 15.0
"""Length of the utterance that a model with full context is measured on."""

SUPERB_SAMPLES = (
    20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520,
    92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640, 154000, 166720, 180880, 197920, 217920, 239280,
    268160, 326000,
)  # fmt: skip
"""Lengths of the utterances that SUPERB's challenge counts over: every 82nd of LibriSpeech's test-clean by length."""


@dataclass(frozen=True)
class Frames:
    """Frames that go through the encoder at once, and past frames that their attention sees."""

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
    """Parameters of trunk and head, without allocating them."""
    return count_parameters(without_values(model, outputs))


def quantizer_parameters(features: int, dim: int, code_dim: int, groups: int = 2, entries: int = 320) -> int:
    """Parameters of wav2vec 2.0 that only its pre-training uses: quantizer and both projections.

    features: channels of the convolutions; code_dim: of codebooks and the contrastive loss (BASE 256, Large 768).
    """
    codebooks = entries * code_dim
    chooses = (features + 1) * groups * entries
    return codebooks + chooses + (code_dim + 1) * code_dim + (dim + 1) * code_dim


def macs(model: Model, outputs: int, frames: Frames | None = None) -> dict[str, float]:
    """Multiply-adds for one second of audio, by part, of one output; norms and activations are not counted.

    A transducer is counted beside the output, as if each frame had a unit. frames: in place of those of `frames_of`.
    """
    encoder, frames = model.encoder, frames or frames_of(model)
    dim, rate, features = encoder.dim, frames.per_second, model.front_end.layers[-1][0]
    projects, shared = encoder.always_project or features != dim, model.shared_head_dim
    convolution = dim * dim / encoder.position_groups * encoder.position_kernel
    joined = encoder.time_reduction
    blocks: Counter[str] = Counter({"time reduction": dim * dim * joined} if joined > 1 else {})
    for index in range(encoder.layers):
        blocks.update(BLOCKS[encoder.block].macs(encoder, index, (frames.past + frames.now) // joined))
    heads = {"head": rate * (dim * shared + shared * outputs if shared else dim * outputs)}
    if model.transducer is not None:
        heads["transducer"] = rate * Transducer.macs(model.transducer, dim, outputs)
    return {
        **_front_end_macs(model.front_end),
        "projection": rate * features * dim * projects,
        "positions": rate * convolution if encoder.positions == "convolution" else 0.0,
        **{part: rate / joined * count for part, count in blocks.items()},
        **heads,
    }


def superb_macs(model: Model) -> float:
    """Multiply-adds of the trunk over all utterances of SUPERB's challenge, one by one, as papers/004 counts them.

    Feng et al. 2022. The challenge's figure of HuBERT base, 1669 G, has 0.2 % more: its pre-training's projection, and
    frames padded to an even number.
    """
    total = 0.0
    for samples in SUPERB_SAMPLES:
        frames = Frames(model.front_end.frames(samples), 0, SAMPLE_RATE / model.front_end.hop)
        parts = macs(model, 0, frames)
        total += frames.seconds * sum(count for part, count in parts.items() if part not in ("head", "transducer"))
    return total


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


def _front_end_macs(front: FrontEnd) -> dict[str, float]:
    rate, channels, total = SAMPLE_RATE / front.unit[0], 1, 0.0
    frames = {}
    if front.input in TRANSFORMS:
        size, channels = FFT if front.input == "fbank" else FBANK_WIDTH, front.mels
        transform = size * size.bit_length()  # about 5 N log2 N / 2 operations, half of them multiplications
        frames = {TRANSFORMS[front.input]: rate * (transform + (size // 2 + 1) * front.mels)}
    for width, kernel, stride in front.layers:
        rate /= stride
        total += rate * width * channels * kernel
        channels = width
    return {**frames, "convolutions": total}


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
