"""Regression of hidden states by L1 and cosine distance: DistilHuBERT (Chang et al. 2022, Eq. 1), papers/000 L_reg."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from distill.batch import Batch, Output, Targets, valid_mask
from distill.config.losses import Regression as Settings
from distill.losses.term import Losses, LossTerm, TermContext, masked_mean


class Regression(LossTerm):
    """|p - t| / D - cosine_weight log σ(cos(p, t)) of a predicted state p and a teacher's t, of D channels.

    A mean over frames and over predicted blocks, as in DistilHuBERT's code; that counts padded frames too, here none
    counts. pairs: student block i, teacher block g. expanded: all predictions come from one layer over the last block,
    of a part for each, else each from its own block. Either way they are used in training only.
    """

    needs = frozenset({"hidden"})

    def __init__(
        self, pairs: Sequence[tuple[int, int]], dim: int, teacher_dim: int, expanded: bool, cosine_weight: float
    ) -> None:
        super().__init__()
        self.pairs, self.cosine_weight = tuple(pairs), cosine_weight
        self.expansion = nn.Sequential(nn.Linear(dim, dim * len(pairs)), nn.GELU()) if expanded else None
        self.predictions = nn.ModuleList(nn.Linear(dim, teacher_dim) for _ in pairs)

    @classmethod
    def build(cls, settings: Settings, context: TermContext) -> Regression:
        assert context.teacher is not None
        student, last = context.student.encoder, settings.heads == "last"
        pairs = (
            [(student.layers, g) for g in settings.blocks] if last else [*settings.layer_map(student.layers).items()]
        )
        return cls(pairs, student.dim, context.teacher.encoder.dim, last, settings.cosine_weight)

    def forward(self, student: Output, teacher: Targets | None, batch: Batch) -> Losses:
        """One term per predicted block, `regression<i>_<g>`."""
        assert teacher is not None
        inside = valid_mask(teacher.lengths, student.logits.shape[1])
        if self.expansion is None:
            states = [student.hidden[i] for i, _ in self.pairs]
        else:
            states = list(self.expansion(student.hidden[-1]).chunk(len(self.pairs), 2))
        terms = {}
        for (i, g), layer, state in zip(self.pairs, self.predictions, states):
            term = masked_mean(self.distance(layer(state).float(), teacher.hidden[g].float()), inside)
            terms[f"regression{i}_{g}"] = term._replace(weight=1 / len(self.pairs))
        return Losses(terms)

    def distance(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Of each frame: (B, T, D) twice -> (B, T)."""
        similarity = F.cosine_similarity(ours, theirs, dim=2)
        return (ours - theirs).abs().mean(2) - self.cosine_weight * F.logsigmoid(similarity)
