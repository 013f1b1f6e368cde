"""Discriminative distillation (papers/000, L_disc): the student's distribution over codewords against the teacher's."""

from __future__ import annotations

import torch.nn.functional as F

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Discriminative as Settings
from distill.losses.term import Losses, LossTerm, TermContext, masked_mean
from distill.models.codes import CodeHead


class CodewordKl(LossTerm):
    """KL(teacher || student) over the teacher's codewords, a mean over frames: all, or those masked in the student.

    head: the student's own, used in training only.
    """

    needs = frozenset({"codes", "masks"})

    def __init__(self, head: CodeHead, masked_only: bool) -> None:
        super().__init__()
        self.head, self.masked_only = head, masked_only

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> CodewordKl:
        head = CodeHead(context.student.encoder.dim, settings.final_dim, context.clusters, settings.temperature)
        return cls(head, settings.frames == "masked")

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        assert teacher is not None and teacher.codes is not None
        ours = self.head(student.hidden[-1]).log_softmax(2)
        theirs = teacher.codes.float().log_softmax(2)
        inside = valid_mask(teacher.lengths, ours.shape[1])
        if self.masked_only:
            assert student.masked is not None
            inside = inside & student.masked
        divergence = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(2)
        return Losses({"discriminative": masked_mean(divergence, inside)})
