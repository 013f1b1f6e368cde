"""Lattice-free MMI: numerator against denominator, papers/001 Eq. 4 and 5."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Mmi as Settings
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, build_engine
from distill.lfmmi.frame_constraints import weighted, within_windows
from distill.losses.term import Losses, LossTerm, Term, TermContext

OUTPUT_RANGE = 30.0  # logits beyond this are penalised, as in Kaldi's chain training


class LfMmi(LossTerm):
    """-(num - den_scale * den), summed over utterances and counted in valid frames.

    With numerators that carry the denominator's weights (`graphs.numerator`) and den_scale 1, it is
    never negative. Utterances without a path in their numerator are left out and counted. out_of_range: scale
    of the penalty that keeps logits within +-30 (Kaldi's out-of-range regularisation, 0.01 in its recipes), 0: off.
    """

    needs = frozenset({"graphs"})

    def __init__(self, engine: Engine, denominator: Hmm, den_scale: float = 1.0, out_of_range: float = 0.0) -> None:
        super().__init__()
        self.engine, self.denominator = engine, denominator
        self.den_scale, self.out_of_range = den_scale, out_of_range

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> LfMmi:
        assert context.denominator is not None
        engine = build_engine(context.engine, settings.leaky, settings.precision)
        return cls(engine, context.denominator, settings.den_scale, settings.out_of_range)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """`loss` of the main output."""
        return self.loss(student.logits, student.lengths, batch.graphs)

    def loss(self, logits: Tensor, lengths: Tensor, numerators: Sequence[Hmm]) -> Losses:
        """logits (B, T, V) not normalised, lengths (B,), one numerator graph per utterance.

        Terms: mmi, and where its scale is above 0 out_of_range, the squared excess of logits over the same frames.
        """
        log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        log_probs = weighted(log_probs, numerators)
        num = self.engine.score(within_windows(log_probs, numerators), lengths, numerators)
        den = self.engine.score(log_probs, lengths, self.denominator)
        used = num.valid & den.valid
        loss = self.den_scale * den.total - num.total
        counted = torch.where(used, lengths.to(used.device), 0)
        terms = {"mmi": Term(torch.where(used, loss, loss.new_zeros(())).sum(), counted.sum())}
        if self.out_of_range:
            excess = (logits.float().abs() - OUTPUT_RANGE).clamp_min(0).square().sum(2)
            inside = valid_mask(counted, logits.shape[1])
            total = self.out_of_range * torch.where(inside, excess, excess.new_zeros(())).sum()
            terms["out_of_range"] = Term(total, counted.sum())
        return Losses(terms, (~used).to(logits.device), den.recomputed)
