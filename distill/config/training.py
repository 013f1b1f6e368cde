"""Settings of a training: data, augmentation, teacher, optimiser, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distill.config.bounds import (
    Beam,
    Count,
    EachOnce,
    Epsilon,
    Flag,
    Folder,
    InOrder,
    Name,
    Number,
    Positive,
    Probability,
    Scale,
    Seconds,
    Share,
    Snr,
    SumsTo1,
    Weight,
    Whole,
)  # fmt: skip
from distill.config.loading import Settings

Volume = Annotated[Number, Field(gt=0, le=1000)]
Pitch = Annotated[Number, Field(ge=0.25, le=4)]


class Lattice(Settings):
    """How stored lattices become numerators (Manohar et al. 2018; the formula: `distill.graphs.numerator_weights`)."""

    beam: Beam = 4.0  # sequences this much worse than the best are left out
    lm_scale: Weight = 0.5  # share of the denominator LM's scores that the decoding graph's replace
    acoustic_scale: Weight = 0.0  # of the teacher's acoustic scores on the paths
    # frames by which a unit may lie outside of where the lattice has it; -1: anywhere
    tolerance: Annotated[Whole, Field(ge=-1, le=10**6)] = -1
    confidence: Flag = False  # frames weighted by the posterior of the best path's output
    nbest: Annotated[Whole, Field(ge=1, le=100_000)] = 10  # sequences of numerator: nbest
    nbest_beam: Beam = 6.0


class Data(Settings):
    """Training data; parts are names of cut sets in data/cuts."""

    train: Annotated[tuple[Name, ...], EachOnce, Field(min_length=1)] = ("labelled",)
    share: Annotated[Number, Field(gt=0, le=1)] = 1.0  # of their utterances; smaller shares are parts of larger ones
    valid: Name = "dev"
    valid_utterances: Count = 0  # 0: all of the part
    max_duration: Seconds = 200.0  # seconds of audio per batch, over all ranks together
    buckets: Positive = 30
    window: Annotated[Whole, Field(ge=1, le=10**8)] = 20_000  # cuts in memory at a time, which are shuffled together
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2  # loading processes of each rank; 0: in the training process
    keep_audio: Flag = False  # keep decoded audio in memory (small corpora)
    short_first: Flag = False  # first epoch in order of duration
    numerator: Literal["transcript", "one_best", "nbest", "lattice"] = "lattice"  # of cuts without text
    lattice: Lattice = Lattice()
    denominator: Literal["text", "labelled"] = "text"  # whose sentences the unit n-gram is of: labelled transcripts

    @property
    def parts(self) -> tuple[str, ...]:
        """All cut sets that are read, each once."""
        return tuple(dict.fromkeys((*self.train, self.valid)))


class Augment(Settings):
    """Waveform augmentation, each with its own probability (papers/001 §5.1.3)."""

    volume_probability: Probability = 0.5
    volume: Annotated[tuple[Volume, Volume], InOrder] = (0.3, 3.0)
    pitch_probability: Probability = 0.5
    pitch: Annotated[tuple[Pitch, Pitch], InOrder] = (0.9, 1.1)
    noise_probability: Probability = 0.0
    noise_snr: Annotated[tuple[Snr, Snr], InOrder] = (8.0, 30.0)  # dB
    noise_part: Folder = ""  # folder of clips below the data dir; empty: coloured noise


class Teacher(Settings):
    """The experiment whose hidden states and outputs are targets."""

    RENAMED: ClassVar[Mapping[str, str]] = {"hears": "input"}

    experiment: Name
    # the student's waveform, the one before augmentation and distortion, or one with its own draws of both
    input: Literal["augmented", "clean", "second"] = "augmented"
    keep_targets: Flag = False  # compute each cut's targets once and store them; needs input: clean
    # hidden states of frames that model.mask hits in the student are targets as they are, of others as the teacher has
    # them with the same frames masked (MaskHuBERT)
    masked: Flag = False

    @model_validator(mode="after")
    def _check(self) -> Teacher:
        if self.keep_targets and self.input != "clean":
            raise ValueError("teacher.keep_targets needs teacher.input: clean (targets change with augmentation)")
        if self.keep_targets and self.masked:
            raise ValueError("teacher.keep_targets needs teacher.masked: false (targets change with the mask)")
        return self


class Optim(Settings):
    """AdamW with the tri-state schedule: warm up, hold, decay to `final_scale` of the peak."""

    updates: Count = 0  # exactly one of updates and epochs
    epochs: Count = 0
    lr: Scale = 5e-4
    trunk_scale: Scale = 1.0  # learning rate of front-end and encoder, pre-trained ones, relative to the rest's
    betas: tuple[Share, Share] = (0.9, 0.98)
    eps: Epsilon = 1e-6
    weight_decay: Weight = 0.01
    clip: Annotated[Number, Field(gt=0, le=10**9)] = 2.0  # of the gradient's norm
    phases: Annotated[tuple[Probability, Probability, Probability], SumsTo1] = (0.1, 0.4, 0.5)  # of all updates
    final_scale: Probability = 0.05
    decay: Literal["linear", "exponential", "cosine"] = "linear"  # as papers/001 writes, as fairseq does, as papers/004
    accumulate: Annotated[Whole, Field(ge=1, le=10_000)] = 1  # batches per update
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def check_length(self) -> None:
        """Raise ValueError where a training would have no end, or two."""
        if (self.updates > 0) == (self.epochs > 0):
            raise ValueError(
                "give either optim.updates or optim.epochs, and a positive number"
                f" (got updates: {self.updates}, epochs: {self.epochs})"
            )

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if self.decay == "exponential" and not self.final_scale:
            raise ValueError("final_scale must be greater than 0 with decay: exponential (got 0)")
        return self


class Compute(Settings):
    """Memory against time; may change between two calls of the same training, as it changes no result but rounding."""

    checkpoint_activations: Flag = False  # of blocks: their inner activations are computed again in the backward pass
    compile: Flag = False  # blocks and convolutions by torch.compile; needs a C++ compiler, and minutes at first


class Saving(Settings):
    """Checkpoints: one per epoch, plus one every `every_updates` to survive being killed, beside the one before it."""

    every_updates: Positive = 500
    least_updates: Count = 0  # epochs that end sooner after a validation have none, and no checkpoint
    keep: Positive = 10  # last epochs' checkpoints that are kept, beside that of the lowest validation loss
