"""Settings of a training: data, augmentation, teacher, objective, optimiser, checkpoints."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from distill.config.loading import Settings


class Lattice(Settings):
    """How stored lattices become numerators (Manohar et al. 2018; the formula: `distill.graphs.weighting`)."""

    beam: float = 4.0  # sequences this much worse than the best are left out
    lm_scale: float = 0.5  # share of the denominator LM that the decoding graph's scores stand in for
    acoustic_scale: float = 0.0  # of the teacher's acoustic scores on the paths
    tolerance: int = -1  # frames by which a unit may lie outside of where the lattice has it; -1: anywhere
    confidence: bool = False  # frames weighted by the posterior of the best path's output
    nbest: int = 10  # sequences of numerator: nbest
    nbest_beam: float = 6.0


class Data(Settings):
    """What is trained on; parts are names of cut sets in data/cuts."""

    train: tuple[str, ...] = ("labelled",)
    valid: str = "dev"
    valid_utterances: int = 0  # 0: all of the part
    max_duration: float = 200.0  # seconds of audio per batch, over all ranks together
    buckets: int = 30
    workers: int = 2  # loading processes of each rank; 0: in the training process
    keep_audio: bool = False  # keep decoded audio in memory (small corpora)
    short_first: bool = False  # first epoch in order of duration
    numerator: Literal["transcript", "one_best", "nbest", "lattice"] = "lattice"  # of cuts without text
    lattice: Lattice = Lattice()


class Augment(Settings):
    """Waveform augmentation, each with its own probability (papers/001 §5.1.3)."""

    volume_probability: float = 0.5
    volume: tuple[float, float] = (0.3, 3.0)
    pitch_probability: float = 0.5
    pitch: tuple[float, float] = (0.9, 1.1)
    noise_probability: float = 0.0
    noise_snr: tuple[float, float] = (8.0, 30.0)  # dB
    noise_part: str = ""  # folder of clips below the data dir; empty: coloured noise


class Teacher(Settings):
    """Whose layers and outputs the student learns."""

    experiment: str
    hears: Literal["augmented", "clean"] = "augmented"  # the student's waveform, or the one before augmentation
    keep_targets: bool = False  # compute each cut's targets once; needs hears: clean

    @model_validator(mode="after")
    def _check(self) -> Teacher:
        if self.keep_targets and self.hears != "clean":
            raise ValueError("teacher.keep_targets needs teacher.hears: clean (targets change with augmentation)")
        return self


class Objective(Settings):
    """(1 - alpha) hidden + alpha (beta LF-MMI + (1 - beta) MSE of outputs), papers/001 Eq. 1-3."""

    alpha: float = 0.8
    beta: float = 0.8
    mmi_scale: float = 5.0  # about the frames of a phone: LF-MMI is counted per frame, MSE per value
    ctc_scale: float = 0.0  # of the second output's CTC (model.ctc_output) beside LF-MMI, relative to it
    den_scale: float = 1.0
    leaky: float = 0.0  # coefficient of the leaky HMM in the denominator (Kaldi's recipes: 0.1), 0: off
    out_of_range: float = 0.0  # scale of the penalty on logits beyond +-30 (Kaldi's recipes: 0.01), 0: off
    precision: Literal["input", "float32", "float64"] = "input"  # of the sums over paths
    teacher_layers: tuple[int, ...] = ()  # g(i) of student block i = 1..; 0: none; empty: 2i
    hidden_norm: Literal["none", "layer"] = "none"  # targets as they are, or normalised over channels

    @property
    def uses_hidden(self) -> bool:
        return self.alpha < 1

    @property
    def uses_outputs(self) -> bool:
        return self.alpha > 0 and self.beta < 1

    @property
    def uses_mmi(self) -> bool:
        return self.alpha > 0 and self.beta > 0

    @property
    def uses_ctc(self) -> bool:
        return self.ctc_scale > 0


class Optim(Settings):
    """Adam with the tri-state schedule: warm up, hold, decay to `final_scale` of the peak."""

    updates: int = 0  # exactly one of updates and epochs
    epochs: int = 0
    lr: float = 5e-4
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip: float = 2.0
    phases: tuple[float, float, float] = (0.1, 0.4, 0.5)
    final_scale: float = 0.05
    decay: Literal["linear", "exponential"] = "linear"  # as the paper writes, or as fairseq does
    accumulate: int = 1  # batches per update
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> Optim:
        if (self.updates > 0) == (self.epochs > 0):
            raise ValueError("give either optim.updates or optim.epochs, and a positive number")
        return self


class Saving(Settings):
    """Checkpoints: one per epoch, plus one every `every_updates` to survive being killed."""

    every_updates: int = 500
    keep: int = 10  # epoch checkpoints kept
