"""Lattice-free MMI: numerator against denominator, papers/001 Eq. 4 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.batch import valid_mask
from distill.config.training import Objective
from distill.fsa.graph import Hmm
from distill.lfmmi import Engine, build_engine
from distill.lfmmi.frame_constraints import weighted, within_windows
from distill.losses.term import Term

OUTPUT_RANGE = 30.0  # logits beyond this are penalised, as in Kaldi's chain training


class MmiResult(NamedTuple):
    """term: -(num - den_scale den) over frames; dropped, recomputed: utterances without a path, and underflowed.

    penalty: squared excess of logits beyond +-30 over the same frames, None where it is off.
    """

    term: Term
    dropped: Tensor
    recomputed: int
    penalty: Term | None = None


class LfMmi(nn.Module):
    """-(num - den_scale * den), summed over utterances and counted in valid frames.

    With numerators that carry the denominator's weights (`graphs.numerator`) and den_scale 1, it is
    never negative. Utterances without a path in their numerator are left out and counted. out_of_range: scale
    of the penalty that keeps logits within +-30 (Kaldi's out-of-range regularisation, 0.01 in its recipes), 0: off.
    """

    def __init__(self, engine: Engine, denominator: Hmm, den_scale: float = 1.0, out_of_range: float = 0.0) -> None:
        super().__init__()
        self.engine, self.denominator = engine, denominator
        self.den_scale, self.out_of_range = den_scale, out_of_range

    def forward(self, logits: Tensor, lengths: Tensor, numerators: Sequence[Hmm]) -> MmiResult:
        """logits (B, T, V) not normalised, lengths (B,), one numerator graph per utterance."""
        log_probs = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(-1)
        log_probs = weighted(log_probs, numerators)
        num = self.engine.score(within_windows(log_probs, numerators), lengths, numerators)
        den = self.engine.score(log_probs, lengths, self.denominator)
        used = num.valid & den.valid
        loss = self.den_scale * den.total - num.total
        total = torch.where(used, loss, loss.new_zeros(())).sum()
        counted = torch.where(used, lengths.to(used.device), 0)
        penalty = Term(self._excess(logits, counted), counted.sum()) if self.out_of_range else None
        return MmiResult(Term(total, counted.sum()), (~used).sum(), den.recomputed, penalty)

    def _excess(self, logits: Tensor, lengths: Tensor) -> Tensor:
        excess = (logits.float().abs() - OUTPUT_RANGE).clamp_min(0).square().sum(2)
        inside = valid_mask(lengths, logits.shape[1])
        return self.out_of_range * torch.where(inside, excess, excess.new_zeros(())).sum()


class Ctc(nn.Module):
    """-num: connectionist temporal classification over numerators (Graves et al. 2006), for a second output.

    Of a single transcript it is CTC plus what the numerator's path weighs; of a lattice all its paths count.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine

    def forward(self, logits: Tensor, lengths: Tensor, numerators: Sequence[Hmm]) -> Term:
        """logits (B, T, V) not normalised, lengths (B,); utterances without a path are left out."""
        log_probs = weighted(logits.float().log_softmax(-1), numerators)
        num = self.engine.score(within_windows(log_probs, numerators), lengths, numerators)
        total = torch.where(num.valid, -num.total, num.total.new_zeros(())).sum()
        return Term(total, torch.where(num.valid, lengths.to(num.valid.device), 0).sum())


def build_mmi(settings: Objective, engine: str, denominator: Hmm) -> LfMmi:
    """LF-MMI as an experiment's objective asks for it; raises ValueError for what the engine cannot do."""
    sums = build_engine(engine, settings.leaky, settings.precision)
    return LfMmi(sums, denominator, settings.den_scale, settings.out_of_range)
