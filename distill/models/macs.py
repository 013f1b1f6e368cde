"""Multiply-adds of a model from its settings alone, for one second of audio, with whole widths or expected ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.config.model import FBANK_WIDTH, SAMPLE_RATE, FrontEnd, Model
from distill.fbank import FFT
from distill.models.encoder import BLOCKS
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
        total += frames.seconds * trunk_macs(model, frames=frames)
    return total


def trunk_macs(model: Model, units: Mapping[str, Any] = {}, frames: Frames | None = None) -> Any:
    """Multiply-adds of front-end and encoder for one second of audio; units, frames: as `with_units`, `macs`.

    Of expected numbers of units, each open or not apart from all others, they are the expected ones, with a gradient.
    """
    parts = macs(with_units(model, units), 0, frames)
    return sum(count for part, count in parts.items() if part not in ("head", "transducer"))


def with_units(model: Model, units: Mapping[str, Any]) -> Model:
    """Settings with so many units in place of their own, by the names of gates; nothing is checked."""
    front, encoder = model.front_end, model.encoder
    layers = tuple((units.get(f"conv{i}", width), *layer) for i, (width, *layer) in enumerate(front.layers))
    widths = {
        name: tuple(units.get(f"block{i}_{name}", getattr(encoder.widths(i), name)) for i in range(encoder.layers))
        for name in BLOCKS[encoder.block].units(encoder, 0)
    }
    head_dim, projects = encoder.widths().head_dim, encoder.always_project or front.layers[-1][0] != encoder.dim
    encoder = encoder.model_copy(update={**widths, "head_dim": head_dim, "always_project": projects})
    return model.model_copy(update={"front_end": front.model_copy(update={"layers": layers}), "encoder": encoder})


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
