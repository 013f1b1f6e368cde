"""Lattice-free MMI: numerator against denominator, papers/001 Eq. 4 and 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distill.fsa import Engine, Hmm
from distill.fsa.frames import weighted, within_windows
from distill.losses.term import Term


class MmiResult(NamedTuple):
    """term: -(num - den_scale den) over frames; dropped, recomputed: utterances without a path, and underflowed."""

    term: Term
    dropped: Tensor
    recomputed: int


class LfMmi(nn.Module):
    """-(num - den_scale * den), summed over utterances and counted in valid frames.

    With numerators that carry the denominator's weights (`graphs.numerator`) and den_scale 1, it is
    never negative. Utterances without a path in their numerator are left out and counted.
    """

    def __init__(self, engine: Engine, denominator: Hmm, den_scale: float = 1.0) -> None:
        super().__init__()
        self.engine, self.denominator, self.den_scale = engine, denominator, den_scale

    def forward(self, logits: Tensor, lengths: Tensor, numerators: Sequence[Hmm]) -> MmiResult:
        """logits (B, T, V) not normalised, lengths (B,), one numerator graph per utterance."""
        log_probs = weighted(logits.float().log_softmax(-1), numerators)
        num = self.engine.score(within_windows(log_probs, numerators), lengths, numerators)
        den = self.engine.score(log_probs, lengths, self.denominator)
        used = num.valid & den.valid
        loss = self.den_scale * den.total - num.total
        total = torch.where(used, loss, loss.new_zeros(())).sum()
        frames = torch.where(used, lengths.to(used.device), 0).sum()
        return MmiResult(Term(total, frames), (~used).sum(), den.recomputed)
