"""Domain-adversarial training against distortions (papers/003 §3.2.3; Ganin et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from distill.batch import Batch, Output, Targets, mean_over_frames
from distill.config.losses import Adversary as Settings
from distill.losses.term import Losses, LossTerm, ParameterGroup, Term, TermContext
from distill.models.encoder import scaled_gradient


class Adversary(LossTerm):
    """Binary cross-entropy of each distortion from the mean of the last hidden states, a mean over distortions.

    The classifier goes down its gradient and the student, by `reversal`, up (Eq. 3 and 4): in one update of both, where
    the paper has two, so that the student's gradient passes the classifier as it is before its step.
    """

    needs = frozenset({"distortions"})

    def __init__(self, dim: int, distortions: int, reversal: float, lr_scale: float) -> None:
        super().__init__()
        self.classifier, self.reversal = nn.Linear(dim, distortions), reversal
        self.group = ParameterGroup("adversary", lr_scale, apart=True)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Adversary:
        return cls(context.student.encoder.dim, context.distortions, settings.reversal, settings.lr_scale)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """Terms: adversary, in training alone part of the loss; as a figure the share of utterances with all right."""
        assert batch.distortions is not None
        hidden, labels = student.hidden[-1].float(), batch.distortions
        mean = mean_over_frames(hidden, student.lengths)
        logits = self.classifier(scaled_gradient(mean, -self.reversal)).float()
        total = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        right = ((logits > 0) == (labels > 0)).all(1)
        utterances, every = torch.tensor(len(labels)), torch.tensor(labels.numel())
        accuracy = Term(right.sum(), utterances, 0.0)
        return Losses({"adversary": Term(total, every, float(self.training)), "adversary_accuracy": accuracy})
