"""Connectionist temporal classification (Graves et al. 2006) for the second output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.batch import Batch, Output, Targets
from distill.config.losses import Ctc as Settings
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, build_engine
from distill.lfmmi.frame_constraints import weighted, within_windows
from distill.losses.term import Losses, LossTerm, Term, TermContext


class Ctc(LossTerm):
    """-num over numerators: of a transcript CTC plus its path's weight, of a lattice the sum over all paths."""

    needs = frozenset({"graphs"})

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Ctc:
        return cls(build_engine(context.engine, 0.0, settings.precision))

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """`loss` of the second output."""
        assert student.ctc_logits is not None
        return self.loss(student.ctc_logits, student.lengths, batch.graphs)

    def loss(self, logits: Tensor, lengths: Tensor, numerators: Sequence[Hmm]) -> Losses:
        """logits (B, T, V) not normalised, lengths (B,); utterances without a path are left out, and named."""
        log_probs = weighted(logits.float().log_softmax(-1), numerators)
        num = self.engine.score(within_windows(log_probs, numerators), lengths, numerators)
        total = torch.where(num.valid, -num.total, num.total.new_zeros(())).sum()
        term = Term(total, torch.where(num.valid, lengths.to(num.valid.device), 0).sum())
        return Losses({"ctc": term}, ~num.valid)
