"""Front-end distillation (papers/000, L_front): the student's frames in front of the encoder against the teacher's."""

from __future__ import annotations

from torch import nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Front as Settings
from distill.losses.term import Losses, LossTerm, TermContext, masked_mean, masked_mse


class FrontDistance(LossTerm):
    """L1 or L2 distance of normed frames, a mean over frames and channels; through a Linear where widths differ.

    The paper's summary names both distances, and neither the place of the norm nor a map: these are choices.
    """

    needs = frozenset({"features"})

    def __init__(self, channels: int, teacher_channels: int, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.map = nn.Identity() if channels == teacher_channels else nn.Linear(channels, teacher_channels)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> FrontDistance:
        assert context.teacher is not None
        ours, theirs = (model.front_end.layers[-1][0] for model in (context.student, context.teacher))
        return cls(ours, theirs, settings.kind)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        assert teacher is not None and teacher.normed is not None and student.normed is not None
        ours, inside = self.map(student.normed).float(), valid_mask(teacher.lengths, student.logits.shape[1])
        if self.kind == "l2":
            return Losses({"front": masked_mse(ours, teacher.normed, inside)})
        error = (ours - teacher.normed.float()).abs().sum(2)
        return Losses({"front": masked_mean(error, inside, ours.shape[2])})
