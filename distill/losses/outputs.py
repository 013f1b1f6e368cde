"""MSE between the student's logits and the teacher's, papers/001 Eq. 3, of the main or the second output."""

from __future__ import annotations

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import LossTerm as Settings
from distill.losses.term import Losses, LossTerm, TermContext, masked_mse


class OutputMse(LossTerm):
    """Of the main output."""

    needs = frozenset({"outputs"})
    name, output = "outputs", "logits"

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> OutputMse:
        return cls()

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term; none where student or teacher have no such output."""
        assert teacher is not None
        ours, theirs = getattr(student, self.output), getattr(teacher, self.output)
        if ours is None or theirs is None:
            return Losses({})
        return Losses({self.name: masked_mse(ours, theirs, valid_mask(teacher.lengths, ours.shape[1]))})


class CtcOutputMse(OutputMse):
    """Of the second, CTC output, where both models have one."""

    name, output = "ctc_outputs", "ctc_logits"
