"""Enhancement beside distillation, the head of RobustDistiller (Guimarães et al. 2023)."""

from __future__ import annotations

from torch import nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Denoising as Settings
from distill.losses.fbank_targets import stacked_fbank, stacked_frames
from distill.losses.term import Losses, LossTerm, TermContext, masked_mean


class Denoising(LossTerm):
    """L1 distance of the clean waveform's normed log-mel energies from a linear prediction of the last hidden states.

    A mean over frames and energies. Shape of the head, features and distance are choices of this project.
    """

    needs = frozenset({"clean"})

    def __init__(self, dim: int, mels: int, stacked: int) -> None:
        """stacked: Fbank frames per frame of the encoder."""
        super().__init__()
        self.mels, self.stacked = mels, stacked
        self.prediction = nn.Linear(dim, stacked * mels)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Denoising:
        return cls(context.student.encoder.dim, settings.mels, stacked_frames(context.student, "denoising"))

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        assert batch.clean is not None
        predicted = self.prediction(student.hidden[-1]).float()
        targets = stacked_fbank(batch.clean, batch.samples, self.mels, self.stacked, predicted.shape[1])
        inside = valid_mask(student.lengths, predicted.shape[1])
        error = (predicted - targets).abs().sum(2)
        return Losses({"denoising": masked_mean(error, inside, predicted.shape[2])})
